/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */

/*
 * What bpftk tc-egress is measured beside: the counting of the well-known BCC script, in C. IPv4 only, one range that is left out is
 * compared with, a hash map of plain numbers by destination. For BPF_PROG_TEST_RUN.
 */

#include "vmlinux.h"
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define TC_ACT_OK 0

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 10240);
	__type(key, __u32);
	__type(value, __u64);
} dsts SEC(".maps");

SEC("tc")
int bpftk_peer(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = data + sizeof(*eth);
	__u64 one = 1, *count;
	__u32 dst;

	if (data + sizeof(*eth) + sizeof(*ip) > end)
		return TC_ACT_OK;
	if (eth->h_proto != bpf_htons(0x0800))
		return TC_ACT_OK;
	dst = ip->daddr;
	if ((bpf_ntohl(dst) & 0xffff0000) == 0xc0a80000)
		return TC_ACT_OK;
	count = bpf_map_lookup_elem(&dsts, &dst);
	if (!count) {
		__u64 none = 0;

		bpf_map_update_elem(&dsts, &dst, &none, BPF_NOEXIST);
		count = bpf_map_lookup_elem(&dsts, &dst);
	}
	if (count)
		__sync_fetch_and_add(count, one);
	return TC_ACT_OK;
}

/* The same way to count, but what tc-egress counts by destination: both families, packets and bytes. */
struct both {
	__u64 packets;
	__u64 bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 10240);
	__type(key, struct in6_addr);
	__type(value, struct both);
} dsts_of_both SEC(".maps");

SEC("tc")
int bpftk_peer_both(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct in6_addr dst = {};
	struct both *count;

	if (data + sizeof(*eth) > end)
		return TC_ACT_OK;
	if (eth->h_proto == bpf_htons(0x0800)) {
		struct iphdr *ip = data + sizeof(*eth);

		if ((void *)(ip + 1) > end)
			return TC_ACT_OK;
		if ((bpf_ntohl(ip->daddr) & 0xffff0000) == 0xc0a80000)
			return TC_ACT_OK;
		dst.in6_u.u6_addr32[2] = bpf_htonl(0xffff);
		dst.in6_u.u6_addr32[3] = ip->daddr;
	} else if (eth->h_proto == bpf_htons(0x86dd)) {
		struct ipv6hdr *ip = data + sizeof(*eth);

		if ((void *)(ip + 1) > end)
			return TC_ACT_OK;
		dst = ip->daddr;
	} else {
		return TC_ACT_OK;
	}
	count = bpf_map_lookup_elem(&dsts_of_both, &dst);
	if (!count) {
		struct both none = {};

		bpf_map_update_elem(&dsts_of_both, &dst, &none, BPF_NOEXIST);
		count = bpf_map_lookup_elem(&dsts_of_both, &dst);
	}
	if (count) {
		__sync_fetch_and_add(&count->packets, 1);
		__sync_fetch_and_add(&count->bytes, skb->len);
	}
	return TC_ACT_OK;
}

/* What a run of a program costs that does nothing. */
SEC("tc")
int bpftk_nothing(struct __sk_buff *skb)
{
	return TC_ACT_OK;
}

/* The program that is to see packets to many destinations. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} next SEC(".maps");

/* How many there are, less one: a power of two less one. */
volatile __u32 last_destination;
volatile __u32 destination_number;

/* Sends each packet elsewhere than the one before it. */
SEC("tc")
int bpftk_vary(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	struct iphdr *ip = data + sizeof(struct ethhdr);

	if ((void *)(ip + 1) > end)
		return TC_ACT_OK;
	destination_number = (destination_number + 1) & last_destination;
	ip->daddr = bpf_htonl(0x0a000000 + destination_number * 2654435761U % 0x1000000);
	bpf_tail_call(skb, &next, 0);
	return TC_ACT_OK;
}
