/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_SOCKREDIR_RECEIVE_BPF_H
#define BPFTK_SOCKREDIR_RECEIVE_BPF_H

/*
 * What TCP brings to a socket of the map.
 *
 * It goes behind what was redirected, into the same queue. With two queues a read of redirected data ends where they
 * meet, though more is there, and the wake-up for what TCP brought has been before: a reader that takes a short read
 * for the end of what there is, as epoll(7) allows to edge-triggered ones, would wait for ever.
 *
 * The kernel hands over whole packets, and minds no offset (net/ipv4/tcp.c, tcp_read_skb, since Linux 6.0): what a
 * retransmission brings a second time in front of what is new would be read twice. So each socket has the sequence
 * number that comes next, and what is older is cut off.
 */

#include "sockredir_counts.bpf.h"

/* What bpf_skb_adjust_room takes off at a time: net/core/filter.c, sk_skb_adjust_room. */
#define MOST_CUT 0xfff
/* For the largest packet that there is: 512 KiB (include/linux/netdevice.h, GSO_MAX_SIZE), and some. */
#define MOST_CUTS 130

struct receiver {
	/* The sequence number of the byte that TCP is to bring next. */
	__u32 next;
	/*
	 * Of which connection: a socket may have another one when nobody is there any more to say so. Its own port is
	 * gone by the time that the last packet closes the socket.
	 */
	__u32 rport;
	/* When the last packet was let in for which there was no room: sockredir_room.bpf.h. */
	__u64 let_in_ns;
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
	if (!receiver || receiver->rport != bpf_ntohl(skb->remote_port))
		return SK_PASS;
	first = BPF_CORE_READ(packet, seq);
	after = BPF_CORE_READ(packet, end_seq);
	old = receiver->next - first;
	/*
	 * TCP keeps no packet that has nothing new: then this is another connection's, and nobody was there to say so.
	 */
	if ((__s32)(after - receiver->next) <= 0)
		old = 0;
	receiver->next = after;
	/* The connection's end takes a number, and nothing comes after it. */
	if (after - first != length)
		bpf_map_delete_elem(&receivers, &cookie);
	if (old <= 0)
		return SK_PASS;
	/* All of it is old but the end, which is passed without bytes. */
	if (old > (__s32)length)
		old = length;
	count(SOCKREDIR_OVERLAPS, 1);
	for (i = 0; i < MOST_CUTS && old > 0; i++) {
		__s32 cut = old < MOST_CUT ? old : MOST_CUT;

		/* It fails if the kernel cannot allocate memory to make the bytes contiguous. */
		if (bpf_skb_adjust_room(skb, -cut, 0, 0))
			break;
		old -= cut;
	}
	if (old > 0)
		count(SOCKREDIR_OVERLAPS_KEPT, 1);
	return SK_PASS;
}

#endif
