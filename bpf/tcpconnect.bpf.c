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

#include "dns.bpf.h"
#include "tcpconnect_attempt.bpf.h"

/* include/linux/net.h, include/linux/socket.h, include/uapi/linux/in.h */
#define SS_UNCONNECTED 1
#define MSG_FASTOPEN 0x20000000
#define IPPROTO_MPTCP 262

/* include/uapi/linux/io_uring.h */
#define IORING_OP_CONNECT 16

/* What Linux calls submit_req since 6.3. */
struct trace_event_raw_io_uring_submit_sqe___old {
	void *ctx;
	void *req;
	__u8 opcode;
	__u64 user_data;
} __attribute__((preserve_access_index));

/* For the skeleton: the records have no map whose BTF would name them. */
struct tcpconnect_event _event;
enum tcpconnect_verdict _verdict;

/* @last: no copy comes after this program. */
static __always_inline void set_state(struct sock *sk, int oldstate, int newstate, bool last)
{
	__u64 key = (__u64)sk;
	struct tcpconnect_attempt *attempt;

	if (oldstate != TCP_CLOSE && oldstate != TCP_SYN_SENT && oldstate != TCP_SYN_RECV)
		return;
	if (newstate == TCP_SYN_SENT && BPF_CORE_READ(sk, sk_protocol) != IPPROTO_TCP)
		return;
	attempt = bpf_map_lookup_elem(&attempts, &key);
	if (newstate == TCP_SYN_SENT) {
		syn_sent(sk, attempt, last);
		return;
	}
	/* Simultaneous open (SYN_SENT to SYN_RECV) is not decided yet. */
	if (!attempt || !(attempt->flags & ATTEMPT_SYN_SENT) || newstate == TCP_SYN_RECV)
		return;
	if (oldstate == TCP_CLOSE) {
		/* Closed again: whoever should have told the error did not. */
		if (newstate == TCP_CLOSE && !(attempt->flags & ATTEMPT_CALL_KNOWN))
			finish(attempt, sk, TCPCONNECT_CLOSED, 0);
		return;
	}
	leave_syn_sent(sk, attempt, newstate);
}

/* sock:inet_sock_set_state. With CO-RE reads instead of typed ones it also loads with --btf FILE. */
SEC("raw_tp/inet_sock_set_state")
int bpftk_set_state(struct bpf_raw_tracepoint_args *ctx)
{
	set_state((struct sock *)ctx->args[0], ctx->args[1], ctx->args[2], !has_copies);
	return 0;
}

/* Through perf, which disables preemption around its programs (include/trace/perf.h), the same once more. */
SEC("tracepoint/sock/inet_sock_set_state")
int bpftk_state2(struct trace_event_raw_inet_sock_set_state *ctx)
{
	set_state((struct sock *)BPF_CORE_READ(ctx, skaddr), BPF_CORE_READ(ctx, oldstate),
		  BPF_CORE_READ(ctx, newstate), true);
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
		/* The end of its call was missed. If it failed at once, where to was only in the call. */
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

/* A call that failed before the socket was under way: @ret is negative, @addr the caller's (@user) or the kernel's copy of it. */
static __always_inline void refused(struct sock *sk, int ret, const void *addr, __u32 addr_len, bool user)
{
	struct tcpconnect_event event = {};
	struct task_id task = {};

	if (ret >= 0 || !connects_by_tcp(sk) || BPF_CORE_READ(sk, __sk_common.skc_state) != TCP_CLOSE ||
	    !task_wanted(&task) || !set_destination_from(&event, addr, addr_len, user))
		return;
	event.record = BPFTK_RECORD_EVENT;
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

static __always_inline void stream_connect(struct socket *sock, const void *addr, __u32 addr_len)
{
	struct sock *sk = free_to_connect(sock);
	struct tcpconnect_call *outer;
	__u32 tid;

	if (!sk)
		return;
	/* Before 6.3 an MPTCP socket's TCP socket is connected by a call inside its own: the attempt is the inner one's. */
	tid = (__u32)bpf_get_current_pid_tgid();
	outer = bpf_map_lookup_elem(&calls, &tid);
	if (outer && outer->sk != (__u64)sk)
		bpf_map_delete_elem(&attempts, &outer->sk);
	call_begins(sk);
	if (BPF_CORE_READ(sk, sk_protocol) == IPPROTO_MPTCP)
		remember_call(sk, addr, addr_len);
}

static __always_inline void stream_connected(struct socket *sock, const void *addr, __u32 addr_len, int ret)
{
	struct sock *sk = BPF_CORE_READ(sock, sk);
	struct tcpconnect_call made = { .sk = (__u64)sk, .addr = (__u64)addr, .addr_len = addr_len };
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	struct tcpconnect_call *outer;

	/* An MPTCP socket's attempt is its TCP socket's, once that has one. Both are ended in one place: programs are short. */
	if (BPF_CORE_READ(sk, sk_protocol) == IPPROTO_MPTCP) {
		outer = bpf_map_lookup_elem(&calls, &tid);
		if (!outer)
			return;
		made = *outer;
		bpf_map_delete_elem(&calls, &tid);
	}
	call_ends((struct sock *)made.sk, ret < 0 ? -ret : 0, (void *)made.addr, made.addr_len, false);
}

/*
 * net/ipv4/af_inet.c: what every connect() and every send with MSG_FASTOPEN comes to, io_uring's and the kernel's own
 * included. It may wait for the answer, which a fexit may and a kretprobe should not.
 */
SEC("fentry/__inet_stream_connect")
int BPF_PROG(bpftk_fe_conn, struct socket *sock, struct sockaddr *addr, int addr_len)
{
	stream_connect(sock, addr, addr_len);
	return 0;
}

SEC("fentry/__inet_stream_connect")
int BPF_PROG(bpftk_fe_conn2, struct socket *sock, struct sockaddr *addr, int addr_len)
{
	stream_connect(sock, addr, addr_len);
	return 0;
}

SEC("fexit/__inet_stream_connect")
int BPF_PROG(bpftk_fx_conn, struct socket *sock, struct sockaddr *addr, int addr_len, int flags, int is_sendmsg,
	     int ret)
{
	stream_connected(sock, addr, addr_len, ret);
	return 0;
}

SEC("fexit/__inet_stream_connect")
int BPF_PROG(bpftk_fx_conn2, struct socket *sock, struct sockaddr *addr, int addr_len, int flags, int is_sendmsg,
	     int ret)
{
	stream_connected(sock, addr, addr_len, ret);
	return 0;
}

static __always_inline void security_checked(struct socket *sock, const void *addr, __u32 addr_len, int ret)
{
	if (ret >= 0)
		return;
	if (has_copies) {
		struct tcpconnect_call mark = {};
		__u32 tid = (__u32)bpf_get_current_pid_tgid();

		/* The copy that runs first leaves a mark, and the other takes it away. */
		if (!bpf_map_delete_elem(&checks, &tid))
			return;
		bpf_map_update_elem(&checks, &tid, &mark, BPF_ANY);
	}
	refused(BPF_CORE_READ(sock, sk), ret, addr, addr_len, false);
}

SEC("fexit/security_socket_connect")
int BPF_PROG(bpftk_fx_lsm, struct socket *sock, struct sockaddr *addr, int addr_len, int ret)
{
	security_checked(sock, addr, addr_len, ret);
	return 0;
}

SEC("fexit/security_socket_connect")
int BPF_PROG(bpftk_fx_lsm2, struct socket *sock, struct sockaddr *addr, int addr_len, int ret)
{
	security_checked(sock, addr, addr_len, ret);
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
	refused((struct sock *)call->sk, ret, (void *)call->addr, call->addr_len, false);
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

/*
 * Two programs for four calls, since to load one takes longer than to tell calls apart. The kernel attaches a program only where the
 * context has all that it reads: connect and sendmsg have three arguments, sendmmsg has four.
 */

/* sys_enter_connect, sys_enter_sendmsg */
SEC("tracepoint/syscalls/sys_enter_connect")
int bpftk_connect(struct syscall_trace_enter *ctx)
{
	void *addr = (void *)ctx->args[1];
	__u32 third = ctx->args[2], addr_len = third;

	if (ctx->nr == nr_sendmsg) {
		struct user_msghdr msg;

		/* The header's memory was written by the caller just now. */
		if (!(third & MSG_FASTOPEN) || bpf_probe_read_user(&msg, sizeof(msg), addr))
			return 0;
		addr = msg.msg_name;
		addr_len = msg.msg_namelen;
	}
	syscall_begins(ctx->args[0], addr, addr_len);
	return 0;
}

/* sys_enter_sendmmsg, sys_enter_sendto */
SEC("tracepoint/syscalls/sys_enter_sendmmsg")
int bpftk_send(struct syscall_trace_enter *ctx)
{
	void *second = (void *)ctx->args[1];
	struct user_msghdr msg;
	__u64 last[2];

	if (!(ctx->args[3] & MSG_FASTOPEN))
		return 0;
	if (ctx->nr == nr_sendto) {
		/* The fifth and the sixth, which sendmmsg does not have. */
		if (bpf_probe_read_kernel(last, sizeof(last), &ctx->args[4]))
			return 0;
		msg.msg_name = (void *)last[0];
		msg.msg_namelen = last[1];
	} else if (bpf_probe_read_user(&msg, sizeof(msg), second)) {
		return 0;
	}
	/* Of several messages, only the first can open the connection. */
	syscall_begins(ctx->args[0], msg.msg_name, msg.msg_namelen);
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
	if (is_failure(error) && free_to_connect(sock))
		refused(sk, -(int)error, (void *)call->addr, call->addr_len, true);
}

SEC("tracepoint/io_uring/io_uring_complete")
int bpftk_uring_end(struct trace_event_raw_io_uring_complete *ctx)
{
	struct uring_id id = {};
	struct tcpconnect_call call = {};
	int res = ctx->res;

	if (bpf_core_field_exists(ctx->req)) {
		struct io_kiocb *req = (void *)ctx->req;

		if (res >= 0 || !req || BPF_CORE_READ(req, opcode) != IORING_OP_CONNECT)
			return 0;
		read_request(req, &call);
	} else {
		struct tcpconnect_call *known;

		id.ctx = (__u64)ctx->ctx;
		id.user_data = ctx->user_data;
		known = bpf_map_lookup_elem(&uring_requests, &id);
		if (!known)
			return 0;
		call = *known;
		bpf_map_delete_elem(&uring_requests, &id);
	}
	if (res < 0)
		uring_ends(&call, -res);
	return 0;
}
