/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_PREFLIGHT_SOCKETS_BPF_H
#define BPFTK_PREFLIGHT_SOCKETS_BPF_H

/* Which descriptors are connections within this machine, and what can be read of their sockets. */

#include "common.bpf.h"
#include "preflight.h"
#include "preflight_processes.bpf.h"

#define SOCK_STREAM 1
#define IPPROTO_TCP 6
#define IPPROTO_MPTCP 262
#define S_IFMT 00170000
#define S_IFSOCK 0140000
#define O_NONBLOCK 04000

/* Since Linux 6.13, include/linux/file_ref.h: how many users a file has beside the first. */
struct file___counted {
	struct {
		atomic_long_t refcnt;
	} f_ref;
} __attribute__((preserve_access_index));

/* Addresses of this machine, in all of its network namespaces that user space could enter. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, PREFLIGHT_ADDRESSES);
	__type(key, __u8[16]);
	__type(value, __u8);
} addresses SEC(".maps");

/* Ports that the kernel gives to clients: the first, and how many. */
const volatile __u16 ephemeral_first;
const volatile __u32 ephemeral_count;

/* Up to what is of interest here. */
#define HEAD_WORDS 13

/* A connection with another socket of this machine. */
struct connection {
	struct sock *sk;
	struct file *file;
	__u16 lport;
	__u16 rport;
	bool mptcp;
	bool may_block;
	/* The first part of the socket: to read it at once takes as long as one member. */
	__u64 head[HEAD_WORDS];
};

/* A member of struct sock_common. */
#define HEAD(conn, member)                                                                                           \
	(bpf_core_field_offset(struct sock_common, member) + bpf_core_field_size(struct sock_common, member) <=      \
			 sizeof((conn)->head) ?                                                                      \
		 *(__typeof__(((struct sock_common *)0)->member) *)((void *)(conn)->head +                           \
								    bpf_core_field_offset(struct sock_common, member)) : \
		 BPF_CORE_READ((conn)->sk, __sk_common.member))

static __always_inline bool is_local(const __u8 remote[16], const __u8 own[16])
{
	const __u32 *word = (const __u32 *)remote;
	const __u32 *other = (const __u32 *)own;

	if (!word[0] && !word[1] && word[2] == bpf_htonl(0xffff)) {
		if (!word[3])
			return false;
		if (remote[12] == 127)
			return true;
	} else if (!word[0] && !word[1] && !word[2]) {
		/* ::1 is a local peer; :: is an unconnected socket. */
		return word[3] == bpf_htonl(1);
	}
	if (word[0] == other[0] && word[1] == other[1] && word[2] == other[2] && word[3] == other[3])
		return true;
	return bpf_map_lookup_elem(&addresses, remote) != NULL;
}

/* Whether the current task's descriptor is a TCP connection within this machine. */
static __always_inline bool local_connection(int fd, struct connection *conn)
{
	__u8 remote[16] __attribute__((aligned(8))) = {};
	__u8 own[16] __attribute__((aligned(8))) = {};
	struct socket *socket;
	struct file **slots;
	struct file *file;
	struct sock *sk;
	__u16 protocol;

	if ((__u32)fd >= READ_OF_TASK(files, fdt, max_fds))
		return false;
	slots = READ_OF_TASK(files, fdt, fd);
	if (bpf_probe_read_kernel(&file, sizeof(file), slots + (__u32)fd) || !file)
		return false;
	if ((BPF_CORE_READ(file, f_inode, i_mode) & S_IFMT) != S_IFSOCK)
		return false;
	socket = BPF_CORE_READ(file, private_data);
	/* A path in the file system may be a socket's, too, and be opened without one (O_PATH). */
	if (!socket || BPF_CORE_READ(socket, file) != file)
		return false;
	sk = BPF_CORE_READ(socket, sk);
	if (!sk || BPF_CORE_READ(sk, sk_type) != SOCK_STREAM)
		return false;
	protocol = BPF_CORE_READ(sk, sk_protocol);
	if (protocol != IPPROTO_TCP && protocol != IPPROTO_MPTCP)
		return false;
	conn->sk = sk;
	if (bpf_probe_read_kernel(&conn->head, sizeof(conn->head), sk))
		return false;
	switch (HEAD(conn, skc_family)) {
	case AF_INET:
		set_v4_mapped(remote, HEAD(conn, skc_daddr));
		set_v4_mapped(own, HEAD(conn, skc_rcv_saddr));
		break;
	case AF_INET6:
		*(struct in6_addr *)remote = HEAD(conn, skc_v6_daddr);
		*(struct in6_addr *)own = HEAD(conn, skc_v6_rcv_saddr);
		break;
	default:
		return false;
	}
	if (!is_local(remote, own))
		return false;
	conn->file = file;
	conn->mptcp = protocol == IPPROTO_MPTCP;
	conn->lport = HEAD(conn, skc_num);
	conn->rport = bpf_ntohs(HEAD(conn, skc_dport));
	conn->may_block = !(BPF_CORE_READ(file, f_flags) & O_NONBLOCK);
	return true;
}

/*
 * What TCP has and nobody has read: net/ipv4/tcp.c, tcp_inq. The connection's end takes a sequence number, too; on its
 * way in, before the socket is marked, it is told by its packet, which carries nothing (net/ipv4/tcp_input.c,
 * tcp_data_queue).
 */
static __always_inline bool has_unread(struct sock *sk)
{
	struct sk_buff *first = BPF_CORE_READ(sk, sk_receive_queue.next);
	void *queue = (void *)sk + bpf_core_field_offset(struct sock, sk_receive_queue);
	struct tcp_sock *tp = (void *)sk;
	__u32 unread = BPF_CORE_READ(tp, rcv_nxt) - BPF_CORE_READ(tp, copied_seq);
	__u64 flags = BPF_CORE_READ(sk, __sk_common.skc_flags);

	/* A connection that was reset has ended: its close sends nothing. */
	if (BPF_CORE_READ(sk, __sk_common.skc_state) == BPF_TCP_CLOSE)
		return false;
	if (unread && flags & (1UL << bpf_core_enum_value(enum sock_flags, SOCK_DONE)))
		unread--;
	if (unread == 1)
		return first != queue && BPF_CORE_READ(first, len);
	return unread;
}

/* Whether nobody else has the file: no other descriptor, process or running call. */
static __always_inline bool is_last_user(struct file *file)
{
	struct file___counted *counted = (void *)file;

	if (bpf_core_field_exists(counted->f_ref))
		return !BPF_CORE_READ(counted, f_ref.refcnt.counter);
	return BPF_CORE_READ(file, f_count.counter) == 1;
}

/*
 * The same value, of which the verifier knows nothing: it checks a global function by itself, for any argument. Else it
 * goes through all that follows once for each value that the branches before can give.
 */
__noinline __u32 any_number(__u32 number)
{
	asm volatile("" : "+r"(number));
	return number;
}

/* 1 or 0, without a branch: the sign of a difference. */
static __always_inline __u32 is_ephemeral(__u16 port)
{
	__u32 beyond = (__u32)(__u16)(port - ephemeral_first) - ephemeral_count;

	asm volatile("" : "+r"(beyond));
	return beyond >> 31;
}

/*
 * By which port to keep a connection out: where somebody listens. If nobody does any more, both are noted, and user
 * space decides; until then the guard keeps out the one that the kernel does not give to clients, or both.
 */
static __always_inline void note_ports(const struct connection *conn)
{
	bool here = is_listening(conn->lport), there = is_listening(conn->rport);
	__u32 keep_here = 1, keep_there = 1;
	struct preflight_key key = {};

	current_key(&key);
	if (guard && !here && !there) {
		keep_here = any_number((is_ephemeral(conn->lport) ^ 1) | is_ephemeral(conn->rport));
		keep_there = any_number((is_ephemeral(conn->rport) ^ 1) | is_ephemeral(conn->lport));
	}
	if ((here || !there) &&
	    !note_port(&key, conn->lport, here ? PREFLIGHT_PORT_LISTENING : PREFLIGHT_PORT_GUESS, keep_here))
		count_loss(BPFTK_LOSS_TABLE_FULL);
	if ((there || !here) &&
	    !note_port(&key, conn->rport, there ? PREFLIGHT_PORT_LISTENING : PREFLIGHT_PORT_GUESS, keep_there))
		count_loss(BPFTK_LOSS_TABLE_FULL);
}

#endif
