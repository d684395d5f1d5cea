/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_DROP_BPF_H
#define BPFTK_DROP_BPF_H

/*
 * Rules, and what is counted of them.
 */

#include "packet.bpf.h"

#define ADDRSETS DROP_SETS
#include "drop.h"

#include "common.bpf.h"

#include "addrset.bpf.h"
#include "filter.bpf.h"
#include "lifetime.bpf.h"

/* The rules. */
const volatile bool has_blocklist;
const volatile bool has_combined;
const volatile bool match_proto;
const volatile bool match_src;
const volatile bool match_dst;
const volatile bool match_sport;
const volatile bool match_dport;
/* The rule leaves neighbour discovery alone: without that, IPv6 ends. */
const volatile bool spare_neighbours;
/* One bit a protocol; or if it is one only, and not 0, that. */
const volatile __u64 protos[4];
const volatile __u8 only_proto;
/* Of IPv4 addresses and of ports. With a count of 0, the set or the map has them. */
const volatile __u32 few_src, few_dst, few_sport, few_dport;
const volatile struct drop_range src_ranges[DROP_FEW], dst_ranges[DROP_FEW];
const volatile struct drop_range sport_ranges[DROP_FEW], dport_ranges[DROP_FEW];

/* Something depends on the packet's addresses. One constant for all that does: each is a load, even where it is known. */
const volatile bool by_address;

const volatile bool has_excepts;
const volatile bool has_matches;

/* tcpdump's expressions: --except and --match. */
BPFTK_FILTER(drop_excepts, 0)
BPFTK_FILTER(drop_matches, 1)

/* What becomes of a packet that a rule matches. */
const volatile bool dry_run;
/* Nanoseconds that one packet takes of the allowance, and how many may be taken ahead; 0 is no allowance. */
const volatile __u64 rate_ns;
const volatile __u64 rate_ahead_ns;
/* Every how many dropped packets one is told of; 0 is never. */
const volatile __u32 sample_every;

/* What is counted beside the rows. */
const volatile bool by_proto;
const volatile bool by_src;

/*
 * XDP and tc run with softirqs disabled, so that a CPU's slot is one program's at a time; but a real-time kernel may switch
 * between two on a CPU.
 */
const volatile bool shared_cpus;

const volatile __u32 places_used = 1;
/* At some place, packets have no Ethernet header. */
const volatile bool some_l3;
struct drop_place places[DROP_PLACES];

/* Set while the rules are asked what they would do (BPF_PROG_TEST_RUN): nothing is counted, and it is not yet time. */
volatile bool probing;

/* One bit a port: 1024 words for source ports, then as many for destination ports. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2048);
	__type(key, __u32);
	__type(value, __u64);
} ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, DROP_PLACES * DROP_ROWS);
	__type(key, __u32);
	__type(value, struct drop_count);
} counts SEC(".maps");

/* Of what was dropped, or would have been. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, DROP_PROTOS);
	__type(key, __u32);
	__type(value, struct drop_count);
} proto_counts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, DROP_SOURCES);
	__uint(key_size, 16);
	__uint(value_size, sizeof(struct drop_count));
} src_counts SEC(".maps");

/* What src_counts had no room for. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct drop_count);
} other_sources SEC(".maps");

struct drop_bucket {
	struct bpf_spin_lock lock;
	__u32 _pad;
	/* When the allowance that was taken so far will have been due. */
	__u64 due_ns;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, DROP_ROWS);
	__type(key, __u32);
	__type(value, struct drop_bucket);
} buckets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} sampled SEC(".maps");

/* For the skeleton, which learns of a type only from a variable. */
struct drop_sample _sample;
enum drop_row _row;
enum drop_set _set;

static __always_inline void drop_add(void *map, const void *key, __u64 packets, __u64 bytes)
{
	struct drop_count *count = bpf_map_lookup_elem(map, key);

	if (!count)
		return;
	if (shared_cpus) {
		__sync_fetch_and_add(&count->packets, packets);
		__sync_fetch_and_add(&count->bytes, bytes);
	} else {
		count->packets += packets;
		count->bytes += bytes;
	}
}

static __always_inline bool drop_in(const volatile struct drop_range ranges[DROP_FEW], __u32 count, __u32 value)
{
	__u32 i;

#pragma unroll
	for (i = 0; i < DROP_FEW; i++) {
		if (i < count && value - ranges[i].first <= ranges[i].span)
			return true;
	}
	return false;
}

static __always_inline bool drop_port_listed(__u32 first, __u16 port)
{
	__u32 word = first + port / 64;
	__u64 *bits = bpf_map_lookup_elem(&ports, &word);

	return bits && *bits >> (port % 64) & 1;
}

/* Global: verified once, however often it is called. */
__noinline int drop_listed(__u32 which, __u64 hi, __u64 lo, __u32 family)
{
	void *set = addrset_get(which);

	return set && addrset_has(set, family == 4, hi, lo);
}

static __always_inline bool drop_is_neighbour_discovery(const struct packet *packet)
{
	return packet->family == 6 && packet->proto == IPPROTO_ICMPV6 && packet->icmp_type >= 133 &&
	       packet->icmp_type <= 137;
}

static __always_inline bool drop_combined(const struct packet *packet)
{
	/* What has ports has a protocol, and what has that has addresses: one question is enough. */
	if (match_sport || match_dport) {
		if (!packet->has_ports)
			return false;
	} else if (match_proto) {
		if (!packet->has_proto)
			return false;
	} else if (!packet->family) {
		return false;
	}
	if (match_proto && !(only_proto ? packet->proto == only_proto :
					  protos[packet->proto / 64] >> (packet->proto % 64) & 1))
		return false;
	if (match_sport && !(few_sport ? drop_in(sport_ranges, few_sport, packet_sport(packet)) :
					 drop_port_listed(0, packet_sport(packet))))
		return false;
	if (match_dport && !(few_dport ? drop_in(dport_ranges, few_dport, packet_dport(packet)) :
					 drop_port_listed(1024, packet_dport(packet))))
		return false;
	if (spare_neighbours && drop_is_neighbour_discovery(packet))
		return false;
	if (match_src && !(few_src && packet->family == 4 ?
				   drop_in(src_ranges, few_src, packet->src[0]) :
				   drop_listed(DROP_SET_SRC, packet->src[0], packet->src[1], packet->family)))
		return false;
	return !match_dst || (few_dst && packet->family == 4 ?
				      drop_in(dst_ranges, few_dst, packet->dst[0]) :
				      drop_listed(DROP_SET_DST, packet->dst[0], packet->dst[1], packet->family));
}

/* The row that a packet belongs to. */
static __always_inline __u32 drop_row(void *ctx, const struct packet *packet, bool egress)
{
	bool unreadable = false;

	if (has_excepts) {
		int number = drop_excepts(ctx);

		if (number > 0)
			return DROP_EXCEPTED;
		unreadable = number == BPFTK_FILTER_UNREADABLE;
	}
	if (has_blocklist && packet->family) {
		const __u64 *addr = egress ? packet->dst : packet->src;

		if (drop_listed(DROP_SET_BLOCKLIST, addr[0], addr[1], packet->family))
			return DROP_BLOCKLIST;
	}
	if (has_combined && drop_combined(packet))
		return DROP_COMBINED;
	if (has_matches) {
		int number = drop_matches(ctx);

		if (number > 0 && number <= DROP_ROWS - DROP_EXPRESSION)
			return DROP_EXPRESSION + number - 1;
		unreadable |= number == BPFTK_FILTER_UNREADABLE;
	}
	if (unreadable)
		return DROP_MALFORMED;
	/* Addresses that were found count, whatever comes behind them: and ports that weren't are no reason to distrust. */
	if (packet->status != PACKET_OK && !packet->has_proto)
		return DROP_MALFORMED;
	return DROP_PASSED;
}

/* Whether the rule's allowance has room for so many packets, which then take it. */
static __always_inline bool drop_allowed(__u32 row, __u64 packets)
{
	struct drop_bucket *bucket;
	__u64 now, due;
	bool allowed;

	if (!rate_ns)
		return false;
	bucket = bpf_map_lookup_elem(&buckets, &row);
	if (!bucket)
		return false;
	now = bpf_ktime_get_ns();
	bpf_spin_lock(&bucket->lock);
	due = bucket->due_ns > now ? bucket->due_ns : now;
	allowed = due - now <= rate_ahead_ns;
	if (allowed)
		bucket->due_ns = due + packets * rate_ns;
	bpf_spin_unlock(&bucket->lock);
	return allowed;
}

static __always_inline void drop_address(__u8 to[16], const __u64 halves[2], __u8 family)
{
	if (family == 4) {
		set_v4_mapped(to, bpf_htonl(halves[0]));
	} else {
		__be64 words[2] = { bpf_cpu_to_be64(halves[0]), bpf_cpu_to_be64(halves[1]) };

		__builtin_memcpy(to, words, 16);
	}
}

static __always_inline void drop_take_sample(const struct packet *packet, __u32 place, __u32 row, __u64 bytes)
{
	struct drop_sample sample = {};
	__u32 first = 0;
	__u64 *count = bpf_map_lookup_elem(&sampled, &first);

	/* Not an atomic operation: what it was before is told by those of Linux 5.12 on only. */
	if (!count || (*count)++ % sample_every)
		return;
	sample.time_ns = bpf_ktime_get_boot_ns();
	sample.bytes = bytes;
	sample.place = place;
	sample.row = row;
	sample.family = packet->family;
	sample.proto = packet->proto;
	sample.has_proto = packet->has_proto;
	sample.has_ports = packet->has_ports;
	sample.sport = packet_sport(packet);
	sample.dport = packet_dport(packet);
	if (packet->family) {
		drop_address(sample.saddr, packet->src, packet->family);
		drop_address(sample.daddr, packet->dst, packet->family);
	}
	emit_record(&sample, sizeof(sample));
}

/* What is told of dropped packets beside their row. */
static __always_inline void drop_tell(const struct packet *packet, __u32 place, __u32 row, __u64 packets, __u64 bytes)
{
	if (by_proto) {
		__u32 proto = packet->has_proto ? packet->proto : DROP_NO_PROTO;

		drop_add(&proto_counts, &proto, packets, bytes);
	}
	if (by_src) {
		struct drop_count none = {};
		__u8 src[16] = {};
		__u32 first = 0;

		if (packet->family)
			drop_address(src, packet->src, packet->family);
		if (!bpf_map_lookup_elem(&src_counts, src))
			bpf_map_update_elem(&src_counts, src, &none, BPF_NOEXIST);
		if (bpf_map_lookup_elem(&src_counts, src))
			drop_add(&src_counts, src, packets, bytes);
		else
			drop_add(&other_sources, &first, packets, bytes);
	}
	if (sample_every)
		drop_take_sample(packet, place, row, bytes);
}

static __always_inline bool drop_has_one_place(void)
{
	return places_used == 1 || probing;
}

static __always_inline __u32 drop_place(__u32 ifindex, bool egress)
{
	__u32 i;

	for (i = 0; i < DROP_PLACES; i++) {
		if (i >= places_used)
			break;
		if (places[i].ifindex == ifindex && places[i].egress == egress)
			return i;
	}
	return DROP_PLACES;
}

static __always_inline bool drop_is_l3(__u32 place)
{
	return some_l3 && places[place % DROP_PLACES].l3;
}

static __always_inline void drop_count_row(__u32 place, __u32 row, __u64 packets, __u64 bytes)
{
	__u32 key = place * DROP_ROWS + row;

	drop_add(&counts, &key, packets, bytes);
}

/* Counts the packet in its row, and says whether it is to be dropped. */
static __always_inline bool drop_verdict(const struct packet *packet, __u32 place, __u32 row, __u64 packets,
					 __u64 bytes)
{
	bool matched = row >= DROP_BLOCKLIST;
	__u64 until = lifetime.until;

	if (!until && probing)
		return matched;
	if (!matched) {
		drop_count_row(place, row, packets, bytes);
		return false;
	}
	if (lifetime_over(until) && !(dry_run && lifetime_lapsed(until))) {
		drop_count_row(place, lifetime_lapsed(until) ? DROP_LAPSED : DROP_PASSED, packets, bytes);
		return false;
	}
	if (drop_allowed(row, packets)) {
		drop_count_row(place, DROP_PASSED, packets, bytes);
		return false;
	}
	drop_count_row(place, row, packets, bytes);
	/* Keeps the compiler from making one way of both, with more to carry along. */
	asm volatile("" : : "i"(DROP_ROWS));
	drop_tell(packet, place, row, packets, bytes);
	return !dry_run;
}

#endif
