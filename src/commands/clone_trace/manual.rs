// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the manual page says of `clone-trace`.

use super::{FIELDS, count};
use crate::commands::man::{Manual, REMOVED_CGROUP};
use crate::output::Field;

pub(crate) const MANUAL: Manual = Manual {
    command: "clone-trace",
    examples: &[
        (
            "bpftk clone-trace",
            "Every process and thread that is made, and every attempt that failed.",
        ),
        ("bpftk clone-trace --kind namespace -T -U", "Containers being born: when, and by whom."),
        (
            "bpftk clone-trace --failed",
            "Who runs into a limit (EAGAIN) or a sandbox (EPERM, ENOSYS).",
        ),
        (
            "bpftk clone-trace --count --interval 5s",
            "Which programs make how many processes and threads.",
        ),
        (
            "bpftk clone-trace -p 812 --args --latency",
            "One process's calls, with what it passed and how long each took.",
        ),
        (
            "bpftk clone-trace --backend task --kind process,vfork",
            "On a machine under load, which must not be slowed down: new processes only.",
        ),
        (
            "bpftk clone-trace --format json | jq 'select(.kind == \"thread\") | .comm'",
            "For another program.",
        ),
    ],
    columns: &[
        ("PID", "Process (thread group) id of the caller, as the initial PID namespace has it."),
        (
            "COMM",
            "Name of the calling thread; for an io_uring worker, of the process that it works for.",
        ),
        ("CALL", "clone, clone3, fork or vfork. A dash with the task back end."),
        (
            "CHILD",
            "Id of the new process or thread in the initial PID namespace, also when the caller is in another; or the errno's name of a call that failed, such as EAGAIN (a limit on processes), EINVAL (flags that don't go together), EPERM (a privilege is missing), ENOSYS (often a sandbox's seccomp filter); or intercepted, when a seccomp filter (SECCOMP_RET_TRAP, RET_KILL, RET_USER_NOTIF, RET_TRACE) or a tracer answered in the kernel's place and with no error: then nothing was made.",
        ),
        (
            "KIND",
            "namespace, when a CLONE_NEW* flag is set: a container is born; else thread (CLONE_THREAD); else vfork (CLONE_VFORK): the caller waits until the child executes a program or exits; else process. A failed call has the kind of what it asked for. A dash when the flags could not be read.",
        ),
        (
            "FLAGS",
            "Names of the flags without their prefix CLONE_, and bits without a name in hex. PTHREAD stands for the nine that a C library's pthread_create sets: VM, FS, FILES, SIGHAND, THREAD, SYSVSEM, SETTLS, PARENT_SETTID and CHILD_CLEARTID. The exit signal, which is in the low byte of clone's flags, is no flag: see --args. vfork shows what it stands for. A question mark: the flags could not be read.",
        ),
        ("TIME", "With --timestamp: local time of the call."),
        ("USER", "With --print-user: the caller's real user."),
        ("PPID", "With --print-ppid: process id of the caller's parent."),
        (
            "LATENCY",
            "With --latency: milliseconds from the call to its return to the caller. For a vfork this includes the wait for the child to execute a program or exit, which is also when its row is printed. A dash when the beginning or the end was not seen.",
        ),
        ("CGROUP", "With --print-cgroup: the caller's cgroup v2 path below the mount point."),
        (
            "ARGS",
            "With --args: what was passed beside the flags. Addresses are the caller's. For clone: exit_signal, newsp, parent_tidptr, child_tidptr, tls. For clone3: the size of its struct and the struct's members; set_tids are the ids that set_tid points at, cgroup is a file descriptor. pidfd_number is the file descriptor that the call made for CLONE_PIDFD. fork and vfork have no arguments.",
        ),
    ],
    fields: &[
        ("Fields of JSON lines of type event, and of CSV", FIELDS),
        ("Fields of JSON lines of type row, with --count", count::FIELDS),
        ("Fields of the JSON line of type summary", SUMMARY),
    ],
    mechanism: &[
        "One call is one row, in the view of its caller; that a fork returns in the child as well is no row. The row is printed when the call returns. The first back end of this list that the kernel accepts is used, -v says which, --backend insists on one.",
        "syscall: the tracepoints at enter and exit of clone, clone3, fork and vfork. A call that a seccomp filter refuses never gets to the first of them; its row is made at the second, of the registers, and has no latency. If the filter answers with no error, the result is intercepted: a child is one that the kernel was seen to make. (An answer of 0 is taken for a child's own return, and one that kills the caller before Linux 5.16 is not seen.) The same holds for a call that was under way when bpftk started. Linux 7 preempts programs at these tracepoints, and skips them for whoever comes to the same place meanwhile: such a call is known by its child, its row comes with the thread's next call or its end and has no latency; a failure whose return was skipped is counted as lost.",
        "kprobe: kprobe and kretprobe of the kernel's wrappers of these system calls. It does not see what seccomp refuses. The kernel follows a limited number of calls to their return at a time, and each waiting vfork is one of them: of a call whose return it did not follow, the child is known all the same; its row comes with the thread's next call or its end, or with bpftk's, and has no latency.",
        "task: the tracepoint task:task_newtask alone, which is reached when nothing can fail any more. It sees no failures and no calls, so --failed, --args and --latency are refused, and CALL is empty; the flags are those that the kernel works with. It also sees what no system call of this list makes: kernel threads (made by kthreadd, process 2), and io_uring's workers.",
        "With syscall and kprobe the same tracepoint gives the child's id in the initial PID namespace: the call itself returns the id in its caller's, which is the field child_ns. All back ends need tracefs; where it is not mounted, bpftk mounts it for itself alone.",
        "clone3's flags are in a struct in the caller's memory. Where its page is not there when the call begins, it is read again when the kernel has just read it, and at the call's end. What still can't be read, as after EFAULT, is null.",
        "A call that a signal interrupts before a child is made, the kernel makes again by itself; it is one row. A call that has its child when bpftk ends, and has not returned, as a waiting vfork, is printed then, as a success.",
        "32-bit (compat) system calls have no tracepoints in Linux, and wrappers of their own. What they make is seen as a new task, by all back ends: syscall and kprobe make their row of that and of the registers, without child_ns and latency, unless the wrapper is one for both, as that of fork can be. Those that fail are not seen. aarch64 has no system calls fork and vfork; there, C libraries use clone.",
        "Filters run in the kernel. -p is about the caller: it takes a process's id, and covers the calls of all of its threads.",
    ],
    overhead: &[
        "The choice of the back end is a choice of who pays. syscall costs more than the calls that it traces: while any system call tracepoint is in use, Linux sends every system call of every process through its slow path, which costs each of them some tens of nanoseconds, whether it is a fork or a read. On a machine with millions of system calls a second, take one of the others.",
        "kprobe: an entry and a return probe on each of the four calls, nothing on any other system call. On a call that itself takes tens of microseconds this is little.",
        "task: one program for each new task, nothing else; the cheapest, and what to leave running.",
        "Rows that come in quick succession are printed together, up to 5 ms later, so that not each of them wakes bpftk.",
        "All of them: a hash table entry for each call under way (8192, about 3 MiB), and with syscall and kprobe a look into it when a thread ends. 1 MiB of rows may wait for the reader, some 10000. What does not fit is counted, and told at the end.",
    ],
    exit_status: &[REMOVED_CGROUP],
};

const SUMMARY: &[Field] = &[
    Field::new("command", "clone-trace"),
    Field::new("backend", "syscall, kprobe or task"),
    Field::new("calls", "rows printed or counted"),
    Field::new("ok", "of these, with a child"),
    Field::new("failed", "of these, failed or intercepted"),
    Field::new("lost", "rows missing, all causes together"),
    Field::new("lost_ring_full", "because the reader was too slow for the ring buffer"),
    Field::new("lost_table_full", "because too many calls were under way"),
    Field::new(
        "lost_missed_return",
        "because the kernel did not run the hook at a call's return, and no child was seen",
    ),
];
