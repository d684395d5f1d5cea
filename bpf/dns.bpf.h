/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_DNS_BPF_H
#define BPFTK_DNS_BPF_H

/* Names: a copy of what sockets receive from port 53. Parsing is user space's. */

#include "common.bpf.h"
#include "dns.h"

#ifndef IPPROTO_TCP
#define IPPROTO_TCP 6
#endif
#define IPPROTO_UDP 17

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct dns_piece);
} dns_scratch SEC(".maps");

static __always_inline void emit_dns(struct __sk_buff *skb, struct dns_piece *dns, __u32 payload)
{
	for (int i = 0; i < DNS_CHUNKS; i++) {
		__u32 offset = i * DNS_CHUNK;
		__u32 len = dns->total - offset;

		if (offset >= dns->total)
			return;
		if (len > DNS_CHUNK)
			len = DNS_CHUNK;
		/* For the verifier of 5.10, which forgets the bound above: 1 to the size of a piece. */
		len = ((len - 1) & (DNS_CHUNK - 1)) + 1;
		dns->offset = offset;
		dns->len = len;
		if (bpf_skb_load_bytes(skb, payload + offset, dns->data, len))
			return;
		if (bpf_ringbuf_output(&events, dns, DNS_HEADER + len, 0)) {
			count_loss(BPFTK_LOSS_DNS);
			return;
		}
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

/* A record without its data; nothing if the packet is too short. */
static __always_inline struct dns_piece *begin_piece(struct __sk_buff *skb, struct dns_transport *found, __u32 kind)
{
	__u32 zero = 0;
	struct dns_piece *dns = bpf_map_lookup_elem(&dns_scratch, &zero);

	if (!dns)
		return NULL;
	dns->record = kind;
	dns->tcp_seq = found->proto == IPPROTO_TCP ? bpf_ntohl(found->tcp.seq) : 0;
	dns->tcp_flags = found->proto == IPPROTO_TCP ? found->tcp.flags : 0;
	dns->total = skb->len - found->payload;
	dns->sport = bpf_ntohs(found->tcp.source);
	dns->dport = bpf_ntohs(found->tcp.dest);
	dns->proto = found->proto;
	dns->cookie = bpf_get_socket_cookie(skb);
	if (found->version == 4) {
		__be32 addr[2];

		if (bpf_skb_load_bytes(skb, 12, addr, 8))
			return NULL;
		set_v4_mapped(dns->saddr, addr[0]);
		set_v4_mapped(dns->daddr, addr[1]);
	} else if (bpf_skb_load_bytes(skb, 8, dns->saddr, 16) || bpf_skb_load_bytes(skb, 24, dns->daddr, 16)) {
		return NULL;
	}
	return dns;
}

/*
 * At the cgroup v2 root this sees what is delivered to a local socket in any network namespace, the loopback's stub
 * resolvers included, after reassembly of fragments. It always lets the packet pass.
 */
SEC("cgroup_skb/ingress")
int bpftk_dns(struct __sk_buff *skb)
{
	struct dns_transport found = {};
	struct dns_piece *dns;

	if (!find_payload(skb, &found) || found.tcp.source != bpf_htons(53))
		return 1;
	dns = begin_piece(skb, &found, BPFTK_RECORD_DNS);
	if (dns)
		emit_dns(skb, dns, found.payload);
	return 1;
}

#endif
