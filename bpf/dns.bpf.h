/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_DNS_BPF_H
#define BPFTK_DNS_BPF_H

/* Names: a copy of what sockets ask of port 53, and of what they are answered. Parsing, and what belongs together, is user space's. */

#include "common.bpf.h"
#include "dns.h"
#include "socket_kind.bpf.h"

#ifndef IPPROTO_TCP
#define IPPROTO_TCP 6
#endif
#define IPPROTO_UDP 17

/* include/linux/proc_ns.h */
#define PROC_USER_INIT_INO 0xEFFFFFFDU

/* For the skeleton: the records have no map whose BTF would name them. */
struct dns_header _dns_header;

/* A ring of its own: answers, which any host can send, take no room from rows. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, DNS_RING_BYTES);
} dns_events SEC(".maps");

/*
 * Reserves the record in the ring. Per-CPU memory would not do: at egress a program may be preempted by another task's, or
 * interrupted by one at ingress. @room is the size of the data, a constant and a power of two: the mask gives the verifier
 * of 5.10 a bound for the length.
 */
static __always_inline bool emit_piece(struct __sk_buff *skb, const struct dns_header *header, __u32 from, const __u32 room)
{
	struct dns_piece *piece = bpf_ringbuf_reserve(&dns_events, sizeof(struct dns_header) + room, 0);
	__u32 len = ((header->len - 1) & (room - 1)) + 1;

	if (!piece) {
		count_loss(BPFTK_LOSS_DNS);
		return false;
	}
	__builtin_memcpy(&piece->header, header, sizeof(*header));
	if (bpf_skb_load_bytes(skb, from, piece->data, len)) {
		bpf_ringbuf_discard(piece, 0);
		return false;
	}
	bpf_ringbuf_submit(piece, 0);
	return true;
}

/* Records of three sizes: most questions and many answers are short, and few are of several pieces. */
static __always_inline void emit_dns(struct __sk_buff *skb, struct dns_header *header, __u32 payload)
{
	header->len = header->total;
	if (header->total <= DNS_SHORT) {
		emit_piece(skb, header, payload, DNS_SHORT);
		return;
	}
	if (header->total <= DNS_MIDDLE) {
		emit_piece(skb, header, payload, DNS_MIDDLE);
		return;
	}
	for (int i = 0; i < DNS_CHUNKS; i++) {
		header->offset = i * DNS_CHUNK;
		/* The last one, as the verifier has to see: else there are two ways on from here, again and again (Linux 6.1). */
		if (header->total - header->offset <= DNS_CHUNK) {
			header->len = header->total - header->offset;
			emit_piece(skb, header, payload + header->offset, DNS_CHUNK);
			return;
		}
		header->len = DNS_CHUNK;
		if (!emit_piece(skb, header, payload + header->offset, DNS_CHUNK))
			return;
	}
}

/* What stands before a packet's payload. */
struct dns_transport {
	__u32 payload;
	__u8 version;
	__u8 proto;
	struct {
		__be16 source;
		__be16 dest;
		__be32 seq;
		__be32 ack;
		__u8 offset;
		__u8 flags;
	} tcp; /* of UDP, the ports */
};

/* Whether this is TCP or UDP with a payload. */
static __always_inline bool find_payload(struct __sk_buff *skb, struct dns_transport *found)
{
	__u32 payload;
	__u8 proto;

	if (bpf_skb_load_bytes(skb, 0, &found->version, 1))
		return false;
	found->version >>= 4;
	if (found->version == 4) {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)) || (ip.frag_off & bpf_htons(0x1fff)))
			return false;
		proto = ip.protocol;
		payload = ip.ihl * 4;
	} else {
		struct ipv6hdr ip6;

		if (bpf_skb_load_bytes(skb, 0, &ip6, sizeof(ip6)))
			return false;
		proto = ip6.nexthdr;
		payload = sizeof(ip6);
		/* Hop-by-hop 0, routing 43, fragment 44, destination options 60: lengths in units of 8 bytes. */
		for (int i = 0; i < 6; i++) {
			__u8 ext[2];

			if (proto != 0 && proto != 43 && proto != 44 && proto != 60)
				break;
			if (bpf_skb_load_bytes(skb, payload, ext, 2))
				return false;
			payload += proto == 44 ? 8 : (ext[1] + 1) * 8;
			proto = ext[0];
		}
	}
	if (proto != IPPROTO_UDP && proto != IPPROTO_TCP)
		return false;
	if (bpf_skb_load_bytes(skb, payload, &found->tcp, proto == IPPROTO_TCP ? 14 : 8))
		return false;
	payload += proto == IPPROTO_TCP ? (found->tcp.offset >> 4) * 4 : 8;
	found->proto = proto;
	found->payload = payload;
	return skb->len > payload;
}

/* The network namespace whose names are wanted, by its inode number; 0: of every one. */
const volatile __u32 dns_netns;

/* What a record says before its data. False if the packet is too short, or of a namespace that nobody wants to know about. */
static __always_inline bool describe(struct __sk_buff *skb, struct dns_transport *found, __u32 kind, struct dns_header *header)
{
	struct bpf_sock *sk = skb->sk;
	struct sock *kernel;
	struct net *net;

	if (!sk)
		return false;
	kernel = (void *)socket_address(sk);
	net = BPF_CORE_READ(kernel, __sk_common.skc_net.net);
	header->netns = BPF_CORE_READ(net, ns.inum);
	header->own_netns = is_set(BPF_CORE_READ(net, user_ns, ns.inum) ^ PROC_USER_INIT_INO);
	header->record = kind;
	/* Of UDP, other fields: nobody looks at them. Each branch less is half the way for the verifier. */
	header->tcp_seq = bpf_ntohl(found->tcp.seq);
	header->tcp_flags = found->tcp.flags;
	header->total = skb->len - found->payload;
	header->sport = bpf_ntohs(found->tcp.source);
	header->dport = bpf_ntohs(found->tcp.dest);
	header->proto = found->proto;
	header->cookie = bpf_get_socket_cookie(skb);
	if (dns_netns && dns_netns != header->netns)
		return false;
	if (found->version == 4) {
		__be32 addr[2];

		if (bpf_skb_load_bytes(skb, 12, addr, 8))
			return false;
		set_v4_mapped(header->saddr, addr[0]);
		set_v4_mapped(header->daddr, addr[1]);
		return true;
	}
	return !bpf_skb_load_bytes(skb, 8, header->saddr, 16) && !bpf_skb_load_bytes(skb, 24, header->daddr, 16);
}

/*
 * At the cgroup v2 root this sees what is delivered to a local socket in any network namespace, the loopback's stub
 * resolvers included, after reassembly of fragments. It always lets the packet pass.
 */
SEC("cgroup_skb/ingress")
int bpftk_dns(struct __sk_buff *skb)
{
	struct dns_transport found = {};
	struct dns_header header = {};

	if (!find_payload(skb, &found) || found.tcp.source != bpf_htons(53))
		return 1;
	if (describe(skb, &found, BPFTK_RECORD_DNS, &header))
		emit_dns(skb, &header, found.payload);
	return 1;
}

/* The question, without which an answer is anybody's word. */
static __always_inline void emit_question(struct __sk_buff *skb, struct dns_transport *found)
{
	struct dns_header header = {};

	if (describe(skb, found, BPFTK_RECORD_QUESTION, &header))
		emit_dns(skb, &header, found->payload);
}

#endif
