/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_OWNERS_H
#define BPFTK_OWNERS_H

#include "common.h"

/* What a process has to do with a socket. */
enum owner_claim {
	/* It made the socket. */
	OWNER_CREATED = 1,
	/* It was the last to have the socket open. */
	OWNER_RELEASED,
	/* It sent through the socket, as nobody or another process did before. */
	OWNER_SENT,
	/* It received from the socket, of which nothing was known. */
	OWNER_RECEIVED,
	/* It has the socket open. */
	OWNER_HOLDS,
};

struct owner_record {
	__u64 cookie;
	__u64 start_ns; /* CLOCK_BOOTTIME, of the process's first thread */
	__u64 cgroup_id;
	__u32 tgid;
	__u32 uid;
	__u8 comm[BPFTK_COMM_LEN]; /* of the thread group's leader */
	__u8 claim;
	__u8 is_kernel; /* a thread of the kernel's own */
	__u8 pad[6];
};

_Static_assert(sizeof(struct owner_record) == 56, "src/kernel/owners decodes 56 bytes");

#endif
