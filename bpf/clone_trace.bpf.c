/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */

/*
 * Every clone, clone3, fork and vfork: one row a call, in the caller's view.
 *
 * A call is a table entry by thread from its beginning to its end. The new task is seen between the two, in the
 * caller's context (kernel/fork.c, copy_process): that is where the child's id in the initial PID namespace is known;
 * the call returns its id in the caller's. Back ends:
 *
 *   syscall   tracepoints at enter and exit of the system calls
 *   kprobe    kprobe and kretprobe of the architecture's wrappers of the same
 *   task      the new task alone
 *
 * The kernel may not run a hook: a kretprobe when too many calls of its function are under way (each waiting vfork
 * is one); a system call's tracepoint, which is preemptible in Linux 7, while the same program was preempted on this
 * CPU. So a new task or an end without a beginning makes up for it by what the registers still say, and a beginning
 * without an end is found at the thread's next call, at its exit, or by user space. The new task is seen through both
 * kinds of tracepoint, which are skipped at different times.
 *
 * Calls of 32-bit programs have neither tracepoints nor these wrappers: their new task makes the row, with the
 * registers.
 */

#include "registers.bpf.h"
#include "task_filter.bpf.h"
#include "clone_trace.h"

/* include/uapi/linux/sched.h */
#define CSIGNAL 0xff
#define CLONE_NEWTIME 0x80
#define CLONE_PIDFD 0x1000
#define CLONE_VM 0x100
#define CLONE_VFORK 0x4000
#define CLONE_PARENT 0x8000
#define CLONE_THREAD 0x10000
/* CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET */
#define CLONE_NEW_NAMESPACES 0x7e020000

#define SIGCHLD 17
#define ERESTARTNOINTR 513

/* include/uapi/linux/sched.h: sizes of struct clone_args. */
#define CLONE_ARGS_SIZE_VER2 88

#if defined(__TARGET_ARCH_x86)
#define NR_CLONE 56
#define NR_FORK 57
#define NR_VFORK 58
#elif defined(__TARGET_ARCH_arm64)
#define NR_CLONE 220
#else
#error "which numbers do the system calls have here, and in which order are clone's arguments?"
#endif
#define NR_CLONE3 435

/* Of 32-bit programs, the same on x86_64 and arm64: arch/x86/entry/syscalls, arch/arm64/tools/syscall_32.tbl. */
#define NR_COMPAT_FORK 2
#define NR_COMPAT_CLONE 120
#define NR_COMPAT_VFORK 190
/* x32: 64-bit registers, 32-bit pointers, and the numbers of 64-bit calls with this bit. */
#define X32_SYSCALL_BIT 0x40000000

#define TS_COMPAT 0x0002	  /* arch/x86/include/asm/thread_info.h */
#define PSR_MODE32_BIT 0x00000010 /* arch/arm64/include/uapi/asm/ptrace.h */

const volatile __u8 by_task;
/* The end of a call is seen without an entry too. */
const volatile __u8 by_syscall;
const volatile __u8 failed_only;
const volatile __u8 with_args;
/* One bit a kind, by enum clone_kind; 0 is all. */
const volatile __u8 filter_kinds;

/* When beginnings were hooked, CLOCK_BOOTTIME in ns; set by user space, and 0 while they are not. */
__u64 armed_ns;

/* Inserted at a call's beginning, deleted at its end, or when it is found that the end was missed. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, __u32);
	__type(value, struct clone_pending);
} calls SEC(".maps");

/* A new entry, too large for the stack. */
const struct clone_pending blank;

/* For the skeleton: the records have no map whose BTF would name them. */
struct clone_event _event;
enum clone_call _call;
enum clone_kind _kind;

/* ------------------------------------------------------------------ one call's life */

/* Begins an entry for the current thread, when the user asked for its task. @last: without one there is no row. */
static __always_inline struct clone_pending *new_entry(__u8 call, bool last)
{
	struct task_struct *current = (void *)bpf_get_current_task();
	struct clone_pending *pending;
	struct clone_event *event;
	struct task_id task = {};

	if (!task_wanted(&task))
		return NULL;
	if (bpf_map_update_elem(&calls, &task.tid, &blank, BPF_ANY)) {
		if (last)
			count_loss(BPFTK_LOSS_TABLE_FULL);
		return NULL;
	}
	pending = bpf_map_lookup_elem(&calls, &task.tid);
	if (!pending)
		return NULL;
	event = &pending->event;
	event->cgroup_id = task.cgroup_id;
	event->pid = task.pid;
	event->tid = task.tid;
	event->ppid = BPF_CORE_READ(current, real_parent, tgid);
	event->uid = task.uid;
	event->call = call;
	__builtin_memcpy(event->comm, task.comm, BPFTK_COMM_LEN);
	event->args.pidfd_number = -1;
	return pending;
}

static __always_inline void drop_entry(void)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();

	bpf_map_delete_elem(&calls, &tid);
}

static __always_inline void set_flags(struct clone_event *event, __u64 flags)
{
	__u64 namespaces = CLONE_NEW_NAMESPACES;

	/* In clone's flags this bit belongs to the exit signal. */
	if (event->call != CLONE_CALL_CLONE)
		namespaces |= CLONE_NEWTIME;
	event->flags = flags;
	if (flags & namespaces)
		event->kind = CLONE_KIND_NAMESPACE;
	else if (flags & CLONE_THREAD)
		event->kind = CLONE_KIND_THREAD;
	else if (flags & CLONE_VFORK)
		event->kind = CLONE_KIND_VFORK;
	else
		event->kind = CLONE_KIND_PROCESS;
}

/*
 * clone3's struct. Its page may not be there before the kernel has read it, and the caller is not waited for: what
 * fails at the beginning is tried again when the kernel has.
 */
static __always_inline void read_uargs(struct clone_pending *pending)
{
	struct clone_event *event = &pending->event;
	__u64 size = event->args.size;
	struct clone_args uargs = {};

	if (!pending->uargs || size < sizeof(uargs.flags))
		return;
	if (size > CLONE_ARGS_SIZE_VER2)
		size = CLONE_ARGS_SIZE_VER2;
	if (bpf_probe_read_user(&uargs, size, (void *)pending->uargs))
		return;
	pending->uargs = 0;
	set_flags(event, uargs.flags);
	event->exit_signal = uargs.exit_signal;
	if (!with_args)
		return;
	event->has_args = 1;
	event->args.stack = uargs.stack;
	event->args.parent_tid = uargs.parent_tid;
	event->args.child_tid = uargs.child_tid;
	event->args.tls = uargs.tls;
	event->args.pidfd = uargs.pidfd;
	event->args.stack_size = uargs.stack_size;
	event->args.set_tid = uargs.set_tid;
	event->args.set_tid_size = uargs.set_tid_size;
	event->args.cgroup = uargs.cgroup;
}

/* CONFIG_CLONE_BACKWARDS: clone's fourth argument is the TLS. So it is for all 32-bit callers. */
#if defined(__TARGET_ARCH_arm64)
#define TLS_IS_FOURTH true
#else
#define TLS_IS_FOURTH false
#endif

static __always_inline void set_arguments_in_order(struct clone_pending *pending, bool tls_is_fourth, __u64 a, __u64 b,
						   __u64 c, __u64 d, __u64 e)
{
	struct clone_event *event = &pending->event;

	switch (event->call) {
	case CLONE_CALL_CLONE:
		set_flags(event, a);
		event->exit_signal = a & CSIGNAL;
		event->args.stack = b;
		event->args.parent_tid = c;
		event->args.tls = tls_is_fourth ? d : e;
		event->args.child_tid = tls_is_fourth ? e : d;
		event->has_args = with_args;
		break;
	case CLONE_CALL_CLONE3:
		pending->uargs = a;
		event->args.size = b;
		read_uargs(pending);
		break;
	case CLONE_CALL_FORK:
		set_flags(event, 0);
		event->exit_signal = SIGCHLD;
		break;
	case CLONE_CALL_VFORK:
		set_flags(event, CLONE_VFORK | CLONE_VM);
		event->exit_signal = SIGCHLD;
		break;
	}
}

static __always_inline void set_arguments(struct clone_pending *pending, __u64 a, __u64 b, __u64 c, __u64 d, __u64 e)
{
	set_arguments_in_order(pending, TLS_IS_FOURTH, a, b, c, d, e);
}

static __always_inline bool kind_wanted(const struct clone_event *event)
{
	return !filter_kinds || (filter_kinds & (1 << event->kind));
}

/* What the caller's memory holds now that the kernel has used it. */
static __always_inline void read_pointed_at(struct clone_event *event)
{
	__u64 pidfd = event->call == CLONE_CALL_CLONE3 ? event->args.pidfd : event->args.parent_tid;
	__u64 tids = event->args.set_tid_size;
	__s32 number;
	__u64 bytes;

	if (event->result > 0 && (event->flags & CLONE_PIDFD) &&
	    !bpf_probe_read_user(&number, sizeof(number), (void *)pidfd))
		event->args.pidfd_number = number;
	if (!tids || tids > CLONE_SET_TIDS)
		return;
	/* For the verifier of 5.10, which forgets the bounds above: 1 to as many as there may be. */
	bytes = tids;
	barrier_var(bytes);
	bytes = (((bytes - 1) & (CLONE_SET_TIDS - 1)) + 1) * sizeof(__u32);
	if (!bpf_probe_read_user(event->tids, bytes, (void *)event->args.set_tid))
		event->args.set_tids = tids;
}

/*
 * Whether the call made a new task. A call without one that did not fail never ran in the kernel: see
 * answered_elsewhere().
 */
static __always_inline bool made_a_task(const struct clone_event *event)
{
	return event->child || event->result > 0;
}

static __always_inline void emit_row(struct clone_event *event)
{
	if (kind_wanted(event) && !(failed_only && made_a_task(event))) {
		if (!with_args || !event->has_args) {
			emit_record(event, CLONE_EVENT_SHORT);
		} else {
			read_pointed_at(event);
			if (event->args.set_tids)
				emit_record(event, sizeof(*event));
			else
				emit_record(event, CLONE_EVENT_ARGS);
		}
	}
}

/* The row, and the end of the entry. */
static __always_inline void finish(struct clone_pending *pending)
{
	if (!pending->event.told)
		emit_row(&pending->event);
	drop_entry();
}

/* An entry whose end was missed. With a child it was a success; without one, nobody knows. */
static __always_inline void finish_missed(struct clone_pending *pending)
{
	if (pending->event.child) {
		finish(pending);
	} else {
		count_loss(BPFTK_LOSS_MISSED_RETURN);
		drop_entry();
	}
}

static __always_inline struct clone_pending *find_entry(void)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();

	return bpf_map_lookup_elem(&calls, &tid);
}

static __always_inline void call_begins(__u8 call, __u64 a, __u64 b, __u64 c, __u64 d, __u64 e)
{
	struct clone_pending *pending = find_entry();

	if (pending)
		finish_missed(pending);
	/* At the end of a system call its tracepoint tries again. */
	pending = new_entry(call, !by_syscall);
	if (!pending)
		return;
	pending->event.start_ns = bpf_ktime_get_boot_ns();
	set_arguments(pending, a, b, c, d, e);
	/* Flags that could not be read yet decide later. */
	if (pending->event.kind && !kind_wanted(&pending->event))
		drop_entry();
}

/* Whether the call that returns @result is a later one than the entry's, whose end was missed. */
static __always_inline bool is_of_a_call_before(struct clone_pending *pending, long result)
{
	struct task_struct *current = (void *)bpf_get_current_task();

	if (!pending->event.child)
		return false;
	return result < 0 || (pending->event.child != result && !BPF_CORE_READ(current, thread_pid, level));
}

/* The current task's newest child. If it has no children, the pointer is not a task: compare its ids before use. */
static __always_inline struct task_struct *newest_child(void)
{
	struct task_struct *current = (void *)bpf_get_current_task();

	return (void *)BPF_CORE_READ(current, children.prev) - bpf_core_field_offset(struct task_struct, sibling);
}

/*
 * The id in the initial PID namespace of the child that the caller knows as @result, if it is the newest and was made
 * before beginnings were hooked: by a call that was under way then.
 */
static __always_inline __u32 child_of_before(long result)
{
	struct task_struct *current = (void *)bpf_get_current_task(), *child = newest_child();
	__u64 level = BPF_CORE_READ(current, thread_pid, level);
	void *ids = (void *)BPF_CORE_READ(child, thread_pid) + bpf_core_field_offset(struct pid, numbers);
	__s32 id = 0;

	if (bpf_probe_read_kernel(&id, sizeof(id), ids + level * bpf_core_type_size(struct upid)) || id != result ||
	    BPF_CORE_READ(child, start_boottime) > armed_ns)
		return 0;
	return BPF_CORE_READ(child, pid);
}

/*
 * Whether somebody else gave this result in the kernel's place, which then made nothing: a seccomp filter
 * (SECCOMP_RET_TRAP and RET_KILL give the call's own number, RET_USER_NOTIF any), or a tracer. Both come before the
 * tracepoint at a call's beginning (kernel/entry/common.c, syscall_trace_enter), and a new task would have been seen.
 */
static __always_inline bool answered_elsewhere(struct clone_event *event, long result)
{
	struct task_struct *current = (void *)bpf_get_current_task();
	bool filtered = bpf_core_field_exists(current->seccomp.mode) && BPF_CORE_READ(current, seccomp.mode);

	if (result < 0 || event->child || event->start_ns || (!filtered && !BPF_CORE_READ(current, ptrace)))
		return false;
	event->child = child_of_before(result);
	return !event->child;
}

static __always_inline void call_ends(struct clone_pending *pending, long result)
{
	struct task_struct *current = (void *)bpf_get_current_task();
	struct clone_event *event = &pending->event;

	/* A signal came, and the kernel makes the call again: the row is that call's. */
	if (result == -ERESTARTNOINTR) {
		drop_entry();
		return;
	}
	read_uargs(pending);
	event->end_ns = bpf_ktime_get_boot_ns();
	event->result = answered_elsewhere(event, result) ? 0 : result;
	/* The same id in both, for a caller in the initial namespace. */
	if (event->result > 0 && !event->child && !BPF_CORE_READ(current, thread_pid, level))
		event->child = result;
	finish(pending);
}

/* Whether the current task is in a call of a 32-bit program's, for which Linux has no tracepoints. */
static __always_inline bool in_compat_call(struct pt_regs *regs)
{
#if defined(__TARGET_ARCH_arm64)
	return BPF_CORE_READ(regs, pstate) & PSR_MODE32_BIT;
#else
	struct task_struct *current = (void *)bpf_get_current_task();

	return BPF_CORE_READ(current, thread_info.status) & TS_COMPAT;
#endif
}

static __always_inline __u8 compat_call_of(int number)
{
	switch (number) {
	case NR_COMPAT_CLONE:
		return CLONE_CALL_CLONE;
	case NR_CLONE3:
		return CLONE_CALL_CLONE3;
	case NR_COMPAT_FORK:
		return CLONE_CALL_FORK;
	case NR_COMPAT_VFORK:
		return CLONE_CALL_VFORK;
	}
	return CLONE_CALL_NONE;
}

static __always_inline void set_compat_arguments(struct clone_pending *pending, struct pt_regs *regs)
{
#if defined(__TARGET_ARCH_arm64)
	set_arguments_in_order(pending, true, (__u32)BPF_CORE_READ(regs, regs[0]), (__u32)BPF_CORE_READ(regs, regs[1]),
			       (__u32)BPF_CORE_READ(regs, regs[2]), (__u32)BPF_CORE_READ(regs, regs[3]),
			       (__u32)BPF_CORE_READ(regs, regs[4]));
#else
	set_arguments_in_order(pending, true, (__u32)BPF_CORE_READ(regs, bx), (__u32)BPF_CORE_READ(regs, cx),
			       (__u32)BPF_CORE_READ(regs, dx), (__u32)BPF_CORE_READ(regs, si),
			       (__u32)BPF_CORE_READ(regs, di));
#endif
}

static __always_inline __u8 call_of(int number)
{
	switch (number) {
	case NR_CLONE:
		return CLONE_CALL_CLONE;
	case NR_CLONE3:
		return CLONE_CALL_CLONE3;
#ifdef NR_FORK
	case NR_FORK:
		return CLONE_CALL_FORK;
	case NR_VFORK:
		return CLONE_CALL_VFORK;
#endif
	}
	return CLONE_CALL_NONE;
}

/*
 * An entry for a call whose beginning was not seen: seccomp refused it before the tracepoint, it began before we came,
 * or the hook did not run. What the filters refused at the beginning comes here too, and they refuse it again.
 */
static __always_inline struct clone_pending *unseen_call(int number, bool last)
{
	struct clone_pending *pending;
	struct pt_regs *regs;
	__u8 call = call_of(number);

	if (!armed_ns || !call)
		return NULL;
	pending = new_entry(call, last);
	if (!pending)
		return NULL;
	regs = user_registers();
	if (number_in(regs) == number)
		set_arguments(pending, PT_REGS_PARM1_CORE_SYSCALL(regs), PT_REGS_PARM2_CORE_SYSCALL(regs),
			      PT_REGS_PARM3_CORE_SYSCALL(regs), PT_REGS_PARM4_CORE_SYSCALL(regs),
			      PT_REGS_PARM5_CORE_SYSCALL(regs));
	return pending;
}

/* The signal that the parent of the current task's new child will get. */
static __always_inline __u64 child_exit_signal(__u32 pid, __u64 flags)
{
	struct task_struct *current = (void *)bpf_get_current_task();
	struct task_struct *child;
	int exit_signal = 0;

	if (flags & CLONE_THREAD)
		return 0;
	if (flags & CLONE_PARENT) {
		exit_signal = BPF_CORE_READ(current, group_leader, exit_signal);
	} else {
		/* The last of the caller's children; it is not found if it was adopted right now. */
		child = newest_child();
		if (BPF_CORE_READ(child, pid) == pid)
			exit_signal = BPF_CORE_READ(child, exit_signal);
	}
	return exit_signal > 0 ? exit_signal : 0;
}

/*
 * A task that the current one makes by a call that is not in the table. The kernel makes some by itself on the way
 * out of a call, such as io_uring's workers: those have other flags.
 */
static __always_inline struct clone_pending *unseen_parent(__u64 flags)
{
	struct pt_regs *regs = user_registers();
	int number = number_in(regs);
	bool compat = in_compat_call(regs);
	struct clone_pending *pending;
	__u64 asked;

	if (compat) {
		__u8 call = compat_call_of(number);

		pending = armed_ns && call ? new_entry(call, true) : NULL;
		if (pending)
			set_compat_arguments(pending, regs);
	} else if (number & X32_SYSCALL_BIT) {
		compat = true;
		number &= ~X32_SYSCALL_BIT;
		pending = unseen_call(number, true);
		if (pending)
			set_arguments(pending, PT_REGS_PARM1_CORE_SYSCALL(regs), PT_REGS_PARM2_CORE_SYSCALL(regs),
				      PT_REGS_PARM3_CORE_SYSCALL(regs), PT_REGS_PARM4_CORE_SYSCALL(regs),
				      PT_REGS_PARM5_CORE_SYSCALL(regs));
	} else {
		pending = unseen_call(number, false);
	}
	if (!pending)
		return NULL;
	asked = pending->event.flags;
	if (pending->event.call == CLONE_CALL_CLONE)
		asked = (__u32)asked & ~CSIGNAL;
	if (pending->event.kind && asked == flags) {
		/* The end of such a call is not shown: its row goes out with the new task. */
		pending->event.told = compat;
		return pending;
	}
	drop_entry();
	return NULL;
}

/* The current task has made @child, by a call that the table has or should have. */
static __always_inline void new_child(__u32 child, __u64 flags)
{
	struct clone_pending *pending = find_entry();
	struct clone_event *event;

	/* A call makes one child: the entry is an earlier call's, whose end was missed as this one's beginning was. */
	if (pending && pending->event.child && pending->event.child != child) {
		finish_missed(pending);
		pending = NULL;
	}
	if (!pending)
		pending = unseen_parent(flags);
	if (!pending)
		return;
	event = &pending->event;
	/* Seen already, by the other of the two hooks. */
	if (event->child) {
		if (event->told)
			drop_entry();
		return;
	}
	event->child = child;
	read_uargs(pending);
	if (!event->kind) {
		event->exit_signal = child_exit_signal(child, flags);
		set_flags(event, flags);
	}
	if (event->told)
		emit_row(event);
	else if (!kind_wanted(event))
		drop_entry();
}

/* kernel/fork.c, copy_process: nothing can fail any more, and the child does not run yet. */
SEC("tracepoint/task/task_newtask")
int bpftk_newtask(struct trace_event_raw_task_newtask *ctx)
{
	struct clone_pending *pending;
	struct clone_event *event;
	__u64 flags = ctx->clone_flags;
	__u32 child = ctx->pid;

	if (!by_task) {
		new_child(child, flags);
		return 0;
	}
	pending = new_entry(CLONE_CALL_NONE, true);
	if (!pending)
		return 0;
	event = &pending->event;
	event->start_ns = bpf_ktime_get_boot_ns();
	set_flags(event, flags);
	event->exit_signal = child_exit_signal(child, flags);
	event->child = child;
	finish(pending);
	return 0;
}

/*
 * The same by the tracepoint's other door. Perf's is shut while any program at a tracepoint of perf's is preempted on
 * this processor, as those at system calls can be in Linux 7; this one only while itself is.
 */
SEC("raw_tp/task_newtask")
int bpftk_newtask2(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *child = (void *)ctx->args[0];

	new_child(BPF_CORE_READ(child, pid), ctx->args[1]);
	return 0;
}

SEC("tracepoint/sched/sched_process_exit")
int bpftk_exit(void *ctx)
{
	struct clone_pending *pending = find_entry();

	if (pending)
		finish_missed(pending);
	return 0;
}

/* ------------------------------------------------------------------ back end: syscall */

SEC("tracepoint/syscalls/sys_enter_clone")
int bpftk_clone(struct syscall_trace_enter *ctx)
{
	call_begins(CLONE_CALL_CLONE, ctx->args[0], ctx->args[1], ctx->args[2], ctx->args[3], ctx->args[4]);
	return 0;
}

SEC("tracepoint/syscalls/sys_enter_clone3")
int bpftk_clone3(struct syscall_trace_enter *ctx)
{
	call_begins(CLONE_CALL_CLONE3, ctx->args[0], ctx->args[1], 0, 0, 0);
	return 0;
}

SEC("tracepoint/syscalls/sys_enter_fork")
int bpftk_fork(struct syscall_trace_enter *ctx)
{
	call_begins(CLONE_CALL_FORK, 0, 0, 0, 0, 0);
	return 0;
}

SEC("tracepoint/syscalls/sys_enter_vfork")
int bpftk_vfork(struct syscall_trace_enter *ctx)
{
	call_begins(CLONE_CALL_VFORK, 0, 0, 0, 0, 0);
	return 0;
}

/* sys_exit_clone, sys_exit_clone3, sys_exit_fork, sys_exit_vfork */
SEC("tracepoint/syscalls/sys_exit_clone")
int bpftk_sysexit(struct syscall_trace_exit *ctx)
{
	struct clone_pending *pending = find_entry();

	if (!ctx->ret) {
		/* A child's view of its own birth. It has made no call: an entry is of a thread that had its id. */
		if (pending)
			finish_missed(pending);
		return 0;
	}
	if (pending && is_of_a_call_before(pending, ctx->ret)) {
		finish_missed(pending);
		pending = NULL;
	}
	if (!pending)
		pending = unseen_call(ctx->nr, true);
	if (pending)
		call_ends(pending, ctx->ret);
	return 0;
}

/* ------------------------------------------------------------------ back end: kprobe */

/* The wrappers' only argument are the caller's registers; arch/…/include/asm/syscall_wrapper.h. */
static __always_inline void wrapper_begins(__u8 call, struct pt_regs *regs)
{
	call_begins(call, PT_REGS_PARM1_CORE_SYSCALL(regs), PT_REGS_PARM2_CORE_SYSCALL(regs),
		    PT_REGS_PARM3_CORE_SYSCALL(regs), PT_REGS_PARM4_CORE_SYSCALL(regs),
		    PT_REGS_PARM5_CORE_SYSCALL(regs));
}

SEC("kprobe")
int BPF_KPROBE(bpftk_kp_clone, struct pt_regs *regs)
{
	wrapper_begins(CLONE_CALL_CLONE, regs);
	return 0;
}

SEC("kprobe")
int BPF_KPROBE(bpftk_kp_clone3, struct pt_regs *regs)
{
	wrapper_begins(CLONE_CALL_CLONE3, regs);
	return 0;
}

SEC("kprobe")
int BPF_KPROBE(bpftk_kp_fork, struct pt_regs *regs)
{
	wrapper_begins(CLONE_CALL_FORK, regs);
	return 0;
}

SEC("kprobe")
int BPF_KPROBE(bpftk_kp_vfork, struct pt_regs *regs)
{
	wrapper_begins(CLONE_CALL_VFORK, regs);
	return 0;
}

SEC("kretprobe")
int BPF_KRETPROBE(bpftk_kr, long result)
{
	struct clone_pending *pending = find_entry();

	if (pending)
		call_ends(pending, result);
	return 0;
}
