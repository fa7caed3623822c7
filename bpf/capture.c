// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* Capture of HTTP entries: thin probes over the helpers of http1.h, tracecontext.h, decision.h.
 *
 * Cheapest first: is this process a target, what do the first eight bytes say, count, find the
 * trace context, decide; and only for a kept entry whose word has EMIT: reserve, copy, submit.
 */
#include <uapi/linux/ptrace.h>
#include <linux/socket.h>
#include "regs.h"
#include "decision.h"
#include "tracecontext.h"

BPF_TABLE("extern", u32, struct spandial_row, rates, SPANDIAL_ROWS);
BPF_HASH(targets, u32, struct spandial_target, SPANDIAL_ROWS);
BPF_PERCPU_ARRAY(counts, struct spandial_counts, SPANDIAL_ROWS);
BPF_PERCPU_ARRAY(losses, u64, SPANDIAL_LOSS_KINDS);
BPF_PERCPU_ARRAY(heads, struct head, 1);
BPF_RINGBUF_OUTPUT(entries, SPANDIAL_RING_PAGES);

/* The one buffer that a system call of the six read from or wrote to. */
struct message {
	u64 buffer;
	u64 length;
	int received;
};

static __always_inline void count_loss(u32 kind)
{
	u64 *loss = losses.lookup(&kind);

	if (loss)
		*loss += 1;
}

/* The user's struct iovec, of which only the first element is looked at. */
static __always_inline int first_iovec(u64 address, struct message *message)
{
	struct {
		u64 base;
		u64 length;
	} iov;

	if (bpf_probe_read_user(&iov, sizeof(iov), (void *)address))
		return -1;
	message->buffer = iov.base;
	if (iov.length < message->length)
		message->length = iov.length;
	return 0;
}

/* Fill in the message from a system call's registers; length already holds its result. Returns
 * 1 for a message, 0 for another system call, -1 for memory that could not be read. */
static __always_inline int message_of(u64 number, u64 arg1, u64 arg2, u64 arg3, struct message *message)
{
	u64 iov;

	message->received = 0;
	message->buffer = arg1;
	switch (number) {
	case NR_RECVFROM:
		if (arg3 & MSG_PEEK)
			return 0;
		/* fall through */
	case NR_READ:
		message->received = 1;
		/* fall through */
	case NR_WRITE:
	case NR_SENDTO:
		return 1;
	case NR_READV:
		message->received = 1;
		/* fall through */
	case NR_WRITEV:
		return first_iovec(arg1, message) ? -1 : 1;
	case NR_RECVMSG:
		if (arg2 & MSG_PEEK)
			return 0;
		message->received = 1;
		/* fall through */
	case NR_SENDMSG:
		/* struct msghdr of user space: name, namelen, then the iovec pointer at 16 */
		if (bpf_probe_read_user(&iov, sizeof(iov), (void *)(arg1 + 16)))
			return -1;
		return first_iovec(iov, message) ? -1 : 1;
	}
	return 0;
}

static __always_inline void emit(const struct head *head, const struct trace_context *context, u32 parent, u64 word,
				 u32 tgid, u32 row)
{
	struct spandial_entry *entry = entries.ringbuf_reserve(sizeof(*entry));
	u32 length = head->request_line ? head->request_line : head->length;

	if (!entry) {
		count_loss(SPANDIAL_LOSS_RING_FULL);
		return;
	}
	entry->time_ns = bpf_ktime_get_boot_ns();
	entry->trace_id[0] = context->trace_id[0];
	entry->trace_id[1] = context->trace_id[1];
	entry->span_id = context->span_id;
	entry->randomness = context->randomness;
	entry->word = word;
	entry->tgid = tgid;
	entry->row = row;
	entry->kind = SPANDIAL_HTTP;
	entry->parent = parent;
	entry->reserved[0] = entry->reserved[1] = 0;
	entry->length = length < SPANDIAL_REQUEST_MAX ? length : SPANDIAL_REQUEST_MAX;
	/* Constant length: what lies behind entry->length is left of an older head of a target. */
	bpf_probe_read_kernel(entry->request, SPANDIAL_REQUEST_MAX, head->bytes);
	/* Waking the reader would cost more than all the rest: it looks by itself. */
	entries.ringbuf_submit(entry, BPF_RB_NO_WAKEUP);
}

/* The word that the target obeys now; 0 if its row is somebody else's. */
static __always_inline u64 word_of(u32 tgid, const struct spandial_target *target, u32 kind)
{
	u32 row_index = target->row, header_index = SPANDIAL_HEADER_ROW;
	struct spandial_row *row = rates.lookup(&row_index);
	struct spandial_row *header = rates.lookup(&header_index);

	if (!row || !header)
		return 0;
	if (row_index != SPANDIAL_DEFAULT_ROW && row->words[SPANDIAL_WORD_OWNER] != ((u64)target->epoch << 32 | tgid)) {
		count_loss(SPANDIAL_LOSS_STALE_ROW);
		return 0;
	}
	return spandial_choose_word(row->words[kind], row->words[SPANDIAL_WORD_FALLBACK],
				    header->words[SPANDIAL_HEADER_LEASE], bpf_ktime_get_boot_ns());
}

/* Count and decide the request whose first bytes, and if it was received all of them, are in head. */
static __always_inline void on_request(u32 tgid, const struct spandial_target *target, struct head *head, u32 length)
{
	struct trace_context context = {};
	struct spandial_counts *count;
	u32 parent = SPANDIAL_NO_PARENT, row = target->row, kind = SPANDIAL_HTTP;
	struct spandial_row *rates_row = rates.lookup(&row);
	u64 word;

	/* In mode follow a caller's decision stands, whatever the tracestate says. */
	REMEMBER(head->parent_settles, rates_row && !(rates_row->words[kind] & (SPANDIAL_THIN | SPANDIAL_MODE)));
	if (!scan_head(head, length))
		return;
	count = counts.lookup(&row);
	if (!count)
		return;
	if (!RECALL(head->received)) {
		count->sent[kind]++;
		return;
	}
	count->seen[kind]++;
	if (parse_traceparent(head, &context)) {
		count->seen_traced[kind]++;
		parent = context.sampled ? SPANDIAL_REMOTE_KEPT : SPANDIAL_REMOTE_DROPPED;
		parse_randomness(head, &context);
	} else {
		context.trace_id[0] = context.trace_id[1] = context.span_id = 0;
		context.randomness = (u64)bpf_get_prandom_u32() << 24 ^ bpf_get_prandom_u32();
		context.randomness &= 0x00ffffffffffffffULL;
	}
	word = word_of(tgid, target, kind);
	if (!spandial_decide(word, context.randomness, parent))
		return;
	count->kept[kind]++;
	if (parent)
		count->kept_traced[kind]++;
	if (word & SPANDIAL_EMIT)
		emit(head, &context, parent, word, tgid, row);
}

/* Read the first bytes of a message, at most HEAD_MAX, into head. Returns 0 if they could be read. */
static __always_inline int read_head(struct head *head, u32 length, u64 buffer)
{
	asm volatile("%0 &= 0x7ff" : "+r"(length)); /* what clang proved, said to the verifier */
	if (length > HEAD_MAX)
		return -1;
	return bpf_probe_read_user(head->bytes, length, (void *)buffer);
}

/* regs: readable as they are; result: what the system call returned. */
static __always_inline int on_syscall(const struct pt_regs *regs, s64 result, u32 tgid,
				      const struct spandial_target *target)
{
	struct message message = {.length = result};
	u32 zero = 0, length;
	struct head *head = heads.lookup(&zero);
	int known =
	    message_of(SYSCALL_NUMBER(regs), SYSCALL_ARG1(regs), SYSCALL_ARG2(regs), SYSCALL_ARG3(regs), &message);

	if (known < 0)
		goto unreadable;
	if (!head || !known || message.length < 8)
		return 0;
	length = message.length < HEAD_MAX ? message.length : HEAD_MAX;
	REMEMBER(head->received, message.received);
	/* What a server receives mostly is a request, and is read at once; what it sends mostly is none. */
	if (read_head(head, message.received ? length : 8, message.buffer))
		goto unreadable;
	if (!starts_with_method(load8(head, 0)))
		return 0;
	if (!RECALL(head->received) && read_head(head, length, message.buffer))
		goto unreadable;
	on_request(tgid, target, head, length);
	return 0;
unreadable:
	count_loss(SPANDIAL_LOSS_UNREADABLE);
	return 0;
}

/* sock_send_length, sock_recv_length (sk, ret, flags), Linux 6.3 (commit 6e6eda44b939): once for
 * every socket operation, after the data is in the user's buffer. */
int on_socket(struct bpf_raw_tracepoint_args *ctx)
{
	s64 result = (s32)ctx->args[1];
	const struct spandial_target *target;
	u32 tgid;

	/* The cheapest test first: half the receives of a busy server find nothing (EAGAIN). */
	if (result < 8 || (ctx->args[2] & MSG_PEEK))
		return 0;
	tgid = bpf_get_current_pid_tgid() >> 32;
	target = targets.lookup(&tgid);
	if (!target)
		return 0;
	/* A pointer that the verifier knows and lets be read (Linux 5.15, commit dd6e10fbd9fb). */
	return on_syscall((const struct pt_regs *)bpf_task_pt_regs(bpf_get_current_task_btf()), result, tgid, target);
}

/* sys_exit (regs, ret), Linux 4.17: the same for kernels without the two above. It cannot tell a
 * socket from a file. */
int on_sys_exit(struct bpf_raw_tracepoint_args *ctx)
{
	s64 result = ctx->args[1];
	const struct spandial_target *target;
	struct pt_regs regs;
	u32 tgid;

	if (result < 8)
		return 0;
	tgid = bpf_get_current_pid_tgid() >> 32;
	target = targets.lookup(&tgid);
	if (!target)
		return 0;
	bpf_probe_read_kernel(&regs, sizeof(regs), (void *)ctx->args[0]);
	return on_syscall(&regs, result, tgid, target);
}
