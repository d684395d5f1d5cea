/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_PREFLIGHT_REASONS_BPF_H
#define BPFTK_PREFLIGHT_REASONS_BPF_H

/* What it is about a call on a connection that redirection changes. */

#include "common.bpf.h"
#include "preflight.h"
#include "preflight_sockets.bpf.h"
#include "waiters.bpf.h"

/* include/uapi/linux/socket.h, include/linux/socket.h */
#define MSG_OOB 0x1
#define MSG_TRUNC 0x20
#define MSG_DONTWAIT 0x40
#define MSG_WAITALL 0x100
#define MSG_ERRQUEUE 0x2000

/* include/linux/net.h: who waits for the socket, also to read, is woken when there is room to send. */
#define SOCK_NOSPACE 2
/* include/linux/sched.h: no time-out of a wait. */
#define MAX_SCHEDULE_TIMEOUT 0x7fffffffffffffffL

/* Signals that are sent to a process at any time: not the C library's own (32, 33), nor what a fault raises. */
#define BIT(signal) (1ULL << ((signal) - 1))
#define SIGNALS_OF_FAULTS (BIT(4) | BIT(5) | BIT(7) | BIT(8) | BIT(11) | BIT(31))
#define SIGNALS_OF_LIBC (BIT(32) | BIT(33))
#define SIGNALS 64
#define SIGACTION_BYTES 32

_Static_assert(sizeof(struct k_sigaction) == SIGACTION_BYTES, "the kernel's array is read by this stride");

/* The current process's signal handlers: too many for the stack. The kernel does not run a program within itself. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u8[SIGNALS * SIGACTION_BYTES]);
} handlers SEC(".maps");

/* Not 0 if a signal that anybody may send runs a handler in the current process. */
static __always_inline __u64 caught_signals(void)
{
	void *sighand = READ_OF_TASK(sighand);
	__u64 caught = 0;
	__u32 first = 0;
	__u8 *actions;

	actions = bpf_map_lookup_elem(&handlers, &first);
	if (!actions)
		return 2;
	if (bpf_probe_read_kernel(actions, SIGNALS * SIGACTION_BYTES,
				  sighand + bpf_core_field_offset(struct sighand_struct, action)))
		return 2;
	for (int i = 0; i < SIGNALS; i++) {
		if ((SIGNALS_OF_FAULTS | SIGNALS_OF_LIBC) & (1ULL << i))
			continue;
		/*
		 * The handler is a sigaction's first member; SIG_DFL is 0, SIG_IGN 1. No branch: the verifier takes
		 * both.
		 */
		caught |= *(__u64 *)(actions + i * SIGACTION_BYTES) & ~1ULL;
	}
	return caught;
}

enum way {
	RECEIVES,
	SENDS,
	/* Takes or tells what TCP has: redirection has it elsewhere. */
	ASKS_TCP,
	CLOSES,
};

struct call {
	int fd;
	__u32 flags;
	enum way way;
	/* Of SENDS and RECEIVES: bytes, as far as it is known, or the most that there can be. */
	__u64 length;
	/* Of ASKS_TCP and CLOSES. */
	__u32 reason;
};

/*
 * Whether the call may find that another thread waits at the connection, and wake it by waiting itself, or be woken by
 * it.
 */
static __always_inline bool may_wake_another(const struct connection *conn, const struct call *call)
{
	struct sock *sk = conn->sk;
	__u64 room = BPF_CORE_READ(sk, sk_sndbuf), used = BPF_CORE_READ(sk, sk_wmem_queued);

	if (call->way == SENDS && call->length < room && used + call->length < room)
		return false;
	return count_waiters(sk, conn->file) > 0;
}

/* The reason's bit if the value isn't 0. */
static __always_inline __u32 bit_if(__u64 value, enum preflight_reason reason)
{
	return is_set(value) << reason;
}

/* What is the socket's, whatever is done with it. */
static __always_inline __u32 reasons_of_socket(const struct connection *conn, __u64 flags)
{
	struct inet_connection_sock *icsk = (void *)conn->sk;
	struct tcp_sock *tp = (void *)conn->sk;
	__u32 reasons = bit_if(conn->mptcp, PREFLIGHT_MPTCP);

	/* Without SO_ZEROCOPY, MSG_ZEROCOPY means nothing. */
	reasons |= bit_if(flags & (1UL << bpf_core_enum_value(enum sock_flags, SOCK_ZEROCOPY)), PREFLIGHT_ZEROCOPY);
	/* An MPTCP socket is not a tcp_sock. */
	if (!conn->mptcp) {
		reasons |= bit_if((__u64)BPF_CORE_READ(icsk, icsk_ulp_ops), PREFLIGHT_ULP);
		reasons |= bit_if(BPF_CORE_READ_BITFIELD_PROBED(tp, repair), PREFLIGHT_REPAIR);
	}
	return reasons;
}

/*
 * Connections on which something had come when their owners half-closed them: in the map, a read that waits then would
 * fail. Of those that the guard watches while TCP has them; by socket.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, GUARD_HALF_CLOSES);
	__type(key, __u64);
	__type(value, __u8);
} half_closes SEC(".maps");

static __always_inline void note_half_close(const struct connection *conn)
{
	struct tcp_sock *tp = (void *)conn->sk;
	__u64 sk = (__u64)conn->sk;
	__u8 yes = 1;

	if (!guard || !learn_tenth || conn->mptcp)
		return;
	if (BPF_CORE_READ(tp, bytes_received))
		bpf_map_update_elem(&half_closes, &sk, &yes, BPF_ANY);
	else
		/* Of an earlier socket at the same place. */
		bpf_map_delete_elem(&half_closes, &sk);
}

static __always_inline bool was_half_closed_late(const struct connection *conn)
{
	__u64 sk = (__u64)conn->sk;

	return guard && learn_tenth && bpf_map_lookup_elem(&half_closes, &sk);
}

static __always_inline __u32 reasons_of_receive(const struct connection *conn, const struct call *call, __u64 sock_flags)
{
	struct tcp_sock *tp = (void *)conn->sk;
	struct sock *sk = conn->sk;
	__u8 state = HEAD(conn, skc_state);
	__u32 reasons = 0;

	reasons |= bit_if(call->flags & MSG_WAITALL, PREFLIGHT_WAITALL);
	reasons |= bit_if(call->flags & MSG_TRUNC, PREFLIGHT_TRUNC);
	reasons |= bit_if(sock_flags & (1UL << bpf_core_enum_value(enum sock_flags, SOCK_RCVTSTAMP)),
			  PREFLIGHT_TIMESTAMPS);
	/* The sign is a bit: of 1 - lowat it is set where lowat is more than 1. */
	reasons |= bit_if((1LL - BPF_CORE_READ(sk, sk_rcvlowat)) >> 63, PREFLIGHT_RCVLOWAT);
	/* -1 where it isn't set. */
	reasons |= bit_if(~BPF_CORE_READ(sk, sk_peek_off) & 0x80000000, PREFLIGHT_PEEK_OFF);
	reasons |= bit_if((__u64)BPF_CORE_READ(sk, sk_filter), PREFLIGHT_SOCKET_FILTER);
	if (!conn->mptcp)
		reasons |= bit_if(BPF_CORE_READ_BITFIELD_PROBED(tp, recvmsg_inq), PREFLIGHT_TCP_INQ);
	if (!call->length)
		reasons |= 1 << PREFLIGHT_ZERO_LENGTH;
	if (conn->may_block && !(call->flags & MSG_DONTWAIT)) {
		reasons |= 1 << PREFLIGHT_BLOCKING;
		reasons |= bit_if(BPF_CORE_READ(sk, sk_rcvtimeo) ^ MAX_SCHEDULE_TIMEOUT, PREFLIGHT_RCVTIMEO);
		reasons |= bit_if(caught_signals(), PREFLIGHT_SIGNALS);
		reasons |= bit_if(BPF_CORE_READ(sk, sk_socket, flags) & (1UL << SOCK_NOSPACE), PREFLIGHT_ROOM);
		/*
		 * Something came before: sockredir would have taken the socket out of its map else. In the map it is if
		 * it has user data. Where it is not redirected, FIN_WAIT2 counts as well: by TCP the acknowledgement may
		 * have come sooner.
		 */
		if (!conn->mptcp && state == BPF_TCP_FIN_WAIT1)
			reasons |= bit_if((__u64)BPF_CORE_READ(sk, sk_user_data), PREFLIGHT_HALF_CLOSE);
		if (!conn->mptcp && (state == BPF_TCP_FIN_WAIT1 || state == BPF_TCP_FIN_WAIT2) && was_half_closed_late(conn))
			reasons |= 1 << PREFLIGHT_HALF_CLOSE;
		if (!conn->mptcp && !guard && (state == BPF_TCP_FIN_WAIT1 || state == BPF_TCP_FIN_WAIT2))
			reasons |= bit_if(BPF_CORE_READ(tp, bytes_received), PREFLIGHT_HALF_CLOSE);
	}
	return any_number(reasons);
}

/* What it is about the call is counted, each reason once. Whether any of it is unsafe. */
static __always_inline bool look_at(struct preflight_process *process, const struct connection *conn,
				    const struct call *call)
{
	struct sock *sk = conn->sk;
	__u64 flags = HEAD(conn, skc_flags);
	bool may_block = conn->may_block && !(call->flags & MSG_DONTWAIT);
	__u32 reasons = any_number(reasons_of_socket(conn, flags));

	if (call->way == RECEIVES || call->way == SENDS) {
		reasons |= bit_if(call->flags & MSG_OOB, PREFLIGHT_OOB);
		/* 16 bits before Linux 6.6. */
		reasons |= bit_if(BPF_CORE_READ_BITFIELD_PROBED(sk, sk_tsflags), PREFLIGHT_TIMESTAMPS);
		if (call->way == RECEIVES)
			reasons |= reasons_of_receive(conn, call, flags);
		if (may_block && may_wake_another(conn, call))
			reasons |= 1 << PREFLIGHT_TWO_THREADS;
	} else {
		reasons |= 1 << (call->reason & 31);
	}
	reasons = any_number(reasons);
	for (int i = 0; i < PREFLIGHT_REASONS; i++) {
		if (reasons & (1 << i))
			__sync_fetch_and_add(&process->counts[i], 1);
	}
	return reasons & ~(1 << PREFLIGHT_BLOCKING);
}

/*
 * Of kernels that count what waits in the queue of redirected data, for FIONREAD (929e30f93125: Linux 7.0, 6.6.128,
 * 6.12.75, 6.18.14).
 */
struct sk_psock___counted {
	__u32 msg_tot_len;
} __attribute__((preserve_access_index));

static __always_inline bool counts_what_waits(void)
{
	struct sk_psock___counted *psock = NULL;

	return bpf_core_field_exists(psock->msg_tot_len);
}

#endif
