/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_EGRESS_RULES_BPF_H
#define BPFTK_EGRESS_RULES_BPF_H

/* What tc-egress blocks: one set of rules, for packets at tc and for calls of processes. */

#include "tc.bpf.h"

#include "addrset.bpf.h"
#include "filter.bpf.h"

#define ETH_P_ARP 0x0806
#define ETH_P_PAE 0x888e

/* Whether there are any rules. */
const volatile bool blocks;
const volatile bool has_blocked;
const volatile bool has_block_matches;
/* There is a list of what alone is allowed. */
const volatile bool allows_only;
/* What a machine needs to stay one of its network stays open beside that list. */
const volatile bool spares_dns;
const volatile bool spares_dhcp;
const volatile bool spares_arp;
const volatile bool spares_neighbours;
/* Of the operator's own connection: the far end as in struct packet, and our port; 0 is none. */
const volatile __u64 ssh_addr[2];
const volatile __u8 ssh_family;
const volatile __u16 ssh_port;
/* Decide, count and tell, but let everything go on. */
const volatile bool dry_run;

/* tcpdump's expressions of what to block. */
BPFTK_FILTER(egress_blocks, 1)

/* Global: verified once, however often it is called. */
__noinline int egress_listed(__u32 which, __u64 hi, __u64 lo, __u32 family)
{
	void *set = addrset_get(which);

	return set && addrset_has(set, family == 4, hi, lo);
}

/* An IPv4 address in the form that IPv6 has for it, as sockets use it. */
static __always_inline bool egress_is_mapped(__u64 hi, __u64 lo)
{
	return !hi && lo >> 32 == 0xffff;
}

/* An address means the same in either form: to write it another way is no way around a block. */
static __always_inline bool egress_is_blocked(__u8 family, __u64 hi, __u64 lo)
{
	if (family == 6 && egress_is_mapped(hi, lo)) {
		family = 4;
		hi = lo & 0xffffffff;
		lo = 0;
	}
	return egress_listed(EGRESS_SET_BLOCKED, hi, lo, family);
}

/* Where the tags of a frame end, and the type that stands there. A frame that is too short has none. */
static __always_inline __u32 egress_behind_tags(struct __sk_buff *skb, __be16 *type)
{
	__u32 at = offsetof(struct ethhdr, h_proto);
	__be16 found = 0;
	int i;

	for (i = 0; i <= PACKET_TAGS; i++) {
		if (bpf_skb_load_bytes(skb, at, &found, sizeof(found))) {
			found = 0;
			break;
		}
		at += sizeof(found);
		if (found != bpf_htons(ETH_P_8021Q) && found != bpf_htons(ETH_P_8021AD) && found != bpf_htons(ETH_P_QINQ1))
			break;
		/* Its other half, before the next type. */
		at += sizeof(struct vlan_hdr) - sizeof(found);
	}
	if (type)
		*type = found;
	return at;
}

/* What keeps a link up, by the frame's own word, behind its tags. */
static __always_inline bool egress_is_of_link(struct __sk_buff *skb)
{
	__be16 type;

	egress_behind_tags(skb, &type);
	return type == bpf_htons(ETH_P_ARP) || type == bpf_htons(ETH_P_PAE);
}

/* Of IPv6: fe80::/10. */
static __always_inline bool egress_is_link_local(__u64 hi)
{
	return hi >> 54 == 0xfe80 >> 6;
}

/* A client asks whoever is there, or the server of its lease. */
static __always_inline bool egress_is_dhcp_server(__u8 family, __u64 hi, __u64 lo)
{
	if (family == 4)
		/* Broadcast, and 169.254.0.0/16. */
		return hi == 0xffffffff || hi >> 16 == 0xa9fe || egress_listed(EGRESS_SET_DHCP, hi, lo, 4);
	/* ff02::1:2, all servers and relays of the link. */
	return (hi == 0xff02ULL << 48 && lo == 0x10002) || egress_is_link_local(hi) || egress_listed(EGRESS_SET_DHCP, hi, lo, 6);
}

/* What stays open, of what a call or a packet may be about. */
static __always_inline __u32 egress_spared_port(__u8 family, __u64 hi, __u64 lo, __u8 proto, __u16 port)
{
	if (spares_dns && port == 53 && (proto == IPPROTO_UDP || proto == IPPROTO_TCP) &&
	    egress_listed(EGRESS_SET_RESOLVERS, hi, lo, family))
		return EGRESS_RULE_DNS;
	/* What a client asks; what a server answers goes to its own clients, which a list can name. */
	if (spares_dhcp && proto == IPPROTO_UDP && port == (family == 4 ? 67 : 547) && egress_is_dhcp_server(family, hi, lo))
		return EGRESS_RULE_DHCP;
	return EGRESS_RULE_DEFAULT;
}

/* How far the packet may go: IPv4's time to live, IPv6's hop limit; or -1. */
static __always_inline int egress_hops(struct __sk_buff *skb, bool l3, __u8 family)
{
	__u32 at = l3 ? 0 : egress_behind_tags(skb, NULL);
	__u8 hops;

	at += family == 4 ? offsetof(struct iphdr, ttl) : offsetof(struct ipv6hdr, hop_limit);
	return bpf_skb_load_bytes(skb, at, &hops, sizeof(hops)) ? -1 : hops;
}

/*
 * Neighbour discovery, and what makes switches pass multicast on (MLD, IGMP), as far as it stays on the link: the receiver drops
 * neighbour discovery with another hop limit than 255, and so what a router passed on; the others have 1.
 */
static __always_inline bool egress_is_of_neighbours(struct __sk_buff *skb, const struct packet *packet, bool l3)
{
	__u64 hi = packet->dst[0], lo = packet->dst[1];
	bool discovery, multicast;

	if (!packet->has_proto)
		return false;
	if (packet->family == 4)
		return packet->proto == IPPROTO_IGMP && hi >> 28 == 0xe && egress_hops(skb, l3, 4) == 1;
	if (packet->proto != IPPROTO_ICMPV6)
		return false;
	multicast = hi >> 56 == 0xff;
	discovery = packet->icmp_type >= 133 && packet->icmp_type <= 137;
	if (discovery)
		return (multicast || egress_is_link_local(hi) || egress_listed(EGRESS_SET_ON_LINK, hi, lo, 6)) &&
		       egress_hops(skb, l3, 6) == 255;
	if ((packet->icmp_type >= 130 && packet->icmp_type <= 132) || packet->icmp_type == 143)
		return multicast && egress_hops(skb, l3, 6) == 1;
	return false;
}

static __always_inline __u32 egress_spared(struct __sk_buff *skb, const struct packet *packet, bool l3)
{
	if (spares_neighbours && egress_is_of_neighbours(skb, packet, l3))
		return EGRESS_RULE_NEIGHBOURS;
	if (!packet->has_ports)
		return EGRESS_RULE_DEFAULT;
	if (ssh_port && packet->proto == IPPROTO_TCP && packet_sport(packet) == ssh_port && packet->family == ssh_family &&
	    packet->dst[0] == ssh_addr[0] && packet->dst[1] == ssh_addr[1])
		return EGRESS_RULE_SSH;
	return egress_spared_port(packet->family, packet->dst[0], packet->dst[1], packet->proto, packet_dport(packet));
}

/* @l3: there is no Ethernet header. */
static __always_inline __u32 egress_packet_rule(struct __sk_buff *skb, const struct packet *packet, bool l3)
{
	if (has_blocked && packet->family && egress_is_blocked(packet->family, packet->dst[0], packet->dst[1]))
		return EGRESS_RULE_BLOCKED;
	if (has_block_matches) {
		int number = egress_blocks(skb);

		if (number > 0 && number <= EGRESS_RULES - EGRESS_RULE_MATCH)
			return EGRESS_RULE_MATCH + number - 1;
	}
	if (!allows_only)
		return EGRESS_RULE_NONE;
	/* What can't be understood isn't allowed. */
	if (!packet->family)
		return spares_arp && !l3 && egress_is_of_link(skb) ? EGRESS_RULE_LINK : EGRESS_RULE_DEFAULT;
	if (egress_listed(EGRESS_SET_ALLOWED, packet->dst[0], packet->dst[1], packet->family))
		return EGRESS_RULE_ALLOWED;
	return egress_spared(skb, packet, l3);
}

/* The same for what a process asks for. Expressions are about packets, of which there is none yet. */
static __always_inline __u32 egress_call_rule(__u8 family, __u64 hi, __u64 lo, __u8 proto, __u16 port)
{
	if (has_blocked && egress_listed(EGRESS_SET_BLOCKED, hi, lo, family))
		return EGRESS_RULE_BLOCKED;
	if (!allows_only)
		return EGRESS_RULE_NONE;
	if (egress_listed(EGRESS_SET_ALLOWED, hi, lo, family))
		return EGRESS_RULE_ALLOWED;
	return egress_spared_port(family, hi, lo, proto, port);
}

#endif
