/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */

/*
 * What a local socket sends goes straight into the queue of the socket at the other end, without TCP and IP between
 * them.
 *
 * bpftk_sockops puts the ends of local connections into a map as they are established; bpftk_sk_msg sees what they
 * send. That no byte is lost or overtakes another rests on these:
 *
 *   - What comes by TCP goes behind what was redirected, into the same queue: sockredir_receive.bpf.h. So a direction
 *     may change from redirection to TCP at any time, and never back: it is redirected only from its first byte on, and
 *     only while nothing of it ever entered TCP.
 *   - The verdict is always to pass. Dropping what can't be redirected would be an error to the sender.
 *   - The kernel does not bound the queues of redirected data. What would exceed a bound goes by TCP, which does:
 *     sockredir_queue.bpf.h. Before Linux 6.6 TCP does not bound small packets there: sockredir_room.bpf.h.
 *   - With an entry of the map goes its unread data. So it is removed by the kernel when its socket closes; and here
 *     when the socket is disconnected (connect to AF_UNSPEC), or connects again: that data is of another connection.
 *   - A socket is found by its addresses, ports and both first sequence numbers: see sockredir.h.
 */

#include "sockredir_counts.bpf.h"
#include "sockredir_queue.bpf.h"
#include "sockredir_receive.bpf.h"
#include "sockredir_room.bpf.h"
#include "sockredir_scope.bpf.h"

/* include/net/sock.h */
#define RCV_SHUTDOWN 1

/* include/linux/errno.h */
#define EEXIST 17
#define EBUSY 16
#define E2BIG 7
#define ENOMEM 12

const volatile __u32 comms;
const volatile __u8 comm_names[SOCKREDIR_COMMS][BPFTK_COMM_LEN];

/* Off, the programs let everything pass: at the end, and until all is attached. */
bool enabled;

struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(struct sockredir_key));
	__uint(value_size, sizeof(__u64));
} socks SEC(".maps");

/* A socket's key. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct sockredir_key);
} keys SEC(".maps");

/* Who connected a socket. */
struct connector {
	/* By program_of_current. */
	__u64 program;
	/* Why it stays with TCP, an enum sockredir_reason; or nothing. */
	__u64 reason;
};

/* Sockets that were connected by a program that the guard keeps out, or does not know yet. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct connector);
} connectors SEC(".maps");

/* For the skeleton. */
struct sockredir_event _event;
struct sockredir_look _look;
enum sockredir_state _state;
enum sockredir_reason _reason;
enum sockredir_count _count;

/* ------------------------------------------------------------------ ends of connections */

/* An int, since that is what some of the kernel's functions return before Linux 6.4: the upper half is not its sign. */
static __always_inline __u32 why_not_inserted(int error)
{
	switch (error) {
	case -EEXIST:
	case -EBUSY:
		return SOCKREDIR_EXISTS;
	case -E2BIG:
	case -ENOMEM:
		return SOCKREDIR_MAP_FULL;
	}
	return SOCKREDIR_REFUSED;
}

/* A key for the socket, by which it is known as it closes. */
static __always_inline bool name_it(struct bpf_sock *sk, const struct sockredir_key *key)
{
	struct sockredir_key *stored = bpf_sk_storage_get(&keys, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);

	if (stored)
		*stored = *key;
	return stored != NULL;
}

static __always_inline void tell_when_closed(struct bpf_sock_ops *ops)
{
	bpf_sock_ops_cb_flags_set(ops, FIELD(bpf_sock_ops_cb_flags) | BPF_SOCK_OPS_STATE_CB_FLAG);
}

/* Whether the current process is one that the guard keeps out. Not every kernel tells its id to such a program. */
static __always_inline bool is_unsafe_process(struct preflight_key *key)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct preflight_process *process;

	process_key(key, BPF_CORE_READ(task, tgid));
	process = bpf_map_lookup_elem(&processes, key);
	return process && process->is_unsafe;
}

/* Why the connections that a program makes stay with TCP, or nothing. */
static __always_inline __u32 why_not_program(const __u64 *program)
{
	struct guard_learned *learned = bpf_map_lookup_elem(&programs, program);

	if (learned && learned->is_unsafe)
		return SOCKREDIR_GUARDED;
	return is_learned(learned) ? SOCKREDIR_NONE : SOCKREDIR_LEARNING;
}

/* A process connects: later on, it is not known whose the socket is. */
static __always_inline void guard_connect(struct bpf_sock *sk)
{
	struct connector now = {}, *stored;
	struct preflight_key key = {};

	if (!guard || !sk)
		return;
	if (learn_tenth) {
		now.program = program_of_current();
		now.reason = why_not_program(&now.program);
	}
	if (is_unsafe_process(&key))
		now.reason = SOCKREDIR_GUARDED;
	stored = bpf_sk_storage_get(&connectors, sk, 0, now.reason ? BPF_SK_STORAGE_GET_F_CREATE : 0);
	if (stored)
		*stored = now;
}

/* Why the guard leaves a connection to TCP that a client has made, or nothing. @netns is the server's. */
static __always_inline __u32 why_not_let_in(struct bpf_sock *sk, const struct sockredir_key *key, __u64 netns)
{
	struct guard_server server = { .netns = netns, .port = key->rport };
	struct connector *connector;

	if (!guard)
		return SOCKREDIR_NONE;
	connector = bpf_sk_storage_get(&connectors, sk, 0, 0);
	if (connector && connector->reason)
		return connector->reason;
	if (learn_tenth && !is_learned(bpf_map_lookup_elem(&servers, &server)))
		return SOCKREDIR_LEARNING;
	return SOCKREDIR_NONE;
}

/* A connection that was watched is over, on which something was sent. */
static __always_inline void guard_closed(struct bpf_sock *sk, const struct sockredir_end *end,
					 const struct sockredir_key *key, struct tcp_sock *tp)
{
	struct guard_server server = { .netns = end->netns, .port = key->lport };
	struct guard_learned *learned = NULL;

	if (!guard || !learn_tenth || end->reason != SOCKREDIR_LEARNING)
		return;
	/* The other end's FIN counts as one that was received (tcp_rcv_nxt_update): a connection without a byte tells nothing. */
	if (!BPF_CORE_READ(tp, bytes_sent) && BPF_CORE_READ(tp, bytes_received) < 2)
		return;
	if (end->client) {
		struct connector *connector = bpf_sk_storage_get(&connectors, sk, 0, 0);

		if (connector)
			learned = bpf_map_lookup_elem(&programs, &connector->program);
	} else {
		learned = bpf_map_lookup_elem(&servers, &server);
	}
	if (learned)
		learned->finished = 1;
}

/* Somebody listens at a port. If it is another program than before, nothing is known of it there. */
static __always_inline void guard_new_listener(struct bpf_sock_ops *ops, __u16 port)
{
	struct guard_server server = { .netns = bpf_get_netns_cookie(ops), .port = port };
	struct guard_learned *known = bpf_map_lookup_elem(&servers, &server), anew = {};

	anew.program = program_of_current();
	if (!known || known->program != anew.program)
		bpf_map_update_elem(&servers, &server, &anew, BPF_ANY);
}

/* A process listens. It is known at once: user space would have to look. */
static __always_inline void guard_listen(struct bpf_sock_ops *ops)
{
	struct preflight_key key = {};
	__u16 port = FIELD(local_port);
	__u32 word = port / 64;
	__u64 *bits;

	if (!guard)
		return;
	bits = bpf_map_lookup_elem(&listening, &word);
	if (bits)
		__sync_fetch_and_or(bits, 1ULL << (port % 64));
	if (learn_tenth)
		guard_new_listener(ops, port);
	if (is_unsafe_process(&key))
		note_port(&key, port, PREFLIGHT_PORT_LISTENING, true);
}

/* Whether an end can profit from the map. Returns why not. */
static __always_inline __u32 consider(struct bpf_sock_ops *ops, struct bpf_sock *sk, bool client,
				      const struct sockredir_key *key)
{
	__u64 netns = bpf_get_netns_cookie(ops), server_netns = 0;
	struct sockredir_key other;
	__u32 reason, alone;
	struct tcp_sock *tp;

	/* One that is connected to itself, too, has no other end. */
	if (key->lport == key->rport && same_address(key->laddr, key->raddr))
		return SOCKREDIR_PEER_UNKNOWN;
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return SOCKREDIR_REFUSED;
	swap(&other, key);
	alone = client ? why_no_server(&other, key, netns, &server_netns) : why_no_client(&other, key, netns);
	if (!client)
		answered(key);
	if (alone == SOCKREDIR_NOT_LOCAL)
		return alone;
	/* Fast Open sends before there is a connection. */
	if (BPF_CORE_READ(tp, bytes_sent) || BPF_CORE_READ(tp, write_seq) != FIELD(snd_nxt))
		return SOCKREDIR_PRIOR_BYTES;
	reason = unfit(tp, client);
	if (reason || alone)
		return reason ? reason : alone;
	if (guarded(key, client))
		return SOCKREDIR_GUARDED;
	/* A server goes where its client went. */
	return client ? why_not_let_in(sk, key, server_netns) : SOCKREDIR_NONE;
}

/* Takes an end into the map. Returns why it can't be. */
static __always_inline __u32 insert(struct bpf_sock_ops *ops, struct bpf_sock *sk, bool client, struct sockredir_key *key)
{
	struct receiver receiver = { .next = FIELD(rcv_nxt), .rport = key->rport };
	__u64 cookie = bpf_get_socket_cookie(ops);
	struct sockredir_entry entry = {};
	int error;

	entry.end.sk = (__u64)bpf_skc_to_tcp_sock(sk);
	entry.end.netns = bpf_get_netns_cookie(ops);
	entry.end.client = client;
	entry.end.opened_ns = bpf_ktime_get_boot_ns();
	/* Before the socket is in the map, and seen by the other program. */
	error = bpf_map_update_elem(&ends, key, &entry, BPF_NOEXIST);
	if (error)
		return why_not_inserted(error);
	if (!name_it(sk, key)) {
		bpf_map_delete_elem(&ends, key);
		return SOCKREDIR_MAP_FULL;
	}
	error = bpf_map_update_elem(&receivers, &cookie, &receiver, BPF_ANY);
	if (!error)
		error = bpf_sock_hash_update(ops, &socks, key, BPF_NOEXIST);
	if (error) {
		bpf_map_delete_elem(&receivers, &cookie);
		bpf_sk_storage_delete(&keys, sk);
		bpf_map_delete_elem(&ends, key);
		return why_not_inserted(error);
	}
	tell_when_closed(ops);
	count(SOCKREDIR_ADMITTED, 1);
	return SOCKREDIR_NONE;
}

/* An end that stays as it is, to be shown with the reason. */
static __always_inline void remember_refused(struct bpf_sock_ops *ops, struct bpf_sock *sk, bool client,
					     struct sockredir_key *key, __u32 reason)
{
	struct sockredir_end end = {};

	end.sk = (__u64)bpf_skc_to_tcp_sock(sk);
	end.netns = bpf_get_netns_cookie(ops);
	end.client = client;
	end.opened_ns = bpf_ktime_get_boot_ns();
	end.state = SOCKREDIR_TCP;
	end.reason = reason;
	if (bpf_map_update_elem(&refused, key, &end, BPF_NOEXIST))
		return;
	if (name_it(sk, key))
		tell_when_closed(ops);
	else
		bpf_map_delete_elem(&refused, key);
}

static __always_inline void established(struct bpf_sock_ops *ops, bool client)
{
	struct bpf_sock *sk = ops->sk;
	struct sockredir_key key = {};
	__u32 reason;

	if (!enabled || !sk)
		return;
	count(client ? SOCKREDIR_CLIENTS : SOCKREDIR_SERVERS, 1);
	if (!tuple(ops, &key)) {
		left_to_tcp(SOCKREDIR_NOT_LOCAL);
		return;
	}
	if (!port_wanted(client ? key.rport : key.lport)) {
		/* A request was not noted either. */
		left_to_tcp(SOCKREDIR_FILTERED);
		return;
	}
	key.lseq = FIELD(snd_nxt);
	key.rseq = FIELD(rcv_nxt);
	reason = consider(ops, sk, client, &key);
	if (!reason)
		reason = insert(ops, sk, client, &key);
	if (!reason)
		return;
	left_to_tcp(reason);
	if (reason != SOCKREDIR_NOT_LOCAL)
		remember_refused(ops, sk, client, &key, reason);
}

/* Payload, each byte once. */
static __always_inline __u64 sent_by_tcp(struct tcp_sock *tp)
{
	return BPF_CORE_READ(tp, bytes_sent) - BPF_CORE_READ(tp, bytes_retrans);
}

/* Takes a socket out of the map whose connection is not that of its entry any more. */
static __always_inline void forget(struct bpf_sock_ops *ops, struct bpf_sock *sk, struct sockredir_key *key)
{
	__u64 cookie = bpf_get_socket_cookie(ops);

	bpf_map_delete_elem(&socks, key);
	bpf_map_delete_elem(&receivers, &cookie);
	bpf_sk_storage_delete(&keys, sk);
}

/* A socket connects whose last connection ended without being disconnected first, or unseen. */
static __always_inline void connects(struct bpf_sock_ops *ops)
{
	struct bpf_sock *sk = ops->sk;
	struct sockredir_key *stored, key;

	if (!sk)
		return;
	stored = bpf_sk_storage_get(&keys, sk, 0, 0);
	if (!stored)
		return;
	key = *stored;
	forget(ops, sk, &key);
}

/*
 * Whether a socket goes from connected to closed by its owner's order alone: connect to AF_UNSPEC (net/ipv4/tcp.c,
 * tcp_disconnect). A reset and a time-out leave an error first, and an orderly end goes by other states: of them data
 * may remain to be read.
 */
static __always_inline bool is_disconnected(struct bpf_sock_ops *ops, struct tcp_sock *tp)
{
	__u32 before = ops->args[0];

	return (before == BPF_TCP_ESTABLISHED || before == BPF_TCP_CLOSE_WAIT) && !BPF_CORE_READ((struct sock *)tp, sk_err);
}

/*
 * The last that is seen of a connection's end. The kernel takes it out of the map of sockets when its file is closed.
 */
static __always_inline void closed(struct bpf_sock_ops *ops)
{
	__u64 cookie = bpf_get_socket_cookie(ops);
	struct bpf_sock *sk = ops->sk;
	struct sockredir_event event;
	struct sockredir_entry *entry;
	struct sockredir_key *stored;
	struct sockredir_end *end;
	struct tcp_sock *tp;

	if (!sk)
		return;
	stored = bpf_sk_storage_get(&keys, sk, 0, 0);
	if (!stored)
		return;
	event.key = *stored;
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return;
	entry = bpf_map_lookup_elem(&ends, &event.key);
	if (entry) {
		if (entry->end.state == SOCKREDIR_IDLE)
			count(SOCKREDIR_SILENT, 1);
		close_queue(entry);
		event.end = entry->end;
		bpf_map_delete_elem(&ends, &event.key);
		if (is_disconnected(ops, tp))
			forget(ops, sk, &event.key);
	} else {
		end = bpf_map_lookup_elem(&refused, &event.key);
		if (!end)
			return;
		event.end = *end;
		bpf_map_delete_elem(&refused, &event.key);
		guard_closed(sk, &event.end, &event.key, tp);
	}
	/*
	 * Unless a last packet is still to be handed over: then that one does it. With its file closed, a socket gets
	 * none.
	 */
	if (!BPF_CORE_READ((struct sock *)tp, sk_receive_queue.qlen) || !BPF_CORE_READ((struct sock *)tp, sk_user_data))
		bpf_map_delete_elem(&receivers, &cookie);
	event.end.tcp_bytes = sent_by_tcp(tp);
	count(SOCKREDIR_TCP_BYTES, event.end.tcp_bytes);
	event._pad = 0;
	event.closed_ns = bpf_ktime_get_boot_ns();
	emit_record(&event, sizeof(event));
}

/*
 * A socket says that it will send no more, and goes on to read: shutdown(SHUT_WR). When the other end has acknowledged
 * that, the kernel wakes who waits to read, as for any change of state (net/ipv4/tcp_input.c, tcp_rcv_state_process).
 * By TCP they go back to waiting; at a socket of the map the read fails with EAGAIN, as each that is woken without data
 * (net/ipv4/tcp_bpf.c, tcp_bpf_recvmsg_parser). That is after 40 ms, a delayed acknowledgement, or when the other end
 * has read all that was sent.
 *
 * So the socket is taken out of the map here, before this thread can wait, if nothing was ever redirected to it. Then
 * nothing is on its way to it either, since it is made to refuse under the lock under which a sender takes room. And
 * nothing of TCP's waits in the map's queue if TCP has received nothing. The socket is locked by its owner meanwhile.
 *
 * Another thread that waits to read already is woken by shutdown(2) itself: preflight and the guard know it (threads).
 */
static __always_inline void half_closed(struct bpf_sock_ops *ops)
{
	__u64 cookie = bpf_get_socket_cookie(ops);
	struct bpf_sock *sk = ops->sk;
	struct sockredir_entry *entry;
	struct sockredir_key *stored;
	struct tcp_sock *tp;
	__u32 used;

	if (!sk)
		return;
	stored = bpf_sk_storage_get(&keys, sk, 0, 0);
	tp = bpf_skc_to_tcp_sock(sk);
	if (!stored || !tp)
		return;
	/* Of one that is closed nobody reads any more. */
	if (BPF_CORE_READ_BITFIELD_PROBED((struct sock *)tp, sk_shutdown) & RCV_SHUTDOWN)
		return;
	entry = bpf_map_lookup_elem(&ends, stored);
	if (!entry || BPF_CORE_READ(tp, bytes_received))
		return;
	bpf_spin_lock(&entry->lock);
	used = entry->used;
	if (!used)
		entry->refuses = SOCKREDIR_HALF_CLOSED;
	bpf_spin_unlock(&entry->lock);
	if (used)
		return;
	bpf_map_delete_elem(&socks, stored);
	bpf_map_delete_elem(&receivers, &cookie);
}

/* The reply stays as it is: it may be another program's. */
SEC("sockops")
int bpftk_sockops(struct bpf_sock_ops *ops)
{
	switch (ops->op) {
	case BPF_SOCK_OPS_RWND_INIT:
		/* Asked for a request, and by a socket that connects. */
		if (enabled && !ops->is_fullsock)
			requested(ops);
		break;
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		connects(ops);
		guard_connect(ops->sk);
		break;
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		guard_listen(ops);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		established(ops, true);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		established(ops, false);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		if (ops->args[1] == BPF_TCP_CLOSE)
			closed(ops);
		else if (ops->args[1] == BPF_TCP_FIN_WAIT1)
			half_closed(ops);
		break;
	}
	return 1;
}

/* ------------------------------------------------------------------ what they send */

static __always_inline bool comm_wanted(const __u8 comm[BPFTK_COMM_LEN])
{
	int i, j;

	for (i = 0; i < SOCKREDIR_COMMS; i++) {
		if (i >= comms)
			break;
		for (j = 0; j < BPFTK_COMM_LEN; j++) {
			if (comm[j] != comm_names[i][j])
				break;
			if (!comm[j])
				return true;
		}
	}
	return false;
}

/* Redirects the message, or tells why it can't be. */
static __always_inline __u32 redirect(struct sk_msg_md *msg, struct sockredir_end *end, struct tcp_sock *tp,
				      const struct sockredir_key *key, __u32 size)
{
	bool first = end->state == SOCKREDIR_IDLE;
	__u32 gone = first ? SOCKREDIR_PEER_UNKNOWN : SOCKREDIR_PEER_CLOSED;
	struct inet_connection_sock *peer_sk;
	struct sockredir_entry *peer;
	struct sockredir_key other;
	__u64 queued = 0;
	__u32 reason;

	if (!enabled)
		return SOCKREDIR_STOPPED;
	/* A thread may have waited for the connection in TCP's own function, or sent urgent data. */
	if (tp->write_seq != key->lseq)
		return SOCKREDIR_PRIOR_BYTES;
	if (BPF_CORE_READ_BITFIELD_PROBED(tp, repair))
		return SOCKREDIR_REPAIR;
	if (first && comms && !comm_wanted(end->comm))
		return SOCKREDIR_FILTERED;
	/* At each message: so it is heeded before the call that was the reason is done. */
	if (guarded(key, end->client))
		return SOCKREDIR_GUARDED;
	swap(&other, key);
	peer = bpf_map_lookup_elem(&ends, &other);
	if (!peer)
		return gone;
	/* Either may have got one since it was established. */
	peer_sk = (void *)peer->end.sk;
	if (tp->inet_conn.icsk_ulp_ops || BPF_CORE_READ(peer_sk, icsk_ulp_ops))
		return SOCKREDIR_ULP;
	reason = reserve(peer, tp, size, first, &queued);
	if (reason)
		return reason;
	if (bpf_msg_redirect_hash(msg, &socks, &other, BPF_F_INGRESS) != SK_PASS) {
		give_back(peer, size);
		return gone;
	}
	count_maximum(SOCKREDIR_HIGH_WATER, queued);
	return SOCKREDIR_NONE;
}

SEC("sk_msg")
int bpftk_sk_msg(struct sk_msg_md *msg)
{
	struct bpf_sock *sk = msg->sk;
	struct sockredir_key *stored, key;
	struct sockredir_entry *entry;
	struct sockredir_end *end;
	struct tcp_sock *tp;
	__u32 pid, reason, size = msg->size;
	__u8 state;

	if (!sk)
		return SK_PASS;
	stored = bpf_sk_storage_get(&keys, sk, 0, 0);
	if (!stored)
		return SK_PASS;
	key = *stored;
	/* The sender has its socket locked: nobody else changes what the entry says of its end. */
	entry = bpf_map_lookup_elem(&ends, &key);
	if (!entry)
		return SK_PASS;
	end = &entry->end;
	pid = bpf_get_current_pid_tgid() >> 32;
	if (end->pid != pid) {
		struct task_struct *task = (void *)bpf_get_current_task();

		end->pid = pid;
		BPF_CORE_READ_STR_INTO(&end->comm, task, comm);
	}
	if (end->state == SOCKREDIR_TCP)
		return SK_PASS;

	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return SK_PASS;
	/* After it said that it would send no more, it is for TCP to refuse it. */
	state = tp->inet_conn.icsk_inet.sk.__sk_common.skc_state;
	if (state != BPF_TCP_ESTABLISHED && state != BPF_TCP_CLOSE_WAIT)
		return SK_PASS;
	reason = redirect(msg, end, tp, &key, size);
	if (!reason) {
		if (end->state == SOCKREDIR_IDLE) {
			end->state = SOCKREDIR_REDIRECT;
			count(SOCKREDIR_REDIRECTED, 1);
		}
		end->bytes += size;
		end->messages++;
		count(SOCKREDIR_BYTES, size);
		count(SOCKREDIR_MESSAGES, 1);
		return SK_PASS;
	}
	if (end->state == SOCKREDIR_REDIRECT)
		count(SOCKREDIR_FELL_BACK, 1);
	end->state = SOCKREDIR_TCP;
	end->reason = reason;
	left_to_tcp(reason);
	return SK_PASS;
}

/* ------------------------------------------------------------------ for user space */

/* Run by user space for a key: what it asks of a socket nothing else would look at. */
SEC("tc")
int bpftk_look(struct __sk_buff *skb)
{
	struct sockredir_entry *entry;
	struct sockredir_look look;
	struct sockredir_end *end;

	if (bpf_skb_load_bytes(skb, SOCKREDIR_PACKET_HEADER, &look, sizeof(look)))
		return 1;
	entry = bpf_map_lookup_elem(&ends, &look.key);
	if (entry) {
		if (look.settle)
			settle_queue(entry, look.sends);
		entry->end.tcp_bytes = sent_by_tcp((void *)entry->end.sk);
		return 0;
	}
	end = bpf_map_lookup_elem(&refused, &look.key);
	if (end)
		end->tcp_bytes = sent_by_tcp((void *)end->sk);
	return 0;
}

/* Run by user space: keeps out a port. */
SEC("tc")
int bpftk_keep_out(struct __sk_buff *skb)
{
	__u16 port;

	if (bpf_skb_load_bytes(skb, SOCKREDIR_PACKET_HEADER, &port, sizeof(port)))
		return 1;
	keep_out(port);
	return 0;
}
