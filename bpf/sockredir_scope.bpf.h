/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_SOCKREDIR_SCOPE_BPF_H
#define BPFTK_SOCKREDIR_SCOPE_BPF_H

/* Which connections are redirected: their addresses and ports, where their other end is, and what their sockets are. */

#include "common.bpf.h"
#include "guard.bpf.h"
#include "sockredir.h"
#include "sockredir_queue.bpf.h"
#include "waiters.bpf.h"

/* include/uapi/asm-generic/fcntl.h */
#define O_NONBLOCK 00004000

const volatile bool by_port;
const volatile bool by_excluded_port;
/* Connections between network namespaces are redirected, too. */
const volatile bool across_namespaces;

/* Ends that were refused, for a reason that is worth a row: they are shown, and nothing else is made of them. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct sockredir_key);
	__type(value, struct sockredir_end);
} refused SEC(".maps");

struct asked_for {
	/* The cookie of the listener's network namespace. */
	__u64 netns;
	/* When it came, on CLOCK_BOOTTIME. */
	__u64 time_ns;
	/* A client found that its server's address was translated. */
	bool translated;
};

/* Older ones are of connections that were never made. */
#define LONGEST_REQUEST_NS (5ULL * 1000 * 1000 * 1000)

/*
 * Connections that a listener in scope is being asked for: a client whose request is among them has its server here.
 * The server's entry is made after the client's, so nothing else tells of it yet.
 *
 * Each is there a second time without its own address and port: a client that finds only that one is connected to an
 * address that was translated on the way (DNAT, as for a container's published port).
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 32768);
	__type(key, struct sockredir_key);
	__type(value, struct asked_for);
} requests SEC(".maps");

/* One bit a port: the first 1024 words are --port, the next --exclude-port. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2048);
	__type(key, __u32);
	__type(value, __u64);
} ports SEC(".maps");

static __always_inline bool same_address(const __u8 a[16], const __u8 b[16])
{
	const __u32 *x = (const __u32 *)a, *y = (const __u32 *)b;

	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2] && x[3] == y[3];
}

static __always_inline void swap(struct sockredir_key *to, const struct sockredir_key *from)
{
	__builtin_memcpy(to->laddr, from->raddr, 16);
	__builtin_memcpy(to->raddr, from->laddr, 16);
	to->lseq = from->rseq;
	to->rseq = from->lseq;
	to->lport = from->rport;
	to->rport = from->lport;
}

/* The verifier wants each field of the context read at an offset of its own, which clang would merge. */
#define FIELD(name) (*(volatile __u32 *)&ops->name)

/* Addresses and ports, but for the sequence numbers. An IPv4 socket and a v4-mapped one of IPv6 have the same. */
static __always_inline bool tuple(struct bpf_sock_ops *ops, struct sockredir_key *key)
{
	__u32 family = FIELD(family);

	if (family == AF_INET) {
		set_v4_mapped(key->laddr, FIELD(local_ip4));
		set_v4_mapped(key->raddr, FIELD(remote_ip4));
	} else if (family == AF_INET6) {
		__u32 *l = (__u32 *)key->laddr, *r = (__u32 *)key->raddr;

		l[0] = FIELD(local_ip6[0]);
		l[1] = FIELD(local_ip6[1]);
		l[2] = FIELD(local_ip6[2]);
		l[3] = FIELD(local_ip6[3]);
		r[0] = FIELD(remote_ip6[0]);
		r[1] = FIELD(remote_ip6[1]);
		r[2] = FIELD(remote_ip6[2]);
		r[3] = FIELD(remote_ip6[3]);
	} else {
		return false;
	}
	key->lport = FIELD(local_port);
	key->rport = bpf_ntohl(FIELD(remote_port));
	return true;
}

static __always_inline bool port_in(__u32 first, __u16 port)
{
	__u32 word = first + port / 64;
	__u64 *bits = bpf_map_lookup_elem(&ports, &word);

	return bits && *bits >> (port % 64) & 1;
}

/* By the port that the server listens on. */
static __always_inline bool port_wanted(__u16 port)
{
	return (!by_port || port_in(0, port)) && !(by_excluded_port && port_in(1024, port));
}

/* Without what a translation changes of a server's key. */
static __always_inline void drop_local(struct sockredir_key *key)
{
	__builtin_memset(key->laddr, 0, 16);
	key->lport = 0;
}

/* Whether a program is kept out that uses connections to this port. */
static __always_inline bool guarded(const struct sockredir_key *key, bool client)
{
	return guard && is_kept_out(client ? key->rport : key->lport);
}

/* A listener got a request, and has not answered yet. */
static __always_inline void requested(struct bpf_sock_ops *ops)
{
	struct sockredir_key key = {};
	struct asked_for request = {};

	if (!tuple(ops, &key) || !port_wanted(key.lport))
		return;
	request.netns = bpf_get_netns_cookie(ops);
	request.time_ns = bpf_ktime_get_boot_ns();
	bpf_map_update_elem(&requests, &key, &request, BPF_ANY);
	drop_local(&key);
	bpf_map_update_elem(&requests, &key, &request, BPF_ANY);
}

static __always_inline void answered(const struct sockredir_key *key)
{
	struct sockredir_key request = *key;

	request.lseq = request.rseq = 0;
	bpf_map_delete_elem(&requests, &request);
	drop_local(&request);
	bpf_map_delete_elem(&requests, &request);
}

/* Whether the other end may be on this machine, though not in scope. */
static __always_inline __u32 why_no_peer(const struct sockredir_key *key)
{
	const __u32 *words = (const __u32 *)key->raddr;

	if (same_address(key->laddr, key->raddr))
		return SOCKREDIR_PEER_UNKNOWN;
	if (!words[0] && !words[1] && words[2] == bpf_htonl(0xffff) && key->raddr[12] == 127)
		return SOCKREDIR_PEER_UNKNOWN;
	return SOCKREDIR_NOT_LOCAL;
}

/*
 * Why the other end of a client is not one to redirect to, or nothing. @server is that end's key, and @server_netns
 * becomes its network namespace.
 */
static __always_inline __u32 why_no_server(struct sockredir_key *server, const struct sockredir_key *key, __u64 netns,
					   __u64 *server_netns)
{
	struct asked_for *seen;

	server->lseq = server->rseq = 0;
	seen = bpf_map_lookup_elem(&requests, server);
	if (seen) {
		*server_netns = seen->netns;
		return seen->netns == netns || across_namespaces ? SOCKREDIR_NONE : SOCKREDIR_NAMESPACE;
	}
	drop_local(server);
	seen = bpf_map_lookup_elem(&requests, server);
	if (!seen || bpf_ktime_get_boot_ns() - seen->time_ns > LONGEST_REQUEST_NS)
		return why_no_peer(key);
	/* For the server, which comes later. */
	seen->translated = true;
	return SOCKREDIR_TRANSLATED;
}

/* The same of a server. @client is the other end's key. */
static __always_inline __u32 why_no_client(const struct sockredir_key *client, const struct sockredir_key *key, __u64 netns)
{
	struct sockredir_key request = *key;
	struct sockredir_entry *entry;
	struct sockredir_end *end;
	struct asked_for *seen;

	entry = bpf_map_lookup_elem(&ends, client);
	if (entry)
		return entry->end.netns == netns || across_namespaces ? SOCKREDIR_NONE : SOCKREDIR_NAMESPACE;
	end = bpf_map_lookup_elem(&refused, client);
	if (end && (end->reason == SOCKREDIR_NAMESPACE || end->reason == SOCKREDIR_GUARDED ||
		    end->reason == SOCKREDIR_LEARNING))
		return end->reason;
	if (end)
		return SOCKREDIR_PEER_UNKNOWN;
	request.lseq = request.rseq = 0;
	drop_local(&request);
	seen = bpf_map_lookup_elem(&requests, &request);
	return seen && seen->translated ? SOCKREDIR_TRANSLATED : why_no_peer(key);
}

/*
 * Whether a thread may wait in a read that it began before the connection was established. It would wait for what comes
 * by TCP for ever: it is in TCP's own function. Beside it there waits the thread that connects, if it does so blocking.
 */
static __always_inline bool reader_waits(struct sock *sk)
{
	struct file *file = BPF_CORE_READ(sk, sk_socket, file);
	int connecting;

	if (!file)
		return false;
	connecting = BPF_CORE_READ(file, f_flags) & O_NONBLOCK ? 0 : 1;
	return count_waiters(sk, file) > connecting;
}

/* What a socket is that must not be redirected, whatever its connection; or nothing. */
static __always_inline __u32 unfit(struct tcp_sock *tp, bool client)
{
	struct sock *sk = (struct sock *)tp;

	if (bpf_core_field_exists(tp->is_mptcp) && BPF_CORE_READ_BITFIELD_PROBED(tp, is_mptcp))
		return SOCKREDIR_MPTCP;
	if (BPF_CORE_READ(tp, inet_conn.icsk_ulp_ops))
		return SOCKREDIR_ULP;
	/* Their owners call TCP's own functions. */
	if (BPF_CORE_READ_BITFIELD_PROBED(sk, sk_kern_sock))
		return SOCKREDIR_KERNEL;
	/* Another map of sockets, or a kernel subsystem that a program lent its socket to. */
	if (BPF_CORE_READ(sk, sk_user_data))
		return SOCKREDIR_EXISTS;
	/* What is sent to a socket in repair is meant for its own queues. include/linux/tcp.h, TCP_REPAIR */
	if (BPF_CORE_READ_BITFIELD_PROBED(tp, repair))
		return SOCKREDIR_REPAIR;
	if (client && reader_waits(sk))
		return SOCKREDIR_READER;
	return SOCKREDIR_NONE;
}

#endif
