/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */

/*
 * Loses some of the first segments of one TCP connection, by their number, and what acknowledges the first ones: so its sender sends
 * again what has arrived, joined with what has not.
 */

#include "vmlinux.h"
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86DD
#define IPPROTO_TCP 6

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* The server's. */
const volatile __u16 port;
/* Bit n: the n-th segment with data or FIN to it. */
const volatile __u32 lost;
/* Acknowledgements are lost until so many of these came. */
const volatile __u32 silent_until;

__u32 seen;

static __always_inline int handle(struct tcphdr *tcp, void *end, __u32 payload_and_header)
{
	__u32 payload;

	if ((void *)(tcp + 1) > end || tcp->syn || tcp->rst)
		return XDP_PASS;
	payload = payload_and_header - tcp->doff * 4;
	if (tcp->dest == bpf_htons(port) && (payload || tcp->fin)) {
		__u32 number = seen++;

		return number < 32 && lost >> number & 1 ? XDP_DROP : XDP_PASS;
	}
	if (tcp->source == bpf_htons(port) && !payload && !tcp->fin && seen && seen < silent_until)
		return XDP_DROP;
	return XDP_PASS;
}

SEC("xdp")
int lose_segments(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct ipv6hdr *ip6;
	struct iphdr *ip;

	if ((void *)(eth + 1) > end)
		return XDP_PASS;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		ip = (void *)(eth + 1);
		if ((void *)(ip + 1) > end || ip->protocol != IPPROTO_TCP || ip->ihl != 5)
			return XDP_PASS;
		return handle((void *)(ip + 1), end, bpf_ntohs(ip->tot_len) - sizeof(*ip));
	}
	if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		ip6 = (void *)(eth + 1);
		if ((void *)(ip6 + 1) > end || ip6->nexthdr != IPPROTO_TCP)
			return XDP_PASS;
		return handle((void *)(ip6 + 1), end, bpf_ntohs(ip6->payload_len));
	}
	return XDP_PASS;
}
