/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_TCPCONNECT_KPROBE_BPF_H
#define BPFTK_TCPCONNECT_KPROBE_BPF_H

/* tcpconnect, back end kprobe: how it sees calls. */

#include "tcpconnect_call.bpf.h"

/* tcp_v6_connect calls tcp_v4_connect for a v4-mapped destination: that is the outer call's attempt. */
static __always_inline bool inner_v4_call(struct sock *sk)
{
	return has_v6_hooks && BPF_CORE_READ(sk, __sk_common.skc_family) == AF_INET6;
}

static __always_inline void function_begins(struct sock *sk, const void *addr, __u32 addr_len)
{
	if (!left_out(addr, addr_len, false) && call_begins(untyped(sk)))
		remember_call(sk, addr, addr_len);
}

SEC("kprobe/tcp_v4_connect")
int BPF_KPROBE(bpftk_kp_v4, struct sock *sk, struct sockaddr *addr, int addr_len)
{
	if (!inner_v4_call(sk))
		function_begins(sk, addr, addr_len);
	return 0;
}

SEC("kprobe/tcp_v6_connect")
int BPF_KPROBE(bpftk_kp_v6, struct sock *sk, struct sockaddr *addr, int addr_len)
{
	function_begins(sk, addr, addr_len);
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

	if (sk && connects_by_tcp(untyped(sk)))
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

#endif
