/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* System call numbers, and the arguments of system calls and functions in registers, per architecture. */
#ifndef SPANDIAL_REGS_H
#define SPANDIAL_REGS_H

#if defined(__x86_64__) || defined(__TARGET_ARCH_x86)
#define SYSCALL_NUMBER(regs) ((regs)->orig_ax)
#define SYSCALL_ARG0(regs) ((regs)->di)
#define SYSCALL_ARG1(regs) ((regs)->si)
#define SYSCALL_ARG2(regs) ((regs)->dx)
#define SYSCALL_ARG3(regs) ((regs)->r10)
/* A function's arguments when it begins, its result and the stack pointer when it returns. */
#define CALL_ARG0(regs) ((regs)->di)
#define CALL_ARG1(regs) ((regs)->si)
#define CALL_ARG3(regs) ((regs)->cx)
#define CALL_RESULT(regs) ((regs)->ax)
#define CALL_STACK(regs) ((regs)->sp)
#define CALL_RETURN_POPS 8 /* the return address */
#define NR_READ 0
#define NR_WRITE 1
#define NR_CLOSE 3
#define NR_READV 19
#define NR_WRITEV 20
#define NR_SENDTO 44
#define NR_RECVFROM 45
#define NR_SENDMSG 46
#define NR_RECVMSG 47
#elif defined(__aarch64__) || defined(__TARGET_ARCH_arm64)
/* Written from arch/arm64/include/asm/ptrace.h and include/uapi/asm-generic/unistd.h; untested.
 * At sys_exit regs[0] already holds the result; the first argument is kept beside it. */
#define SYSCALL_NUMBER(regs) ((regs)->syscallno)
#define SYSCALL_ARG0(regs) ((regs)->orig_x0)
#define SYSCALL_ARG1(regs) ((regs)->regs[1])
#define SYSCALL_ARG2(regs) ((regs)->regs[2])
#define SYSCALL_ARG3(regs) ((regs)->regs[3])
#define CALL_ARG0(regs) ((regs)->regs[0])
#define CALL_ARG1(regs) ((regs)->regs[1])
#define CALL_ARG3(regs) ((regs)->regs[3])
#define CALL_RESULT(regs) ((regs)->regs[0])
#define CALL_STACK(regs) ((regs)->sp)
#define CALL_RETURN_POPS 0
#define NR_READ 63
#define NR_WRITE 64
#define NR_CLOSE 57
#define NR_READV 65
#define NR_WRITEV 66
#define NR_SENDTO 206
#define NR_RECVFROM 207
#define NR_SENDMSG 211
#define NR_RECVMSG 212
#else
#error "spandial captures on x86-64 and arm64 only"
#endif

#endif
