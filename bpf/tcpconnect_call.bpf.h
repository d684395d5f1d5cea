/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_TCPCONNECT_CALL_BPF_H
#define BPFTK_TCPCONNECT_CALL_BPF_H

/* Calls that connect, whatever back end shows them. */

#include "registers.bpf.h"
#include "tcpconnect_attempt.bpf.h"

/* include/linux/socket.h */
#define MSG_FASTOPEN 0x20000000

/* include/linux/net.h, include/uapi/linux/in.h */
#define SS_UNCONNECTED 1
#define SS_CONNECTING 2
#define IPPROTO_MPTCP 262

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

/* Whether @sock is one that connects by TCP, in the network namespace asked for. */
static __always_inline bool connects_by_tcp(struct known_sock sock)
{
	__u16 family = SOCK_FIELD(sock, __sk_common.skc_family);
	__u16 protocol = SOCK_FIELD(sock, sk_protocol);

	return (family == AF_INET || family == AF_INET6) && (protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP) &&
	       netns_wanted(sock);
}

/* The socket that @socket would connect, when it is one that connects by TCP and is free to. */
static __always_inline struct sock *free_to_connect(struct socket *socket, bool is_typed)
{
	/* A second connect() on a socket under way only asks how the first went. */
	socket_state state = is_typed ? socket->state : BPF_CORE_READ(socket, state);
	struct known_sock sock = { .typed = is_typed };

	if (state != SS_UNCONNECTED)
		return NULL;
	sock.sk = is_typed ? socket->sk : BPF_CORE_READ(socket, sk);
	if (!sock.sk || !connects_by_tcp(sock) || SOCK_FIELD(sock, __sk_common.skc_state) != TCP_CLOSE)
		return NULL;
	return sock.sk;
}

static __always_inline void remember_call(struct sock *sk, const void *addr, __u32 addr_len)
{
	struct tcpconnect_call call = { .sk = (__u64)sk, .addr = (__u64)addr, .addr_len = addr_len };
	__u32 tid = (__u32)bpf_get_current_pid_tgid();

	bpf_map_update_elem(&calls, &tid, &call, BPF_ANY);
}

/* False when there is no such call. */
static __always_inline bool recall_call(int ret, bool user)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	struct tcpconnect_call *call = bpf_map_lookup_elem(&calls, &tid);

	if (!call)
		return false;
	call_ends((struct sock *)call->sk, ret < 0 ? -ret : 0, (void *)call->addr, call->addr_len, user);
	bpf_map_delete_elem(&calls, &tid);
	return true;
}

/* A call that failed before the socket was under way: @ret is negative, @addr the caller's (@user) or the kernel's copy of it. */
static __always_inline void refused(struct sock *sk, int ret, const void *addr, __u32 addr_len, bool user)
{
	struct tcpconnect_event event = {};
	struct task_id task = {};

	if (ret >= 0 || !connects_by_tcp(untyped(sk)) || BPF_CORE_READ(sk, __sk_common.skc_state) != TCP_CLOSE ||
	    !task_wanted(&task) || !set_destination_from(&event, addr, addr_len, user))
		return;
	event.record = BPFTK_RECORD_EVENT;
	event.instant = 1;
	event.start_ns = event.end_ns = bpf_ktime_get_boot_ns();
	event.cgroup_id = task.cgroup_id;
	event.pid = task.pid;
	event.tid = task.tid;
	event.uid = task.uid;
	event.netns = netns_of(untyped(sk));
	__builtin_memcpy(event.comm, task.comm, BPFTK_COMM_LEN);
	event.verdict = TCPCONNECT_FAILED;
	event.error = -ret;
	set_source(&event, untyped(sk));
	if (destination_wanted(&event))
		report(&event);
}

/*
 * Zeroes a header before the branches of which only some use it: the verifier of Linux 7.3 takes a stack that one of
 * them has not touched yet for a fault of its own ("verifier bug: stack slot 29, total slots 0").
 */
static __always_inline void clear_header(struct user_msghdr *msg)
{
	__builtin_memset(msg, 0, sizeof(*msg));
	asm volatile("" : : "r"(msg) : "memory");
}

/*
 * A security module refuses the send that the current task asked for, if it is one that would open a connection. Of a
 * call on several messages, only the first can.
 */
static __always_inline void send_refused(int ret)
{
	struct pt_regs *regs = user_registers();
	int number = number_in(regs);
	struct user_msghdr msg;
	struct socket *sock;
	__u64 flags;

	clear_header(&msg);
	if (number == nr_sendto) {
		flags = PT_REGS_PARM4_CORE_SYSCALL(regs);
		msg.msg_name = (void *)PT_REGS_PARM5_CORE_SYSCALL(regs);
		msg.msg_namelen = PT_REGS_PARM6_CORE_SYSCALL(regs);
	} else if (number == nr_sendmsg || number == nr_sendmmsg) {
		flags = number == nr_sendmsg ? PT_REGS_PARM3_CORE_SYSCALL(regs) : PT_REGS_PARM4_CORE_SYSCALL(regs);
		if (bpf_probe_read_user(&msg, sizeof(msg), (void *)PT_REGS_PARM2_CORE_SYSCALL(regs)))
			return;
	} else {
		return;
	}
	if (!(flags & MSG_FASTOPEN))
		return;
	sock = socket_of(file_of(PT_REGS_PARM1_CORE_SYSCALL(regs)));
	if (sock && free_to_connect(sock, false))
		refused(BPF_CORE_READ(sock, sk), ret, msg.msg_name, msg.msg_namelen, true);
}

#endif
