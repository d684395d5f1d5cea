/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_SOCKREDIR_H
#define BPFTK_SOCKREDIR_H

#include "common.h"

/* What sockredir agrees on with its programs. An end is a socket of a connection; what it sends is a direction. */

/*
 * Which end of which connection. The sequence numbers make it unique where the same addresses and ports exist in
 * several network namespaces, and the addresses keep a remote host that knows the numbers from being taken for somebody
 * else. The other end's key is this one with left and right swapped.
 */
struct sockredir_key {
	__u8 laddr[16];
	__u8 raddr[16];
	/* Of the first byte in each direction. */
	__u32 lseq;
	__u32 rseq;
	__u16 lport;
	__u16 rport;
};

enum sockredir_state {
	/* Nothing has been sent yet. */
	SOCKREDIR_IDLE,
	SOCKREDIR_REDIRECT,
	/* For good. */
	SOCKREDIR_TCP,
};

/* Why a direction is left to TCP. */
enum sockredir_reason {
	SOCKREDIR_NONE,
	SOCKREDIR_PEER_UNKNOWN,
	SOCKREDIR_PRIOR_BYTES,
	SOCKREDIR_BACKLOG,
	SOCKREDIR_NOT_LOCAL,
	SOCKREDIR_FILTERED,
	SOCKREDIR_MAP_FULL,
	SOCKREDIR_EXISTS,
	SOCKREDIR_MPTCP,
	SOCKREDIR_KERNEL,
	SOCKREDIR_ULP,
	SOCKREDIR_READER,
	SOCKREDIR_REFUSED,
	SOCKREDIR_PEER_CLOSED,
	SOCKREDIR_STOPPED,
	SOCKREDIR_MEMORY,
	SOCKREDIR_NAMESPACE,
	SOCKREDIR_TRANSLATED,
	SOCKREDIR_REPAIR,
	SOCKREDIR_GUARDED,
	SOCKREDIR_HALF_CLOSED,
	SOCKREDIR_LEARNING,
	SOCKREDIR_REASONS,
};

struct sockredir_end {
	/* This socket's address: only ever read with care, since it may be gone. */
	__u64 sk;
	/* Redirected. */
	__u64 bytes;
	__u64 messages;
	/* Left to TCP, as the socket counts it: transmitted, each byte once. As of the last look. */
	__u64 tcp_bytes;
	/* The cookie of the socket's network namespace. */
	__u64 netns;
	__u64 opened_ns;
	/* Whoever sent last. */
	__u32 pid;
	__u8 comm[BPFTK_COMM_LEN];
	__u8 state;
	__u8 reason;
	/* This end connected. */
	__u8 client;
	__u8 _pad;
};

/* An end that is in the map of sockets, and what waits to be read there. */
struct sockredir_entry {
	struct sockredir_end end;
	/* Of what follows, which the sender at the other end changes, and whoever finds that all of it was read. */
	struct bpf_spin_lock lock;
	/* Redirected since the queue was last seen empty: at least what waits in it. */
	__u32 queued_messages;
	__u64 queued_bytes;
	/* Nothing is added any more, for this reason, an enum sockredir_reason. */
	__u32 refuses;
	/* Something was redirected to it, or is just being. */
	__u32 used;
	/* How many messages somebody wanted to put into the queue, each counted before the queue is looked at. */
	__u64 sends;
};

/* What a waiting message takes beside its bytes: a struct sk_msg, in a slab of that size. */
#define SOCKREDIR_MESSAGE_BYTES 1024

/* A packet for bpftk_look is a header that means nothing, and this. */
struct sockredir_look {
	struct sockredir_key key;
	/* The queue is to be found empty if nobody has sent since there were so many `sends`. */
	__u32 settle;
	__u64 sends;
};

#define SOCKREDIR_PACKET_HEADER 14

struct sockredir_event {
	struct sockredir_key key;
	__u32 _pad;
	__u64 closed_ns;
	struct sockredir_end end;
};

/* Cumulative, by CPU. */
enum sockredir_count {
	/* Ends of connections, established in scope. */
	SOCKREDIR_CLIENTS,
	SOCKREDIR_SERVERS,
	/* Ends that went into the map. */
	SOCKREDIR_ADMITTED,
	/* Directions whose first byte was redirected. */
	SOCKREDIR_REDIRECTED,
	/* Of these, directions that TCP got later on. */
	SOCKREDIR_FELL_BACK,
	/* Ends of the map that closed without having sent. */
	SOCKREDIR_SILENT,
	SOCKREDIR_BYTES,
	SOCKREDIR_MESSAGES,
	/* Of ends that are closed. */
	SOCKREDIR_TCP_BYTES,
	/*
	 * Packets of TCP that began with what an earlier one had brought, and of these, those for which there was no
	 * memory to cut it off.
	 */
	SOCKREDIR_OVERLAPS,
	SOCKREDIR_OVERLAPS_KEPT,
	/* Packets of TCP that were dropped, for the sender to send again, since too many small ones wait. */
	SOCKREDIR_POSTPONED,
	/* The largest queue of a direction, in bytes. A maximum, not a sum. */
	SOCKREDIR_HIGH_WATER,
	/* SOCKREDIR_BY_REASON + n: directions left to TCP for the n-th reason. */
	SOCKREDIR_BY_REASON,
	SOCKREDIR_COUNTS = SOCKREDIR_BY_REASON + SOCKREDIR_REASONS,
};

/* Names that --comm can take. */
#define SOCKREDIR_COMMS 8

_Static_assert(sizeof(struct sockredir_key) == 44, "user space has the same");
_Static_assert(sizeof(struct sockredir_end) == 72, "user space has the same");
_Static_assert(sizeof(struct sockredir_entry) == 104, "user space has the same");
_Static_assert(sizeof(struct sockredir_look) == 56, "user space has the same");
_Static_assert(sizeof(struct sockredir_event) == 128, "user space has the same");

#endif
