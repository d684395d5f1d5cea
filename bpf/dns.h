/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_DNS_H
#define BPFTK_DNS_H

#include "common.h"

/* Payload bytes of one DNS record; a longer message comes in several. A power of two: the verifier follows a mask. */
#define DNS_CHUNK 4096
#define DNS_CHUNKS 16
/* Some 12 000 questions, or 2 000 answers of more than a line. */
#define DNS_RING_BYTES (4 * 1024 * 1024)

/* What most questions and many answers fit in, and most of the rest: their records take no more room. */
#define DNS_SHORT 256
#define DNS_MIDDLE 2048

/* What of a packet a record tells, before the bytes themselves. */
struct dns_header {
	__u32 record;
	__u32 tcp_seq;  /* of the packet's first payload byte */
	__u32 offset;   /* of this piece in the packet's payload */
	__u32 total;    /* length of the packet's payload */
	__u32 len;      /* of this piece */
	__u16 sport;
	__u16 dport;
	__u8 proto;
	__u8 tcp_flags;
	__u8 own_netns; /* not of the initial user namespace: whoever made it may have made all that is said there */
	__u8 pad;
	__u32 netns;    /* of the socket: the inode number */
	__u64 cookie;   /* of the socket */
	__u8 saddr[16];
	__u8 daddr[16];
};

/*
 * A piece of a question to port 53 or of an answer from there, or of how a connection begins (names.bpf.c). The record
 * of a shorter message ends after DNS_SHORT or DNS_MIDDLE bytes of data.
 */
struct dns_piece {
	struct dns_header header;
	__u8 data[DNS_CHUNK];
};

_Static_assert(sizeof(struct dns_header) == 72, "no hidden padding");

#endif
