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
 * Security modules refuse before all of these, in security_socket_connect; a system call's end shows that too, and what
 * seccomp refuses before any of it. What an ICMP message says is told by a tracepoint of its own, see error_told().
 */

#include "dns.bpf.h"
#include "tcpconnect_attempt.bpf.h"
#include "tcpconnect_fentry.bpf.h"
#include "tcpconnect_kprobe.bpf.h"
#include "tcpconnect_tracepoint.bpf.h"

/* --dns: what local sockets ask. It always lets the packet pass. */
SEC("cgroup_skb/egress")
int bpftk_question(struct __sk_buff *skb)
{
	struct dns_transport found = {};

	if (find_payload(skb, &found) && found.tcp.dest == bpf_htons(53))
		emit_question(skb, &found);
	return 1;
}

/* For the skeleton: the records have no map whose BTF would name them. */
struct tcpconnect_event _event;
enum tcpconnect_verdict _verdict;

/* @last: no copy comes after this program. */
static __always_inline void set_state(struct known_sock sock, int oldstate, int newstate, bool last)
{
	__u64 key = (__u64)sock.sk;
	struct tcpconnect_attempt *attempt;

	if (oldstate != TCP_CLOSE && oldstate != TCP_SYN_SENT && oldstate != TCP_SYN_RECV)
		return;
	if (newstate == TCP_SYN_SENT && SOCK_FIELD(sock, sk_protocol) != IPPROTO_TCP)
		return;
	attempt = bpf_map_lookup_elem(&attempts, &key);
	if (newstate == TCP_SYN_SENT) {
		syn_sent(sock, attempt, last);
		return;
	}
	/* Simultaneous open (SYN_SENT to SYN_RECV) is not decided yet. */
	if (newstate == TCP_SYN_RECV)
		return;
	if (!attempt) {
		/* The second copy comes after the first has ended it. */
		if (oldstate == TCP_SYN_SENT && !(has_copies && last))
			began_before(sock);
		return;
	}
	if (!(attempt->flags & ATTEMPT_SYN_SENT))
		return;
	if (oldstate == TCP_CLOSE) {
		/* Closed again: whoever should have told the error did not. */
		if (newstate == TCP_CLOSE && !(attempt->flags & ATTEMPT_CALL_KNOWN))
			finish(attempt, sock.sk, TCPCONNECT_CLOSED, 0);
		return;
	}
	leave_syn_sent(sock, attempt, newstate);
}

/* sock:inet_sock_set_state. With CO-RE reads instead of typed ones it also loads with --btf FILE. */
SEC("raw_tp/inet_sock_set_state")
int bpftk_set_state(struct bpf_raw_tracepoint_args *ctx)
{
	set_state(untyped((struct sock *)ctx->args[0]), ctx->args[1], ctx->args[2], !has_copies);
	return 0;
}

/* The same with typed reads, where the kernel has its BTF itself. */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(bpftk_state_btf, struct sock *sk, int oldstate, int newstate)
{
	set_state(typed(sk), oldstate, newstate, !has_copies);
	return 0;
}

/* Through perf, which disables preemption around its programs (include/trace/perf.h), the same once more. */
SEC("tracepoint/sock/inet_sock_set_state")
int bpftk_state2(struct trace_event_raw_inet_sock_set_state *ctx)
{
	set_state(untyped((struct sock *)BPF_CORE_READ(ctx, skaddr)), BPF_CORE_READ(ctx, oldstate),
		  BPF_CORE_READ(ctx, newstate), true);
	return 0;
}

/* Linux 5.14. Where a program has fetched the error and closes, this alone has told which it was. */
SEC("raw_tp/inet_sk_error_report")
int bpftk_error(struct bpf_raw_tracepoint_args *ctx)
{
	error_told(untyped((struct sock *)ctx->args[0]));
	return 0;
}

/*
 * Back ends fentry and kprobe, Linux 7.3: Landlock refuses sends with MSG_FASTOPEN where they are sent, and there is no
 * function to be hooked that only such sends come to. Refusals of connect() come here too, and are told by
 * security_socket_connect.
 */
SEC("raw_tp/landlock_deny_access_net")
int bpftk_landlock(void *ctx)
{
	send_refused(-EACCES);
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
