/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */

/*
 * Counts packets by where they go (or come from), and tells of flows. Without rules about what to block it changes nothing: every
 * packet goes on to the next program.
 */

#include "tc.bpf.h"

#include "egress.h"
#define ADDRSETS EGRESS_SETS

#include "common.bpf.h"

#include "addrset.bpf.h"
#include "egress_rules.bpf.h"
#include "filter.bpf.h"
#include "lifetime.bpf.h"
#include "socket_kind.bpf.h"

#define EEXIST 17
#define E2BIG 7
#define ENOMEM 12
#define EBUSY 16

/* include/linux/net.h */
#define EGRESS_SOCK_STREAM 1

/* What of a packet makes its key. */
const volatile bool by_addr;
const volatile bool by_proto;
const volatile bool by_port;
/* What IP carries is of interest: to keys, to events or to rules. */
const volatile bool by_carried;
/* And the address at the other end: to events or to rules. */
const volatile bool by_both;
/* Keys have the socket's cookie. */
const volatile bool by_socket;
/* Of addresses; IPv4 in host order, IPv6 in network order. */
const volatile __u32 mask_v4 = 0xffffffff;
const volatile __u64 mask_v6[2] = { ~0ULL, ~0ULL };

const volatile bool has_excluded;
const volatile bool has_expression;
/* Tables, or else events. */
const volatile bool wants_counts;
const volatile bool wants_events;
/* Not only the first one of each flow. */
const volatile bool all_packets;

/* tc runs with softirqs disabled, so that a CPU's slot is one packet's at a time; but a real-time kernel may switch between two. */
const volatile bool shared_cpus;

/*
 * Which of the two sets of counts is written to: its lowest bit. User space changes it, waits until no program can have seen what it
 * was before, and then has the other one for itself (src/kernel/egress/mod.rs).
 */
__u32 generation;

/* Set while the rules are asked what they would do (BPF_PROG_TEST_RUN): nothing is counted. */
volatile bool probing;

/*
 * Calls are refused in one network namespace, that of the interfaces. It is learned from a call on the socket of this cookie, which
 * bpftk makes; until then no call is refused.
 */
volatile __u64 learned_from;
volatile __u64 call_netns;
volatile bool refuses_calls;
/* The interfaces, for sockets that are bound to one; 0 is none. */
volatile __u32 call_devices[EGRESS_DEVICES];

/*
 * The sizes of a key and its value are set before the load. One value for all CPUs: a hash per CPU would take 16 bytes
 * more a key for each of them, and a tenth of a second to be made. CPUs seldom meet here: a socket's packets leave by
 * one at a time, and what has no socket in its key is gathered by each CPU first.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(key_size, sizeof(struct egress_key));
	__uint(value_size, sizeof(struct egress_key_count));
} counts_even SEC(".maps"), counts_odd SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct egress_rows);
} rows SEC(".maps");

/* What is counted in one row. */
ADDRSET_MAP(excluded);

/* The flows that were told of. The longest unseen make room for new ones. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__uint(key_size, sizeof(struct egress_flow));
	__uint(value_size, sizeof(__u8));
} flows SEC(".maps");

/* tcpdump's expression. */
BPFTK_FILTER(egress_matches, 0)

/* For the skeleton, which learns of a type only from a variable. */
struct egress_key _key;
struct egress_key_count _key_count;
enum socket_kind _kind;
struct egress_recent _recent;
struct egress_rows _rows;
struct egress_event _event;
enum egress_flag _flag;
enum egress_row _row;
enum egress_rule _rule;
enum egress_hook _hook;
enum egress_set _set;

static __always_inline void egress_add(struct egress_count *count, __u64 packets, __u64 bytes)
{
	if (shared_cpus) {
		__sync_fetch_and_add(&count->packets, packets);
		__sync_fetch_and_add(&count->bytes, bytes);
	} else {
		count->packets += packets;
		count->bytes += bytes;
	}
}

static __always_inline void egress_add_malformed(struct egress_rows *fixed, bool blocked, __u64 packets, __u64 bytes)
{
	if (blocked)
		egress_add(&fixed->row[EGRESS_MALFORMED_BLOCKED], packets, bytes);
	else
		egress_add(&fixed->row[EGRESS_MALFORMED], packets, bytes);
}

static __always_inline void egress_address(__u64 to[2], const __u64 from[2], __u8 family)
{
	if (family == 4) {
		to[0] = 0;
		to[1] = bpf_cpu_to_be64(0xffffULL << 32 | from[0]);
	} else {
		to[0] = bpf_cpu_to_be64(from[0]);
		to[1] = bpf_cpu_to_be64(from[1]);
	}
}

/* In a table, whose values all CPUs share. */
static __always_inline void egress_add_shared(struct egress_count *count, __u64 packets, __u64 bytes)
{
	__sync_fetch_and_add(&count->packets, packets);
	__sync_fetch_and_add(&count->bytes, bytes);
}

/* Global: verified once, however often it is called. */
__noinline int egress_excluded(__u64 hi, __u64 lo, __u32 family)
{
	return addrset_has(&excluded, family == 4, hi, lo);
}

/* @whose: keys have cookies. */
static __always_inline void egress_count_key(struct __sk_buff *skb, void *counts, const struct egress_key *key, bool whose,
					     __u64 packets, __u64 bytes, struct egress_rows *fixed)
{
	struct egress_key_count *known = bpf_map_lookup_elem(counts, key);
	struct egress_key_count first;
	/* Not longer: before Linux 6.4 the upper half is not of the error. */
	int error;

	if (known) {
		egress_add_shared(&known->count, packets, bytes);
		return;
	}
	first.count.packets = packets;
	first.count.bytes = bytes;
	first.kind = whose ? packet_socket_kind(skb) : 0;
	error = bpf_map_update_elem(counts, key, &first, BPF_NOEXIST);
	if (!error)
		return;
	if (error == -EEXIST) {
		/* Another CPU was faster. */
		known = bpf_map_lookup_elem(counts, key);
		if (known) {
			egress_add_shared(&known->count, packets, bytes);
			return;
		}
	}
	if (error == -E2BIG)
		egress_add(&fixed->row[EGRESS_FULL], packets, bytes);
	else if (error == -EBUSY)
		egress_add(&fixed->row[EGRESS_BUSY], packets, bytes);
	else if (error == -ENOMEM)
		egress_add(&fixed->row[EGRESS_NO_MEMORY], packets, bytes);
	else
		egress_add(&fixed->row[EGRESS_REFUSED], packets, bytes);
}

static __always_inline void egress_count_in(__u32 generation, struct __sk_buff *skb, const struct egress_key *key, bool whose,
					    __u64 packets, __u64 bytes, struct egress_rows *fixed)
{
	/* Two times the same: known maps are looked up in without a call through a pointer. */
	if (generation & 1)
		egress_count_key(skb, &counts_odd, key, whose, packets, bytes, fixed);
	else
		egress_count_key(skb, &counts_even, key, whose, packets, bytes, fixed);
}

/* The bits of a key, mixed by a multiplication whose upper half depends on all of them. */
static __always_inline __u32 egress_mixed(const struct egress_key *key)
{
	__u64 mixed = key->addr[0] ^ key->addr[1];

	/* Of IPv4, all bits that differ are in one half. */
	mixed ^= mixed >> 32;
	return ((mixed + key->what) * 0x9e3779b97f4a7c15ULL) >> 32;
}

/*
 * Packets come in trains, and a machine talks to few others at a time: the table has to be asked only for what is not among a CPU's
 * recent keys. Each has one place there. Whoever has it keeps it until another key comes twice in a row: so a train gets the place,
 * and packets that take turns don't drive each other out. User space takes what is left there together with the table.
 */
static __always_inline void egress_count_recent(__u32 generation, struct __sk_buff *skb, const struct egress_key *key,
						__u64 packets, __u64 bytes, struct egress_rows *fixed)
{
	__u32 mixed = egress_mixed(key);
	struct egress_recent *recent = &fixed->recent[mixed % EGRESS_RECENT];

	if (recent->generation == generation && recent->count.packets) {
		struct egress_key other;

		if (recent->addr[1] == key->addr[1] && recent->addr[0] == key->addr[0] && recent->what == key->what) {
			recent->count.packets += packets;
			recent->count.bytes += bytes;
			recent->turned_away = 0;
			return;
		}
		if (recent->turned_away != mixed) {
			recent->turned_away = mixed;
			egress_count_in(generation, skb, key, false, packets, bytes, fixed);
			return;
		}
		other.addr[0] = recent->addr[0];
		other.addr[1] = recent->addr[1];
		other.what = recent->what;
		egress_count_in(generation, skb, &other, false, recent->count.packets, recent->count.bytes, fixed);
	}
	recent->addr[0] = key->addr[0];
	recent->addr[1] = key->addr[1];
	recent->what = key->what;
	recent->count.packets = packets;
	recent->count.bytes = bytes;
	recent->generation = generation;
	recent->turned_away = 0;
}

/* Each flow and what was decided about it is told of once, unless every packet is asked for. */
static __always_inline bool egress_tells_once(const struct egress_flow *flow)
{
	return !all_packets || flow->hook != EGRESS_HOOK_TC;
}

/* Whether it is to be told of: asked before anything is found out for it, which most packets don't need. */
static __always_inline bool egress_is_news(const struct egress_flow *flow)
{
	__u8 told = 1;

	if (!egress_tells_once(flow))
		return true;
	if (bpf_map_lookup_elem(&flows, flow))
		return false;
	/* Another CPU may be faster, and tells of it then. If there is no room, each packet is told of. */
	return (int)bpf_map_update_elem(&flows, flow, &told, BPF_NOEXIST) != -EEXIST;
}

static __always_inline void egress_tell(struct egress_event *event, const struct egress_flow *flow)
{
	event->time_ns = bpf_ktime_get_boot_ns();
	__builtin_memcpy(event->daddr, flow->dst, 16);
	event->sport = flow->sport;
	event->dport = flow->dport;
	event->family = flow->family;
	event->proto = flow->proto;
	event->rule = flow->rule;
	event->hook = flow->hook;
	if (bpf_ringbuf_output(&events, event, sizeof(*event), 0)) {
		count_loss(BPFTK_LOSS_RING_FULL);
		/* The next packet of the flow is told of instead. */
		if (egress_tells_once(flow))
			bpf_map_delete_elem(&flows, flow);
	}
}

static __always_inline void egress_tell_packet(struct __sk_buff *skb, const struct packet *packet, __u32 rule, bool whose,
					       __u32 packets, __u64 bytes)
{
	struct egress_event event = {};
	struct egress_flow flow = {};

	flow.family = packet->family;
	egress_address(flow.src, packet->src, packet->family);
	egress_address(flow.dst, packet->dst, packet->family);
	flow.sport = packet_sport(packet);
	flow.dport = packet_dport(packet);
	flow.proto = packet->proto;
	flow.rule = rule;
	flow.hook = EGRESS_HOOK_TC;
	if (!egress_is_news(&flow))
		return;
	event.bytes = bytes;
	event.packets = packets;
	__builtin_memcpy(event.saddr, flow.src, 16);
	event.ifindex = skb->ifindex;
	event.flags = (packet->has_proto ? EGRESS_HAS_PROTO : 0) | (packet->has_ports ? EGRESS_HAS_PORT : 0);
	if (whose) {
		event.cookie = packet_cookie(skb);
		event.kind = packet_socket_kind(skb);
		if (!event.cookie && skb->ingress_ifindex)
			event.flags |= EGRESS_FORWARDED;
	}
	egress_tell(&event, &flow);
}

static __always_inline void egress_key_address(struct egress_key *key, __u64 *what, const __u64 addr[2], __u8 family)
{
	egress_address(key->addr, addr, family);
	if (family == 4) {
		*what |= EGRESS_V4;
		key->addr[1] &= bpf_cpu_to_be64(0xffffULL << 32 | mask_v4);
	} else {
		*what |= EGRESS_V6;
		key->addr[0] &= mask_v6[0];
		key->addr[1] &= mask_v6[1];
	}
}

static __always_inline int egress(struct __sk_buff *skb, bool out, bool l3, bool whose)
{
	struct packet on_stack, *packet = packet_in_memory(&on_stack);
	__u32 current = *(volatile __u32 *)&generation, now = current & 1;
	struct egress_rows *fixed;
	struct egress_key key;
	bool unreadable = false;
	bool blocked = false;
	__u32 rule = EGRESS_RULE_NONE;
	int verdict = TC_ACT_UNSPEC;
	__u64 packets, bytes;
	const __u64 *addr;
	__u64 what = 0;

	if (blocks && out && probing) {
		if (has_expression && !egress_matches(skb))
			return TC_ACT_UNSPEC;
		tc_parse(skb, l3, true, true, true, packet);
		return egress_packet_rule(skb, packet, l3) >= EGRESS_RULE_BLOCKED ? TC_ACT_SHOT : TC_ACT_UNSPEC;
	}
	/* Not yet, or not any more. Without a heartbeat it goes on counting, and only blocks nothing. */
	if (lifetime_ends && !lifetime.until)
		return TC_ACT_UNSPEC;
	fixed = bpf_map_lookup_elem(&rows, &now);
	if (!fixed)
		return TC_ACT_UNSPEC;
	/* One address alone is found sooner. */
	tc_parse(skb, l3, !out || by_both, out || by_both, by_carried, packet);
	packets = tc_packets(skb, packet);
	bytes = tc_bytes(skb, out, packets);
	if (has_expression) {
		int number = egress_matches(skb);

		if (!number) {
			egress_add(&fixed->row[EGRESS_UNMATCHED], packets, bytes);
			return TC_ACT_UNSPEC;
		}
		unreadable = number == BPFTK_FILTER_UNREADABLE;
	}
	egress_add(&fixed->row[EGRESS_TOTAL], packets, bytes);
	if (blocks && out) {
		rule = egress_packet_rule(skb, packet, l3);
		if (rule >= EGRESS_RULE_BLOCKED && !dry_run && lifetime_ends && lifetime_over(lifetime.until)) {
			rule = EGRESS_RULE_LAPSED;
			egress_add(&fixed->row[EGRESS_LAPSED], packets, bytes);
		}
		blocked = rule >= EGRESS_RULE_BLOCKED;
		if (blocked) {
			egress_add(&fixed->row[EGRESS_BLOCKED], packets, bytes);
			if (!dry_run)
				verdict = TC_ACT_SHOT;
		}
	}
	if (unreadable) {
		egress_add_malformed(fixed, blocked, packets, bytes);
		return verdict;
	}
	/* Keeps the compiler from asking both at once, of all packets. */
	asm volatile("" : : : "memory");
	if (!packet->family) {
		if (packet->status != PACKET_OK)
			egress_add_malformed(fixed, blocked, packets, bytes);
		else if (blocked)
			egress_add(&fixed->row[EGRESS_NOT_IP_BLOCKED], packets, bytes);
		else
			egress_add(&fixed->row[EGRESS_NOT_IP], packets, bytes);
		return verdict;
	}
	addr = out ? packet->dst : packet->src;
	/* What is blocked is told of, whoever it is for. */
	if (has_excluded && !blocked && egress_excluded(addr[0], addr[1], packet->family)) {
		egress_add(&fixed->row[EGRESS_EXCLUDED], packets, bytes);
		return verdict;
	}
	if (wants_events)
		egress_tell_packet(skb, packet, rule, whose, packets, bytes);
	if (!wants_counts)
		return verdict;

	if (by_addr)
		egress_key_address(&key, &what, addr, packet->family);
	else
		key.addr[0] = key.addr[1] = 0;
	if (by_proto && packet->has_proto)
		what |= EGRESS_HAS_PROTO | (__u64)packet->proto << EGRESS_PROTO_SHIFT;
	if (by_port && packet->has_ports)
		what |= EGRESS_HAS_PORT | (__u64)(out ? packet_dport(packet) : packet_sport(packet)) << EGRESS_PORT_SHIFT;
	if (whose) {
		key.cookie = packet_cookie(skb);
		if (!key.cookie && skb->ingress_ifindex)
			what |= EGRESS_FORWARDED;
	}
	if (blocks && out)
		what |= (__u64)rule << EGRESS_RULE_SHIFT;
	key.what = what;
	/* What kind of socket it is can only be asked of its own packets, and where these interrupt each other no two can share a place. */
	if (whose || shared_cpus)
		egress_count_in(current, skb, &key, whose, packets, bytes, fixed);
	else
		egress_count_recent(current, skb, &key, packets, bytes, fixed);
	return verdict;
}

SEC("tc")
int bpftk_out(struct __sk_buff *skb)
{
	return egress(skb, true, false, false);
}

SEC("tc")
int bpftk_out_l3(struct __sk_buff *skb)
{
	return egress(skb, true, true, false);
}

/* By socket. These need the kernel's types, which the others can do without. */
SEC("tc")
int bpftk_own(struct __sk_buff *skb)
{
	return egress(skb, true, false, true);
}

SEC("tc")
int bpftk_own_l3(struct __sk_buff *skb)
{
	return egress(skb, true, true, true);
}

SEC("tc")
int bpftk_in(struct __sk_buff *skb)
{
	return egress(skb, false, false, false);
}

SEC("tc")
int bpftk_in_l3(struct __sk_buff *skb)
{
	return egress(skb, false, true, false);
}

/* Counts by key, atomically: unlike packets, calls take turns on a CPU. */
static __always_inline void egress_count_call(void *counts, const struct egress_key *key)
{
	struct egress_key_count first = { .count = { 1, 0 }, .kind = SOCKET_OF_PROCESS };
	struct egress_key_count *known = bpf_map_lookup_elem(counts, key);

	if (!known) {
		if ((int)bpf_map_update_elem(counts, key, &first, BPF_NOEXIST) != -EEXIST)
			return;
		known = bpf_map_lookup_elem(counts, key);
	}
	if (known)
		__sync_fetch_and_add(&known->count.packets, 1);
}

/* Whether the socket's packets may leave through the interfaces: if not, they are none of ours. */
static __always_inline bool egress_call_is_ours(struct bpf_sock_addr *ctx, __u8 family, __u64 hi, __u64 lo)
{
	struct bpf_sock *sk = ctx->sk;
	__u32 device = sk ? sk->bound_dev_if : 0;
	int i;

	if (bpf_get_netns_cookie(ctx) != call_netns)
		return false;
	if (!device)
		return !egress_listed(EGRESS_SET_ELSEWHERE, hi, lo, family);
	for (i = 0; i < EGRESS_DEVICES; i++) {
		if (call_devices[i] == device)
			return true;
	}
	return false;
}

/* Whether the call may go on. */
static __always_inline int egress_call(struct bpf_sock_addr *ctx, __u32 hook, __u8 family, __u64 hi, __u64 lo)
{
	__u32 now = *(volatile __u32 *)&generation & 1;
	__u16 port = bpf_ntohs((__u16)ctx->user_port);
	/* IPPROTO_MPTCP is TCP on the wire, and no number for a byte. */
	__u8 proto = ctx->type == EGRESS_SOCK_STREAM && ctx->protocol > 255 ? IPPROTO_TCP : ctx->protocol;
	const __u64 addr[2] = { hi, lo };
	struct egress_rows *fixed;
	__u64 cookie, what;
	__u32 rule;

	if (!refuses_calls) {
		if (learned_from && bpf_get_socket_cookie(ctx) == learned_from)
			call_netns = bpf_get_netns_cookie(ctx);
		return 1;
	}
	if (!egress_call_is_ours(ctx, family, hi, lo))
		return 1;
	rule = egress_call_rule(family, hi, lo, proto, port);
	if (rule < EGRESS_RULE_BLOCKED)
		return 1;
	fixed = bpf_map_lookup_elem(&rows, &now);
	if (!fixed)
		return dry_run;
	__sync_fetch_and_add(&fixed->row[EGRESS_CALLS].packets, 1);
	cookie = bpf_get_socket_cookie(ctx);
	if (wants_events) {
		struct egress_event event = {};
		struct egress_flow flow = {};

		flow.family = family;
		flow.src[0] = cookie;
		egress_address(flow.dst, addr, family);
		flow.dport = port;
		flow.proto = proto;
		flow.rule = rule;
		flow.hook = hook;
		if (egress_is_news(&flow)) {
			event.cookie = cookie;
			event.kind = SOCKET_OF_PROCESS;
			event.tgid = bpf_get_current_pid_tgid() >> 32;
			event.flags = EGRESS_HAS_PROTO | EGRESS_HAS_PORT | EGRESS_CALL;
			egress_tell(&event, &flow);
		}
	}
	if (wants_counts) {
		struct egress_key key = {};

		what = EGRESS_CALL | (__u64)rule << EGRESS_RULE_SHIFT;
		if (by_addr)
			egress_key_address(&key, &what, addr, family);
		if (by_proto)
			what |= EGRESS_HAS_PROTO | (__u64)proto << EGRESS_PROTO_SHIFT;
		if (by_port)
			what |= EGRESS_HAS_PORT | (__u64)port << EGRESS_PORT_SHIFT;
		if (by_socket)
			key.cookie = cookie;
		key.what = what;
		if (now)
			egress_count_call(&counts_odd, &key);
		else
			egress_count_call(&counts_even, &key);
	}
	return dry_run;
}

static __always_inline int egress_call4(struct bpf_sock_addr *ctx, __u32 hook)
{
	return egress_call(ctx, hook, 4, bpf_ntohl(ctx->user_ip4), 0);
}

static __always_inline int egress_call6(struct bpf_sock_addr *ctx, __u32 hook)
{
	__u64 hi = (__u64)bpf_ntohl(ctx->user_ip6[0]) << 32 | bpf_ntohl(ctx->user_ip6[1]);
	__u64 lo = (__u64)bpf_ntohl(ctx->user_ip6[2]) << 32 | bpf_ntohl(ctx->user_ip6[3]);

	/* What leaves is IPv4. */
	if (egress_is_mapped(hi, lo))
		return egress_call(ctx, hook, 4, lo & 0xffffffff, 0);
	return egress_call(ctx, hook, 6, hi, lo);
}

SEC("cgroup/connect4")
int bpftk_connect4(struct bpf_sock_addr *ctx)
{
	return egress_call4(ctx, EGRESS_HOOK_CONNECT);
}

SEC("cgroup/connect6")
int bpftk_connect6(struct bpf_sock_addr *ctx)
{
	return egress_call6(ctx, EGRESS_HOOK_CONNECT);
}

SEC("cgroup/sendmsg4")
int bpftk_sendmsg4(struct bpf_sock_addr *ctx)
{
	return egress_call4(ctx, EGRESS_HOOK_SENDMSG);
}

SEC("cgroup/sendmsg6")
int bpftk_sendmsg6(struct bpf_sock_addr *ctx)
{
	return egress_call6(ctx, EGRESS_HOOK_SENDMSG);
}
