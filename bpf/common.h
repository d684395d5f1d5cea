/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_COMMON_H
#define BPFTK_COMMON_H

/* What user space and every program agree on. Names: include/linux/sched.h for TASK_COMM_LEN. */

#define BPFTK_COMM_LEN 16

/* Some 8 000 records: half a second at 16 000 events a second with the reader stopped. */
#define BPFTK_RING_BYTES (1024 * 1024)

/* The first word of a record that shares its ring buffer with others. */
enum bpftk_record {
	BPFTK_RECORD_EVENT = 1,
	BPFTK_RECORD_DNS = 2,
	BPFTK_RECORD_OPENING = 3,
	BPFTK_RECORD_QUESTION = 4,
};

enum bpftk_loss {
	/* The ring buffer was full: one record, one row, is missing. */
	BPFTK_LOSS_RING_FULL,
	/* The table of what is under way was full: one row is missing. */
	BPFTK_LOSS_TABLE_FULL,
	/* A piece of a question or an answer did not fit in its ring buffer: a name may be missing, no row is. */
	BPFTK_LOSS_DNS,
	/* The kernel did not run the hook at a call's end: the call is known, its result is not. */
	BPFTK_LOSS_MISSED_RETURN,
	/* Not lost: what ended without having been followed, since its beginning was not seen. */
	BPFTK_LOSS_UNSEEN,
	BPFTK_LOSSES,
};

#endif
