/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_PREFLIGHT_PROCESSES_BPF_H
#define BPFTK_PREFLIGHT_PROCESSES_BPF_H

/* Processes, and the ports of the connections on which they did what is unsafe. */

#include "common.bpf.h"
#include "preflight.h"

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

/* One bit a port that somebody listens at, anywhere on this machine. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u64);
} listening SEC(".maps");

/* A process of which nothing was seen yet: it would take half of the stack. */
const struct preflight_process no_process = {};

/* For the skeleton: the enums have no map whose BTF would name them. */
enum preflight_reason _reason;
enum preflight_port_role _role;

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

static __always_inline void is_not_seen(__u32 reason)
{
	struct preflight_process *process = this_process();

	if (process)
		__sync_fetch_and_add(&process->counts[reason], 1);
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

#endif
