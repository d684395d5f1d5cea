/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_PREFLIGHT_PROCESSES_BPF_H
#define BPFTK_PREFLIGHT_PROCESSES_BPF_H

/* Processes, and the ports of the connections on which they did what is unsafe. */

#include "common.bpf.h"
#include "current_task.bpf.h"
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
	key->pid = bpf_get_current_pid_tgid() >> 32;
	key->start_ns = READ_OF_TASK(group_leader, start_boottime);
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

static __always_inline struct guard_learned *learned_of_program(const __u64 *program)
{
	struct guard_learned *found = bpf_map_lookup_elem(&programs, program);

	if (found)
		return found;
	bpf_map_update_elem(&programs, program, (void *)&nothing_learned, BPF_NOEXIST);
	return bpf_map_lookup_elem(&programs, program);
}

/*
 * Something is seen of it. Two processors may do this at once: what is read first is written last, so that both write
 * the same.
 */
static __always_inline void count_tenth(volatile struct guard_learned *learned, __u64 now)
{
	__u32 tenths = learned->tenths;

	if (tenths >= GUARD_TENTHS || (tenths && now - learned->tenth_at < learn_tenth))
		return;
	learned->tenth_at = now;
	learned->tenths = tenths + 1;
}

/* The current process works with a connection: its program does, and if it is the server's end, whoever serves it. */
static __always_inline void note_work(struct preflight_process *process, struct sock *sk, __u16 lport)
{
	struct guard_server server = { .port = lport };
	struct guard_learned *learned;
	__u64 now;

	if (!guard || !learn_tenth)
		return;
	now = bpf_jiffies64();
	if (now - process->program_at >= learn_tenth) {
		__u64 program = program_of_current();

		process->program_at = now;
		learned = learned_of_program(&program);
		if (learned) {
			if (process->is_unsafe)
				learned->is_unsafe = 1;
			count_tenth(learned, now);
		}
	}
	if (process->port == lport && now - process->port_at < learn_tenth)
		return;
	if (!is_listening(lport))
		return;
	process->port = lport;
	process->port_at = now;
	server.netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, net_cookie);
	learned = bpf_map_lookup_elem(&servers, &server);
	if (!learned) {
		bpf_map_update_elem(&servers, &server, (void *)&nothing_learned, BPF_NOEXIST);
		learned = bpf_map_lookup_elem(&servers, &server);
	}
	if (learned)
		count_tenth(learned, now);
}

/* What is seen for the first time is told. Two threads may both be the first. */
static __always_inline void turns_unsafe(struct preflight_process *process)
{
	struct preflight_key key = {};

	if (!guard || process->is_unsafe)
		return;
	process->is_unsafe = 1;
	if (learn_tenth) {
		__u64 program = program_of_current();
		struct guard_learned *learned = learned_of_program(&program);

		if (learned)
			learned->is_unsafe = 1;
	}
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
