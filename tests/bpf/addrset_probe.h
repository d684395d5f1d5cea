/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_ADDRSET_PROBE_H
#define BPFTK_ADDRSET_PROBE_H

#define PROBE_ADDRESSES (1 << 20)
#define PROBE_BATCH 4096
#define PROBE_ROW 64

/* In host order. IPv4 in the lower half. */
struct probe_address {
	__u64 hi;
	__u64 lo;
};

/* struct bpf_lpm_trie_key, addresses in network order. */
struct probe_lpm_v4 {
	__u32 length;
	__u32 address;
};

struct probe_lpm_v6 {
	__u32 length;
	__u32 address[4];
};

#endif
