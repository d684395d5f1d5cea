/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */

/*
 * What every example of socket redirection does: the key is the addresses and ports, a message is redirected when the other end is
 * found, and the verdict is what the helper says. The tests of sockredir must fail with it, or they test nothing. With `lenient`,
 * what can't be redirected passes, as in the better ones.
 */

#include "vmlinux.h"
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define AF_INET 2

char LICENSE[] SEC("license") = "Dual BSD/GPL";

const volatile bool lenient;

struct naive_key {
	__u32 laddr;
	__u32 raddr;
	__u32 lport;
	__u32 rport;
};

struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 65536);
	__uint(key_size, sizeof(struct naive_key));
	__uint(value_size, sizeof(__u64));
} naive_socks SEC(".maps");

SEC("sockops")
int naive_sockops(struct bpf_sock_ops *ops)
{
	struct naive_key key = {};

	if (ops->op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB && ops->op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		return 1;
	if (ops->family != AF_INET)
		return 1;
	key.laddr = ops->local_ip4;
	key.raddr = ops->remote_ip4;
	key.lport = ops->local_port;
	key.rport = bpf_ntohl(ops->remote_port);
	bpf_sock_hash_update(ops, &naive_socks, &key, BPF_NOEXIST);
	return 1;
}

SEC("sk_msg")
int naive_sk_msg(struct sk_msg_md *msg)
{
	struct naive_key key = {};
	long verdict;

	if (msg->family != AF_INET)
		return SK_PASS;
	key.laddr = msg->remote_ip4;
	key.raddr = msg->local_ip4;
	key.lport = bpf_ntohl(msg->remote_port);
	key.rport = msg->local_port;
	verdict = bpf_msg_redirect_hash(msg, &naive_socks, &key, BPF_F_INGRESS);
	return lenient ? SK_PASS : verdict;
}
