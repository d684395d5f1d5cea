/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_SOCKREDIR_COUNTS_BPF_H
#define BPFTK_SOCKREDIR_COUNTS_BPF_H

/* What sockredir counts. */

#include "common.bpf.h"
#include "sockredir.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SOCKREDIR_COUNTS);
	__type(key, __u32);
	__type(value, __u64);
} counts SEC(".maps");

static __always_inline void count(__u32 which, __u64 much)
{
	__u64 *slot = bpf_map_lookup_elem(&counts, &which);

	/* The slot is this CPU's, but the programs interrupt each other. */
	if (slot)
		__sync_fetch_and_add(slot, much);
}

static __always_inline void count_maximum(__u32 which, __u64 value)
{
	__u64 *slot = bpf_map_lookup_elem(&counts, &which);

	if (slot && *slot < value)
		*slot = value;
}

static __always_inline void left_to_tcp(__u32 reason)
{
	count(SOCKREDIR_BY_REASON + reason, 1);
}

#endif
