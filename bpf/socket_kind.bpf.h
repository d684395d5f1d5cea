/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_SOCKET_KIND_BPF_H
#define BPFTK_SOCKET_KIND_BPF_H

/* Whose a packet is, as far as the packet itself tells: for programs at tc's egress and at cgroup_skb. */

#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

enum socket_kind {
	/* No socket: somebody else's packet, passed on. Its cookie is 0. */
	SOCKET_NONE,
	SOCKET_OF_PROCESS,
	/* The kernel's own: neighbour discovery, replies to pings, resets. */
	SOCKET_OF_KERNEL,
};

/* include/net/tcp_states.h */
#define SOCKET_TIME_WAIT 6
#define SOCKET_NEW_SYN_RECV 12

/* The kernel's address of the packet's socket. The verifier knows it as a socket; it is read here as a number. */
static __always_inline __u64 socket_address(struct bpf_sock *sk)
{
	__u64 address = 0;

	bpf_probe_read_kernel(&address, sizeof(address), &sk);
	return address;
}

/*
 * The cookie of the socket that @skb is sent from. A connection that is not open yet has a request in a socket's place,
 * with a number of its own, of which a flood of them would use up as many: that is the listener's packet.
 */
static __always_inline __u64 packet_cookie(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;

	if (!sk)
		return 0;
	if (sk->state == SOCKET_NEW_SYN_RECV) {
		struct sock *request = (void *)socket_address(sk);
		__u64 cookie = BPF_CORE_READ(request, __sk_common.skc_listener, __sk_common.skc_cookie.counter);

		if (cookie)
			return cookie;
	}
	return bpf_get_socket_cookie(skb);
}

/* To be asked once for each cookie. */
static __always_inline enum socket_kind packet_socket_kind(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;
	struct sock *kernel;

	if (!sk)
		return SOCKET_NONE;
	/* Neither is whole; both come from sockets that processes had. */
	if (sk->state == SOCKET_NEW_SYN_RECV || sk->state == SOCKET_TIME_WAIT)
		return SOCKET_OF_PROCESS;
	kernel = (void *)socket_address(sk);
	return BPF_CORE_READ_BITFIELD_PROBED(kernel, sk_kern_sock) ? SOCKET_OF_KERNEL : SOCKET_OF_PROCESS;
}

#endif
