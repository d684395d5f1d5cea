/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_DNS_H
#define BPFTK_DNS_H

#include "common.h"

/* Payload bytes of one DNS record; a longer message comes in several. A power of two: the verifier follows a mask. */
#define DNS_CHUNK 2048
#define DNS_CHUNKS 32

/* A piece of what a socket received from port 53, or of how a connection begins (names.bpf.c). */
struct dns_piece {
	__u32 record;
	__u32 tcp_seq;  /* of the packet's first payload byte */
	__u32 offset;   /* of this piece in the packet's payload */
	__u32 total;    /* length of the packet's payload */
	__u32 len;      /* of this piece */
	__u16 sport;
	__u16 dport;
	__u8 proto;
	__u8 tcp_flags;
	__u8 pad[6];
	__u64 cookie;   /* of the socket */
	__u8 saddr[16];
	__u8 daddr[16];
	__u8 data[DNS_CHUNK];
};

#define DNS_HEADER __builtin_offsetof(struct dns_piece, data)

_Static_assert(sizeof(struct dns_piece) == 72 + DNS_CHUNK, "src/kernel/dns.rs decodes a header of 72 bytes");

#endif
