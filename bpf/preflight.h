/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_PREFLIGHT_H
#define BPFTK_PREFLIGHT_H

#include "common.h"

/* What a process does with a connection that redirection changes. */
enum preflight_reason {
	PREFLIGHT_SPLICE,
	PREFLIGHT_RECEIVE_MAP,
	PREFLIGHT_WAITALL,
	PREFLIGHT_OOB,
	PREFLIGHT_TRUNC,
	PREFLIGHT_ZEROCOPY,
	PREFLIGHT_RCVLOWAT,
	PREFLIGHT_RCVTIMEO,
	PREFLIGHT_SIGNALS,
	PREFLIGHT_TWO_THREADS,
	PREFLIGHT_ULP,
	PREFLIGHT_MPTCP,
	PREFLIGHT_REPAIR,
	PREFLIGHT_FIONREAD,
	PREFLIGHT_TCP_INFO,
	PREFLIGHT_TCP_INQ,
	PREFLIGHT_PEEK_OFF,
	PREFLIGHT_TIMESTAMPS,
	PREFLIGHT_ZERO_LENGTH,
	PREFLIGHT_SOCKET_FILTER,
	PREFLIGHT_UNREAD_AT_CLOSE,
	PREFLIGHT_HALF_CLOSE,
	PREFLIGHT_ROOM,
	/* The only one that is right as long as the process is not stopped. */
	PREFLIGHT_BLOCKING,
	/* What the programs can't look into. */
	PREFLIGHT_IO_URING,
	PREFLIGHT_ABI32,
	PREFLIGHT_REASONS,
};

/* A process, also after its end: ids are used again. */
struct preflight_key {
	__u64 start_ns; /* CLOCK_BOOTTIME */
	__u32 pid;
	__u32 pad;
};

struct preflight_process {
	/* Looked at on local TCP connections. */
	__u64 calls;
	__u64 counts[PREFLIGHT_REASONS];
	__u64 cgroup_id;
	__u32 uid;
	/* Of the guard: it did what is unsafe, and that was told. */
	__u32 is_unsafe;
	__u8 comm[BPFTK_COMM_LEN];
	/* Of the guard: in jiffies, when its program and a server's port were last noted as at work, and which port. */
	__u64 program_at;
	__u64 port_at;
	__u64 port;
};

/* A port of a connection on which a process did what is unsafe. */
struct preflight_port {
	struct preflight_key process;
	__u16 port;
	__u16 pad[3];
};

/* The guard's: a process has a new port, or is unsafe from now on (then the port is 0). */
struct preflight_news {
	struct preflight_key process;
	__u16 port;
	__u16 pad[3];
};

/* A port of a server, and the cookie of its network namespace. */
struct guard_server {
	__u64 netns;
	__u64 port;
};

/*
 * How long a program, or whoever serves a port, has been watched at work. A tenth of the time to learn counts when
 * something was seen in it.
 */
struct guard_learned {
	/* In jiffies: when the last tenth began. */
	__u64 tenth_at;
	/* Of a port: the program that listens; 0 if it did before there was a guard. */
	__u64 program;
	__u32 tenths;
	/* A connection was watched from its beginning to its end. */
	__u8 finished;
	/* Of a program: a process of it did what is unsafe. */
	__u8 is_unsafe;
	__u8 _pad[2];
};

/* More than ten: the time between the first and the last of them is ten tenths then. */
#define GUARD_TENTHS 11

/* How sure it is that it is the server's. */
enum preflight_port_role {
	PREFLIGHT_PORT_GUESS,
	PREFLIGHT_PORT_LISTENING,
};

#define PREFLIGHT_PROCESSES 8192
#define PREFLIGHT_PORTS 16384
#define PREFLIGHT_THREADS 16384
#define PREFLIGHT_ADDRESSES 16384
#define GUARD_PROGRAMS 8192
#define GUARD_SERVERS 16384
#define GUARD_HALF_CLOSES 8192
/* Some 2000 records. */
#define PREFLIGHT_NEWS_BYTES 65536

_Static_assert(PREFLIGHT_REASONS <= 32, "a mask of 32 bits has them all");
_Static_assert(sizeof(struct preflight_key) == 16, "src/kernel/preflight decodes 16 bytes");
_Static_assert(sizeof(struct preflight_process) == 8 + 8 * PREFLIGHT_REASONS + 16 + BPFTK_COMM_LEN + 24, "no hidden padding");
_Static_assert(sizeof(struct preflight_port) == 24, "no hidden padding");
_Static_assert(sizeof(struct preflight_news) == 24, "no hidden padding");
_Static_assert(sizeof(struct guard_learned) == 24, "no hidden padding");

#endif
