/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_SOCKREDIR_QUEUE_BPF_H
#define BPFTK_SOCKREDIR_QUEUE_BPF_H

/*
 * What was redirected and nobody has read yet: bounded for each direction, and for all of them together.
 *
 * A program sees what is sent, and not what is read. So a queue is taken to hold all that was sent since it was last
 * seen empty; seen it is by whoever sends next, at the end of the socket, and by user space's order (bpftk_look). What
 * waits belongs to the end that is to read it: the sender may be closed long before. The sum of all queues is kept in
 * `waiting`, and each change of a queue is made under its lock, so that the sum is 0 when they are empty.
 */

#include "common.bpf.h"
#include "sockredir.h"

const volatile __u64 max_queue;
const volatile __u32 max_messages;
const volatile __u64 max_memory;
/*
 * In pages: what processors together may hold back of TCP's memory from the sum that the kernel compares with tcp_mem.
 */
const volatile __u64 tcp_memory_held_back;

/* One for each entry of the map of sockets. Not allocated ahead: most machines have few. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct sockredir_key);
	__type(value, struct sockredir_entry);
} ends SEC(".maps");

/* What all queues take. In a map of its own, since every processor writes it and what else is global is only read. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} waiting SEC(".maps");

static __always_inline __u64 *sum_of_queues(void)
{
	__u32 first = 0;

	return bpf_map_lookup_elem(&waiting, &first);
}

/* As it may be below 0 for a moment: what is added comes after what is taken away. */
static __always_inline void change_sum(__s64 change)
{
	__u64 *sum = sum_of_queues();

	if (sum && change)
		__sync_fetch_and_add(sum, change);
}

static __always_inline __s64 memory_of(__u64 bytes, __u32 messages)
{
	return bytes + (__u64)messages * SOCKREDIR_MESSAGE_BYTES;
}

/*
 * Whether nothing that was redirected waits at the socket. With its file closed, it has no queue any more. What TCP
 * brought is behind what was redirected, and has its packet.
 */
static __always_inline bool is_drained(const struct sockredir_entry *entry)
{
	struct sock *sk = (void *)entry->end.sk;
	/* The low bits are flags. include/net/sock.h, SK_USER_DATA_PTRMASK */
	__u64 psock = (__u64)BPF_CORE_READ(sk, sk_user_data) & ~7ULL;
	__u64 first = (__u64)BPF_CORE_READ((struct sk_psock *)psock, ingress_msg.next);
	struct sk_msg *msg = (void *)first - bpf_core_field_offset(struct sk_msg, list);

	return !psock || first == psock + bpf_core_field_offset(struct sk_psock, ingress_msg) || BPF_CORE_READ(msg, skb);
}

/* All of the queue is gone with its socket. */
static __always_inline void close_queue(struct sockredir_entry *entry)
{
	__s64 memory;

	bpf_spin_lock(&entry->lock);
	memory = memory_of(entry->queued_bytes, entry->queued_messages);
	entry->queued_bytes = 0;
	entry->queued_messages = 0;
	entry->refuses = SOCKREDIR_PEER_CLOSED;
	bpf_spin_unlock(&entry->lock);
	change_sum(-memory);
}

/*
 * The same of a queue to which nobody has sent since it had so many `sends`, if all of it was read. Those before are in
 * the queue by then.
 *
 * A sender counts itself before it looks at the queue, and here the queue is emptied before the senders are counted
 * again: so one that found the queue as it was is seen here. What it found may be all that stands for its message
 * (`reserve`), so it is put back; where the sender found the queue empty it is there twice, until it is seen empty again.
 */
static __always_inline void settle_queue(struct sockredir_entry *entry, __u64 sends)
{
	__u32 messages;
	__u64 bytes;

	if (!is_drained(entry))
		return;
	bpf_spin_lock(&entry->lock);
	if (entry->sends != sends) {
		bpf_spin_unlock(&entry->lock);
		return;
	}
	bytes = entry->queued_bytes;
	messages = entry->queued_messages;
	entry->queued_bytes = 0;
	entry->queued_messages = 0;
	bpf_spin_unlock(&entry->lock);
	/* A full barrier. */
	if (__sync_fetch_and_add(&entry->sends, 0) == sends) {
		change_sum(-memory_of(bytes, messages));
		return;
	}
	bpf_spin_lock(&entry->lock);
	entry->queued_bytes += bytes;
	entry->queued_messages += messages;
	bpf_spin_unlock(&entry->lock);
}

/* The first of net.ipv4.tcp_mem, as of the last send that looked. */
static long tcp_memory_limit;

/*
 * Whether TCP is short of memory, or would be with so much more. Then the kernel has a redirected send fail where TCP
 * would have it wait. Below the first of the limits it never does: net/core/sock.c, __sk_mem_raise_allocated. There,
 * the sum can grow by more than is asked for: since 6.0 each processor keeps up to a megabyte to itself before it adds
 * it (include/net/sock.h, sk_memory_allocated_add; later include/net/proto_memory.h).
 */
static __always_inline bool tcp_is_short_of_memory(struct tcp_sock *tp, __u32 size, bool look)
{
	struct proto *tcp = tp->inet_conn.icsk_inet.sk.__sk_common.skc_prot;
	long limit = tcp_memory_limit;

	/* It hardly ever changes, and reading it takes a call. */
	if (look || !limit) {
		if (bpf_probe_read_kernel(&limit, sizeof(limit), tcp->sysctl_mem))
			return false;
		tcp_memory_limit = limit;
	}
	/* Pages have 4 KiB or more; what is not full takes one as well. */
	return tcp->memory_allocated->counter + (size >> 12) + 1 + (long)tcp_memory_held_back > limit;
}

/*
 * Takes room for a message in the queue of `to`, or tells why there is none. Over the bound of all queues no direction
 * begins to be redirected, and none goes on whose reader is behind; one that is alone in its queue may pass.
 */
static __always_inline __u32 reserve(struct sockredir_entry *to, struct tcp_sock *from, __u32 size, bool first,
				     __u64 *queued)
{
	bool drained = is_drained(to);
	__u64 *sum = sum_of_queues();
	__u32 reason = SOCKREDIR_NONE;
	__s64 all, change = 0;

	/* With its result, it is a full barrier: see settle_queue. No program sends so often. */
	if (!(__sync_fetch_and_add(&to->sends, 1) + 1))
		return SOCKREDIR_MEMORY;
	if (!sum || tcp_is_short_of_memory(from, size, first || !drained))
		return SOCKREDIR_MEMORY;
	/* As the last one, which was read: with requests and answers that is the rule. Nothing changes. */
	if (drained && to->queued_messages == 1 && to->queued_bytes == size && !to->refuses) {
		*queued = size;
		return SOCKREDIR_NONE;
	}
	all = *sum;
	bpf_spin_lock(&to->lock);
	if (drained) {
		change = -memory_of(to->queued_bytes, to->queued_messages);
		to->queued_bytes = 0;
		to->queued_messages = 0;
	}
	if (to->refuses) {
		reason = to->refuses;
	} else if (to->queued_bytes + size > max_queue || to->queued_messages >= max_messages) {
		reason = SOCKREDIR_BACKLOG;
	} else if ((first || to->queued_messages) &&
		   all + change + memory_of(size, 1) > (__s64)max_memory) {
		reason = SOCKREDIR_MEMORY;
	} else {
		to->queued_bytes += size;
		to->queued_messages++;
		to->used = 1;
		change += memory_of(size, 1);
	}
	*queued = to->queued_bytes;
	bpf_spin_unlock(&to->lock);
	if (change)
		__sync_fetch_and_add(sum, change);
	return reason;
}

/* The message did not get into the queue. */
static __always_inline void give_back(struct sockredir_entry *to, __u32 size)
{
	__s64 memory = 0;

	bpf_spin_lock(&to->lock);
	if (to->queued_messages && to->queued_bytes >= size) {
		to->queued_bytes -= size;
		to->queued_messages--;
		memory = memory_of(size, 1);
	}
	bpf_spin_unlock(&to->lock);
	change_sum(-memory);
}

#endif
