/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_CLONE_TRACE_H
#define BPFTK_CLONE_TRACE_H

#include "common.h"

enum clone_call {
	/* Seen as a new task, not as a call. */
	CLONE_CALL_NONE,
	CLONE_CALL_CLONE,
	CLONE_CALL_CLONE3,
	CLONE_CALL_FORK,
	CLONE_CALL_VFORK,
};

enum clone_kind {
	/* The flags could not be read. */
	CLONE_KIND_UNKNOWN,
	CLONE_KIND_PROCESS,
	CLONE_KIND_THREAD,
	CLONE_KIND_VFORK,
	CLONE_KIND_NAMESPACE,
};

/* kernel/pid_namespace.c: MAX_PID_NS_LEVEL. */
#define CLONE_SET_TIDS 32

/* What was passed beside the flags; addresses are of the caller. clone has the first four. */
struct clone_arguments {
	__u64 stack;
	__u64 parent_tid;
	__u64 child_tid;
	__u64 tls;
	__u64 size;
	__u64 pidfd;
	__u64 stack_size;
	__u64 set_tid;
	__u64 set_tid_size;
	__u64 cgroup;
	__s32 pidfd_number; /* of the file made for CLONE_PIDFD; -1 is none */
	__u32 set_tids;     /* how many of them could be read */
};

/*
 * One call. Times are CLOCK_BOOTTIME in ns. A record ends after `comm`, or with --args after `args`, or after
 * `tids` when there are some.
 */
struct clone_event {
	__u64 start_ns; /* 0: the beginning was not seen */
	__u64 end_ns;   /* 0: the end was not seen; a record without an end is a success */
	__u64 cgroup_id;
	__u64 flags;
	__u64 exit_signal;
	/*
	 * The child's id in the caller's PID namespace, or a negative errno; 0: not seen, or, without a child, that
	 * seccomp or a tracer answered in the kernel's place.
	 */
	__s64 result;
	__u32 pid;
	__u32 tid;
	__u32 ppid;
	__u32 uid;
	__u32 child; /* in the initial PID namespace; 0: not seen */
	__u8 call;
	__u8 kind;
	__u8 has_args;
	__u8 told; /* the row is out already, since the call's end will not be seen */
	__u8 comm[BPFTK_COMM_LEN];
	struct clone_arguments args;
	__u32 tids[CLONE_SET_TIDS];
};

/* A call in the kernel, by thread. */
struct clone_pending {
	struct clone_event event;
	__u64 uargs; /* clone3's struct, until it has been read */
};

#define CLONE_EVENT_SHORT __builtin_offsetof(struct clone_event, args)
#define CLONE_EVENT_ARGS __builtin_offsetof(struct clone_event, tids)

_Static_assert(CLONE_EVENT_SHORT == 88, "src/kernel/clone_trace.rs decodes 88 bytes");
_Static_assert(CLONE_EVENT_ARGS == 88 + 88, "no hidden padding");
_Static_assert(sizeof(struct clone_event) == 88 + 88 + 4 * CLONE_SET_TIDS, "no hidden padding");

#endif
