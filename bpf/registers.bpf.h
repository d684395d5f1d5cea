/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_REGISTERS_BPF_H
#define BPFTK_REGISTERS_BPF_H

/* What the current task asked the kernel for, by its registers. */

#include "common.bpf.h"

/* The registers with which the current task entered the kernel. */
static __always_inline struct pt_regs *user_registers(void)
{
	struct task_struct *current = (void *)bpf_get_current_task();

	/* Linux 5.15 */
	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_task_pt_regs))
		return (void *)bpf_task_pt_regs(bpf_get_current_task_btf());
	/* arch/.../include/asm/processor.h, task_pt_regs, for 4 KiB pages: the caller checks the result. */
	return BPF_CORE_READ(current, stack) + 16384 - bpf_core_type_size(struct pt_regs);
}

static __always_inline int number_in(struct pt_regs *regs)
{
#if defined(__TARGET_ARCH_arm64)
	return BPF_CORE_READ(regs, syscallno);
#else
	return BPF_CORE_READ(regs, orig_ax);
#endif
}

#endif
