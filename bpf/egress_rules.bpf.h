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
const volatile bool spares;
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

/* What keeps a link up, by the frame's own word, behind its tags. */
static __always_inline bool egress_is_of_link(struct __sk_buff *skb)
{
	__u32 at = offsetof(struct ethhdr, h_proto);
	__be16 type;
	int i;

	for (i = 0; i <= PACKET_TAGS; i++) {
		if (bpf_skb_load_bytes(skb, at, &type, sizeof(type)))
			return false;
		if (type == bpf_htons(ETH_P_ARP) || type == bpf_htons(ETH_P_PAE))
			return true;
		if (type != bpf_htons(ETH_P_8021Q) && type != bpf_htons(ETH_P_8021AD) && type != bpf_htons(ETH_P_QINQ1))
			return false;
		at += sizeof(struct vlan_hdr);
	}
	return false;
}

/* What stays open, of what a call or a packet may be about. */
static __always_inline __u32 egress_spared_port(__u8 family, __u8 proto, __u16 port)
{
	if (port == 53 && (proto == IPPROTO_UDP || proto == IPPROTO_TCP))
		return EGRESS_RULE_DNS;
	/* Servers and clients. */
	if (proto == IPPROTO_UDP && (family == 4 ? port == 67 || port == 68 : port == 547 || port == 546))
		return EGRESS_RULE_DHCP;
	return EGRESS_RULE_DEFAULT;
}

static __always_inline __u32 egress_spared(const struct packet *packet)
{
	/* ICMPv6: with neighbour discovery, what makes switches pass it on (multicast listener discovery). */
	if (packet->family == 6 && packet->has_proto && packet->proto == IPPROTO_ICMPV6 &&
	    ((packet->icmp_type >= 130 && packet->icmp_type <= 137) || packet->icmp_type == 143))
		return EGRESS_RULE_NEIGHBOURS;
	if (!packet->has_ports)
		return EGRESS_RULE_DEFAULT;
	if (ssh_port && packet->proto == IPPROTO_TCP && packet_sport(packet) == ssh_port && packet->family == ssh_family &&
	    packet->dst[0] == ssh_addr[0] && packet->dst[1] == ssh_addr[1])
		return EGRESS_RULE_SSH;
	return egress_spared_port(packet->family, packet->proto, packet_dport(packet));
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
		return spares && !l3 && egress_is_of_link(skb) ? EGRESS_RULE_LINK : EGRESS_RULE_DEFAULT;
	if (egress_listed(EGRESS_SET_ALLOWED, packet->dst[0], packet->dst[1], packet->family))
		return EGRESS_RULE_ALLOWED;
	return spares ? egress_spared(packet) : EGRESS_RULE_DEFAULT;
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
	return spares ? egress_spared_port(family, proto, port) : EGRESS_RULE_DEFAULT;
}

#endif
