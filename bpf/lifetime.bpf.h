/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_LIFETIME_BPF_H
#define BPFTK_LIFETIME_BPF_H

/*
 * How long a program is to act, decided in the kernel: it must not go on when user space hangs, or is gone and nothing has
 * taken the program away. src/kernel/lifetime.rs sets the time, and while it beats, sets it anew.
 */

#include "vmlinux.h"
#include <bpf/bpf_helpers.h>

/* Whether that time will ever come. */
const volatile bool lifetime_ends;

/* Nanoseconds of CLOCK_MONOTONIC until when to act; 0 is not yet, or not any more. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} lifetime SEC(".maps");

static __always_inline bool lifetime_over(void)
{
	__u32 first = 0;
	__u64 *until = bpf_map_lookup_elem(&lifetime, &first);

	if (!until || !*until)
		return true;
	return lifetime_ends && bpf_ktime_get_ns() >= *until;
}

#endif
