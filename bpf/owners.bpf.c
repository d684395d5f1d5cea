/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */

/*
 * Who owns a socket, told while it happens: who makes it, who sends through it, who closes it.
 *
 * None of these programs decides anything: those on cgroup hooks always return 1, which is "go on".
 */

#include "common.bpf.h"
#include "owners.bpf.h"

struct owner_user {
	__u64 start_ns;
	__u64 tgid;
};

/* Who is known to use a socket, by cookie, so that a send tells nothing that was told before. What is evicted is told anew. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, __u64);
	__type(value, struct owner_user);
} users SEC(".maps");

/* For the skeleton: the records have no map whose BTF would name them. */
struct owner_record _owner_record;
enum owner_claim _owner_claim;

static __always_inline void tell(__u64 cookie, __u8 claim)
{
	struct owner_record record = { .cookie = cookie, .claim = claim };

	set_process(&record, (void *)bpf_get_current_task());
	emit_record(&record, sizeof(record));
}

/*
 * net/ipv4/af_inet.c, net/ipv6/af_inet6.c: in the process that makes the socket, before it can send. Not for sockets
 * that the kernel makes for itself, nor for those that accept() returns.
 */
SEC("cgroup/sock_create")
int bpftk_sk_create(struct bpf_sock *ctx)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);
	struct task_struct *task = (void *)bpf_get_current_task();
	struct owner_user user = {
		.start_ns = process_start(task),
		.tgid = bpf_get_current_pid_tgid() >> 32,
	};

	bpf_map_update_elem(&users, &cookie, &user, BPF_ANY);
	tell(cookie, OWNER_CREATED);
	return 1;
}

/* In the process whose last descriptor of the socket is closed, those that accept() returned included. Linux 5.9. */
SEC("cgroup/sock_release")
int bpftk_sk_release(struct bpf_sock *ctx)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);

	bpf_map_delete_elem(&users, &cookie);
	tell(cookie, OWNER_RELEASED);
	return 1;
}

static __always_inline void used(struct sock *sk, bool sends)
{
	struct owner_user *known, user;
	__u64 cookie;

	if (!sk || !sends_packets(sk))
		return;
	/* What has no cookie has sent nothing that anybody counted. */
	cookie = cookie_so_far(sk);
	if (!cookie)
		return;
	known = bpf_map_lookup_elem(&users, &cookie);
	/* A sender says more than a receiver. */
	if (known && !sends)
		return;
	user.tgid = bpf_get_current_pid_tgid() >> 32;
	user.start_ns = process_start((void *)bpf_get_current_task());
	if (known && known->tgid == user.tgid && known->start_ns == user.start_ns)
		return;
	bpf_map_update_elem(&users, &cookie, &user, BPF_ANY);
	tell(cookie, sends ? OWNER_SENT : OWNER_RECEIVED);
}

/* net/socket.c, after the data was handed to the protocol. Linux 6.3. */
SEC("raw_tp/sock_send_length")
int bpftk_sent(struct bpf_raw_tracepoint_args *ctx)
{
	used((struct sock *)ctx->args[0], true);
	return 0;
}

SEC("raw_tp/sock_recv_length")
int bpftk_received(struct bpf_raw_tracepoint_args *ctx)
{
	used((struct sock *)ctx->args[0], false);
	return 0;
}

/* Before that Linux: what every send and receive of every protocol asks first. */
SEC("fentry/security_socket_sendmsg")
int BPF_PROG(bpftk_fe_send, struct socket *sock)
{
	used(BPF_CORE_READ(sock, sk), true);
	return 0;
}

SEC("fentry/security_socket_recvmsg")
int BPF_PROG(bpftk_fe_recv, struct socket *sock)
{
	used(BPF_CORE_READ(sock, sk), false);
	return 0;
}

SEC("kprobe/security_socket_sendmsg")
int BPF_KPROBE(bpftk_kp_send, struct socket *sock)
{
	used(BPF_CORE_READ(sock, sk), true);
	return 0;
}

SEC("kprobe/security_socket_recvmsg")
int BPF_KPROBE(bpftk_kp_recv, struct socket *sock)
{
	used(BPF_CORE_READ(sock, sk), false);
	return 0;
}
