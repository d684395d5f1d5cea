/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_COMMON_BPF_H
#define BPFTK_COMMON_BPF_H

/*
 * What every program needs: the helpers, the ring buffer, and the counters of what could not be reported.
 */

#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "common.h"

#define AF_INET 2
#define AF_INET6 10

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, BPFTK_RING_BYTES);
} events SEC(".maps");

/* What was not reported, by enum bpftk_loss. Cumulative; user space sums the CPUs. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, BPFTK_LOSSES);
	__type(key, __u32);
	__type(value, __u64);
} losses SEC(".maps");

/* For the skeleton, which learns of an enum only from a variable. */
enum bpftk_loss _loss;
enum bpftk_record _record;

static __always_inline void count_loss(__u32 cause)
{
	__u64 *count = bpf_map_lookup_elem(&losses, &cause);

	/* The slot is this CPU's, but a tracepoint in a softirq may interrupt one in a task. */
	if (count)
		__sync_fetch_and_add(count, 1);
}

/* Copies @record to the ring buffer, or counts that it did not fit. */
static __always_inline void emit_record(void *record, __u64 size)
{
	if (bpf_ringbuf_output(&events, record, size, 0))
		count_loss(BPFTK_LOSS_RING_FULL);
}

/*
 * 1 if the value isn't 0, else 0. Without a branch: for the verifier each doubles what is behind it (Linux 5.10), or what comes of the
 * two is two numbers to go on with.
 */
static __always_inline __u64 is_set(__u64 value)
{
	__u64 negative = -value;

	/* Else the compiler sees what it is about, and makes a branch of it. */
	asm volatile("" : "+r"(negative));
	return (value | negative) >> 63;
}

static __always_inline void set_v4_mapped(__u8 addr[16], __be32 v4)
{
	__builtin_memset(addr, 0, 10);
	addr[10] = addr[11] = 0xff;
	__builtin_memcpy(addr + 12, &v4, 4);
}

#endif
