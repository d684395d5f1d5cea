/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_FILTER_BPF_H
#define BPFTK_FILTER_BPF_H

/*
 * BPFTK_FILTER(name, slot) defines `static int name(void *ctx)`, a stub: before the load, what src/filter translated takes its
 * place (src/kernel/filter/inject.rs). It returns the number of the first expression that matches, counted from 1; 0 when none
 * does; and BPFTK_FILTER_UNREADABLE for a packet that could not be read, which is to be counted. The packet, and pointers
 * into it, stay as they are.
 *
 * Static, so that the verifier looks at it where it is called: a global function would lose what is known of the context on
 * 5.10. Through asm, so that the compiler knows nothing of what it returns.
 */
#define BPFTK_FILTER_STUB 0x62706600
#define BPFTK_FILTER_UNREADABLE -1

#define BPFTK_FILTER(name, slot)                                                                     \
	static __attribute__((noinline)) int name(void *ctx)                                         \
	{                                                                                            \
		int number;                                                                          \
		asm volatile("%0 = %1" : "=r"(number) : "i"(BPFTK_FILTER_STUB + (slot)), "r"(ctx)); \
		return number;                                                                       \
	}

#endif
