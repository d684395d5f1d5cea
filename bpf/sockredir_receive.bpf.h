/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_SOCKREDIR_RECEIVE_BPF_H
#define BPFTK_SOCKREDIR_RECEIVE_BPF_H

/*
 * What TCP brings to a socket of the map.
 *
 * It goes behind what was redirected, into the same queue. With two queues a read of redirected data ends where they meet, though
 * more is there, and the wake-up for what TCP brought has been before: a reader that takes a short read for the end of what there is,
 * as epoll(7) allows to edge-triggered ones, would wait for ever.
 *
 * The kernel hands over whole packets, and minds no offset (net/ipv4/tcp.c, tcp_read_skb, since Linux 6.0): what a retransmission
 * brings a second time in front of what is new would be read twice. So each socket has the sequence number that comes next, and
 * what is older is cut off.
 */

#include "sockredir_counts.bpf.h"

/* What bpf_skb_adjust_room takes off at a time: net/core/filter.c, sk_skb_adjust_room. */
#define MOST_CUT 0xfff
/* For the largest packet that there is, of 64 KiB, and some. */
#define MOST_CUTS 18

struct receiver {
	/* The sequence number of the byte that TCP is to bring next. */
	__u32 next;
	/* Of which connection: a socket may have another one when nobody is there any more to say so. */
	__u16 lport;
	__u16 rport;
};

/* By a socket's cookie, since a program of this kind may not use a socket's storage. As many as there are ends. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, __u64);
	__type(value, struct receiver);
} receivers SEC(".maps");

SEC("sk_skb/verdict")
int bpftk_sk_skb(struct __sk_buff *skb)
{
	struct tcp_skb_cb *packet = (void *)skb + bpf_core_field_offset(struct sk_buff, cb);
	__u64 cookie = bpf_get_socket_cookie(skb);
	__u32 first, after, length = skb->len;
	struct receiver *receiver;
	__s32 old;
	int i;

	receiver = bpf_map_lookup_elem(&receivers, &cookie);
	if (!receiver || receiver->lport != skb->local_port || receiver->rport != bpf_ntohl(skb->remote_port))
		return SK_PASS;
	first = BPF_CORE_READ(packet, seq);
	after = BPF_CORE_READ(packet, end_seq);
	old = receiver->next - first;
	receiver->next = after;
	if (old <= 0)
		return SK_PASS;
	if (old >= (__s32)length) {
		/* The connection's end takes a number, and is passed without bytes. But for it, an empty packet would look like one. */
		if (after - first == length)
			return SK_DROP;
		old = length;
	}
	count(SOCKREDIR_OVERLAPS, 1);
	for (i = 0; i < MOST_CUTS && old > 0; i++) {
		__s32 cut = old < MOST_CUT ? old : MOST_CUT;

		/* It fails when there is no memory to have the bytes in one piece. */
		if (bpf_skb_adjust_room(skb, -cut, 0, 0))
			break;
		old -= cut;
	}
	if (old > 0)
		count(SOCKREDIR_OVERLAPS_KEPT, 1);
	return SK_PASS;
}

#endif
