/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_WAITERS_BPF_H
#define BPFTK_WAITERS_BPF_H

#include "common.bpf.h"

/* As far as it is counted. */
#define MOST_WAITERS 8

/*
 * How many threads wait in a read, a write or a connect of a socket; with more than so many waiters of any kind, MOST_WAITERS. Whoever
 * polls waits at the same place, and is told by the file in front of its entry; those of epoll and io_uring have no task.
 */
static __always_inline int count_waiters(struct sock *sk, struct file *file)
{
	struct socket_wq *wq = BPF_CORE_READ(sk, sk_wq);
	struct list_head *head = (void *)wq + bpf_core_field_offset(struct socket_wq, wait.head);
	struct list_head *at = BPF_CORE_READ(wq, wait.head.next);
	int waiting = 0, i;

	if (!wq)
		return 0;
	for (i = 0; i < MOST_WAITERS; i++) {
		struct wait_queue_entry *entry;
		struct poll_table_entry *poll;

		if (at == head)
			return waiting;
		entry = (void *)at - bpf_core_field_offset(struct wait_queue_entry, entry);
		poll = (void *)entry - bpf_core_field_offset(struct poll_table_entry, wait);
		waiting += is_set((__u64)BPF_CORE_READ(entry, private)) &
			   is_set((__u64)BPF_CORE_READ(poll, filp) ^ (__u64)file);
		at = BPF_CORE_READ(at, next);
	}
	return MOST_WAITERS;
}

#endif
