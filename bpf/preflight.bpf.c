/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */

/*
 * Who does with local TCP connections what a redirection past TCP changes. One program at the entry of all system
 * calls, which is left at once for those that are of no interest. What a socket was set to is read from the socket when it
 * is used: so it counts whenever it was set, and by whomever.
 *
 * Everything is a counter of a process, in a table; there are no records that could be lost.
 */

#include "task_filter.bpf.h"
#include "preflight.h"
#include "waiters.bpf.h"

/* include/uapi/linux/socket.h, include/linux/socket.h */
#define MSG_OOB 0x1
#define MSG_TRUNC 0x20
#define MSG_DONTWAIT 0x40
#define MSG_WAITALL 0x100
#define MSG_ERRQUEUE 0x2000

#define SOCK_STREAM 1
#define SOL_TCP 6
#define TCP_INFO 11
#define TCP_ZEROCOPY_RECEIVE 35
/* include/uapi/asm-generic/ioctls.h; SIOCINQ is the same. */
#define FIONREAD 0x541b
/* include/linux/net.h: who waits for the socket, also to read, is woken when there is room to send. */
#define SOCK_NOSPACE 2
#define IPPROTO_TCP 6
#define IPPROTO_MPTCP 262
#define S_IFMT 00170000
#define S_IFSOCK 0140000
#define O_NONBLOCK 04000
/* include/linux/sched.h: no time-out of a wait. */
#define MAX_SCHEDULE_TIMEOUT 0x7fffffffffffffffL

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
#define NR_IO_URING_SETUP 425
#define NR_IO_URING_ENTER 426

/* Signals that are sent to a process at any time: not the C library's own (32, 33), nor what a fault raises. */
#define BIT(signal) (1ULL << ((signal) - 1))
#define SIGNALS_OF_FAULTS (BIT(4) | BIT(5) | BIT(7) | BIT(8) | BIT(11) | BIT(31))
#define SIGNALS_OF_LIBC (BIT(32) | BIT(33))
#define SIGNALS 64
#define SIGACTION_BYTES 32
/* Since Linux 6.13, include/linux/file_ref.h: how many users a file has beside the first. */
struct file___counted {
	struct {
		atomic_long_t refcnt;
	} f_ref;
} __attribute__((preserve_access_index));

_Static_assert(sizeof(struct k_sigaction) == SIGACTION_BYTES, "the kernel's array is read by this stride");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, PREFLIGHT_PROCESSES);
	__type(key, struct preflight_key);
	__type(value, struct preflight_process);
} processes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, PREFLIGHT_PORTS);
	__type(key, struct preflight_port);
	__type(value, __u32);
} ports SEC(".maps");

/* Addresses of this machine, in all of its network namespaces that user space could enter. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, PREFLIGHT_ADDRESSES);
	__type(key, __u8[16]);
	__type(value, __u8);
} addresses SEC(".maps");

/* One bit a port that somebody listens at, anywhere on this machine. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u64);
} listening SEC(".maps");

/* The current process's signal handlers: too many for the stack. The kernel does not run a program within itself. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u8[SIGNALS * SIGACTION_BYTES]);
} handlers SEC(".maps");

/*
 * Set where the kernel may preempt a program at a tracepoint (Linux 7), and skips it meanwhile for whoever comes to the same
 * place on this CPU. Then there are two of them, and the second does what the first was skipped for.
 */
const volatile bool twice;

/* Threads whose call the first program has looked at, until the second has seen that. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, PREFLIGHT_THREADS);
	__type(key, __u32);
	__type(value, __u8);
} looked_at SEC(".maps");

/* A process of which nothing was seen yet: it would take half of the stack. */
const struct preflight_process no_process = {};

/* For the skeleton: the enums have no map whose BTF would name them. */
enum preflight_reason _reason;
enum preflight_port_role _role;

/* A connection with another socket of this machine. */
struct connection {
	struct sock *sk;
	struct file *file;
	__u16 lport;
	__u16 rport;
	bool mptcp;
	bool may_block;
};

/* ------------------------------------------------------------------ processes */

static __always_inline bool in_scope(void)
{
	__u32 pid = bpf_get_current_pid_tgid() >> 32;

	if (filter_by_pid && !bpf_map_lookup_elem(&filter_pids, &pid))
		return false;
	return !filter_by_cgroup || bpf_current_task_under_cgroup(&filter_cgroup, 0) == 1;
}

static __always_inline void current_key(struct preflight_key *key)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	key->pid = bpf_get_current_pid_tgid() >> 32;
	key->start_ns = BPF_CORE_READ(task, group_leader, start_boottime);
}

static __always_inline struct preflight_process *this_process(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct preflight_process *found;
	struct preflight_key key = {};

	current_key(&key);
	found = bpf_map_lookup_elem(&processes, &key);
	if (found)
		return found;
	/* Another thread may have been faster, and then it is there. */
	bpf_map_update_elem(&processes, &key, (void *)&no_process, BPF_NOEXIST);
	found = bpf_map_lookup_elem(&processes, &key);
	if (!found) {
		count_loss(BPFTK_LOSS_TABLE_FULL);
		return NULL;
	}
	found->cgroup_id = bpf_get_current_cgroup_id();
	found->uid = (__u32)bpf_get_current_uid_gid();
	BPF_CORE_READ_STR_INTO((char(*)[BPFTK_COMM_LEN])found->comm, task, group_leader, comm);
	return found;
}

/* Not 0 if a signal that anybody may send runs a handler in the current process. */
static __always_inline __u64 caught_signals(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	void *sighand = BPF_CORE_READ(task, sighand);
	__u64 caught = 0;
	__u32 first = 0;
	__u8 *actions;

	actions = bpf_map_lookup_elem(&handlers, &first);
	if (!actions)
		return 2;
	if (bpf_probe_read_kernel(actions, SIGNALS * SIGACTION_BYTES,
				  sighand + bpf_core_field_offset(struct sighand_struct, action)))
		return 2;
	for (int i = 0; i < SIGNALS; i++) {
		if ((SIGNALS_OF_FAULTS | SIGNALS_OF_LIBC) & (1ULL << i))
			continue;
		/* The handler is a sigaction's first member; SIG_DFL is 0, SIG_IGN 1. No branch: the verifier takes both. */
		caught |= *(__u64 *)(actions + i * SIGACTION_BYTES) & ~1ULL;
	}
	return caught;
}

/* ------------------------------------------------------------------ sockets */

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
		/* :: is no peer, ::1 is. */
		return word[3] == bpf_htonl(1);
	}
	if (word[0] == other[0] && word[1] == other[1] && word[2] == other[2] && word[3] == other[3])
		return true;
	return bpf_map_lookup_elem(&addresses, remote) != NULL;
}

/* Whether the current task's descriptor is a TCP connection within this machine. */
static __always_inline bool local_connection(int fd, struct connection *conn)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct fdtable *table = BPF_CORE_READ(task, files, fdt);
	__u8 remote[16] __attribute__((aligned(8))) = {};
	__u8 own[16] __attribute__((aligned(8))) = {};
	struct socket *socket;
	struct file **slots;
	struct file *file;
	struct sock *sk;
	__u16 protocol;

	if ((__u32)fd >= BPF_CORE_READ(table, max_fds))
		return false;
	slots = BPF_CORE_READ(table, fd);
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
	switch (BPF_CORE_READ(sk, __sk_common.skc_family)) {
	case AF_INET:
		set_v4_mapped(remote, BPF_CORE_READ(sk, __sk_common.skc_daddr));
		set_v4_mapped(own, BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr));
		break;
	case AF_INET6:
		BPF_CORE_READ_INTO((struct in6_addr *)remote, sk, __sk_common.skc_v6_daddr);
		BPF_CORE_READ_INTO((struct in6_addr *)own, sk, __sk_common.skc_v6_rcv_saddr);
		break;
	default:
		return false;
	}
	if (!is_local(remote, own))
		return false;
	conn->sk = sk;
	conn->file = file;
	conn->mptcp = protocol == IPPROTO_MPTCP;
	conn->lport = BPF_CORE_READ(sk, __sk_common.skc_num);
	conn->rport = bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport));
	conn->may_block = !(BPF_CORE_READ(file, f_flags) & O_NONBLOCK);
	return true;
}

static __always_inline bool is_listening(__u16 port)
{
	__u32 word = port / 64;
	__u64 *bits = bpf_map_lookup_elem(&listening, &word);

	return bits && (*bits & (1ULL << (port % 64)));
}

static __always_inline void note_port(__u16 number, __u32 role)
{
	struct preflight_port port = { .port = number };

	current_key(&port.process);
	if (bpf_map_lookup_elem(&ports, &port))
		return;
	if (bpf_map_update_elem(&ports, &port, &role, BPF_ANY))
		count_loss(BPFTK_LOSS_TABLE_FULL);
}

/* By which port to keep a connection out: where somebody listens. User space decides about the others. */
static __always_inline void note_ports(const struct connection *conn)
{
	bool here = is_listening(conn->lport), there = is_listening(conn->rport);

	if (here || !there)
		note_port(conn->lport, here ? PREFLIGHT_PORT_LISTENING : PREFLIGHT_PORT_GUESS);
	if (there || !here)
		note_port(conn->rport, there ? PREFLIGHT_PORT_LISTENING : PREFLIGHT_PORT_GUESS);
}

/* ------------------------------------------------------------------ calls */

/*
 * The same value, of which the verifier knows nothing: it checks a global function by itself, for any argument. Else it goes through
 * all that follows once for each value that the branches before can give.
 */
__noinline __u32 any_number(__u32 number)
{
	asm volatile("" : "+r"(number));
	return number;
}

enum way {
	RECEIVES,
	SENDS,
	/* Takes or tells what TCP has: redirection has it elsewhere. */
	ASKS_TCP,
	CLOSES,
};

struct call {
	int fd;
	__u32 flags;
	enum way way;
	/* Of SENDS and RECEIVES: bytes, as far as it is known, or the most that there can be. */
	__u64 length;
	/* Of ASKS_TCP and CLOSES. */
	__u32 reason;
};

/* Whether the call may find that another thread waits at the connection, and wake it by waiting itself, or be woken by it. */
static __always_inline bool may_wake_another(const struct connection *conn, const struct call *call)
{
	struct sock *sk = conn->sk;
	__u64 room = BPF_CORE_READ(sk, sk_sndbuf), used = BPF_CORE_READ(sk, sk_wmem_queued);

	if (call->way == SENDS && call->length < room && used + call->length < room)
		return false;
	return count_waiters(sk, conn->file) > 0;
}

/* What TCP has and nobody has read: net/ipv4/tcp.c, tcp_inq. The connection's end takes a sequence number, too. */
static __always_inline bool has_unread(struct sock *sk)
{
	struct tcp_sock *tp = (void *)sk;
	__u32 unread = BPF_CORE_READ(tp, rcv_nxt) - BPF_CORE_READ(tp, copied_seq);
	__u64 flags = BPF_CORE_READ(sk, __sk_common.skc_flags);

	if (unread && flags & (1UL << bpf_core_enum_value(enum sock_flags, SOCK_DONE)))
		unread--;
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

/* The reason's bit if the value isn't 0. */
static __always_inline __u32 bit_if(__u64 value, enum preflight_reason reason)
{
	return is_set(value) << reason;
}

/* What is the socket's, whatever is done with it. */
static __always_inline __u32 reasons_of_socket(const struct connection *conn, __u64 flags)
{
	struct inet_connection_sock *icsk = (void *)conn->sk;
	struct tcp_sock *tp = (void *)conn->sk;
	__u32 reasons = bit_if(conn->mptcp, PREFLIGHT_MPTCP);

	/* Without SO_ZEROCOPY, MSG_ZEROCOPY means nothing. */
	reasons |= bit_if(flags & (1UL << bpf_core_enum_value(enum sock_flags, SOCK_ZEROCOPY)), PREFLIGHT_ZEROCOPY);
	/* An MPTCP socket is not a tcp_sock. */
	if (!conn->mptcp) {
		reasons |= bit_if((__u64)BPF_CORE_READ(icsk, icsk_ulp_ops), PREFLIGHT_ULP);
		reasons |= bit_if(BPF_CORE_READ_BITFIELD_PROBED(tp, repair), PREFLIGHT_REPAIR);
	}
	return reasons;
}

static __always_inline __u32 reasons_of_receive(const struct connection *conn, const struct call *call, __u64 sock_flags)
{
	struct tcp_sock *tp = (void *)conn->sk;
	struct sock *sk = conn->sk;
	__u32 reasons = 0;

	reasons |= bit_if(call->flags & MSG_WAITALL, PREFLIGHT_WAITALL);
	reasons |= bit_if(call->flags & MSG_TRUNC, PREFLIGHT_TRUNC);
	reasons |= bit_if(sock_flags & (1UL << bpf_core_enum_value(enum sock_flags, SOCK_RCVTSTAMP)),
			  PREFLIGHT_TIMESTAMPS);
	/* The sign is a bit: of 1 - lowat it is set where lowat is more than 1. */
	reasons |= bit_if((1LL - BPF_CORE_READ(sk, sk_rcvlowat)) >> 63, PREFLIGHT_RCVLOWAT);
	/* -1 where it isn't set. */
	reasons |= bit_if(~BPF_CORE_READ(sk, sk_peek_off) & 0x80000000, PREFLIGHT_PEEK_OFF);
	reasons |= bit_if((__u64)BPF_CORE_READ(sk, sk_filter), PREFLIGHT_SOCKET_FILTER);
	if (!conn->mptcp)
		reasons |= bit_if(BPF_CORE_READ_BITFIELD_PROBED(tp, recvmsg_inq), PREFLIGHT_TCP_INQ);
	if (!call->length)
		reasons |= 1 << PREFLIGHT_ZERO_LENGTH;
	if (conn->may_block && !(call->flags & MSG_DONTWAIT)) {
		reasons |= 1 << PREFLIGHT_BLOCKING;
		reasons |= bit_if(BPF_CORE_READ(sk, sk_rcvtimeo) ^ MAX_SCHEDULE_TIMEOUT, PREFLIGHT_RCVTIMEO);
		reasons |= bit_if(caught_signals(), PREFLIGHT_SIGNALS);
		reasons |= bit_if(BPF_CORE_READ(sk, sk_socket, flags) & (1UL << SOCK_NOSPACE), PREFLIGHT_ROOM);
	}
	return any_number(reasons);
}

/* What it is about the call is counted, each reason once. Whether any of it is unsafe. */
static __always_inline bool look_at(struct preflight_process *process, const struct connection *conn,
				    const struct call *call)
{
	struct sock *sk = conn->sk;
	__u64 flags = BPF_CORE_READ(sk, __sk_common.skc_flags);
	bool may_block = conn->may_block && !(call->flags & MSG_DONTWAIT);
	__u32 reasons = any_number(reasons_of_socket(conn, flags));

	if (call->way == RECEIVES || call->way == SENDS) {
		reasons |= bit_if(call->flags & MSG_OOB, PREFLIGHT_OOB);
		/* 16 bits before Linux 6.6. */
		reasons |= bit_if(BPF_CORE_READ_BITFIELD_PROBED(sk, sk_tsflags), PREFLIGHT_TIMESTAMPS);
		if (call->way == RECEIVES)
			reasons |= reasons_of_receive(conn, call, flags);
		if (may_block && may_wake_another(conn, call))
			reasons |= 1 << PREFLIGHT_TWO_THREADS;
	} else {
		reasons |= 1 << (call->reason & 31);
	}
	reasons = any_number(reasons);
	for (int i = 0; i < PREFLIGHT_REASONS; i++) {
		if (reasons & (1 << i))
			__sync_fetch_and_add(&process->counts[i], 1);
	}
	return reasons & ~(1 << PREFLIGHT_BLOCKING);
}

static __always_inline void is_not_seen(__u32 reason)
{
	struct preflight_process *process = this_process();

	if (process)
		__sync_fetch_and_add(&process->counts[reason], 1);
}

/* Whether the current task is in a system call of a 32-bit program, whose numbers are others. */
static __always_inline bool is_32bit(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();

#if defined(__TARGET_ARCH_x86)
	/* arch/x86/include/asm/thread_info.h, TS_COMPAT */
	return BPF_CORE_READ(task, thread_info.status) & 2;
#else
	/* arch/arm64/include/asm/thread_info.h, TIF_32BIT */
	return BPF_CORE_READ(task, thread_info.flags) & (1UL << 22);
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

/* Of kernels that count what waits in the queue of redirected data, for FIONREAD (929e30f93125: Linux 7.0, 6.6.128, 6.12.75, 6.18.14). */
struct sk_psock___counted {
	__u32 msg_tot_len;
} __attribute__((preserve_access_index));

static __always_inline bool counts_what_waits(void)
{
	struct sk_psock___counted *psock = NULL;

	return bpf_core_field_exists(psock->msg_tot_len);
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
	case NR_IO_URING_SETUP:
	case NR_IO_URING_ENTER:
		break;
	case NR_IOCTL:
		/* Before all else: there are many others. */
		if ((__u32)PT_REGS_PARM2_CORE_SYSCALL(regs) != FIONREAD || counts_what_waits())
			return 0;
		break;
	default:
		if (IS_SOCKET_CALL32(number) && is_32bit() && in_scope() && !is_done(second))
			is_not_seen(PREFLIGHT_ABI32);
		return 0;
	}
	if (!in_scope() || is_32bit() || is_done(second))
		return 0;

	call.fd = PT_REGS_PARM1_CORE_SYSCALL(regs);
	switch (number) {
	case NR_RECVFROM:
	case NR_RECVMMSG:
	case NR_SENDTO:
	case NR_SENDMMSG:
		call.flags = PT_REGS_PARM4_CORE_SYSCALL(regs);
		break;
	case NR_RECVMSG:
	case NR_SENDMSG:
		call.flags = PT_REGS_PARM3_CORE_SYSCALL(regs);
		break;
	case NR_SPLICE:
		call.way = ASKS_TCP;
		call.reason = PREFLIGHT_SPLICE;
		break;
	case NR_SENDFILE:
		call.fd = PT_REGS_PARM2_CORE_SYSCALL(regs);
		call.way = ASKS_TCP;
		call.reason = PREFLIGHT_SPLICE;
		break;
	case NR_GETSOCKOPT:
		if ((__u32)PT_REGS_PARM2_CORE_SYSCALL(regs) != SOL_TCP)
			return 0;
		call.way = ASKS_TCP;
		switch ((__u32)PT_REGS_PARM3_CORE_SYSCALL(regs)) {
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
		call.length = PT_REGS_PARM3_CORE_SYSCALL(regs);
		break;
	case NR_WRITEV:
	case NR_PWRITEV2:
	case NR_SENDMSG:
	case NR_SENDMMSG:
		/* How much is in the program's memory, which may be on disk. */
		call.way = SENDS;
		break;
	case NR_RECVFROM:
		/* Not of read and readv: of 0 bytes these return before they come to TCP (net/socket.c, sock_read_iter). */
		call.length = PT_REGS_PARM3_CORE_SYSCALL(regs);
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
			call.fd = PT_REGS_PARM3_CORE_SYSCALL(regs);
			call.length = PT_REGS_PARM5_CORE_SYSCALL(regs);
		} else if (number == NR_SENDFILE) {
			call.fd = PT_REGS_PARM1_CORE_SYSCALL(regs);
			call.length = PT_REGS_PARM4_CORE_SYSCALL(regs);
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
	process = this_process();
	if (!process)
		return 0;
	__sync_fetch_and_add(&process->calls, 1);
	if (look_at(process, &conn, &call))
		note_ports(&conn);
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
