/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_BYPASS_H
#define BPFTK_BYPASS_H

#include "common.h"

/* A socket option that was refused, since what it is for goes past tc. */
struct bypass_record {
	__u64 time_ns;
	/* Who asked for it, by the initial namespace's number. */
	__u32 tgid;
	__u32 level;
	char comm[16];
};

_Static_assert(sizeof(struct bypass_record) == 32, "user space has the same");

#endif
