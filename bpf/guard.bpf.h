/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_GUARD_BPF_H
#define BPFTK_GUARD_BPF_H

/*
 * What the guard's two sides have in common: the program that sees what processes do (preflight.bpf.c), and those that
 * decide about connections (sockredir.bpf.c). The maps are made by the first and used by both. So a port is kept out
 * before the call that was the reason is done, and user space is not asked.
 */

#include "common.bpf.h"
#include "preflight.h"

/* It runs with sockredir. Else nothing of this is used but by preflight itself. */
const volatile bool guard;

/*
 * A tenth of the time for which programs are watched before their connections are redirected, in jiffies, which cost
 * least to read; 0 without learning.
 */
const volatile __u64 learn_tenth;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, PREFLIGHT_PROCESSES);
	__type(key, struct preflight_key);
	__type(value, struct preflight_process);
} processes SEC(".maps");

/* Ports of connections on which a process did what is unsafe, each with how sure it is that it is the server's. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, PREFLIGHT_PORTS);
	__type(key, struct preflight_port);
	__type(value, __u32);
} unsafe_ports SEC(".maps");

/* One bit a port that somebody listens at, anywhere on this machine. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u64);
} listening SEC(".maps");

/*
 * One byte a port of a server, which is not 0 if connections to it stay with TCP. No bits: Linux 5.10 can't set one at
 * a time.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536 / 8);
	__type(key, __u32);
	__type(value, __u8[8]);
} kept_out SEC(".maps");

/*
 * What is new, for user space. It also looks at the tables now and then, so one that finds no room comes a little
 * later.
 */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, PREFLIGHT_NEWS_BYTES);
} news SEC(".maps");

/*
 * Programs, by program_of_current. Whoever connects is known by its program and not by its process: clients that live
 * for one connection, and workers that are forked, are not new.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, GUARD_PROGRAMS);
	__type(key, __u64);
	__type(value, struct guard_learned);
} programs SEC(".maps");

/*
 * Servers are known by where they listen: who will accept a connection is not known while it is made. In each network
 * namespace anew, since every container may listen at the same port.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, GUARD_SERVERS);
	__type(key, struct guard_server);
	__type(value, struct guard_learned);
} servers SEC(".maps");

/* What is known of a program or a server of which nothing was seen yet. */
const struct guard_learned nothing_learned = {};

static __always_inline __u64 mix(__u64 sum, __u64 value)
{
	/* A prime: 2^64 divided by the golden ratio. */
	return (sum ^ value) * 0x9e3779b97f4a7c15ULL;
}

/*
 * A number for the program that the current task runs: its executable, its cgroup, and its name, which is a script's
 * where that has an interpreter of its own (#!).
 */
static __always_inline __u64 program_of_current(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct inode *exe = BPF_CORE_READ(task, mm, exe_file, f_inode);
	__u64 name[BPFTK_COMM_LEN / 8] = {}, sum;

	BPF_CORE_READ_STR_INTO((char(*)[BPFTK_COMM_LEN])name, task, group_leader, comm);
	sum = mix(BPF_CORE_READ(exe, i_ino), BPF_CORE_READ(exe, i_sb, s_dev));
	sum = mix(sum, BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, id));
	return mix(mix(sum, name[0]), name[1]) | 1;
}

static __always_inline bool is_learned(const struct guard_learned *what)
{
	return what && what->tenths >= GUARD_TENTHS && what->finished;
}

static __always_inline void process_key(struct preflight_key *key, __u32 pid)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	key->pid = pid;
	key->start_ns = BPF_CORE_READ(task, group_leader, start_boottime);
}

static __always_inline void tell_user_space(const struct preflight_key *process, __u16 port)
{
	struct preflight_news record = { .process = *process, .port = port };

	bpf_ringbuf_output(&news, &record, sizeof(record), 0);
}

static __always_inline bool is_listening(__u16 port)
{
	__u32 word = port / 64;
	__u64 *bits = bpf_map_lookup_elem(&listening, &word);

	return bits && (*bits & (1ULL << (port % 64)));
}

static __always_inline bool is_kept_out(__u16 port)
{
	__u32 eight = port / 8;
	__u8 *bytes = bpf_map_lookup_elem(&kept_out, &eight);

	return bytes && bytes[port % 8];
}

static __always_inline void keep_out(__u16 port)
{
	__u32 eight = port / 8;
	__u8 *bytes = bpf_map_lookup_elem(&kept_out, &eight);

	if (bytes)
		bytes[port % 8] = 1;
}

/* False if there was no room to note it; it is kept out all the same. */
static __always_inline bool note_port(const struct preflight_key *process, __u16 number, __u32 role, __u32 keep)
{
	struct preflight_port port = { .process = *process, .port = number };
	bool kept = guard && keep, is_new = kept && !is_kept_out(number), stored = true;

	/* A socket that is closed has none. */
	if (!number)
		return true;
	if (is_new)
		keep_out(number);
	if (!bpf_map_lookup_elem(&unsafe_ports, &port)) {
		stored = !bpf_map_update_elem(&unsafe_ports, &port, &role, BPF_ANY);
		is_new |= kept && stored;
	}
	if (is_new)
		tell_user_space(process, number);
	return stored;
}

#endif
