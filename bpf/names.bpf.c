/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */

/*
 * What this machine's sockets hear and say of names: questions to port 53 and answers from there (dns.bpf.h), and how TCP connections begin,
 * where a TLS client names its server, and an HTTP/1 client its host. Parsing is user space's.
 */

#include "dns.bpf.h"

/* RFC 8446, 4 and 5.1 */
#define TLS_HANDSHAKE 22
#define TLS_CLIENT_HELLO 1
#define TLS_RECORD_HEADER 5
#define TLS_MOST (TLS_RECORD_HEADER + 16384)

/* More than any HTTP client sends before and in its Host field. */
#define HTTP_MOST 4096
/* What was sent twice counts twice. */
#define SENT_AGAIN 2048

/* Bytes that are still wanted of a connection, by the cookie of its socket. Nothing for one that has not begun. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, __u64);
	__type(value, __u32);
} openings SEC(".maps");

static __always_inline bool is_upper(__u8 c)
{
	return c >= 'A' && c <= 'Z';
}

/* How much is wanted of a connection that begins like this. */
static __always_inline __u32 wanted(struct __sk_buff *skb, struct dns_transport *found)
{
	__u32 total = skb->len - found->payload;
	__u8 first[6] = {};

	if (bpf_skb_load_bytes(skb, found->payload, first, 1))
		return 0;
	/* Too little to tell: as much as either may take. What it is not is told apart by who parses it. */
	if (total < sizeof(first))
		return first[0] == TLS_HANDSHAKE || is_upper(first[0]) ? TLS_MOST + SENT_AGAIN : 0;
	if (bpf_skb_load_bytes(skb, found->payload, first, sizeof(first)))
		return 0;
	if (first[0] == TLS_HANDSHAKE && first[1] == 3 && first[5] == TLS_CLIENT_HELLO)
		return TLS_RECORD_HEADER + (first[3] << 8 | first[4]) + SENT_AGAIN;
	/* A method. Not a server's HTTP/1.1. */
	if (is_upper(first[0]) && is_upper(first[1]) && is_upper(first[2]) &&
	    !(first[0] == 'H' && first[1] == 'T' && first[2] == 'T'))
		return HTTP_MOST + SENT_AGAIN;
	return 0;
}

/* At the cgroup v2 root: what any local socket sends, before it is cut into segments. It always lets the packet pass. */
SEC("cgroup_skb/egress")
int bpftk_opening(struct __sk_buff *skb)
{
	struct dns_transport found = {};
	struct dns_header header = {};
	__u32 *known, left;
	__u64 cookie;

	if (!find_payload(skb, &found))
		return 1;
	if (found.tcp.dest == bpf_htons(53)) {
		emit_question(skb, &found);
		return 1;
	}
	if (found.proto != IPPROTO_TCP)
		return 1;
	cookie = bpf_get_socket_cookie(skb);
	known = bpf_map_lookup_elem(&openings, &cookie);
	left = known ? *known : wanted(skb, &found);
	if (!known)
		bpf_map_update_elem(&openings, &cookie, &left, BPF_ANY);
	if (!left)
		return 1;
	if (!describe(skb, &found, BPFTK_RECORD_OPENING, &header))
		return 1;
	/* A SYN takes a number of its own before its data. */
	if (found.tcp.flags & 2)
		header.tcp_seq++;
	if (header.total > left)
		header.total = left;
	left -= header.total;
	bpf_map_update_elem(&openings, &cookie, &left, BPF_ANY);
	emit_dns(skb, &header, found.payload);
	return 1;
}
