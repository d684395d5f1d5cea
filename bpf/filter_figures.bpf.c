/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */

/*
 * What translated filters are compared with, and a program that they are put into: of tests and of `make bench`, no part of
 * bpftk.
 */

#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include "filter.bpf.h"

#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd
#define IP_OFFSET 0x1fff

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} runs SEC(".maps");

BPFTK_FILTER(first, 0)
BPFTK_FILTER(second, 1)

/* Behind the stubs, and called before them: what a filter's length moves. */
static __attribute__((noinline)) int counted(void *ctx)
{
	__u32 key = 0;
	__u64 *count = bpf_map_lookup_elem(&runs, &key);

	if (count)
		*count += 1;
	return first(ctx);
}

SEC("xdp")
int bpftk_two(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	int one = counted(ctx), two = second(ctx);

	/* What is known of the packet is known after a filter, too. */
	if (data + 14 > end)
		return -1;
	return (__u32)one << 8 | (two & 0xff);
}

SEC("tc")
int bpftk_two_tc(struct __sk_buff *ctx)
{
	return (__u32)counted(ctx) << 8 | (second(ctx) & 0xff);
}

/* The least that a program with a filter does. */
SEC("xdp")
int bpftk_one(struct xdp_md *ctx)
{
	return first(ctx);
}

SEC("tc")
int bpftk_one_tc(struct __sk_buff *ctx)
{
	return first(ctx);
}

/* Nothing: what BPF_PROG_TEST_RUN itself takes. */
SEC("xdp")
int bpftk_nothing(struct xdp_md *ctx)
{
	return 0;
}

SEC("tc")
int bpftk_nothing_tc(struct __sk_buff *ctx)
{
	return 0;
}

/* `arp` by hand. */
SEC("xdp")
int bpftk_hand_arp(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;

	if ((void *)(eth + 1) > end)
		return 0;
	return eth->h_proto == bpf_htons(0x0806);
}

static __always_inline int ports(void *l4, void *end, __u16 port)
{
	struct udphdr *header = l4;

	/* Both transports begin with the ports. */
	if (l4 + 4 > end)
		return 0;
	return header->source == bpf_htons(port) || header->dest == bpf_htons(port);
}

/* `PROTOCOL port PORT` by hand, as tcpdump understands it. */
static __always_inline int hand_port(struct xdp_md *ctx, __u8 protocol, __u16 port)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;

	if ((void *)(eth + 1) > end)
		return 0;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(eth + 1);

		if ((void *)(ip + 1) > end || ip->protocol != protocol || ip->frag_off & bpf_htons(IP_OFFSET))
			return 0;
		return ports((void *)ip + ip->ihl * 4, end, port);
	}
	if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(eth + 1);

		if ((void *)(ip + 1) > end || ip->nexthdr != protocol)
			return 0;
		return ports(ip + 1, end, port);
	}
	return 0;
}

SEC("xdp")
int bpftk_hand_tcp(struct xdp_md *ctx)
{
	return hand_port(ctx, 6, 80);
}

SEC("xdp")
int bpftk_hand_udp(struct xdp_md *ctx)
{
	return hand_port(ctx, 17, 53);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
