/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_ADDRSET_H
#define BPFTK_ADDRSET_H

/*
 * How a large set of addresses lies in memory: one array map of lines, written by user space and then never changed.
 * Replacing the set means replacing the map, so the parts always fit each other.
 *
 *   line 0                 struct addrset_head
 *   lines 1..              IPv4, if there is much: a block for each 32 networks of 24 bits, in order of address
 *   head.v4_bitmaps..      a bitmap of 256 addresses for each such network of which only a part is in the set
 *   head.trees[].level[].. IPv6, and IPv4 if there is little: search trees over the addresses at which the set begins or ends
 */

/* One value of the map. A node's upper halves are its first two cache lines. */
#define ADDRSET_LINE 256

struct addrset_block {
	/* Bit n: all of the n-th network is in the set. */
	__u32 full;
	/* Bit n: a part of it is, and has a bitmap. */
	__u32 partial;
	/* Number of the bitmap of the first partial network. */
	__u32 first;
	__u32 _pad;
};

#define ADDRSET_BLOCKS (ADDRSET_LINE / 16)
/* 2^32 addresses in blocks of 32 * 256, 16 blocks a line. */
#define ADDRSET_V4_LINES (1 << 15)

struct addrset_bitmap {
	__u32 words[8];
};

#define ADDRSET_BITMAPS (ADDRSET_LINE / 32)

/*
 * The boundaries are sorted: the set begins at the first, ends before the second, and so on. A leaf has 16 of them. Any
 * other node has 17 children, and the first boundary of each child but the leftmost. Nodes of a level lie side by side,
 * so that the children of node i are nodes 17 i to 17 i + 16 of the next.
 *
 * The lower and the upper half of IPv6's address space have a tree each, whose boundaries leave that first bit out: then a
 * subtraction's sign compares them. IPv4's boundaries are upper halves, their lower halves are 0.
 */
#define ADDRSET_KEYS 16
/* In the place of a boundary that there isn't: larger than any. */
#define ADDRSET_NO_KEY (1ULL << 63)

struct addrset_node {
	__u64 hi[ADDRSET_KEYS];
	__u64 lo[ADDRSET_KEYS];
};

/* 17^6 leaves: some 380 million boundaries. */
#define ADDRSET_LEVELS 7

struct addrset_tree {
	/* 0 when there is no boundary. */
	__u32 levels;
	/* The first line of each level, the root's first. */
	__u32 level[ADDRSET_LEVELS];
};

#define ADDRSET_TREE_V4 2

struct addrset_head {
	/* 0 when IPv4 has no blocks. */
	__u32 v4_bitmaps;
	__u32 _pad;
	struct addrset_tree trees[3];
};

#endif
