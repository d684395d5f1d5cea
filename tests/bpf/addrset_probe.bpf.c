/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */

/*
 * Asks sets of addresses for many addresses in one run: ours, the kernel's LPM trie, and nothing at all, to know what the
 * asking costs. For BPF_PROG_TEST_RUN.
 */

#include "addrset.bpf.h"
#include <bpf/bpf_endian.h>

#include "addrset_probe.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* What is asked in this run: @first..@first + PROBE_BATCH. */
__u32 first;
__u32 answered;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PROBE_ADDRESSES);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct probe_address);
} addresses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PROBE_ADDRESSES);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u64);
} answers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct probe_lpm_v4);
	__type(value, __u8);
} lpm_v4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct probe_lpm_v6);
	__type(value, __u8);
} lpm_v6 SEC(".maps");

/* Not inlined, and verified once by itself: the loop around it would have the verifier go through it each time. */
__noinline int ask_v4(__u64 lo)
{
	void *set = addrset_get(0);

	return set && addrset_has(set, true, lo, 0);
}

__noinline int ask_v6(__u64 hi, __u64 lo)
{
	void *set = addrset_get(0);

	return set && addrset_has(set, false, hi, lo);
}

__noinline int ask_lpm_v4(__u64 lo)
{
	struct probe_lpm_v4 key = { 32, bpf_htonl(lo) };

	return !!bpf_map_lookup_elem(&lpm_v4, &key);
}

__noinline int ask_lpm_v6(__u64 hi, __u64 lo)
{
	struct probe_lpm_v6 key = {
		128,
		{ bpf_htonl(hi >> 32), bpf_htonl(hi), bpf_htonl(lo >> 32), bpf_htonl(lo) },
	};

	return !!bpf_map_lookup_elem(&lpm_v6, &key);
}

__noinline int ask_nothing(__u64 hi, __u64 lo)
{
	return (hi ^ lo) & 1;
}

/*
 * The verifier goes through a loop as often as it runs: so there are two, one in the other, and the inner one is a
 * function by itself. Verifying 4096 times in a row takes seconds under emulation.
 */
#define PROBE(name, arguments)                                                    \
	__noinline int ask_##name##_row(__u32 from)                               \
	{                                                                         \
		__u32 i;                                                          \
                                                                                  \
		for (i = 0; i < PROBE_ROW; i++) {                                 \
			__u32 key = from + i;                                     \
			struct probe_address *address;                            \
			__u64 *answer;                                            \
			int has;                                                  \
                                                                                  \
			address = bpf_map_lookup_elem(&addresses, &key);          \
			answer = bpf_map_lookup_elem(&answers, &key);             \
			if (!address || !answer)                                  \
				break;                                            \
			has = ask_##name arguments;                               \
			*answer = has;                                            \
		}                                                                 \
		return i;                                                         \
	}                                                                         \
                                                                                  \
	SEC("xdp")                                                                \
	int bpftk_##name(struct xdp_md *ctx)                                      \
	{                                                                         \
		__u32 i, asked = 0;                                               \
                                                                                  \
		for (i = 0; i < PROBE_BATCH / PROBE_ROW; i++)                     \
			asked += ask_##name##_row(first + i * PROBE_ROW);         \
		answered = asked;                                                 \
		return XDP_PASS;                                                  \
	}

/* What a packet costs at least: one byte is read, and the packet dropped. */
SEC("xdp")
int bpftk_bare(struct xdp_md *ctx)
{
	__u8 *data = (void *)(long)ctx->data;

	if (data + 24 > (__u8 *)(long)ctx->data_end)
		return XDP_PASS;
	return data[23] == 1 ? XDP_DROP : XDP_PASS;
}

PROBE(v4, (address->lo))
PROBE(v6, (address->hi, address->lo))
PROBE(lpm_v4, (address->lo))
PROBE(lpm_v6, (address->hi, address->lo))
PROBE(nothing, (address->hi, address->lo))
