/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_OWNERS_BPF_H
#define BPFTK_OWNERS_BPF_H

/* Who a task is, and what a socket is called: the socket cookie, by which packets and owners are joined. */

#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "owners.h"

/* include/linux/sched.h */
#define PF_KTHREAD 0x00200000

/* include/linux/socket.h */
#define OWNERS_AF_INET 2
#define OWNERS_AF_INET6 10
#define OWNERS_AF_PACKET 17

/* A thread that execs takes over the start time of the group's leader (fs/exec.c, de_thread). */
static __always_inline __u64 process_start(struct task_struct *task)
{
	return BPF_CORE_READ(task, group_leader, start_boottime);
}

static __always_inline void set_process(struct owner_record *record, struct task_struct *task)
{
	record->tgid = BPF_CORE_READ(task, tgid);
	record->start_ns = process_start(task);
	record->uid = BPF_CORE_READ(task, cred, uid.val);
	record->cgroup_id = BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, id);
	record->is_kernel = !!(BPF_CORE_READ(task, flags) & PF_KTHREAD);
	BPF_CORE_READ_STR_INTO(&record->comm, task, group_leader, comm);
}

/* Whether what is sent through @sk may leave through an interface. */
static __always_inline bool sends_packets(struct sock *sk)
{
	__u16 family = BPF_CORE_READ(sk, __sk_common.skc_family);

	return family == OWNERS_AF_INET || family == OWNERS_AF_INET6 || family == OWNERS_AF_PACKET;
}

/* 0 until somebody asked for it. Reading does not ask. */
static __always_inline __u64 cookie_so_far(struct sock *sk)
{
	return BPF_CORE_READ(sk, __sk_common.skc_cookie.counter);
}

#endif
