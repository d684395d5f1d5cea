/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */

/* Counts packets by where they go (or come from), and tells of flows. Changes nothing: every packet goes on to the next program. */

#include "tc.bpf.h"

#define ADDRSETS_FIXED
#include "egress.h"

#include "common.bpf.h"

#include "addrset.bpf.h"
#include "filter.bpf.h"
#include "lifetime.bpf.h"
#include "socket_kind.bpf.h"

#define EEXIST 17
#define E2BIG 7
#define ENOMEM 12
#define EBUSY 16

/* What of a packet makes its key. */
const volatile bool by_addr;
const volatile bool by_proto;
const volatile bool by_port;
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

/* The sizes of a key and its value are set before the load. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
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
struct egress_rows _rows;
struct egress_event _event;
enum egress_flag _flag;
enum egress_row _row;

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
	struct egress_key_count first = { { packets, bytes } };
	/* Not longer: before Linux 6.4 the upper half is not of the error. */
	int error;

	if (known) {
		egress_add(&known->count, packets, bytes);
		return;
	}
	if (whose)
		first.kind = packet_socket_kind(skb);
	error = bpf_map_update_elem(counts, key, &first, BPF_NOEXIST);
	if (!error)
		return;
	if (error == -EEXIST) {
		/* Another CPU was faster. */
		known = bpf_map_lookup_elem(counts, key);
		if (known) {
			egress_add(&known->count, packets, bytes);
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

static __always_inline void egress_tell(struct __sk_buff *skb, const struct packet *packet, __u32 packets, __u64 bytes)
{
	struct egress_event event = {};
	struct egress_flow flow = {};
	__u8 told = 1;
	int error;

	flow.family = packet->family;
	egress_address(flow.src, packet->src, packet->family);
	egress_address(flow.dst, packet->dst, packet->family);
	flow.sport = packet->sport;
	flow.dport = packet->dport;
	flow.proto = packet->proto;
	if (!all_packets) {
		if (bpf_map_lookup_elem(&flows, &flow))
			return;
		/* Another CPU may be faster, and tells of it then. If there is no room, each packet is told of. */
		error = bpf_map_update_elem(&flows, &flow, &told, BPF_NOEXIST);
		if (error == -EEXIST)
			return;
	}
	event.time_ns = bpf_ktime_get_boot_ns();
	event.bytes = bytes;
	event.packets = packets;
	__builtin_memcpy(event.saddr, flow.src, 16);
	__builtin_memcpy(event.daddr, flow.dst, 16);
	event.ifindex = skb->ifindex;
	event.sport = packet->sport;
	event.dport = packet->dport;
	event.family = packet->family;
	event.proto = packet->proto;
	event.flags = (packet->has_proto ? EGRESS_HAS_PROTO : 0) | (packet->has_ports ? EGRESS_HAS_PORT : 0);
	if (bpf_ringbuf_output(&events, &event, sizeof(event), 0)) {
		count_loss(BPFTK_LOSS_RING_FULL);
		/* The next packet of the flow is told of instead. */
		if (!all_packets)
			bpf_map_delete_elem(&flows, &flow);
	}
}

static __always_inline int egress(struct __sk_buff *skb, bool out, bool l3, bool whose)
{
	struct packet on_stack, *packet = packet_in_memory(&on_stack);
	__u32 now = *(volatile __u32 *)&generation & 1;
	struct egress_rows *fixed;
	struct egress_key key = {};
	bool unreadable = false;
	__u64 packets, bytes;
	const __u64 *addr;
	__u64 what = 0;

	if (lifetime_ends && lifetime_over(lifetime_until))
		return TC_ACT_UNSPEC;
	fixed = bpf_map_lookup_elem(&rows, &now);
	if (!fixed)
		return TC_ACT_UNSPEC;
	tc_parse(skb, l3, true, packet);
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
	if (!packet->family || unreadable) {
		__u32 row = packet->status == PACKET_OK && !unreadable ? EGRESS_NOT_IP : EGRESS_MALFORMED;

		if (row == EGRESS_NOT_IP)
			egress_add(&fixed->row[EGRESS_NOT_IP], packets, bytes);
		else
			egress_add(&fixed->row[EGRESS_MALFORMED], packets, bytes);
		return TC_ACT_UNSPEC;
	}
	addr = out ? packet->dst : packet->src;
	if (has_excluded && egress_excluded(addr[0], addr[1], packet->family)) {
		egress_add(&fixed->row[EGRESS_EXCLUDED], packets, bytes);
		return TC_ACT_UNSPEC;
	}
	if (wants_events)
		egress_tell(skb, packet, packets, bytes);
	if (!wants_counts)
		return TC_ACT_UNSPEC;

	if (by_addr) {
		egress_address(key.addr, addr, packet->family);
		if (packet->family == 4) {
			what |= EGRESS_V4;
			key.addr[1] &= bpf_cpu_to_be64(0xffffULL << 32 | mask_v4);
		} else {
			what |= EGRESS_V6;
			key.addr[0] &= mask_v6[0];
			key.addr[1] &= mask_v6[1];
		}
	}
	if (by_proto && packet->has_proto)
		what |= EGRESS_HAS_PROTO | (__u64)packet->proto << EGRESS_PROTO_SHIFT;
	if (by_port && packet->has_ports)
		what |= EGRESS_HAS_PORT | (__u64)(out ? packet->dport : packet->sport) << EGRESS_PORT_SHIFT;
	if (whose) {
		key.cookie = packet_cookie(skb);
		if (!key.cookie && skb->ingress_ifindex)
			what |= EGRESS_FORWARDED;
	}
	key.what = what;
	/* Two times the same: known maps are looked up in without a call through a pointer. */
	if (now)
		egress_count_key(skb, &counts_odd, &key, whose, packets, bytes, fixed);
	else
		egress_count_key(skb, &counts_even, &key, whose, packets, bytes, fixed);
	return TC_ACT_UNSPEC;
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
