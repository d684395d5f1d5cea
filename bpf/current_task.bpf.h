/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef BPFTK_CURRENT_TASK_BPF_H
#define BPFTK_CURRENT_TASK_BPF_H

/*
 * What is read of the current task at every system call, by loads: since Linux 5.15 the kernel gives its address with
 * its type. A call that reads takes some ten times as long; older kernels need it.
 */

#include "common.bpf.h"

static __always_inline bool tasks_have_types(void)
{
	return bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_task_pt_regs);
}

#define READ_OF_TASK(first, ...)                                                                                     \
	(tasks_have_types() ? OF_TYPED_TASK(first, ##__VA_ARGS__) :                                                  \
			      BPF_CORE_READ((struct task_struct *)bpf_get_current_task(), first, ##__VA_ARGS__))
#define OF_TYPED_TASK(...) ___apply(OF_TYPED_TASK, ___narg(__VA_ARGS__))(__VA_ARGS__)
#define OF_TYPED_TASK1(a) (bpf_get_current_task_btf()->a)
#define OF_TYPED_TASK2(a, b) (bpf_get_current_task_btf()->a->b)
#define OF_TYPED_TASK3(a, b, c) (bpf_get_current_task_btf()->a->b->c)

/*
 * An argument of the system call that the current task is at, by its registers. They
 * are at the same place for whoever is told of the call.
 */
#define READ_OF_REGISTERS(regs, member)                                                                              \
	(tasks_have_types() ? ((struct pt_regs *)bpf_task_pt_regs(bpf_get_current_task_btf()))->member :             \
			      BPF_CORE_READ(regs, member))

#if defined(__TARGET_ARCH_arm64)
#define ARGUMENT1(regs) READ_OF_REGISTERS(regs, orig_x0)
#define ARGUMENT2(regs) READ_OF_REGISTERS(regs, regs[1])
#define ARGUMENT3(regs) READ_OF_REGISTERS(regs, regs[2])
#define ARGUMENT4(regs) READ_OF_REGISTERS(regs, regs[3])
#define ARGUMENT5(regs) READ_OF_REGISTERS(regs, regs[4])
#else
#define ARGUMENT1(regs) READ_OF_REGISTERS(regs, di)
#define ARGUMENT2(regs) READ_OF_REGISTERS(regs, si)
#define ARGUMENT3(regs) READ_OF_REGISTERS(regs, dx)
#define ARGUMENT4(regs) READ_OF_REGISTERS(regs, r10)
#define ARGUMENT5(regs) READ_OF_REGISTERS(regs, r8)
#endif

#endif
