/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_DROP_H
#define BPFTK_DROP_H

#include "common.h"

/* What xdp-drop and tc-drop agree on with their programs. */

/* Interfaces, or on tc pairs of an interface and a direction. */
#define DROP_PLACES 32

/* Rows of the table, at each place: what passed, and then a row for each rule, in the order in which they are tried. */
enum drop_row {
	DROP_PASSED,
	DROP_EXCEPTED,
	DROP_MALFORMED,
	/* A rule matched, and nothing was dropped, since the heartbeat had lapsed. */
	DROP_LAPSED,
	DROP_BLOCKLIST,
	/* The options that are combined: --proto, --src and the like. */
	DROP_COMBINED,
	/* DROP_EXPRESSION + n: the n-th --match. */
	DROP_EXPRESSION,
	DROP_ROWS = DROP_EXPRESSION + 32,
};

/* Sets of addresses. */
enum drop_set {
	DROP_SET_BLOCKLIST,
	DROP_SET_SRC,
	DROP_SET_DST,
	DROP_SETS,
};

/* 256 protocols, and what isn't IP or can't be told. */
#define DROP_PROTOS 257
#define DROP_NO_PROTO 256

/* Source addresses that are counted one by one; the rest is counted as `other`. */
#define DROP_SOURCES 16384

/* So many ranges are compared one by one, which takes less than a look-up. */
#define DROP_FEW 4

struct drop_range {
	__u32 first;
	/* How much greater than the first the last is. */
	__u32 span;
};

struct drop_count {
	__u64 packets;
	__u64 bytes;
};

struct drop_place {
	__u32 ifindex;
	/* Packets have no Ethernet header. */
	__u8 l3;
	__u8 egress;
	__u16 _pad;
};

struct drop_sample {
	__u64 time_ns;
	__u64 bytes;
	__u8 saddr[16];
	__u8 daddr[16];
	__u32 place;
	__u32 row;
	__u16 sport;
	__u16 dport;
	/* 0 for what isn't IP. */
	__u8 family;
	__u8 proto;
	__u8 has_proto;
	__u8 has_ports;
};

_Static_assert(sizeof(struct drop_sample) == 64, "user space has the same");
_Static_assert(sizeof(struct drop_place) == 8, "user space has the same");

#endif
