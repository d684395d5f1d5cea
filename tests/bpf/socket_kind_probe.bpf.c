/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */

/* Every packet that a local socket sends, counted by what bpf/socket_kind.bpf.h says of it. */

#include "socket_kind.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct probe_count {
	__u64 packets;
	__u32 kind;
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct probe_count);
} packets SEC(".maps");

/* For the skeleton. */
struct probe_count _probe_count;

static __always_inline void count(struct __sk_buff *skb)
{
	struct probe_count first = { .packets = 1 }, *known;
	__u64 cookie = packet_cookie(skb);

	known = bpf_map_lookup_elem(&packets, &cookie);
	if (known) {
		__sync_fetch_and_add(&known->packets, 1);
		return;
	}
	first.kind = packet_socket_kind(skb);
	bpf_map_update_elem(&packets, &cookie, &first, BPF_ANY);
}

SEC("cgroup_skb/egress")
int bpftk_probe_cg(struct __sk_buff *skb)
{
	count(skb);
	return 1;
}

/* The same as tc's: loaded, to have it verified. TC_ACT_UNSPEC: the next program decides. */
SEC("tc")
int bpftk_probe_tc(struct __sk_buff *skb)
{
	count(skb);
	return -1;
}
