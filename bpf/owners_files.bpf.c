/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */

/* Who owns a socket, by asking: every open file of every process that is one. */

#include "owners.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct owner_record _owner_record;

/* Not every header has it by its own name. */
struct bpf_iter__task_file___any {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	__u32 fd;
	struct file *file;
} __attribute__((preserve_access_index));

/*
 * The kernel numbers a socket when somebody first asks for its cookie. Where a program of this kind may ask, it does:
 * so every socket that exists is known before it sends. The helper came to these programs with Linux 5.12, which has
 * check_mtu as its own first new helper. Before, a socket is known by a later round, when its first packet was asked for.
 */
SEC("iter/task_file")
int bpftk_files(struct bpf_iter__task_file___any *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct owner_record record = {};
	struct socket *sock;

	if (!task || !file)
		return 0;
	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_check_mtu)) {
		struct sock *sk;

		sock = bpf_sock_from_file(file);
		if (!sock)
			return 0;
		sk = sock->sk;
		if (!sk || !sends_packets(sk))
			return 0;
		record.cookie = bpf_get_socket_cookie(sk);
	} else {
		struct sock *sk;

		/* A socket points back from the file's private data. */
		sock = BPF_CORE_READ(file, private_data);
		if (!sock || BPF_CORE_READ(sock, file) != file)
			return 0;
		sk = BPF_CORE_READ(sock, sk);
		if (!sk || !sends_packets(sk))
			return 0;
		record.cookie = cookie_so_far(sk);
	}
	if (!record.cookie)
		return 0;
	record.claim = OWNER_HOLDS;
	set_process(&record, task);
	bpf_seq_write(ctx->meta->seq, &record, sizeof(record));
	return 0;
}
