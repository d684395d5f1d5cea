/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */

/*
 * Refuses, in one network namespace, the socket options by which packets leave past tc. A bump in the way of who would get around a
 * block, and no wall: 32-bit programs' calls never come here, and who has such a socket already keeps it.
 */

#include "common.bpf.h"

#include "bypass.h"

#define SOL_PACKET 263
#define PACKET_QDISC_BYPASS 20
#define SOL_XDP 283
#define XDP_TX_RING 3
/* include/linux/socket.h */
#define AF_PACKET 17
#define AF_XDP 44

/* The namespace, by the kernel's cookie or by its inode number. */
const volatile __u64 netns_cookie;
const volatile __u32 netns_inode;

/* For the skeleton, which learns of a type only from a variable. */
struct bypass_record _bypass_record;

static __always_inline bool goes_past_tc(struct bpf_sockopt *ctx)
{
	int *value = ctx->optval;

	/* Anybody may ask any socket for it; only of these is it more than an error. They take CAP_NET_RAW to make. */
	if (ctx->level == SOL_XDP)
		return ctx->optname == XDP_TX_RING && ctx->sk->family == AF_XDP;
	if (ctx->level != SOL_PACKET || ctx->optname != PACKET_QDISC_BYPASS || ctx->sk->family != AF_PACKET)
		return false;
	/* To turn it off harms nobody. */
	return (void *)(value + 1) > ctx->optval_end || *value;
}

static __always_inline int refused(struct bpf_sockopt *ctx, struct bypass_record *record)
{
	record->time_ns = bpf_ktime_get_boot_ns();
	record->level = ctx->level;
	emit_record(record, sizeof(*record));
	return 0;
}

/* The least page: the kernel shows no more of a value than a page. */
#define PAGE 4096

/*
 * A value that is longer than a page would be an error, and with 0 stays as the process has it. All others are left alone: another
 * program may have changed one, or have dealt with the call itself (-1).
 */
static __always_inline int allowed(struct bpf_sockopt *ctx)
{
	if (ctx->optlen > PAGE)
		ctx->optlen = 0;
	return 1;
}

/* Linux 5.15: by the socket's namespace. */
SEC("cgroup/setsockopt")
int bpftk_bypass(struct bpf_sockopt *ctx)
{
	struct bypass_record record = {};

	if (!goes_past_tc(ctx) || bpf_get_netns_cookie(ctx) != netns_cookie)
		return allowed(ctx);
	record.tgid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(record.comm, sizeof(record.comm));
	return refused(ctx, &record);
}

/* Before: by the caller's, which nearly always is the same; who that is can't be asked for by helpers either. */
SEC("cgroup/setsockopt")
int bpftk_bypass_by(struct bpf_sockopt *ctx)
{
	struct bypass_record record = {};
	struct task_struct *task;

	if (!goes_past_tc(ctx))
		return allowed(ctx);
	task = (void *)bpf_get_current_task();
	if (BPF_CORE_READ(task, nsproxy, net_ns, ns.inum) != netns_inode)
		return allowed(ctx);
	record.tgid = BPF_CORE_READ(task, tgid);
	bpf_core_read(record.comm, sizeof(record.comm), &task->comm);
	return refused(ctx, &record);
}
