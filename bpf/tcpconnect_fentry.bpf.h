/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_TCPCONNECT_FENTRY_BPF_H
#define BPFTK_TCPCONNECT_FENTRY_BPF_H

/* tcpconnect, back end fentry: how it sees calls. */

#include "tcpconnect_call.bpf.h"

static __always_inline void stream_connect(struct socket *sock, const void *addr, __u32 addr_len)
{
	struct sock *sk = free_to_connect(sock, true);
	struct tcpconnect_call *outer;
	__u32 tid;

	if (!sk || left_out(addr, addr_len, false))
		return;
	/* Before 6.3 an MPTCP socket's TCP socket is connected by a call inside its own: the attempt is the inner one's. */
	tid = (__u32)bpf_get_current_pid_tgid();
	outer = bpf_map_lookup_elem(&calls, &tid);
	if (outer && outer->sk != (__u64)sk)
		bpf_map_delete_elem(&attempts, &outer->sk);
	if (call_begins(typed(sk)) && sk->sk_protocol == IPPROTO_MPTCP)
		remember_call(sk, addr, addr_len);
}

/* @args is what the function was called with: a socket, an address and its length. */
static __always_inline void stream_connected(const __u64 *args, struct socket *sock, int ret)
{
	struct tcpconnect_call made = {};
	struct sock *sk = sock->sk;
	__u64 key = (__u64)sk;

	if (sk->sk_protocol == IPPROTO_MPTCP) {
		/* Its attempt is its TCP socket's, once that has one. */
		__u32 tid = (__u32)bpf_get_current_pid_tgid();
		struct tcpconnect_call *outer = bpf_map_lookup_elem(&calls, &tid);

		if (!outer)
			return;
		made = *outer;
		bpf_map_delete_elem(&calls, &tid);
	} else {
		/* Nearly always the state has told of it. */
		if (!bpf_map_lookup_elem(&attempts, &key))
			return;
		/*
		 * As numbers, which is what the table has: the verifier goes through all that follows once for each kind of
		 * value that it may begin with.
		 */
		made.sk = (__u64)BPF_CORE_READ(sock, sk);
		bpf_probe_read_kernel(&made.addr, sizeof(made.addr) + sizeof(made.addr_len), &args[1]);
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
	stream_connected(ctx, sock, ret);
	return 0;
}

SEC("fexit/__inet_stream_connect")
int BPF_PROG(bpftk_fx_conn2, struct socket *sock, struct sockaddr *addr, int addr_len, int flags, int is_sendmsg,
	     int ret)
{
	stream_connected(ctx, sock, ret);
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

#endif
