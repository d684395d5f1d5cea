/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_EGRESS_H
#define BPFTK_EGRESS_H

#include "common.h"

/* What tc-egress agrees on with its programs. */

/* Every packet that is looked at is in EGRESS_TOTAL, and in one other row or in a count by key. */
enum egress_row {
	EGRESS_TOTAL,
	/* --exclude and the like. */
	EGRESS_EXCLUDED,
	EGRESS_NOT_IP,
	/* It should be IP, and its header says that it isn't; or an expression could not be decided. */
	EGRESS_MALFORMED,
	/* Keys that could not be stored, by cause: E2BIG, EBUSY, ENOMEM, any other. */
	EGRESS_FULL,
	EGRESS_BUSY,
	EGRESS_NO_MEMORY,
	EGRESS_REFUSED,
	/* What of EGRESS_NOT_IP and EGRESS_MALFORMED is blocked is counted here instead. */
	EGRESS_NOT_IP_BLOCKED,
	EGRESS_MALFORMED_BLOCKED,
	/* Not looked at, for the expression's sake: not in the total. */
	EGRESS_UNMATCHED,
	/* All that was blocked, which is counted by key as well. */
	EGRESS_BLOCKED,
	/* Calls that were refused, which are no packets: their number. */
	EGRESS_CALLS,
	/* What would have been blocked, and went on, since the heartbeat had lapsed: counted by key as well. */
	EGRESS_LAPSED,
	EGRESS_ROWS,
};

/* What decides. */
enum egress_rule {
	/* Nothing: it goes on. */
	EGRESS_RULE_NONE,
	/* The allow list has the address. */
	EGRESS_RULE_ALLOWED,
	/* What stays open beside the allow list: ARP and EAPOL, neighbour discovery, DNS, DHCP, the operator's own connection. */
	EGRESS_RULE_LINK,
	EGRESS_RULE_NEIGHBOURS,
	EGRESS_RULE_DNS,
	EGRESS_RULE_DHCP,
	EGRESS_RULE_SSH,
	/* It would be blocked, and goes on, since the heartbeat has lapsed. */
	EGRESS_RULE_LAPSED,
	/* From here on it is blocked. The block list has the address. */
	EGRESS_RULE_BLOCKED,
	/* There is an allow list, and nothing allows it. */
	EGRESS_RULE_DEFAULT,
	/* EGRESS_RULE_MATCH + n: the n-th expression of what to block. */
	EGRESS_RULE_MATCH,
	EGRESS_RULES = EGRESS_RULE_MATCH + 32,
};

/* Where it is decided. */
enum egress_hook {
	EGRESS_HOOK_TC,
	EGRESS_HOOK_CONNECT,
	EGRESS_HOOK_SENDMSG,
};

/* Sets of addresses. */
enum egress_set {
	EGRESS_SET_BLOCKED,
	EGRESS_SET_ALLOWED,
	/* What leaves through other interfaces than those that are looked at, by the routes. */
	EGRESS_SET_ELSEWHERE,
	/* Beside the allow list: who is asked for names, the servers of leases, and whom a frame reaches without a router. */
	EGRESS_SET_RESOLVERS,
	EGRESS_SET_DHCP,
	EGRESS_SET_ON_LINK,
	EGRESS_SETS,
};

/* Interfaces that a socket may be bound to, for calls to be refused. */
#define EGRESS_DEVICES 32

struct egress_count {
	__u64 packets;
	__u64 bytes;
};

/* Of a key. */
struct egress_key_count {
	struct egress_count count;
	/* enum socket_kind, of the first packet. Where nobody asks for it, values end before it. */
	__u64 kind;
};

#define EGRESS_PROTO_SHIFT 8
#define EGRESS_PORT_SHIFT 16
#define EGRESS_RULE_SHIFT 32


/* What a key has; what was not asked for is never set. */
enum egress_flag {
	EGRESS_V4 = 1,
	EGRESS_V6 = 2,
	EGRESS_HAS_PROTO = 4,
	EGRESS_HAS_PORT = 8,
	/* Without a socket of this machine, and come in through an interface. */
	EGRESS_FORWARDED = 16,
	/* No packets, but calls that were refused. */
	EGRESS_CALL = 32,
};

/* What was not asked for is 0, so that packets that differ in nothing else have the same key. */
struct egress_key {
	/* In network order, IPv4 v4-mapped. */
	__u64 addr[2];
	/*
	 * enum egress_flag, from bit 8 on the protocol, from bit 16 on the port, from bit 32 on enum egress_rule: written at once, since
	 * the hash reads words, which the processor would have to put together from smaller ones that were just written.
	 */
	__u64 what;
	/* Last, since maps for which nobody asked for it have shorter keys. */
	__u64 cookie;
};

/* A key that this CPU had lately, and what was counted of it since. That is in no table yet. Keys with cookies are never here. */
struct egress_recent {
	/* As in struct egress_key. */
	__u64 addr[2];
	__u64 what;
	struct egress_count count;
	/* Which it is of; of any other there is nothing here. */
	__u32 generation;
	/* Of another key that belongs here and came since the last packet of this one, if any: its bits, mixed. */
	__u32 turned_away;
};

/* A power of two. With the rows, a CPU's value is to be less than PCPU_MIN_UNIT_SIZE, 32 KiB (include/linux/percpu.h). */
#define EGRESS_RECENT 512

/* What is counted while a generation lasts, but by key. */
struct egress_rows {
	struct egress_count row[EGRESS_ROWS];
	struct egress_recent recent[EGRESS_RECENT];
};

/* One way of a connection, and what was decided about it. Of a call, which has no source yet, the cookie is in its place. */
struct egress_flow {
	__u64 src[2];
	__u64 dst[2];
	__u16 sport;
	__u16 dport;
	__u8 family;
	__u8 proto;
	__u8 rule;
	__u8 hook;
};

/* Of --events. */
struct egress_event {
	__u64 time_ns;
	__u64 bytes;
	/* Of the socket, where somebody asked for it. */
	__u64 cookie;
	__u8 saddr[16];
	__u8 daddr[16];
	__u32 ifindex;
	__u32 packets;
	__u16 sport;
	__u16 dport;
	__u8 family;
	__u8 proto;
	/* enum egress_flag */
	__u8 flags;
	/* enum egress_rule, egress_hook, socket_kind */
	__u8 rule;
	__u8 hook;
	__u8 kind;
	__u8 _pad[2];
	/* Of a call: who makes it, by the initial namespace's number. */
	__u32 tgid;
};

_Static_assert(sizeof(struct egress_count) == 16, "user space has the same");
_Static_assert(sizeof(struct egress_key_count) == 24, "user space has the same");
_Static_assert(sizeof(struct egress_key) == 32, "user space has the same");
_Static_assert(sizeof(struct egress_recent) == 48, "user space has the same");
_Static_assert(sizeof(struct egress_rows) == 16 * EGRESS_ROWS + 48 * EGRESS_RECENT, "user space has the same");
_Static_assert(sizeof(struct egress_event) == 80, "user space has the same");

#endif
