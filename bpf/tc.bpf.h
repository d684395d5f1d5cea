/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_TC_BPF_H
#define BPFTK_TC_BPF_H

/*
 * A packet at tc's hooks: its headers, wherever they are in memory, and what it is on the wire.
 */

#include "packet.bpf.h"

/* On to the next program, or out if there is none: TCX_NEXT is the same number. */
#define TC_ACT_UNSPEC (-1)
#define TC_ACT_SHOT 2

/* Headers are no longer: Ethernet, tags, IPv6 and eight extensions of a common size. */
#define TC_MOST_HEADERS 512

/* Ethernet, IP and TCP without options. */
#define TC_LEAST_HEADERS_V4 54
#define TC_LEAST_HEADERS_V6 74

/* @l3, @src, @dst, @carried: of packet_parse. */
static __always_inline void tc_parse(struct __sk_buff *skb, bool l3, bool src, bool dst, bool carried, struct packet *packet)
{
	packet_parse((void *)(long)skb->data, (void *)(long)skb->data_end, l3, src, dst, carried, false, packet);
	if (packet->status == PACKET_SHORT && skb->len > skb->data_end - skb->data) {
		/* The rest is in other pages. */
		bpf_skb_pull_data(skb, skb->len < TC_MOST_HEADERS ? skb->len : TC_MOST_HEADERS);
		packet_parse((void *)(long)skb->data, (void *)(long)skb->data_end, l3, src, dst, carried, false, packet);
	}
}

/* What will be, or was, several packets on the wire. */
static __always_inline __u32 tc_packets(struct __sk_buff *skb, const struct packet *packet)
{
	__u32 headers, size;

	/* Each is found through two pointers: nearly always, one look is enough. */
	size = skb->gso_size;
	if (!size)
		return 1;
	if (skb->gso_segs)
		return skb->gso_segs;
	/*
	 * What a virtual machine handed over, whose word for the number isn't trusted. Headers may be a little longer than this: where
	 * the last segment is nearly full it is one too many.
	 */
	headers = packet->family == 6 ? TC_LEAST_HEADERS_V6 : TC_LEAST_HEADERS_V4;
	if (skb->len <= headers + size)
		return 1;
	return (skb->len - headers + size - 1) / size;
}

/*
 * The kernel knows the headers of each only at egress; and its wire_len at ingress is without the link's. A tag that the interface
 * inserts, or took away, is on the wire as well.
 */
static __always_inline __u64 tc_bytes(struct __sk_buff *skb, bool egress, __u64 packets)
{
	return (egress ? skb->wire_len : skb->len) + (skb->vlan_present ? 4 * packets : 0);
}

#endif
