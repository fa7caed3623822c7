// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* Capture: thin probes over the protocols' headers.
 *
 * Cheapest first: is this process a target, has it a connection that is followed, is this one, what do
 * the first eight bytes say. An HTTP/1 request needs no memory of its connection; every other protocol
 * does. Then count, find the trace context, decide; and only for a kept entry whose word has EMIT: copy,
 * submit.
 */
#include <uapi/linux/ptrace.h>
#include <linux/fcntl.h>
#include <linux/socket.h>
#include "requests/dispatch.h"

#ifndef SPANDIAL_TLS
/* regs: readable as they are; result: what the system call returned. */
static __always_inline int on_syscall(const struct pt_regs *regs, s64 result, u32 tgid, struct spandial_target *target,
				      connection_key key, enum direction direction)
{
	struct message message = {.length = result, .total = result};
	int known =
	    message_of(SYSCALL_NUMBER(regs), SYSCALL_ARG1(regs), SYSCALL_ARG2(regs), SYSCALL_ARG3(regs), &message);

	if (known < 0)
		count_loss(SPANDIAL_LOSS_UNREADABLE);
	if (direction != EITHER)
		message.received = direction;
	return known > 0 ? on_message(&message, tgid, target, key, direction) : 0;
}
#endif

#if defined(SPANDIAL_TLS)
/* SSL_read, SSL_write (ssl, buffer, length), SSL_read_ex and SSL_write_ex (ssl, buffer, length, where to
 * put the number of bytes) begin: what they are about is in registers, and no longer there at their end. */
static __always_inline int on_tls_begin(struct pt_regs *ctx, u32 function)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct thread *thread;
	struct tls_call *call;

	if (!targets.lookup(&tgid))
		return 0;
	thread = threads.task_storage_get(bpf_get_current_task_btf(), 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!thread) {
		count_loss(SPANDIAL_LOSS_NO_MEMORY);
		return 0;
	}
	call = beginning_call(thread, CALL_STACK(ctx));
	call->ssl = CALL_ARG0(ctx);
	call->buffer = CALL_ARG1(ctx);
	call->bytes = CALL_ARG3(ctx);
	call->stack = CALL_STACK(ctx);
	call->function = function;
	return 0;
}

int on_tls_read(struct pt_regs *ctx)
{
	return on_tls_begin(ctx, TLS_READ);
}

int on_tls_read_ex(struct pt_regs *ctx)
{
	return on_tls_begin(ctx, TLS_READ_EX);
}

int on_tls_write(struct pt_regs *ctx)
{
	return on_tls_begin(ctx, TLS_WRITE);
}

int on_tls_write_ex(struct pt_regs *ctx)
{
	return on_tls_begin(ctx, TLS_WRITE_EX);
}

/* One of the four returns: a number of bytes, or 1. */
int on_tls_return(struct pt_regs *ctx)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct spandial_target *target = targets.lookup(&tgid);
	struct message message = {};
	connection_key key = {.tgid = tgid};
	struct thread *thread;
	struct tls_call *call;
	s32 result = CALL_RESULT(ctx);

	if (!target)
		return 0;
	thread = threads.task_storage_get(bpf_get_current_task_btf(), 0, 0);
	call = thread ? returning_call(thread, CALL_STACK(ctx) - CALL_RETURN_POPS) : 0;
	if (!call)
		return 0;
	key.ssl = call->ssl;
	call->ssl = 0;
	if (result <= 0)
		return 0;
	message.total = result;
	if ((call->function == TLS_READ_EX || call->function == TLS_WRITE_EX) &&
	    bpf_probe_read_user(&message.total, sizeof(message.total), (void *)call->bytes)) {
		count_loss(SPANDIAL_LOSS_UNREADABLE);
		return 0;
	}
	message.buffer = call->buffer;
	message.length = message.total;
	message.received = call->function <= TLS_READ_EX;
	if (!message.total || (message.total < 8 && !target->follows))
		return 0;
	return on_message(&message, tgid, target, key, EITHER);
}

/* SSL_free, SSL_clear (ssl): an SSL object of the same address may be another connection's. */
int on_tls_end(struct pt_regs *ctx)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct spandial_target *target = targets.lookup(&tgid);
	connection_key key = {.tgid = tgid, .ssl = CALL_ARG0(ctx)};

	if (!target || !target->follows)
		return 0;
	on_end(target, key, tgid);
	connections.delete(&key);
	return 0;
}
#elif defined(SPANDIAL_SYS_EXIT)
/* sys_exit (regs, ret): for kernels without the tracepoints below, from Linux 5.17 on (bpf_loop). It
 * cannot tell a socket from a file. */
int on_sys_exit(struct bpf_raw_tracepoint_args *ctx)
{
	s64 result = ctx->args[1];
	struct spandial_target *target;
	struct pt_regs regs;
	u64 key;
	u32 tgid;

	if (result < 0)
		return 0;
	tgid = bpf_get_current_pid_tgid() >> 32;
	target = targets.lookup(&tgid);
	if (!target)
		return 0;
	if (result < 8 && result && !target->follows)
		return 0;
	bpf_probe_read_kernel(&regs, sizeof(regs), (void *)ctx->args[0]);
	key = (u64)tgid << 32 | (u32)SYSCALL_ARG0(&regs);
	if (!result) {
		on_end(target, key, tgid);
		if (SYSCALL_NUMBER(&regs) == NR_CLOSE)
			connections.delete(&key);
		return 0;
	}
	return on_syscall(&regs, result, tgid, target, key, EITHER);
}
#else
/* sock_send_length, sock_recv_length (sk, ret, flags), Linux 6.3 (commit 6e6eda44b939): once for
 * every socket operation, after the data is in the user's buffer. As BTF-typed tracepoints, whose
 * arguments the verifier knows: a socket that may have storage (Linux 5.11, commit 8e4597c627fb). */
static __always_inline int on_socket(u64 *ctx, enum direction direction)
{
	s64 result = (s32)ctx[1];
	struct spandial_target *target;
	u32 tgid;

	/* The cheapest test first: half the receives of a busy server find nothing (EAGAIN). */
	if (result < 0 || (ctx[2] & MSG_PEEK))
		return 0;
	tgid = bpf_get_current_pid_tgid() >> 32;
	target = targets.lookup(&tgid);
	if (!target)
		return 0;
	if (!result) {
		if (direction == RECEIVED)
			on_end(target, (struct sock *)ctx[0], tgid);
		return 0;
	}
	if (result < 8 && !target->follows)
		return 0;
	/* A pointer that the verifier knows and lets be read (Linux 5.15, commit dd6e10fbd9fb). */
	return on_syscall((const struct pt_regs *)bpf_task_pt_regs(bpf_get_current_task_btf()), result, tgid, target,
			  (struct sock *)ctx[0], direction);
}

int on_receive(u64 *ctx)
{
	return on_socket(ctx, RECEIVED);
}

int on_send(u64 *ctx)
{
	return on_socket(ctx, SENT);
}
#endif
