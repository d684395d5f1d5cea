/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_TASK_FILTER_BPF_H
#define BPFTK_TASK_FILTER_BPF_H

/*
 * Which tasks the user asked for, and what a task is called. A filter that was not asked for is a constant false
 * in read-only data, so that the verifier removes its code.
 */

#include "common.bpf.h"

/* include/linux/sched.h: set on io_uring's workers, which act for the task that submitted the request. */
#define PF_IO_WORKER 0x00000010

const volatile __u8 filter_by_pid;
const volatile __u8 filter_by_uid;
const volatile __u8 filter_by_comm;
const volatile __u8 filter_by_cgroup;
const volatile __u8 filter_comm[BPFTK_COMM_LEN];

/* Thread group ids asked for. Sized and filled by user space before load and after. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u8);
} filter_pids SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u8);
} filter_uids SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_CGROUP_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} filter_cgroup SEC(".maps");

struct task_id {
	__u64 cgroup_id;
	__u32 pid;
	__u32 tid;
	__u32 uid;
	__u8 comm[BPFTK_COMM_LEN];
};

/*
 * An io_uring worker is named iou-wrk-PID; the caller is the program that it works for, whose name the thread
 * group's leader bears.
 */
static __always_inline void task_comm(__u8 comm[BPFTK_COMM_LEN])
{
	struct task_struct *task = (void *)bpf_get_current_task();

	if (BPF_CORE_READ(task, flags) & PF_IO_WORKER)
		BPF_CORE_READ_STR_INTO((char(*)[BPFTK_COMM_LEN])comm, task, group_leader, comm);
	else
		bpf_get_current_comm(comm, BPFTK_COMM_LEN);
}

/* Fills @id with the current task, and tells whether the user asked for it. */
static __always_inline bool task_wanted(struct task_id *id)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();

	id->pid = pid_tgid >> 32;
	id->tid = (__u32)pid_tgid;
	if (filter_by_pid && !bpf_map_lookup_elem(&filter_pids, &id->pid))
		return false;
	id->uid = (__u32)bpf_get_current_uid_gid();
	if (filter_by_uid && !bpf_map_lookup_elem(&filter_uids, &id->uid))
		return false;
	/* 1 is "under it"; 0 is "not", a negative number an empty slot. */
	if (filter_by_cgroup && bpf_current_task_under_cgroup(&filter_cgroup, 0) != 1)
		return false;
	task_comm(id->comm);
	if (filter_by_comm) {
		for (int i = 0; i < BPFTK_COMM_LEN; i++) {
			if (id->comm[i] != filter_comm[i])
				return false;
			if (!id->comm[i])
				break;
		}
	}
	id->cgroup_id = bpf_get_current_cgroup_id();
	return true;
}

#endif
