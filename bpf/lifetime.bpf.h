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

/*
 * Nanoseconds of CLOCK_MONOTONIC until when to act; 0 is not yet, or not any more. In a map of its own, which a thread can write
 * to that has nothing else of the program.
 */
volatile __u64 lifetime_until SEC(".data.lifetime");

/* @until: what lifetime_until was. */
static __always_inline bool lifetime_over(__u64 until)
{
	return !until || (lifetime_ends && bpf_ktime_get_ns() >= until);
}

#endif
