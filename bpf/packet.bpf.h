/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_PACKET_BPF_H
#define BPFTK_PACKET_BPF_H

/*
 * What a packet is, from its first byte to its ports. For XDP and tc: it reads between two pointers, and says so when what
 * is there is too short, since there may be more to be had.
 */

/* What goes over the wire, and a program's context, are where they always were: no kernel's types are needed for them. */
#define BPF_NO_PRESERVE_ACCESS_INDEX
#include "vmlinux.h"
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define IPPROTO_HOPOPTS 0
#define IPPROTO_ROUTING 43
#define IPPROTO_FRAGMENT 44
#define IPPROTO_ICMPV6 58
#define IPPROTO_DSTOPTS 60
#define IPPROTO_MH 135

#define ETH_P_IP 0x0800
#define ETH_P_8021Q 0x8100
#define ETH_P_IPV6 0x86dd
#define ETH_P_8021AD 0x88a8
#define ETH_P_QINQ1 0x9100

/* More than 802.1ad has. */
#define PACKET_TAGS 4
/* Of IPv6. Each of them once is seven; who sends more has something to hide. */
#define PACKET_EXTENSIONS 8

/* Short is what a packet is until more of it is known: so nothing needs to be written where the parser gives up. */
enum packet_status {
	/* What can be read ends too early. */
	PACKET_SHORT,
	PACKET_OK,
	/* Its headers contradict themselves, or go on for longer than we follow them. */
	PACKET_BAD,
};

/* In host order, but for the ports. As much is filled in as was found, whatever the status is. */
struct packet {
	/* Halves of the addresses; of IPv4, all of it is the upper half. */
	__u64 src[2];
	__u64 dst[2];
	/* As they came, and read at once: most packets are asked for one of them at most. packet_sport() and packet_dport() tell. */
	union {
		__be16 ports[2];
		__be32 both_ports;
	};
	/* From here to the status: written at once, where the parser ends. */
	/* 4, 6, or 0 for what isn't IP: then there is nothing else. */
	__u8 family;
	bool has_proto;
	/* Not those of a fragment behind the first, which has none. */
	bool has_ports;
	/* enum packet_status */
	__u8 status;
	/* Of what IP carries, if that was found out. */
	__u8 proto;
	/* Of ICMP and ICMPv6; else 0. */
	__u8 icmp_type;
	/* All of it, as long as IP says that it is, can be read. */
	bool whole;
};

static __always_inline __u16 packet_sport(const struct packet *packet)
{
	return bpf_ntohs(packet->ports[0]);
}

static __always_inline __u16 packet_dport(const struct packet *packet)
{
	return bpf_ntohs(packet->ports[1]);
}

static __always_inline void packet_end(struct packet *packet, __u8 family, bool has_proto, bool has_ports,
				       enum packet_status status)
{
	packet->family = family;
	packet->has_proto = has_proto;
	packet->has_ports = has_ports;
	packet->status = status;
	/* Keeps the compiler from sharing one end among all, which takes longer than to write a number. */
	asm volatile("" : : "i"(family << 16 | has_proto << 9 | has_ports << 8 | status) : "memory");
}

static __always_inline bool packet_proto_has_ports(__u8 proto)
{
	return proto == IPPROTO_TCP || proto == IPPROTO_UDP || proto == IPPROTO_SCTP || proto == IPPROTO_DCCP ||
	       proto == IPPROTO_UDPLITE;
}

static __always_inline void packet_transport(void *at, void *end, struct packet *packet, __u8 family, __u8 proto,
					     bool later_fragment)
{
	packet->proto = proto;
	if (!later_fragment && packet_proto_has_ports(proto)) {
		if (at + 4 > end) {
			packet_end(packet, family, true, false, PACKET_SHORT);
			return;
		}
		packet->both_ports = *(__be32 *)at;
		packet_end(packet, family, true, true, PACKET_OK);
		return;
	}
	if (!later_fragment && (proto == IPPROTO_ICMP || proto == IPPROTO_ICMPV6)) {
		if (at + 1 > end) {
			packet_end(packet, family, true, false, PACKET_SHORT);
			return;
		}
		packet->icmp_type = *(__u8 *)at;
	}
	packet_end(packet, family, true, false, PACKET_OK);
}

static __always_inline void packet_is_whole(struct packet *packet)
{
	/* Keeps the compiler from computing what is to be written where nothing is. */
	asm volatile("" : : : "memory");
	packet->whole = true;
}

static __always_inline void packet_v4(void *at, void *end, struct packet *packet, bool src, bool dst, bool carried,
				       bool whole)
{
	struct iphdr *ip = at;
	__u32 length = sizeof(*ip);
	__u8 first;

	if (at + sizeof(*ip) > end)
		return;
	first = *(__u8 *)at;
	/* Nearly always: version 4, and no options. */
	if (first != 0x45) {
		length = (first & 0xf) * 4;
		if (first >> 4 != 4 || length < sizeof(*ip)) {
			packet->status = PACKET_BAD;
			return;
		}
	}
	if (bpf_ntohs(ip->tot_len) < length) {
		packet->status = PACKET_BAD;
		return;
	}
	if (whole && end - at >= bpf_ntohs(ip->tot_len))
		packet_is_whole(packet);
	if (src)
		packet->src[0] = bpf_ntohl(ip->saddr);
	if (dst)
		packet->dst[0] = bpf_ntohl(ip->daddr);
	if (carried)
		packet_transport(at + length, end, packet, 4, ip->protocol, ip->frag_off & bpf_htons(0x1fff));
	else
		packet_end(packet, 4, false, false, PACKET_OK);
}

/*
 * How long an extension header of IPv6 is, by its number: ((its second byte & mask) + add) << shift. Others have no shift.
 * A table, not a switch: the verifier then has one path through each header, not one for each kind.
 */
struct packet_extension {
	__u8 mask;
	__u8 add;
	__u8 shift;
	__u8 fragment;
};

#define PACKET_IN_EIGHTS { 0xff, 1, 3, 0 }

static const struct packet_extension packet_extensions[256] = {
	[IPPROTO_HOPOPTS] = PACKET_IN_EIGHTS,
	[IPPROTO_ROUTING] = PACKET_IN_EIGHTS,
	[IPPROTO_FRAGMENT] = { 0, 1, 3, 1 },
	[IPPROTO_AH] = { 0xff, 2, 2, 0 },
	[IPPROTO_DSTOPTS] = PACKET_IN_EIGHTS,
	[IPPROTO_MH] = PACKET_IN_EIGHTS,
	[139] = PACKET_IN_EIGHTS, /* HIP */
	[140] = PACKET_IN_EIGHTS, /* Shim6 */
};

static __always_inline __u64 packet_half(const __be32 words[2])
{
	return (__u64)bpf_ntohl(words[0]) << 32 | bpf_ntohl(words[1]);
}

static __always_inline void packet_v6(void *at, void *end, struct packet *packet, bool src, bool dst, bool carried,
				       bool whole)
{
	struct ipv6hdr *ip = at;
	__u32 next;
	int i;

	if (at + sizeof(*ip) > end)
		return;
	if (ip->version != 6) {
		packet->status = PACKET_BAD;
		return;
	}
	/* Without a length it is longer than that could say. */
	if (whole && ip->payload_len && end - at >= (long)sizeof(*ip) + bpf_ntohs(ip->payload_len))
		packet_is_whole(packet);
	if (src) {
		packet->src[0] = packet_half(ip->saddr.in6_u.u6_addr32);
		packet->src[1] = packet_half(ip->saddr.in6_u.u6_addr32 + 2);
	}
	if (dst) {
		packet->dst[0] = packet_half(ip->daddr.in6_u.u6_addr32);
		packet->dst[1] = packet_half(ip->daddr.in6_u.u6_addr32 + 2);
	}
	if (!carried) {
		packet_end(packet, 6, false, false, PACKET_OK);
		return;
	}
	next = ip->nexthdr;
	at += sizeof(*ip);
#pragma unroll
	for (i = 0; i <= PACKET_EXTENSIONS; i++) {
		const struct packet_extension *extension = &packet_extensions[next & 0xff];
		__u8 *header = at;
		__u64 length;

		if (!extension->shift) {
			packet_transport(at, end, packet, 6, next, false);
			return;
		}
		/* None is shorter. */
		if (at + 8 > end) {
			packet_end(packet, 6, false, false, PACKET_SHORT);
			return;
		}
		next = header[0];
		/* Behind the header of a later fragment is a piece of whatever there was. */
		if (extension->fragment && *(__be16 *)(header + 2) & bpf_htons(0xfff8)) {
			packet_transport(at, end, packet, 6, next, true);
			return;
		}
		length = ((header[1] & extension->mask) + extension->add) << extension->shift;
		/* The compiler knows that it is no more; the verifier does not. */
		asm volatile("%0 &= 0xfff" : "+r"(length));
		at += length;
	}
	packet_end(packet, 6, false, false, PACKET_BAD);
}

/*
 * The same packet, out of the compiler's sight: one that it can follow it takes apart, and then moves all parts around at each
 * branch of the parser, which takes longer than the parsing.
 */
static __always_inline struct packet *packet_in_memory(struct packet *packet)
{
	asm volatile("" : : "r"(packet) : "memory");
	return packet;
}

/*
 * @l3: there is no Ethernet header. @src, @dst: somebody will look at these addresses; @carried: at what IP carries; @whole: at whether
 * all of it can be read. What nobody will look at is not found out.
 */
static __always_inline void packet_parse(void *at, void *end, bool l3, bool src, bool dst, bool carried, bool whole,
					 struct packet *packet)
{
	__be16 type;
	int i;

	if (src || dst)
		__builtin_memset(packet, 0, sizeof(*packet));
	else
		__builtin_memset(&packet->ports, 0, sizeof(*packet) - offsetof(struct packet, ports));
	if (l3) {
		if (at + 1 > end)
			return;
		switch (*(__u8 *)at >> 4) {
		case 4:
			packet_v4(at, end, packet, src, dst, carried, whole);
			return;
		case 6:
			packet_v6(at, end, packet, src, dst, carried, whole);
			return;
		default:
			packet->status = PACKET_OK;
			return;
		}
	}
	if (at + sizeof(struct ethhdr) > end)
		return;
	type = ((struct ethhdr *)at)->h_proto;
	at += sizeof(struct ethhdr);
	if (type != bpf_htons(ETH_P_IP) && type != bpf_htons(ETH_P_IPV6)) {
		/* Keeps the compiler from looking for tags first. */
		asm volatile("" : "+r"(type));
#pragma unroll
		for (i = 0; i < PACKET_TAGS; i++) {
			if (type != bpf_htons(ETH_P_8021Q) && type != bpf_htons(ETH_P_8021AD) &&
			    type != bpf_htons(ETH_P_QINQ1))
				break;
			if (at + sizeof(struct vlan_hdr) > end)
				return;
			type = ((struct vlan_hdr *)at)->h_vlan_encapsulated_proto;
			at += sizeof(struct vlan_hdr);
		}
	}
	if (type == bpf_htons(ETH_P_IP))
		packet_v4(at, end, packet, src, dst, carried, whole);
	else if (type == bpf_htons(ETH_P_IPV6))
		packet_v6(at, end, packet, src, dst, carried, whole);
	else
		packet->status = PACKET_OK;
}

#endif
