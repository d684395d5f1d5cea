/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */

/*
 * Who does with local TCP connections what a redirection past TCP changes. One program at the entry of all system
 * calls, which is left at once for those that are of no interest. What a socket was set to is read from the socket when
 * it is used: so it counts whenever it was set, and by whomever.
 *
 * Everything is a counter of a process, in a table. The guard's records only say when to look.
 */

#include "task_filter.bpf.h"
#include "preflight.h"
#include "preflight_processes.bpf.h"
#include "preflight_reasons.bpf.h"
#include "preflight_sockets.bpf.h"

#define SOL_TCP 6
#define TCP_INFO 11
#define TCP_ZEROCOPY_RECEIVE 35
/* include/uapi/asm-generic/ioctls.h; SIOCINQ is the same. */
#define FIONREAD 0x541b

#if defined(__TARGET_ARCH_x86)
#define NR_READ 0
#define NR_WRITE 1
#define NR_CLOSE 3
#define NR_IOCTL 16
#define NR_READV 19
#define NR_WRITEV 20
#define NR_SENDFILE 40
#define NR_SENDTO 44
#define NR_RECVFROM 45
#define NR_SENDMSG 46
#define NR_RECVMSG 47
#define NR_SHUTDOWN 48
#define NR_GETSOCKOPT 55
#define NR_SPLICE 275
#define NR_RECVMMSG 299
#define NR_SENDMMSG 307
#define NR_PREADV2 327
#define NR_PWRITEV2 328
/* socketcall, and socket to recvmsg, as 32-bit programs number them. */
#define IS_SOCKET_CALL32(nr) ((nr) == 102 || ((nr) >= 359 && (nr) <= 373))
#elif defined(__TARGET_ARCH_arm64)
#define NR_IOCTL 29
#define NR_CLOSE 57
#define NR_READ 63
#define NR_WRITE 64
#define NR_READV 65
#define NR_WRITEV 66
#define NR_SENDFILE 71
#define NR_SPLICE 76
#define NR_SENDTO 206
#define NR_RECVFROM 207
#define NR_GETSOCKOPT 209
#define NR_SHUTDOWN 210
#define NR_SENDMSG 211
#define NR_RECVMSG 212
#define NR_RECVMMSG 243
#define NR_SENDMMSG 269
#define NR_PREADV2 286
#define NR_PWRITEV2 287
#define IS_SOCKET_CALL32(nr) ((nr) >= 281 && (nr) <= 297)
#else
#error "which numbers do the system calls have here, and which those of 32-bit programs?"
#endif
/* include/linux/net.h: SEND_SHUTDOWN - 1 */
#define SHUT_WR 1
#define NR_IO_URING_SETUP 425
#define NR_IO_URING_ENTER 426

/*
 * Set where the kernel may preempt a program at a tracepoint (Linux 7), and skips it meanwhile for whoever comes to the
 * same place on this CPU. Then there are two of them, and the second does what the first was skipped for.
 */
const volatile bool twice;

/* Threads whose call the first program has looked at, until the second has seen that. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, PREFLIGHT_THREADS);
	__type(key, __u32);
	__type(value, __u8);
} looked_at SEC(".maps");

static __always_inline bool in_scope(void)
{
	__u32 pid = bpf_get_current_pid_tgid() >> 32;

	if (filter_by_pid && !bpf_map_lookup_elem(&filter_pids, &pid))
		return false;
	return !filter_by_cgroup || bpf_current_task_under_cgroup(&filter_cgroup, 0) == 1;
}

/* Whether the current task is in a system call of a 32-bit program, whose numbers are others. */
static __always_inline bool is_32bit(void)
{
#if defined(__TARGET_ARCH_x86)
	/* arch/x86/include/asm/thread_info.h, TS_COMPAT */
	return READ_OF_TASK(thread_info.status) & 2;
#else
	/* arch/arm64/include/asm/thread_info.h, TIF_32BIT */
	return READ_OF_TASK(thread_info.flags) & (1UL << 22);
#endif
}

/* Whether this call is for the other one of the two programs. */
static __always_inline bool is_done(bool second)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	__u8 yes = 1;

	if (!twice)
		return false;
	if (second)
		return !bpf_map_delete_elem(&looked_at, &tid);
	bpf_map_update_elem(&looked_at, &tid, &yes, BPF_ANY);
	return false;
}

static __always_inline int look(struct bpf_raw_tracepoint_args *ctx, bool second)
{
	struct pt_regs *regs = (void *)ctx->args[0];
	struct preflight_process *process;
	struct connection conn = {};
	__u32 number = ctx->args[1];
	struct call call = {};

	switch (number) {
	case NR_READ:
	case NR_READV:
	case NR_PREADV2:
	case NR_WRITE:
	case NR_WRITEV:
	case NR_PWRITEV2:
	case NR_RECVFROM:
	case NR_RECVMSG:
	case NR_RECVMMSG:
	case NR_SENDTO:
	case NR_SENDMSG:
	case NR_SENDMMSG:
	case NR_SPLICE:
	case NR_SENDFILE:
	case NR_GETSOCKOPT:
	case NR_CLOSE:
	case NR_SHUTDOWN:
	case NR_IO_URING_SETUP:
	case NR_IO_URING_ENTER:
		break;
	case NR_IOCTL:
		/* Before all else: there are many others. */
		if ((__u32)ARGUMENT2(regs) != FIONREAD || counts_what_waits())
			return 0;
		break;
	default:
		if (IS_SOCKET_CALL32(number) && is_32bit() && in_scope() && !is_done(second))
			is_not_seen(PREFLIGHT_ABI32);
		return 0;
	}
	if (!in_scope() || is_32bit() || is_done(second))
		return 0;

	call.fd = ARGUMENT1(regs);
	switch (number) {
	case NR_RECVFROM:
	case NR_RECVMMSG:
	case NR_SENDTO:
	case NR_SENDMMSG:
		call.flags = ARGUMENT4(regs);
		break;
	case NR_RECVMSG:
	case NR_SENDMSG:
		call.flags = ARGUMENT3(regs);
		break;
	case NR_SPLICE:
		call.way = ASKS_TCP;
		call.reason = PREFLIGHT_SPLICE;
		break;
	case NR_SENDFILE:
		call.fd = ARGUMENT2(regs);
		call.way = ASKS_TCP;
		call.reason = PREFLIGHT_SPLICE;
		break;
	case NR_GETSOCKOPT:
		if ((__u32)ARGUMENT2(regs) != SOL_TCP)
			return 0;
		call.way = ASKS_TCP;
		switch ((__u32)ARGUMENT3(regs)) {
		case TCP_ZEROCOPY_RECEIVE:
			call.reason = PREFLIGHT_RECEIVE_MAP;
			break;
		case TCP_INFO:
			call.reason = PREFLIGHT_TCP_INFO;
			break;
		default:
			return 0;
		}
		break;
	case NR_IOCTL:
		call.way = ASKS_TCP;
		call.reason = PREFLIGHT_FIONREAD;
		break;
	case NR_SHUTDOWN:
		/* Who reads no more has no reads that fail. */
		if ((__u32)ARGUMENT2(regs) != SHUT_WR)
			return 0;
		call.way = ASKS_TCP;
		call.reason = PREFLIGHT_TWO_THREADS;
		break;
	case NR_CLOSE:
		call.way = CLOSES;
		call.reason = PREFLIGHT_UNREAD_AT_CLOSE;
		break;
	case NR_IO_URING_SETUP:
	case NR_IO_URING_ENTER:
		is_not_seen(PREFLIGHT_IO_URING);
		return 0;
	}
	call.length = ~0ULL;
	switch (number) {
	case NR_WRITE:
	case NR_SENDTO:
		call.way = SENDS;
		call.length = ARGUMENT3(regs);
		break;
	case NR_WRITEV:
	case NR_PWRITEV2:
	case NR_SENDMSG:
	case NR_SENDMMSG:
		/* How much is in the program's memory, which may be on disk. */
		call.way = SENDS;
		break;
	case NR_RECVFROM:
		/*
		 * Not of read and readv: of 0 bytes these return before they come to TCP (net/socket.c,
		 * sock_read_iter).
		 */
		call.length = ARGUMENT3(regs);
		__attribute__((fallthrough));
	default:
		/* Errors and time stamps, no data. */
		if (call.flags & MSG_ERRQUEUE)
			return 0;
	}

	number = any_number(number);
	call.way = any_number(call.way);
	call.flags = any_number(call.flags);
	call.reason = any_number(call.reason);
	if (!local_connection(call.fd, &conn)) {
		/* What goes from elsewhere into a connection. */
		if (number == NR_SPLICE) {
			call.fd = ARGUMENT3(regs);
			call.length = ARGUMENT5(regs);
		} else if (number == NR_SENDFILE) {
			call.fd = ARGUMENT1(regs);
			call.length = ARGUMENT4(regs);
		} else {
			return 0;
		}
		call.way = SENDS;
		if (!local_connection(call.fd, &conn))
			return 0;
	}
	/* Most that are closed are of no interest; they are not counted. MPTCP's numbers are elsewhere. */
	if (call.way == CLOSES && (conn.mptcp || !is_last_user(conn.file) || !has_unread(conn.sk)))
		return 0;
	if (number == NR_SHUTDOWN)
		note_half_close(&conn);
	/* It wakes whoever waits to read (net/ipv4/af_inet.c, inet_shutdown). */
	if (number == NR_SHUTDOWN && !count_waiters(conn.sk, conn.file))
		return 0;
	process = this_process();
	if (!process)
		return 0;
	__sync_fetch_and_add(&process->calls, 1);
	note_work(process, conn.sk, conn.lport);
	if (look_at(process, &conn, &call)) {
		note_ports(&conn);
		turns_unsafe(process);
	}
	return 0;
}

SEC("raw_tp/sys_enter")
int bpftk_call(struct bpf_raw_tracepoint_args *ctx)
{
	return look(ctx, false);
}

SEC("raw_tp/sys_enter")
int bpftk_call2(struct bpf_raw_tracepoint_args *ctx)
{
	return look(ctx, true);
}
