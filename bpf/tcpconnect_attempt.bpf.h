/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_TCPCONNECT_ATTEMPT_BPF_H
#define BPFTK_TCPCONNECT_ATTEMPT_BPF_H

/*
 * One connect attempt: what is stored of it, which are wanted, and its life from the call to the row. The hooks that
 * drive it are in tcpconnect.bpf.c.
 */

#include "task_filter.bpf.h"
#include "tcpconnect.h"

/* include/net/tcp_states.h */
#define TCP_ESTABLISHED 1
#define TCP_SYN_SENT 2
#define TCP_SYN_RECV 3
#define TCP_CLOSE 7
#define TCP_LISTEN 10

#define IPPROTO_TCP 6

/* include/uapi/asm-generic/errno*.h */
#define EINTR 4
#define EBADF 9
#define EACCES 13
#define EFAULT 14
#define EPIPE 32
#define ENOTSOCK 88
#define EOPNOTSUPP 95
#define ECONNABORTED 103
#define ECONNRESET 104
#define EISCONN 106
#define ETIMEDOUT 110
#define ECONNREFUSED 111
#define EALREADY 114
#define EINPROGRESS 115
#define ECANCELED 125
#define ERESTARTSYS 512

const volatile __u8 at_start;
const volatile __u8 failed_only;
const volatile __u8 filter_family; /* 4, 6, or 0 for both */
const volatile __u8 filter_by_port;
const volatile __u8 filter_by_dst;
const volatile __u8 filter_by_exclude;
const volatile __u32 filter_netns;
const volatile __u64 min_latency_ns;
/* Back end kprobe: tcp_v6_connect is hooked too, and what it does by calling tcp_v4_connect is one attempt, its own. */
const volatile __u8 has_v6_hooks = 1;
/*
 * Back end kprobe: the kernel runs a kretprobe for so many calls at a time, and skips it for more. Back end fentry:
 * where programs are preempted.
 */
const volatile __u8 may_miss_returns;
/*
 * A program that a CPU is in the middle of is skipped for everything else that comes to it on that CPU: what interrupts
 * it, and, where the kernel preempts programs, every task that runs meanwhile (kernel/bpf/trampoline.c,
 * __bpf_prog_enter_recur; kernel/trace/bpf_trace.c, __bpf_trace_run). Where it does, there is a second copy of each
 * program that matters, which finds done what the first did, and does what that was skipped for.
 */
const volatile __u8 has_copies;

/* Back end tracepoint: attempts without a call that we follow are ended by io_uring's completion or the socket's end. */
const volatile __u8 has_uring_hooks;

/* Numbers of system calls: each architecture has its own. */
const volatile __s32 nr_connect, nr_sendto, nr_sendmsg, nr_sendmmsg;

/* An attempt found no room: from then on, one that is not in the table may be that one. */
__u8 table_was_full;

/* Sized by user space. Inserted at the call or at SYN_SENT; deleted when SYN_SENT is left, at the call's end, or with the socket. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u64);
	__type(value, struct tcpconnect_attempt);
} attempts SEC(".maps");

/* Sized by user space. Inserted at a call's entry, deleted at its return. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tcpconnect_call);
} calls SEC(".maps");

/* Back end kprobe: the same, of the checks whether a call is allowed. Back end fentry: which copy has seen a refusal. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tcpconnect_call);
} checks SEC(".maps");

/* One bit a port. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536 / 64);
	__type(key, __u32);
	__type(value, __u64);
} filter_ports SEC(".maps");

struct prefix {
	__u32 len;
	__u8 addr[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix);
	__type(value, __u8);
} filter_dst SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix);
	__type(value, __u8);
} filter_exclude SEC(".maps");

/*
 * A socket, and whether the verifier knows that it is one, as of the arguments of fentry and tp_btf programs. Then its fields are read by
 * loads; a helper's call for each takes some sixty instructions.
 */
struct known_sock {
	struct sock *sk;
	bool typed;
};

/* Through a variable of its own: else the relocation would begin at struct known_sock, which no kernel has. */
#define SOCK_FIELD(sock, field)                                          \
	({                                                               \
		struct sock *__sk = (sock).sk;                           \
		(sock).typed ? __sk->field : BPF_CORE_READ(__sk, field); \
	})

static __always_inline struct known_sock untyped(struct sock *sk)
{
	return (struct known_sock){ .sk = sk };
}

static __always_inline struct known_sock typed(struct sock *sk)
{
	return (struct known_sock){ .sk = sk, .typed = true };
}

/* ------------------------------------------------------------------ what the user asked for */

static __always_inline bool is_v4_mapped(const __u8 addr[16])
{
	__u64 high, low;

	__builtin_memcpy(&high, addr, 8);
	__builtin_memcpy(&low, addr + 8, 8);
	return !high && (__u32)low == bpf_htonl(0xffff);
}

/* The longest prefix decides: IPv4 is no part of ::/0, though v4-mapped addresses are. */
static __always_inline bool has_address(void *set, const struct prefix *prefix)
{
	__u8 *included = bpf_map_lookup_elem(set, prefix);

	return included && *included;
}

/* The filters on the destination. @event has its final destination. */
static __always_inline bool destination_wanted(const struct tcpconnect_event *event)
{
	struct prefix prefix = { .len = 128 };

	if (filter_family && filter_family != (is_v4_mapped(event->daddr) ? 4 : 6))
		return false;
	if (filter_by_port) {
		__u32 word = event->dport / 64;
		__u64 *bits = bpf_map_lookup_elem(&filter_ports, &word);

		if (!bits || !(*bits & (1ull << (event->dport % 64))))
			return false;
	}
	if (filter_by_dst || filter_by_exclude)
		__builtin_memcpy(prefix.addr, event->daddr, 16);
	if (filter_by_exclude && has_address(&filter_exclude, &prefix))
		return false;
	return !filter_by_dst || has_address(&filter_dst, &prefix);
}

/* The filters on the outcome, and the row. */
static __always_inline void report(struct tcpconnect_event *event)
{
	if (at_start) {
		event->verdict = TCPCONNECT_PENDING;
		event->error = 0;
	} else {
		if (failed_only && event->verdict == TCPCONNECT_OK)
			return;
		if (min_latency_ns && (event->instant || event->end_ns - event->start_ns < min_latency_ns))
			return;
	}
	emit_record(event, sizeof(*event));
}

/* ------------------------------------------------------------------ reading sockets and addresses */

/* The verifier follows loads of an array's elements only. */
#define read_v6(into, sock, field)                                                   \
	do {                                                                         \
		struct sock *__sk = (sock).sk;                                       \
		if ((sock).typed) {                                                  \
			(into)->in6_u.u6_addr32[0] = __sk->field.in6_u.u6_addr32[0]; \
			(into)->in6_u.u6_addr32[1] = __sk->field.in6_u.u6_addr32[1]; \
			(into)->in6_u.u6_addr32[2] = __sk->field.in6_u.u6_addr32[2]; \
			(into)->in6_u.u6_addr32[3] = __sk->field.in6_u.u6_addr32[3]; \
		} else {                                                             \
			BPF_CORE_READ_INTO(into, __sk, field);                       \
		}                                                                    \
	} while (0)

static __always_inline void set_source(struct tcpconnect_event *event, struct known_sock sock)
{
	/* To the verifier, a typed socket ends before what is TCP's. */
	struct inet_sock *inet = (struct inet_sock *)sock.sk;
	__u16 sport = bpf_ntohs(BPF_CORE_READ(inet, inet_sport));

	/* A failed connect gives the port and the address back: keep what was seen while it had them. */
	if (sport)
		event->sport = sport;
	if (SOCK_FIELD(sock, __sk_common.skc_family) == AF_INET6) {
		struct in6_addr addr;

		read_v6(&addr, sock, __sk_common.skc_v6_rcv_saddr);
		if (addr.in6_u.u6_addr32[0] | addr.in6_u.u6_addr32[1] | addr.in6_u.u6_addr32[2] |
		    addr.in6_u.u6_addr32[3])
			__builtin_memcpy(event->saddr, &addr, 16);
	} else {
		__be32 addr = SOCK_FIELD(sock, __sk_common.skc_rcv_saddr);

		if (addr)
			set_v4_mapped(event->saddr, addr);
	}
}

static __always_inline void set_destination(struct tcpconnect_event *event, struct known_sock sock)
{
	event->dport = bpf_ntohs(SOCK_FIELD(sock, __sk_common.skc_dport));
	if (SOCK_FIELD(sock, __sk_common.skc_family) == AF_INET6)
		read_v6((struct in6_addr *)event->daddr, sock, __sk_common.skc_v6_daddr);
	else
		set_v4_mapped(event->daddr, SOCK_FIELD(sock, __sk_common.skc_daddr));
}

/* A sockaddr as the caller gave it. False when it names no TCP destination: then there was no attempt. */
static __always_inline bool set_destination_from(struct tcpconnect_event *event, const void *addr, __u32 len, bool user)
{
	struct sockaddr_in6 any = {};
	__u32 want = len < sizeof(any) ? sizeof(struct sockaddr_in) : sizeof(any);

	/* SIN6_LEN_RFC2133: an IPv6 address without a scope is long enough. */
	if (len >= 24 && len < sizeof(any))
		want = 24;
	if (len < sizeof(struct sockaddr_in))
		return false;
	if (user ? bpf_probe_read_user(&any, want, addr) : bpf_probe_read_kernel(&any, want, addr))
		return false;
	event->dport = bpf_ntohs(any.sin6_port);
	if (any.sin6_family == AF_INET)
		set_v4_mapped(event->daddr, ((struct sockaddr_in *)&any)->sin_addr.s_addr);
	else if (any.sin6_family == AF_INET6 && want >= 24)
		__builtin_memcpy(event->daddr, &any.sin6_addr, 16);
	else
		return false;
	return true;
}

static __always_inline __u32 netns_of(struct known_sock sock)
{
	struct sock *sk = sock.sk;

	if (sock.typed)
		return sk->__sk_common.skc_net.net->ns.inum;
	return BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
}

static __always_inline bool netns_wanted(struct known_sock sock)
{
	return !filter_netns || filter_netns == netns_of(sock);
}

static __always_inline bool is_any(const __u8 addr[16])
{
	__u64 high, low;

	__builtin_memcpy(&high, addr, 8);
	__builtin_memcpy(&low, addr + 8, 8);
	return !high && (!low || low == bpf_htonl(0xffff));
}

/*
 * Whether the filters leave out what a call asks for, so that it takes no room. @addr as set_destination_from() has
 * it. What can't be read yet is not left out, nor what the kernel makes this host's address of. A cgroup program may
 * still change the destination: an attempt that is wanted then begins with SYN_SENT.
 */
static __always_inline bool left_out(const void *addr, __u32 addr_len, bool user)
{
	struct tcpconnect_event event = {};

	if (!filter_family && !filter_by_port && !filter_by_dst && !filter_by_exclude)
		return false;
	return set_destination_from(&event, addr, addr_len, user) && !is_any(event.daddr) && !destination_wanted(&event);
}

/* ------------------------------------------------------------------ one attempt's life */

/* What is known of the current task's attempt. False when the task or the namespace is not asked for. */
static __always_inline bool fill_attempt(struct tcpconnect_attempt *attempt, struct known_sock sock, __u32 flags)
{
	struct task_id task = {};

	if (!netns_wanted(sock) || !task_wanted(&task))
		return false;
	attempt->event.record = BPFTK_RECORD_EVENT;
	attempt->event.start_ns = bpf_ktime_get_boot_ns();
	attempt->event.cgroup_id = task.cgroup_id;
	attempt->event.pid = task.pid;
	attempt->event.tid = task.tid;
	attempt->event.uid = task.uid;
	attempt->event.netns = netns_of(sock);
	__builtin_memcpy(attempt->event.comm, task.comm, BPFTK_COMM_LEN);
	attempt->flags = flags;
	attempt->call_tid = flags & ATTEMPT_CALL_KNOWN ? task.tid : 0;
	return true;
}

static __always_inline void finish(struct tcpconnect_attempt *attempt, struct sock *sk, __u8 verdict, __u32 error)
{
	__u64 key = (__u64)sk;

	if (!(attempt->flags & ATTEMPT_SILENT)) {
		if (!attempt->event.end_ns)
			attempt->event.end_ns = bpf_ktime_get_boot_ns();
		attempt->event.verdict = verdict;
		attempt->event.error = error;
		report(&attempt->event);
	}
	bpf_map_delete_elem(&attempts, &key);
}

/* A connect() enters the kernel with a socket that is free to connect. Whether its end is to be looked at. */
static __always_inline bool call_begins(struct known_sock sock)
{
	__u64 key = (__u64)sock.sk;
	struct tcpconnect_attempt *attempt = bpf_map_lookup_elem(&attempts, &key);
	struct tcpconnect_attempt made = {};

	if (attempt && !attempt->event.end_ns) {
		/* By the other copy, whichever runs first: kernel/bpf/trampoline.c prepends. */
		if (has_copies && attempt->call_tid == (__u32)bpf_get_current_pid_tgid())
			return true;
		/*
		 * Another thread's call on the same socket: the kernel lets one of them connect, and that one is
		 * followed. Behind the socket's lock there is no other: that call's return was missed.
		 */
		if (!may_miss_returns || (attempt->flags & ATTEMPT_SYN_SENT))
			return false;
		count_loss(BPFTK_LOSS_MISSED_RETURN);
	} else if (attempt) {
		finish(attempt, sock.sk, TCPCONNECT_CLOSED, 0);
	}
	/* If the table is full, SYN_SENT counts the attempt as lost. One that fails before SYN_SENT is not counted. */
	return fill_attempt(&made, sock, ATTEMPT_CALL_KNOWN) && !bpf_map_update_elem(&attempts, &key, &made, BPF_ANY);
}

/* The kernel sends the first packet, to its final destination. False if the filters leave that out: it is forgotten. */
static __always_inline bool goes_out(struct known_sock sock, struct tcpconnect_attempt *attempt)
{
	attempt->flags |= ATTEMPT_SYN_SENT;
	set_destination(&attempt->event, sock);
	set_source(&attempt->event, sock);
	if (!destination_wanted(&attempt->event)) {
		__u64 key = (__u64)sock.sk;

		bpf_map_delete_elem(&attempts, &key);
		return false;
	}
	if (at_start) {
		report(&attempt->event);
		attempt->flags |= ATTEMPT_SILENT;
	}
	return true;
}

/* Whether an attempt failed by this error. Others say that the socket could not be asked to, or that it is under way. */
static __always_inline bool is_failure(__u32 error)
{
	return error && error < ERESTARTSYS && error != EBADF && error != EFAULT && error != ENOTSOCK &&
	       error != EISCONN && error != EALREADY && error != EINPROGRESS && error != EOPNOTSUPP &&
	       error != EINTR && error != ECANCELED;
}

/* Whether an error is one that answers a packet, or the lack of an answer: then the socket was in SYN_SENT. */
static __always_inline bool is_an_answer(__u32 error)
{
	return error == ECONNREFUSED || error == ECONNRESET || error == ECONNABORTED || error == ETIMEDOUT;
}

/*
 * The call's end. @error is positive; @addr is what the caller passed, in user memory or the kernel's copy of it.
 * An error after SYN_SENT is this call's result only if the attempt ended without an error code on the socket:
 * else the state change told, or the attempt goes on (EINPROGRESS, EINTR).
 */
static __always_inline void call_ends(struct sock *sk, __u32 error, const void *addr, __u32 addr_len, bool user)
{
	__u64 key = (__u64)sk;
	struct tcpconnect_attempt *attempt = bpf_map_lookup_elem(&attempts, &key);
	/* One end for all of them: the verifier goes through what is written once more for each time that it is there. */
	__u8 verdict = TCPCONNECT_PENDING;

	if (!attempt || !(attempt->flags & ATTEMPT_CALL_KNOWN) ||
	    attempt->call_tid != (__u32)bpf_get_current_pid_tgid())
		return;
	attempt->flags &= ~ATTEMPT_CALL_KNOWN;
	if (attempt->flags & ATTEMPT_GIVEN_UP) {
		verdict = error ? TCPCONNECT_FAILED : TCPCONNECT_CLOSED;
	} else {
		__u8 state = BPF_CORE_READ(sk, __sk_common.skc_state);
		bool failed = is_failure(error);
		bool connected = (!error || error == EINPROGRESS) && state != TCP_CLOSE && state != TCP_LISTEN &&
				 state != TCP_SYN_SENT && state != TCP_SYN_RECV;

		/* The program was skipped when the socket entered SYN_SENT. */
		if (!(attempt->flags & ATTEMPT_SYN_SENT) && (state == TCP_SYN_SENT || connected) &&
		    !goes_out(untyped(sk), attempt))
			return;
		if (attempt->flags & ATTEMPT_SYN_SENT) {
			/* The source port was chosen since. */
			set_source(&attempt->event, untyped(sk));
			/* The program was skipped when the socket left SYN_SENT. */
			if (connected) {
				verdict = TCPCONNECT_OK;
				error = 0;
			} else if (state == TCP_CLOSE && failed) {
				verdict = TCPCONNECT_FAILED;
			} else {
				return;
			}
		} else if (failed && set_destination_from(&attempt->event, addr, addr_len, user)) {
			/* It never was under way. */
			set_source(&attempt->event, untyped(sk));
			if (destination_wanted(&attempt->event))
				verdict = TCPCONNECT_FAILED;
		}
	}
	if (verdict == TCPCONNECT_PENDING)
		bpf_map_delete_elem(&attempts, &key);
	else
		finish(attempt, sk, verdict, error);
}

/*
 * Before 6.3, and at calls that are hooked from outside, a call on an MPTCP socket is followed by that socket, which connects by a TCP
 * socket of its own: the attempt is that one's.
 */
static __always_inline struct tcpconnect_attempt *inherit_attempt(__u64 key, __u32 tid,
								  struct tcpconnect_attempt *attempt)
{
	struct tcpconnect_call *call = bpf_map_lookup_elem(&calls, &tid);
	struct tcpconnect_attempt moved, *from;
	__u64 outer;

	if (!call || call->sk == key)
		return attempt;
	outer = call->sk;
	from = bpf_map_lookup_elem(&attempts, &outer);
	if (!from || from->call_tid != tid || from->flags & ATTEMPT_SYN_SENT)
		return attempt;
	moved = *from;
	bpf_map_update_elem(&attempts, &key, &moved, BPF_ANY);
	bpf_map_delete_elem(&attempts, &outer);
	call->sk = key;
	return bpf_map_lookup_elem(&attempts, &key);
}

/* The socket enters SYN_SENT, in the caller's context. */
static __always_inline void syn_sent(struct known_sock sock, struct tcpconnect_attempt *attempt, bool last)
{
	__u64 key = (__u64)sock.sk;
	__u32 tid = (__u32)bpf_get_current_pid_tgid();

	if (!attempt || !(attempt->flags & ATTEMPT_CALL_KNOWN) || attempt->call_tid != tid)
		attempt = inherit_attempt(key, tid, attempt);
	if (attempt && (attempt->flags & ATTEMPT_SYN_SENT)) {
		if (has_copies)
			return;
		/* An earlier attempt on this socket, whose end was not seen. */
		finish(attempt, sock.sk, attempt->flags & ATTEMPT_CALL_KNOWN ? TCPCONNECT_UNKNOWN : TCPCONNECT_CLOSED,
		       0);
		attempt = NULL;
	}
	if (!attempt) {
		struct tcpconnect_attempt made = {};

		/* Before anything is stored: what the filters leave out takes no room, and is not missed. */
		set_destination(&made.event, sock);
		if (!destination_wanted(&made.event) || !fill_attempt(&made, sock, 0))
			return;
		bpf_map_update_elem(&attempts, &key, &made, BPF_ANY);
		attempt = bpf_map_lookup_elem(&attempts, &key);
		if (!attempt) {
			if (last) {
				count_loss(BPFTK_LOSS_TABLE_FULL);
				table_was_full = 1;
			}
			return;
		}
	}
	goes_out(sock, attempt);
}

/*
 * An ICMP message that came while the socket was locked leaves it in SYN_SENT: it is in the queue of errors, which wakes
 * the program, and right after that becomes what SO_ERROR gives (net/ipv4/tcp_ipv4.c, tcp_v4_err; Linux 5.17, and stable
 * kernels).
 */
static __always_inline __u32 queued_error(struct sock *sk)
{
	struct sk_buff *newest = BPF_CORE_READ(sk, sk_error_queue.prev);
	struct sock_exterr_skb *told = (void *)newest + bpf_core_field_offset(struct sk_buff, cb);

	if ((void *)newest == (void *)sk + bpf_core_field_offset(struct sock, sk_error_queue))
		return 0;
	return BPF_CORE_READ(told, ee.ee_errno);
}

/* The socket tells its program of an error (net/core/sock.c, sk_error_report). It may stay in SYN_SENT. */
static __always_inline void error_told(struct known_sock sock)
{
	__u64 key = (__u64)sock.sk;
	struct tcpconnect_attempt *attempt = bpf_map_lookup_elem(&attempts, &key);
	struct sock *sk = sock.sk;
	__u32 error;

	if (!attempt || !(attempt->flags & ATTEMPT_SYN_SENT) || attempt->event.end_ns)
		return;
	error = SOCK_FIELD(sock, sk_err);
	if (!error)
		error = queued_error(sk);
	if (!error)
		return;
	attempt->told_error = error;
	attempt->told_ns = bpf_ktime_get_boot_ns();
}

/*
 * A socket leaves SYN_SENT, and is not in the table. Without a filter on tasks, and while there was room for all, it is
 * one that entered it before we came.
 */
static __always_inline void began_before(struct known_sock sock)
{
	struct tcpconnect_event event = {};

	if (filter_by_pid || filter_by_uid || filter_by_comm || filter_by_cgroup || table_was_full)
		return;
	if (SOCK_FIELD(sock, sk_protocol) != IPPROTO_TCP || !netns_wanted(sock))
		return;
	set_destination(&event, sock);
	if (destination_wanted(&event))
		count_loss(BPFTK_LOSS_UNSEEN);
}

static __always_inline void leave_syn_sent(struct known_sock sock, struct tcpconnect_attempt *attempt, int newstate)
{
	__u8 verdict = TCPCONNECT_OK;
	struct sock *sk = sock.sk;
	__u32 error = 0;

	set_source(&attempt->event, sock);
	if (newstate == TCP_CLOSE) {
		bool by_uring = has_uring_hooks && !attempt->call_tid;
		bool in_call = (attempt->flags & ATTEMPT_CALL_KNOWN) &&
			       attempt->call_tid == (__u32)bpf_get_current_pid_tgid();

		error = SOCK_FIELD(sock, sk_err);
		attempt->event.end_ns = bpf_ktime_get_boot_ns();
		if (!error && !in_call && attempt->told_error) {
			error = attempt->told_error;
			attempt->event.end_ns = attempt->told_ns;
		} else if (!error && !in_call) {
			/* Before 5.14 nothing told of it. */
			error = queued_error(sk);
		}
		/*
		 * What the caller does to its socket, it does with the socket locked. Else the kernel ended the attempt,
		 * and the program was faster than we to fetch the error (before 5.14).
		 */
		if (error)
			verdict = TCPCONNECT_FAILED;
		else
			verdict = BPF_CORE_READ(sk, sk_lock.owned) ? TCPCONNECT_CLOSED : TCPCONNECT_UNKNOWN;
		if (error && by_uring) {
			/* io_uring may report the same error at its completion: that is no second attempt. */
			if (!(attempt->flags & ATTEMPT_SILENT)) {
				attempt->event.verdict = TCPCONNECT_FAILED;
				attempt->event.error = error;
				report(&attempt->event);
			}
			attempt->flags |= ATTEMPT_SILENT;
			return;
		}
		/*
		 * No error on the socket: the connect() itself failed after SYN_SENT (no free port, say), and its return
		 * value, still to come, tells why; or the caller closed it.
		 */
		if (!error && (by_uring || in_call)) {
			attempt->flags |= ATTEMPT_GIVEN_UP;
			return;
		}
	}
	finish(attempt, sock.sk, verdict, error);
}

#endif
