/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_SOCKREDIR_ROOM_BPF_H
#define BPFTK_SOCKREDIR_ROOM_BPF_H

/*
 * How many small packets TCP may bring to a socket of the map while nobody reads, before Linux 6.6.
 *
 * There TCP looks at the size of the receive buffer only if packets are in its own queue (net/ipv4/tcp_input.c,
 * tcp_data_queue). Of a socket in the map that queue is always empty: each packet goes on into the other one at once.
 * So all that fits into the window is taken, and the window counts bytes: with a byte a packet, each of them takes 2
 * KiB. Since 6.6 TCP looks in any case, and closes the window ("net: tcp: send zero-window ACK when no memory").
 *
 * A packet that is too many is dropped here, before TCP sees it, as TCP does it when its own queue is full. The
 * sender keeps what was not acknowledged, sends it again, and joins what it has not sent yet: so its send buffer gets
 * full, and it waits.
 *
 * Only while bpftk runs: the program is the cgroup's, while those of the map stay with its sockets.
 */

#include "sockredir_counts.bpf.h"
#include "sockredir_receive.bpf.h"

/*
 * What may wait at a socket, should its receive buffer be smaller. In bytes of memory as TCP counts packets: without
 * their messages.
 */
#define LEAST_ROOM (2 << 20)
/*
 * A packet is small if it takes more than so many times its bytes, with its message. The window bounds what others
 * take.
 */
#define SMALL 4
/*
 * Beyond that, a small packet is let in now and then: else the sender would give the connection up after some 15
 * minutes, and a reader that reads again would wait for the sender's next attempt. The time between them doubles with
 * each megabyte.
 */
#define FIRST_PAUSE_NS (1000ULL * 1000 * 1000)
/* 64 s. A sender gives up after a quarter of an hour. */
#define MOST_DOUBLINGS 6

/* Of a packet that begins with its IP header. One with extension headers counts as empty, and is let in. */
static __always_inline __s32 payload_of(struct __sk_buff *skb)
{
	__u8 version, proto, words;
	__s32 header;

	if (bpf_skb_load_bytes(skb, 0, &version, 1))
		return 0;
	if (version >> 4 == 4) {
		header = (version & 0xf) * 4;
		if (bpf_skb_load_bytes(skb, 9, &proto, 1))
			return 0;
	} else {
		header = 40;
		if (bpf_skb_load_bytes(skb, 6, &proto, 1))
			return 0;
	}
	if (proto != IPPROTO_TCP || bpf_skb_load_bytes(skb, header + 12, &words, 1))
		return 0;
	return skb->len - header - (words >> 4) * 4;
}

SEC("cgroup_skb/ingress")
int bpftk_room(struct __sk_buff *skb)
{
	struct sk_buff *packet = (void *)skb;
	struct bpf_sock *receiving = skb->sk;
	__s32 payload, taken, room, doublings;
	struct receiver *receiver;
	struct tcp_sock *tp;
	__u64 cookie, now;
	struct sock *sk;

	if (!receiving)
		return 1;
	tp = bpf_skc_to_tcp_sock(receiving);
	if (!tp)
		return 1;
	sk = (struct sock *)tp;
	taken = BPF_CORE_READ(sk, sk_backlog.rmem_alloc.counter);
	if (taken <= LEAST_ROOM)
		return 1;
	room = BPF_CORE_READ(sk, sk_rcvbuf);
	if (room < LEAST_ROOM)
		room = LEAST_ROOM;
	if (taken <= room)
		return 1;
	payload = payload_of(skb);
	if (payload <= 0 || BPF_CORE_READ(packet, truesize) + SOCKREDIR_MESSAGE_BYTES <= SMALL * (__u32)payload)
		return 1;
	cookie = bpf_get_socket_cookie(skb);
	receiver = bpf_map_lookup_elem(&receivers, &cookie);
	if (!receiver)
		return 1;
	doublings = (taken - room) >> 20;
	if (doublings > MOST_DOUBLINGS)
		doublings = MOST_DOUBLINGS;
	now = bpf_ktime_get_ns();
	if (now - receiver->let_in_ns < FIRST_PAUSE_NS << doublings) {
		count(SOCKREDIR_POSTPONED, 1);
		return 0;
	}
	receiver->let_in_ns = now;
	return 1;
}

#endif
