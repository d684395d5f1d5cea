/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_ADDRSET_BPF_H
#define BPFTK_ADDRSET_BPF_H

/*
 * Look-up in large sets of addresses: two steps for IPv4, one for each level of a tree of 17 branches for IPv6 and for small
 * sets, whatever lengths the prefixes have that made the set. For programs of any kind. The layout is addrset.h's.
 */

#include "vmlinux.h"
#include <bpf/bpf_helpers.h>

#include "addrset.h"

_Static_assert(sizeof(struct addrset_block) == 16, "16 blocks a line");
_Static_assert(sizeof(struct addrset_bitmap) == 32, "8 bitmaps a line");
_Static_assert(sizeof(struct addrset_node) == ADDRSET_LINE, "a node is a line");
_Static_assert(sizeof(struct addrset_head) <= ADDRSET_LINE, "the head is a line");

#ifndef ADDRSETS
#define ADDRSETS 1
#endif

/* Sets that can be replaced; one that is missing is empty. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, ADDRSETS);
	__type(key, __u32);
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_ARRAY);
		__uint(max_entries, 1);
		__uint(map_flags, BPF_F_INNER_MAP | BPF_F_MMAPABLE);
		__uint(key_size, sizeof(__u32));
		__uint(value_size, ADDRSET_LINE);
	});
} addrsets SEC(".maps");

/* The set as it is now. Good until the program ends: what is asked of one packet is to be asked of one set. */
static __always_inline void *addrset_get(__u32 which)
{
	return bpf_map_lookup_elem(&addrsets, &which);
}

/* A set that stays as it is, in an array of the program's own: look-ups in it need no calls. */
#define ADDRSET_MAP(name)                                   \
	struct {                                            \
		__uint(type, BPF_MAP_TYPE_ARRAY);           \
		__uint(max_entries, 1);                     \
		__uint(map_flags, BPF_F_MMAPABLE);          \
		__uint(key_size, sizeof(__u32));            \
		__uint(value_size, ADDRSET_LINE);           \
	} name SEC(".maps")

static __always_inline void *addrset_line(void *set, __u32 line)
{
	return bpf_map_lookup_elem(set, &line);
}

/* 1 if @a is less than @b, else 0. By arithmetic: as a branch it would be taken every other time. */
static __always_inline __u64 addrset_less(__u64 a, __u64 b)
{
	return ((~a & b) | ((~a | b) & (a - b))) >> 63;
}

/* How many of the node's boundaries the address has reached. */
static __always_inline __u32 addrset_reached(const struct addrset_node *node, __u64 hi, __u64 lo)
{
	__u64 reached = ADDRSET_KEYS;
	int i;

	/* Less by its first 63 bits, which is what the sign tells here. */
#pragma unroll
	for (i = 0; i < ADDRSET_KEYS; i++)
		reached -= (hi - node->hi[i]) >> 63;
	/* Seldom, and then seldom more than two: boundaries in the address's own /64. */
	if (node->hi[(reached - 1) % ADDRSET_KEYS] == hi) {
		/* Read again, instead of keeping all of them on a small stack. */
		asm volatile("" ::: "memory");
#pragma unroll
		for (i = 0; i < ADDRSET_KEYS; i++) {
			__u64 differs = node->hi[i] ^ hi;
			__u64 same = ~(differs | -differs) >> 63;

			reached -= same & addrset_less(lo, node->lo[i]);
			/* One after the other: all at once would not fit on the stack. */
			asm volatile("" : "+r"(reached)::"memory");
		}
	}
	return reached;
}

/* In its block, and where that doesn't say it all, in its bitmap. */
static __always_inline bool addrset_in_blocks(void *set, __u32 first_bitmaps, __u32 addr)
{
	const struct addrset_bitmap *bitmaps;
	const struct addrset_block *blocks;
	__u32 network = addr >> 8;
	__u32 block = network / 32;
	__u32 bit = 1U << (network % 32);
	__u32 bitmap, partial;

	blocks = addrset_line(set, 1 + block / ADDRSET_BLOCKS);
	if (!blocks)
		return false;
	blocks += block % ADDRSET_BLOCKS;
	if (blocks->full & bit)
		return true;
	partial = blocks->partial;
	if (!(partial & bit))
		return false;
	bitmap = blocks->first + __builtin_popcount(partial & (bit - 1));
	bitmaps = addrset_line(set, first_bitmaps + bitmap / ADDRSET_BITMAPS);
	if (!bitmaps)
		return false;
	bitmaps += bitmap % ADDRSET_BITMAPS;
	return bitmaps->words[addr / 32 % 8] >> (addr % 32) & 1;
}

/* The halves of the address in host order; of IPv4, all of it is the upper half. */
static __always_inline bool addrset_has(void *set, bool v4, __u64 hi, __u64 lo)
{
	const struct addrset_head *head = addrset_line(set, 0);
	const struct addrset_tree *tree;
	__u32 node = 0, reached = 0, levels, i;

	if (!head)
		return false;
	if (v4) {
		if (head->v4_bitmaps)
			return addrset_in_blocks(set, head->v4_bitmaps, hi);
		tree = &head->trees[ADDRSET_TREE_V4];
		lo = 0;
	} else {
		tree = &head->trees[hi >> 63];
		hi &= ~(1ULL << 63);
	}
	levels = tree->levels;
	for (i = 0; i < ADDRSET_LEVELS; i++) {
		const struct addrset_node *line;

		if (i >= levels)
			break;
		line = addrset_line(set, tree->level[i] + node);
		if (!line)
			return false;
		reached = addrset_reached(line, hi, lo);
		node = node * (ADDRSET_KEYS + 1) + reached;
	}
	/* 16 a leaf: the leaves before this one are even. */
	return reached & 1;
}

#endif
