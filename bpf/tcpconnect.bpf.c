/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */

/*
 * Every active TCP connect attempt, from the call to the answer.
 *
 * The state change to SYN_SENT happens in the caller's context on every kernel (net/ipv4/tcp_ipv4.c, tcp_v4_connect;
 * net/ipv6/tcp_ipv6.c, tcp_v6_connect), the change away from it wherever the answer arrives. So an attempt is a table
 * entry by socket: who called is stored with the first, and the row goes out with the second. What fails before
 * SYN_SENT changes no state; those attempts are known only from the call itself, and how calls are seen is what the
 * back ends differ in:
 *
 *   fentry      fentry and fexit of __inet_stream_connect
 *   kprobe      kprobe and kretprobe of tcp_v4_connect and tcp_v6_connect, which do not wait for the network, and of
 *               tcp_v4_pre_connect and tcp_v6_pre_connect, where cgroup programs refuse
 *   tracepoint  enter and exit of the system calls, and io_uring's completions
 *
 * Security modules refuse before all of these, in security_socket_connect; a system call's end shows that too.
 */

#include "task_filter.bpf.h"
#include "tcpconnect.h"

/* include/net/tcp_states.h */
#define TCP_ESTABLISHED 1
#define TCP_SYN_SENT 2
#define TCP_SYN_RECV 3
#define TCP_CLOSE 7

#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_MPTCP 262
#define SS_UNCONNECTED 1
#define MSG_FASTOPEN 0x20000000

/* include/uapi/asm-generic/errno*.h */
#define EINTR 4
#define EBADF 9
#define EFAULT 14
#define EPIPE 32
#define ENOTSOCK 88
#define EOPNOTSUPP 95
#define EISCONN 106
#define EALREADY 114
#define EINPROGRESS 115
#define ECANCELED 125
#define ERESTARTSYS 512

/* include/uapi/linux/io_uring.h */
#define IORING_OP_CONNECT 16

/* What Linux calls submit_req since 6.3. */
struct trace_event_raw_io_uring_submit_sqe___old {
	void *ctx;
	void *req;
	__u8 opcode;
	__u64 user_data;
} __attribute__((preserve_access_index));

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
/* Back end kprobe: the kernel runs a kretprobe for so many calls at a time, and skips it for more. */
const volatile __u8 may_miss_returns;
/* Back end tracepoint: attempts without a call that we follow are ended by io_uring's completion or the socket's end. */
const volatile __u8 has_uring_hooks;

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

/* Back end kprobe: the same, of the checks whether a call is allowed. */
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

/* For the skeleton: the records have no map whose BTF would name them. */
struct tcpconnect_event _event;
enum tcpconnect_record _record;
enum tcpconnect_verdict _verdict;

/* ------------------------------------------------------------------ what the user asked for */

static __always_inline bool is_v4_mapped(const __u8 addr[16])
{
	__u64 high, low;

	__builtin_memcpy(&high, addr, 8);
	__builtin_memcpy(&low, addr + 8, 8);
	return !high && (__u32)low == bpf_htonl(0xffff);
}

/* The filters on the destination. @event has its final destination. */
static __always_inline bool destination_wanted(const struct tcpconnect_event *event)
{
	struct prefix prefix = { .len = 128 };

	if (filter_family && filter_family != (is_v4_mapped(event->daddr) ? 4 : 6))
		return false;
	if (filter_netns && filter_netns != event->netns)
		return false;
	if (filter_by_port) {
		__u32 word = event->dport / 64;
		__u64 *bits = bpf_map_lookup_elem(&filter_ports, &word);

		if (!bits || !(*bits & (1ull << (event->dport % 64))))
			return false;
	}
	if (filter_by_dst || filter_by_exclude)
		__builtin_memcpy(prefix.addr, event->daddr, 16);
	if (filter_by_exclude && bpf_map_lookup_elem(&filter_exclude, &prefix))
		return false;
	if (filter_by_dst && !bpf_map_lookup_elem(&filter_dst, &prefix))
		return false;
	return true;
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
		if (min_latency_ns && event->end_ns - event->start_ns < min_latency_ns)
			return;
	}
	emit_record(event, sizeof(*event));
}

/* ------------------------------------------------------------------ reading sockets and addresses */

static __always_inline void set_source(struct tcpconnect_event *event, struct sock *sk)
{
	__u16 sport = bpf_ntohs(BPF_CORE_READ((struct inet_sock *)sk, inet_sport));

	/* A failed connect gives the port and the address back: keep what was seen while it had them. */
	if (sport)
		event->sport = sport;
	if (BPF_CORE_READ(sk, __sk_common.skc_family) == AF_INET6) {
		struct in6_addr addr;

		BPF_CORE_READ_INTO(&addr, sk, __sk_common.skc_v6_rcv_saddr);
		if (addr.in6_u.u6_addr32[0] | addr.in6_u.u6_addr32[1] | addr.in6_u.u6_addr32[2] |
		    addr.in6_u.u6_addr32[3])
			__builtin_memcpy(event->saddr, &addr, 16);
	} else {
		__be32 addr = BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr);

		if (addr)
			set_v4_mapped(event->saddr, addr);
	}
}

static __always_inline void set_destination(struct tcpconnect_event *event, struct sock *sk)
{
	event->dport = bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport));
	if (BPF_CORE_READ(sk, __sk_common.skc_family) == AF_INET6)
		BPF_CORE_READ_INTO((struct in6_addr *)event->daddr, sk, __sk_common.skc_v6_daddr);
	else
		set_v4_mapped(event->daddr, BPF_CORE_READ(sk, __sk_common.skc_daddr));
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

static __always_inline __u32 netns_of(struct sock *sk)
{
	return BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
}

/* ------------------------------------------------------------------ one attempt's life */

/* Stores a new attempt by the current task. NULL when the task is not asked for, or there is no room. */
static __always_inline struct tcpconnect_attempt *new_attempt(struct sock *sk, __u32 flags, bool *wanted)
{
	struct tcpconnect_attempt attempt = {};
	struct task_id task = {};
	__u64 key = (__u64)sk;

	*wanted = task_wanted(&task);
	if (!*wanted)
		return NULL;
	attempt.event.record = TCPCONNECT_ATTEMPT;
	attempt.event.start_ns = bpf_ktime_get_boot_ns();
	attempt.event.cgroup_id = task.cgroup_id;
	attempt.event.pid = task.pid;
	attempt.event.tid = task.tid;
	attempt.event.uid = task.uid;
	attempt.event.netns = netns_of(sk);
	__builtin_memcpy(attempt.event.comm, task.comm, BPFTK_COMM_LEN);
	attempt.flags = flags;
	attempt.call_tid = flags & ATTEMPT_CALL_KNOWN ? task.tid : 0;
	bpf_map_update_elem(&attempts, &key, &attempt, BPF_ANY);
	return bpf_map_lookup_elem(&attempts, &key);
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

/* A connect() enters the kernel with a socket that is free to connect. */
static __always_inline void call_begins(struct sock *sk)
{
	__u64 key = (__u64)sk;
	struct tcpconnect_attempt *attempt = bpf_map_lookup_elem(&attempts, &key);
	bool wanted;

	if (attempt && !attempt->event.end_ns) {
		/*
		 * Another thread's call on the same socket: the kernel lets one of them connect, and that one is
		 * followed. Behind the socket's lock there is no other: that call's return was missed.
		 */
		if (!may_miss_returns || (attempt->flags & ATTEMPT_SYN_SENT))
			return;
		count_loss(BPFTK_LOSS_MISSED_RETURN);
	} else if (attempt) {
		finish(attempt, sk, TCPCONNECT_CLOSED, 0);
	}
	new_attempt(sk, ATTEMPT_CALL_KNOWN, &wanted);
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

	if (!attempt || !(attempt->flags & ATTEMPT_CALL_KNOWN) ||
	    attempt->call_tid != (__u32)bpf_get_current_pid_tgid())
		return;
	attempt->flags &= ~ATTEMPT_CALL_KNOWN;
	if (attempt->flags & ATTEMPT_GIVEN_UP) {
		if (error)
			finish(attempt, sk, TCPCONNECT_FAILED, error);
		else
			finish(attempt, sk, TCPCONNECT_CLOSED, 0);
		return;
	}
	if (attempt->flags & ATTEMPT_SYN_SENT) {
		/* The source port was chosen since. */
		set_source(&attempt->event, sk);
		return;
	}
	/* It never was under way. These say that the socket could not be asked to, not that it failed to. */
	if (error && error < ERESTARTSYS && error != EBADF && error != EFAULT && error != ENOTSOCK &&
	    error != EISCONN && error != EALREADY && error != EINPROGRESS && error != EOPNOTSUPP &&
	    error != EINTR && error != ECANCELED && set_destination_from(&attempt->event, addr, addr_len, user)) {
		set_source(&attempt->event, sk);
		if (destination_wanted(&attempt->event)) {
			finish(attempt, sk, TCPCONNECT_FAILED, error);
			return;
		}
	}
	bpf_map_delete_elem(&attempts, &key);
}

/* The socket enters SYN_SENT, in the caller's context. */
static __always_inline void syn_sent(struct sock *sk, struct tcpconnect_attempt *attempt)
{
	__u64 key = (__u64)sk;
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	struct tcpconnect_call *call = bpf_map_lookup_elem(&calls, &tid);

	if (call && call->sk != key) {
		/*
		 * The call was made on an MPTCP socket, which connects by a TCP socket of its own: the attempt
		 * is that one's.
		 */
		__u64 outer = call->sk;
		struct tcpconnect_attempt *from = bpf_map_lookup_elem(&attempts, &outer);

		if (from && from->call_tid == tid && !(from->flags & ATTEMPT_SYN_SENT)) {
			struct tcpconnect_attempt moved = *from;

			bpf_map_update_elem(&attempts, &key, &moved, BPF_ANY);
			bpf_map_delete_elem(&attempts, &outer);
			call->sk = key;
			attempt = bpf_map_lookup_elem(&attempts, &key);
		}
	}
	if (attempt && (attempt->flags & ATTEMPT_SYN_SENT)) {
		/* An earlier attempt on this socket, whose end was not seen. */
		finish(attempt, sk, attempt->flags & ATTEMPT_CALL_KNOWN ? TCPCONNECT_UNKNOWN : TCPCONNECT_CLOSED, 0);
		attempt = NULL;
	}
	if (!attempt) {
		bool wanted;

		attempt = new_attempt(sk, 0, &wanted);
		if (!attempt) {
			if (wanted)
				count_loss(BPFTK_LOSS_TABLE_FULL);
			return;
		}
	}
	attempt->flags |= ATTEMPT_SYN_SENT;
	set_destination(&attempt->event, sk);
	set_source(&attempt->event, sk);
	if (!destination_wanted(&attempt->event)) {
		attempt->flags |= ATTEMPT_SILENT;
	} else if (at_start) {
		report(&attempt->event);
		attempt->flags |= ATTEMPT_SILENT;
	}
}

static __always_inline void leave_syn_sent(struct sock *sk, struct tcpconnect_attempt *attempt, int newstate)
{
	__u32 error;

	set_source(&attempt->event, sk);
	if (newstate != TCP_CLOSE) {
		finish(attempt, sk, TCPCONNECT_OK, 0);
		return;
	}
	error = BPF_CORE_READ(sk, sk_err);
	if (!error)
		error = BPF_CORE_READ(sk, sk_err_soft);
	attempt->event.end_ns = bpf_ktime_get_boot_ns();
	if (error) {
		if (has_uring_hooks && !attempt->call_tid) {
			/* io_uring may report the same error at its completion: that is no second attempt. */
			if (!(attempt->flags & ATTEMPT_SILENT)) {
				attempt->event.verdict = TCPCONNECT_FAILED;
				attempt->event.error = error;
				report(&attempt->event);
			}
			attempt->flags |= ATTEMPT_SILENT;
			return;
		}
		finish(attempt, sk, TCPCONNECT_FAILED, error);
		return;
	}
	/*
	 * No error on the socket: the connect() itself failed after SYN_SENT (no free port, say), and its return
	 * value, still to come, tells why; or the caller closed it.
	 */
	if ((attempt->flags & ATTEMPT_CALL_KNOWN) && attempt->call_tid == (__u32)bpf_get_current_pid_tgid()) {
		attempt->flags |= ATTEMPT_GIVEN_UP;
		return;
	}
	if (has_uring_hooks && !attempt->call_tid) {
		attempt->flags |= ATTEMPT_GIVEN_UP;
		return;
	}
	finish(attempt, sk, TCPCONNECT_CLOSED, 0);
}

/* sock:inet_sock_set_state. With CO-RE reads instead of typed ones it also loads with --btf FILE. */
SEC("raw_tp/inet_sock_set_state")
int bpftk_set_state(struct bpf_raw_tracepoint_args *ctx)
{
	struct sock *sk = (struct sock *)ctx->args[0];
	int oldstate = ctx->args[1];
	int newstate = ctx->args[2];
	__u64 key = (__u64)sk;
	struct tcpconnect_attempt *attempt;

	if (oldstate != TCP_CLOSE && oldstate != TCP_SYN_SENT && oldstate != TCP_SYN_RECV)
		return 0;
	if (newstate == TCP_SYN_SENT && BPF_CORE_READ(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	attempt = bpf_map_lookup_elem(&attempts, &key);
	if (newstate == TCP_SYN_SENT) {
		syn_sent(sk, attempt);
		return 0;
	}
	/* Simultaneous open (SYN_SENT to SYN_RECV) is not decided yet. */
	if (!attempt || !(attempt->flags & ATTEMPT_SYN_SENT) || newstate == TCP_SYN_RECV)
		return 0;
	if (oldstate == TCP_CLOSE) {
		/* Closed again: whoever should have told the error did not. */
		if (newstate == TCP_CLOSE && !(attempt->flags & ATTEMPT_CALL_KNOWN))
			finish(attempt, sk, TCPCONNECT_CLOSED, 0);
		return 0;
	}
	leave_syn_sent(sk, attempt, newstate);
	return 0;
}

/* No entry outlives its socket. */
SEC("raw_tp/tcp_destroy_sock")
int bpftk_destroy(struct bpf_raw_tracepoint_args *ctx)
{
	struct sock *sk = (struct sock *)ctx->args[0];
	__u64 key = (__u64)sk;
	struct tcpconnect_attempt *attempt = bpf_map_lookup_elem(&attempts, &key);

	if (!attempt)
		return 0;
	if (attempt->flags & ATTEMPT_SYN_SENT) {
		finish(attempt, sk, attempt->flags & ATTEMPT_CALL_KNOWN ? TCPCONNECT_UNKNOWN : TCPCONNECT_CLOSED, 0);
	} else {
		/* It failed at once, where to was only in the call. */
		if (may_miss_returns)
			count_loss(BPFTK_LOSS_MISSED_RETURN);
		bpf_map_delete_elem(&attempts, &key);
	}
	return 0;
}

/* No call's entry outlives its thread, whose last return may have been missed. */
SEC("raw_tp/sched_process_exit")
int bpftk_exit(void *ctx)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();

	bpf_map_delete_elem(&calls, &tid);
	bpf_map_delete_elem(&checks, &tid);
	return 0;
}

/* ------------------------------------------------------------------ calls, whatever shows them */

static __always_inline bool connects_by_tcp(struct sock *sk)
{
	__u16 family = BPF_CORE_READ(sk, __sk_common.skc_family);
	__u16 protocol = BPF_CORE_READ(sk, sk_protocol);

	return (family == AF_INET || family == AF_INET6) && (protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP);
}

/* The socket that @sock would connect, when it is one that connects by TCP and is free to. */
static __always_inline struct sock *free_to_connect(struct socket *sock)
{
	struct sock *sk;

	/* A second connect() on a socket under way only asks how the first went. */
	if (BPF_CORE_READ(sock, state) != SS_UNCONNECTED)
		return NULL;
	sk = BPF_CORE_READ(sock, sk);
	if (!sk || !connects_by_tcp(sk) || BPF_CORE_READ(sk, __sk_common.skc_state) != TCP_CLOSE)
		return NULL;
	return sk;
}

static __always_inline void remember_call(struct sock *sk, const void *addr, __u32 addr_len)
{
	struct tcpconnect_call call = { .sk = (__u64)sk, .addr = (__u64)addr, .addr_len = addr_len };
	__u32 tid = (__u32)bpf_get_current_pid_tgid();

	bpf_map_update_elem(&calls, &tid, &call, BPF_ANY);
}

static __always_inline void recall_call(int ret, bool user)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	struct tcpconnect_call *call = bpf_map_lookup_elem(&calls, &tid);

	if (!call)
		return;
	call_ends((struct sock *)call->sk, ret < 0 ? -ret : 0, (void *)call->addr, call->addr_len, user);
	bpf_map_delete_elem(&calls, &tid);
}

/* A security module refused the call: @addr is the kernel's copy. */
static __always_inline void refused(struct sock *sk, int ret, const void *addr, __u32 addr_len)
{
	struct tcpconnect_event event = {};
	struct task_id task = {};

	if (ret >= 0 || !connects_by_tcp(sk) || BPF_CORE_READ(sk, __sk_common.skc_state) != TCP_CLOSE ||
	    !task_wanted(&task) || !set_destination_from(&event, addr, addr_len, false))
		return;
	event.record = TCPCONNECT_ATTEMPT;
	event.start_ns = event.end_ns = bpf_ktime_get_boot_ns();
	event.cgroup_id = task.cgroup_id;
	event.pid = task.pid;
	event.tid = task.tid;
	event.uid = task.uid;
	event.netns = netns_of(sk);
	__builtin_memcpy(event.comm, task.comm, BPFTK_COMM_LEN);
	event.verdict = TCPCONNECT_FAILED;
	event.error = -ret;
	set_source(&event, sk);
	if (destination_wanted(&event))
		report(&event);
}

/* ------------------------------------------------------------------ back end: fentry */

/*
 * net/ipv4/af_inet.c: what every connect() and every send with MSG_FASTOPEN comes to, io_uring's and the kernel's own
 * included. It may wait for the answer, which a fexit may and a kretprobe should not.
 */
SEC("fentry/__inet_stream_connect")
int BPF_PROG(bpftk_fe_conn, struct socket *sock, struct sockaddr *addr, int addr_len)
{
	struct sock *sk = free_to_connect(sock);

	if (!sk)
		return 0;
	call_begins(sk);
	if (BPF_CORE_READ(sk, sk_protocol) == IPPROTO_MPTCP)
		remember_call(sk, addr, addr_len);
	return 0;
}

SEC("fexit/__inet_stream_connect")
int BPF_PROG(bpftk_fx_conn, struct socket *sock, struct sockaddr *addr, int addr_len, int flags, int is_sendmsg,
	     int ret)
{
	struct sock *sk = BPF_CORE_READ(sock, sk);

	if (BPF_CORE_READ(sk, sk_protocol) == IPPROTO_MPTCP)
		recall_call(ret, false);
	else
		call_ends(sk, ret < 0 ? -ret : 0, addr, addr_len, false);
	return 0;
}

SEC("fexit/security_socket_connect")
int BPF_PROG(bpftk_fx_lsm, struct socket *sock, struct sockaddr *addr, int addr_len, int ret)
{
	if (ret < 0)
		refused(BPF_CORE_READ(sock, sk), ret, addr, addr_len);
	return 0;
}

/* ------------------------------------------------------------------ back end: kprobe */

/* tcp_v6_connect calls tcp_v4_connect for a v4-mapped destination: that is the outer call's attempt. */
static __always_inline bool inner_v4_call(struct sock *sk)
{
	return has_v6_hooks && BPF_CORE_READ(sk, __sk_common.skc_family) == AF_INET6;
}

SEC("kprobe/tcp_v4_connect")
int BPF_KPROBE(bpftk_kp_v4, struct sock *sk, struct sockaddr *addr, int addr_len)
{
	if (!inner_v4_call(sk)) {
		call_begins(sk);
		remember_call(sk, addr, addr_len);
	}
	return 0;
}

SEC("kprobe/tcp_v6_connect")
int BPF_KPROBE(bpftk_kp_v6, struct sock *sk, struct sockaddr *addr, int addr_len)
{
	call_begins(sk);
	remember_call(sk, addr, addr_len);
	return 0;
}

/* The inner tcp_v4_connect of a v4-mapped connect returns first, with the same result: it ends the call. */
SEC("kretprobe/tcp_v4_connect")
int BPF_KRETPROBE(bpftk_kr_v4, int ret)
{
	recall_call(ret, false);
	return 0;
}

SEC("kretprobe/tcp_v6_connect")
int BPF_KRETPROBE(bpftk_kr_v6, int ret)
{
	recall_call(ret, false);
	return 0;
}

static __always_inline void check_begins(struct sock *sk, const void *addr, __u32 addr_len)
{
	struct tcpconnect_call call = { .sk = (__u64)sk, .addr = (__u64)addr, .addr_len = addr_len };
	__u32 tid = (__u32)bpf_get_current_pid_tgid();

	if (sk && connects_by_tcp(sk))
		bpf_map_update_elem(&checks, &tid, &call, BPF_ANY);
}

static __always_inline void check_ends(int ret)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	struct tcpconnect_call *call = bpf_map_lookup_elem(&checks, &tid);

	if (!call)
		return;
	refused((struct sock *)call->sk, ret, (void *)call->addr, call->addr_len);
	bpf_map_delete_elem(&checks, &tid);
}

SEC("kprobe/tcp_v4_pre_connect")
int BPF_KPROBE(bpftk_kp_pre4, struct sock *sk, struct sockaddr *addr, int addr_len)
{
	check_begins(sk, addr, addr_len);
	return 0;
}

SEC("kretprobe/tcp_v4_pre_connect")
int BPF_KRETPROBE(bpftk_kr_pre4, int ret)
{
	check_ends(ret);
	return 0;
}

SEC("kprobe/tcp_v6_pre_connect")
int BPF_KPROBE(bpftk_kp_pre6, struct sock *sk, struct sockaddr *addr, int addr_len)
{
	check_begins(sk, addr, addr_len);
	return 0;
}

SEC("kretprobe/tcp_v6_pre_connect")
int BPF_KRETPROBE(bpftk_kr_pre6, int ret)
{
	check_ends(ret);
	return 0;
}

SEC("kprobe/security_socket_connect")
int BPF_KPROBE(bpftk_kp_lsm, struct socket *sock, struct sockaddr *addr, int addr_len)
{
	check_begins(BPF_CORE_READ(sock, sk), addr, addr_len);
	return 0;
}

SEC("kretprobe/security_socket_connect")
int BPF_KRETPROBE(bpftk_kr_lsm, int ret)
{
	check_ends(ret);
	return 0;
}

/* ------------------------------------------------------------------ back end: tracepoint */

/* The socket that @file is, if it is one: a socket points back from the file's private data. */
static __always_inline struct socket *socket_of(struct file *file)
{
	struct socket *sock;

	if (!file)
		return NULL;
	sock = BPF_CORE_READ(file, private_data);
	return sock && BPF_CORE_READ(sock, file) == file ? sock : NULL;
}

static __always_inline struct file *file_of(__u32 fd)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct fdtable *fdt = BPF_CORE_READ(task, files, fdt);
	struct file **files, *file = NULL;

	if (!fdt || fd >= BPF_CORE_READ(fdt, max_fds))
		return NULL;
	files = BPF_CORE_READ(fdt, fd);
	bpf_probe_read_kernel(&file, sizeof(file), files + fd);
	return file;
}

/* @addr is in user memory, perhaps not paged in yet: it is read at the call's end, when the kernel has read it too. */
static __always_inline void syscall_begins(__u32 fd, const void *addr, __u32 addr_len)
{
	struct socket *sock = socket_of(file_of(fd));
	struct sock *sk = sock ? free_to_connect(sock) : NULL;

	if (!sk)
		return;
	call_begins(sk);
	remember_call(sk, addr, addr_len);
}

SEC("tracepoint/syscalls/sys_enter_connect")
int bpftk_connect(struct syscall_trace_enter *ctx)
{
	syscall_begins(ctx->args[0], (void *)ctx->args[1], ctx->args[2]);
	return 0;
}

SEC("tracepoint/syscalls/sys_enter_sendto")
int bpftk_sendto(struct syscall_trace_enter *ctx)
{
	if (ctx->args[3] & MSG_FASTOPEN)
		syscall_begins(ctx->args[0], (void *)ctx->args[4], ctx->args[5]);
	return 0;
}

static __always_inline void sendmsg_begins(__u32 fd, struct user_msghdr *header)
{
	struct user_msghdr msg;

	/* The header's memory was written by the caller just now. */
	if (!bpf_probe_read_user(&msg, sizeof(msg), header))
		syscall_begins(fd, msg.msg_name, msg.msg_namelen);
}

SEC("tracepoint/syscalls/sys_enter_sendmsg")
int bpftk_sendmsg(struct syscall_trace_enter *ctx)
{
	if (ctx->args[2] & MSG_FASTOPEN)
		sendmsg_begins(ctx->args[0], (void *)ctx->args[1]);
	return 0;
}

/* Only the first message can open the connection. */
SEC("tracepoint/syscalls/sys_enter_sendmmsg")
int bpftk_sendmmsg(struct syscall_trace_enter *ctx)
{
	if (ctx->args[3] & MSG_FASTOPEN)
		sendmsg_begins(ctx->args[0], (void *)ctx->args[1]);
	return 0;
}

/* sys_exit_connect, sys_exit_sendto, sys_exit_sendmsg, sys_exit_sendmmsg */
SEC("tracepoint/syscalls/sys_exit_connect")
int bpftk_sysexit(struct syscall_trace_exit *ctx)
{
	recall_call(ctx->ret, true);
	return 0;
}

/*
 * include/trace/events/io_uring.h: a completion has its request since 5.19; before, only what the request was
 * submitted with.
 */
struct uring_id {
	__u64 ctx;
	__u64 user_data;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct uring_id);
	__type(value, struct tcpconnect_call);
} uring_requests SEC(".maps");

/* What a connect request asks for. It begins with what its opcode needs. */
static __always_inline void read_request(struct io_kiocb *req, struct tcpconnect_call *call)
{
	struct io_connect *connect = (void *)req;
	struct socket *sock = socket_of(BPF_CORE_READ(connect, file));

	call->sk = (__u64)sock;
	call->addr = (__u64)BPF_CORE_READ(connect, addr);
	call->addr_len = BPF_CORE_READ(connect, addr_len);
}

/* After the request is prepared; when it completes, its memory may have served for something else. */
SEC("tracepoint/io_uring/io_uring_submit_sqe")
int bpftk_uring_sub(struct trace_event_raw_io_uring_submit_sqe___old *ctx)
{
	struct uring_id id = { .ctx = (__u64)ctx->ctx, .user_data = ctx->user_data };
	struct tcpconnect_call call = {};

	if (ctx->opcode != IORING_OP_CONNECT)
		return 0;
	read_request(ctx->req, &call);
	if (call.sk)
		bpf_map_update_elem(&uring_requests, &id, &call, BPF_ANY);
	return 0;
}

/* What a completion says of a connect that the socket's state has not told. call->sk is the struct socket. */
static __always_inline void uring_ends(const struct tcpconnect_call *call, __u32 error)
{
	struct socket *sock = (void *)call->sk;
	struct tcpconnect_attempt *attempt;
	struct sock *sk;
	bool wanted;
	__u64 key;

	if (!sock)
		return;
	sk = BPF_CORE_READ(sock, sk);
	if (!sk || !connects_by_tcp(sk))
		return;
	key = (__u64)sk;
	attempt = bpf_map_lookup_elem(&attempts, &key);
	if (attempt) {
		if (attempt->flags & ATTEMPT_GIVEN_UP)
			finish(attempt, sk, TCPCONNECT_FAILED, error);
		else if (attempt->event.end_ns)
			/* Told when the state changed. */
			bpf_map_delete_elem(&attempts, &key);
		return;
	}
	if (!free_to_connect(sock))
		return;
	attempt = new_attempt(sk, ATTEMPT_CALL_KNOWN, &wanted);
	if (attempt)
		call_ends(sk, error, (void *)call->addr, call->addr_len, true);
}

SEC("tracepoint/io_uring/io_uring_complete")
int bpftk_uring_end(struct trace_event_raw_io_uring_complete *ctx)
{
	int res = ctx->res;

	if (bpf_core_field_exists(ctx->req)) {
		struct io_kiocb *req = (void *)ctx->req;
		struct tcpconnect_call call = {};

		if (res >= 0 || !req || BPF_CORE_READ(req, opcode) != IORING_OP_CONNECT)
			return 0;
		read_request(req, &call);
		uring_ends(&call, -res);
	} else {
		struct uring_id id = { .ctx = (__u64)ctx->ctx, .user_data = ctx->user_data };
		struct tcpconnect_call *call = bpf_map_lookup_elem(&uring_requests, &id);

		if (!call)
			return 0;
		if (res < 0)
			uring_ends(call, -res);
		bpf_map_delete_elem(&uring_requests, &id);
	}
	return 0;
}

/* ------------------------------------------------------------------ names: what was received from port 53 */

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tcpconnect_dns);
} dns_scratch SEC(".maps");

static __always_inline void emit_dns(struct __sk_buff *skb, struct tcpconnect_dns *dns, __u32 payload)
{
	for (int i = 0; i < TCPCONNECT_DNS_CHUNKS; i++) {
		__u32 offset = i * TCPCONNECT_DNS_CHUNK;
		__u32 len = dns->total - offset;

		if (offset >= dns->total)
			return;
		if (len > TCPCONNECT_DNS_CHUNK)
			len = TCPCONNECT_DNS_CHUNK;
		/* For the verifier of 5.10, which forgets the bound above: 1 to the size of a piece. */
		len = ((len - 1) & (TCPCONNECT_DNS_CHUNK - 1)) + 1;
		dns->offset = offset;
		dns->len = len;
		if (bpf_skb_load_bytes(skb, payload + offset, dns->data, len))
			return;
		if (bpf_ringbuf_output(&events, dns, TCPCONNECT_DNS_HEADER + len, 0)) {
			count_loss(BPFTK_LOSS_DNS);
			return;
		}
	}
}

/*
 * At the cgroup v2 root this sees what is delivered to a local socket in any network namespace, the loopback's stub
 * resolvers included, after reassembly of fragments. It always lets the packet pass.
 */
SEC("cgroup_skb/ingress")
int bpftk_dns(struct __sk_buff *skb)
{
	struct tcpconnect_dns *dns;
	__u32 zero = 0, payload;
	__u8 version, proto;
	struct {
		__be16 source;
		__be16 dest;
		__be32 seq;
		__be32 ack;
		__u8 offset;
		__u8 flags;
	} tcp = {};

	if (bpf_skb_load_bytes(skb, 0, &version, 1))
		return 1;
	if (version >> 4 == 4) {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)) || (ip.frag_off & bpf_htons(0x1fff)))
			return 1;
		proto = ip.protocol;
		payload = ip.ihl * 4;
	} else {
		struct ipv6hdr ip6;

		if (bpf_skb_load_bytes(skb, 0, &ip6, sizeof(ip6)))
			return 1;
		proto = ip6.nexthdr;
		payload = sizeof(ip6);
		/* Hop-by-hop 0, routing 43, fragment 44, destination options 60: lengths in units of 8 bytes. */
		for (int i = 0; i < 6; i++) {
			__u8 ext[2];

			if (proto != 0 && proto != 43 && proto != 44 && proto != 60)
				break;
			if (bpf_skb_load_bytes(skb, payload, ext, 2))
				return 1;
			payload += proto == 44 ? 8 : (ext[1] + 1) * 8;
			proto = ext[0];
		}
	}
	if (proto != IPPROTO_UDP && proto != IPPROTO_TCP)
		return 1;
	if (bpf_skb_load_bytes(skb, payload, &tcp, proto == IPPROTO_TCP ? 14 : 8) || tcp.source != bpf_htons(53))
		return 1;
	payload += proto == IPPROTO_TCP ? (tcp.offset >> 4) * 4 : 8;
	if (skb->len <= payload)
		return 1;
	dns = bpf_map_lookup_elem(&dns_scratch, &zero);
	if (!dns)
		return 1;
	dns->record = TCPCONNECT_DNS;
	dns->tcp_seq = proto == IPPROTO_TCP ? bpf_ntohl(tcp.seq) : 0;
	dns->tcp_flags = proto == IPPROTO_TCP ? tcp.flags : 0;
	dns->total = skb->len - payload;
	dns->sport = bpf_ntohs(tcp.source);
	dns->dport = bpf_ntohs(tcp.dest);
	dns->proto = proto;
	if (version >> 4 == 4) {
		__be32 addr[2];

		if (bpf_skb_load_bytes(skb, 12, addr, 8))
			return 1;
		set_v4_mapped(dns->saddr, addr[0]);
		set_v4_mapped(dns->daddr, addr[1]);
	} else if (bpf_skb_load_bytes(skb, 8, dns->saddr, 16) || bpf_skb_load_bytes(skb, 24, dns->daddr, 16)) {
		return 1;
	}
	emit_dns(skb, dns, payload);
	return 1;
}
