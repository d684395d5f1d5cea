/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_TCPCONNECT_H
#define BPFTK_TCPCONNECT_H

#include "common.h"

enum tcpconnect_verdict {
	/* Not decided: what --at-start reports, and what is left in the table at the end. */
	TCPCONNECT_PENDING,
	TCPCONNECT_OK,
	/* `error` is the errno. */
	TCPCONNECT_FAILED,
	/* The caller gave the socket up before an answer came. */
	TCPCONNECT_CLOSED,
	/* It failed, and the kernel did not show why (a return hook did not run). */
	TCPCONNECT_UNKNOWN,
};

/* One connect attempt. Times are CLOCK_BOOTTIME in ns, ports in host order, IPv4 addresses v4-mapped. */
struct tcpconnect_event {
	__u32 record;
	__u32 error;
	__u64 start_ns;
	__u64 end_ns;
	__u64 cgroup_id;
	__u32 pid;
	__u32 tid;
	__u32 uid;
	__u32 netns;
	__u16 sport;
	__u16 dport;
	__u8 verdict;
	__u8 instant; /* the start of the call was not seen: start_ns equals end_ns, and the latency is null */
	__u8 pad[2];
	__u8 saddr[16];
	__u8 daddr[16];
	__u8 comm[BPFTK_COMM_LEN];
};

#define ATTEMPT_CALL_KNOWN 1 /* a connect() is in the kernel, and its end will be seen */
#define ATTEMPT_SYN_SENT 2   /* it got as far as SYN_SENT: the addresses are the kernel's */
#define ATTEMPT_GIVEN_UP 4   /* closed without an error code: the call's end knows why */
#define ATTEMPT_SILENT 8     /* nothing more to print: it is printed already */

/* An attempt under way, by socket. */
struct tcpconnect_attempt {
	struct tcpconnect_event event;
	__u32 call_tid;
	__u32 flags;
	/* The last error that the socket told its program of while in SYN_SENT, as after an ICMP message; 0 is none. */
	__u32 told_error;
	__u32 pad;
	__u64 told_ns;
};

/* A connect() in the kernel, by thread, where entry and return are different programs with no common context. */
struct tcpconnect_call {
	__u64 sk;
	__u64 addr;
	__u64 addr_len;
};

_Static_assert(sizeof(struct tcpconnect_event) == 104, "src/kernel/tcpconnect.rs decodes 104 bytes");

#endif
