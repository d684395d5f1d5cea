/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_TCPCONNECT_TRACEPOINT_BPF_H
#define BPFTK_TCPCONNECT_TRACEPOINT_BPF_H

/* tcpconnect, back end tracepoint: how it sees calls. */

#include "tcpconnect_call.bpf.h"

/* include/uapi/linux/io_uring.h */
#define IORING_OP_CONNECT 16

/* What Linux calls submit_req since 6.3. */
struct trace_event_raw_io_uring_submit_sqe___old {
	void *ctx;
	void *req;
	__u8 opcode;
	__u64 user_data;
} __attribute__((preserve_access_index));

/* @addr is in user memory, perhaps not paged in yet: it is read again at the call's end, when the kernel has, too. */
static __always_inline void syscall_begins(__u32 fd, const void *addr, __u32 addr_len)
{
	struct socket *sock = socket_of(file_of(fd));
	struct sock *sk = sock ? free_to_connect(sock, false) : NULL;
	struct sock *busy = sock && !sk ? BPF_CORE_READ(sock, sk) : NULL;

	/*
	 * It asks how the first call went. Its end may leave the socket free to connect: its beginning was seen, so that
	 * it is not taken for a refusal by seccomp.
	 */
	if (busy && BPF_CORE_READ(sock, state) == SS_CONNECTING && connects_by_tcp(untyped(busy)))
		remember_call(NULL, NULL, 0);
	if (sk && !left_out(addr, addr_len, true) && call_begins(untyped(sk)))
		remember_call(sk, addr, addr_len);
}

/*
 * The end of a connect() whose beginning was not seen: a seccomp filter refused it, before the tracepoint. What the
 * filters left out at the beginning comes here too, and they leave it out again.
 */
static __always_inline void refused_by_seccomp(int ret)
{
	struct task_struct *current = (void *)bpf_get_current_task();
	struct pt_regs *regs;
	struct socket *sock;
	struct sock *sk;

	if (ret >= 0 || !is_failure(-ret) || is_an_answer(-ret))
		return;
	if (!bpf_core_field_exists(current->seccomp.mode) || !BPF_CORE_READ(current, seccomp.mode))
		return;
	regs = user_registers();
	if (number_in(regs) != nr_connect)
		return;
	sock = socket_of(file_of(PT_REGS_PARM1_CORE_SYSCALL(regs)));
	sk = sock ? free_to_connect(sock, false) : NULL;
	if (sk)
		refused(sk, ret, (void *)PT_REGS_PARM2_CORE_SYSCALL(regs), PT_REGS_PARM3_CORE_SYSCALL(regs), true);
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
	clear_header(&msg);
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
	if (!recall_call(ctx->ret, true) && ctx->nr == nr_connect)
		refused_by_seccomp(ctx->ret);
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
	if (call.sk && !left_out((void *)call.addr, call.addr_len, true))
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
	if (!sk || !connects_by_tcp(untyped(sk)))
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
	/* What was in SYN_SENT is told, or left out, or counted as lost. */
	if (is_failure(error) && !is_an_answer(error) && free_to_connect(sock, false))
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

#endif
