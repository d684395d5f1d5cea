/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_PREFLIGHT_PROCESSES_BPF_H
#define BPFTK_PREFLIGHT_PROCESSES_BPF_H

/* Processes, and the ports of the connections on which they did what is unsafe. */

#include "common.bpf.h"
#include "guard.bpf.h"
#include "preflight.h"

/* A process of which nothing was seen yet: it would take half of the stack. */
const struct preflight_process no_process = {};

/* For the skeleton: these are in no map whose BTF would name them. */
enum preflight_reason _reason;
enum preflight_port_role _role;
struct preflight_news _news;

static __always_inline void current_key(struct preflight_key *key)
{
	process_key(key, bpf_get_current_pid_tgid() >> 32);
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

/* What is seen for the first time is told. Two threads may both be the first. */
static __always_inline void turns_unsafe(struct preflight_process *process)
{
	struct preflight_key key = {};

	if (!guard || process->is_unsafe)
		return;
	process->is_unsafe = 1;
	current_key(&key);
	tell_user_space(&key, 0);
}

static __always_inline void is_not_seen(__u32 reason)
{
	struct preflight_process *process = this_process();

	if (!process)
		return;
	__sync_fetch_and_add(&process->counts[reason], 1);
	turns_unsafe(process);
}

#endif
