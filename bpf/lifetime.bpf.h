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

struct lifetime {
	/* Nanoseconds of CLOCK_MONOTONIC until when to act; 0 is not yet, or not any more. */
	__u64 until;
	/* Until when at the most, however long it beats. */
	__u64 deadline;
};

/* In a map of its own, which a thread can write to that has nothing else of the program. */
volatile struct lifetime lifetime SEC(".data.lifetime");

/* @until: what lifetime.until was. */
static __always_inline bool lifetime_over(__u64 until)
{
	return !until || (lifetime_ends && bpf_ktime_get_ns() >= until);
}

/* Of what is over: whether it should have gone on until now, and does not because nothing has set the time anew. */
static __always_inline bool lifetime_lapsed(__u64 until)
{
	return until && until < lifetime.deadline && bpf_ktime_get_ns() < lifetime.deadline;
}

#endif
