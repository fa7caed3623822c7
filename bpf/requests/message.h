/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* What a system call read or wrote: where its bytes are, and which way they went. */
#ifndef SPANDIAL_MESSAGE_H
#define SPANDIAL_MESSAGE_H

#include "core/regs.h"
#include "core/state.h"

/* What a system call of the six read or wrote: its first buffer, and where the others are. */
struct message {
	u64 buffer;
	u64 length; /* of the first buffer */
	u64 total;
	u64 iovec;
	u32 iovecs; /* behind the first */
	int received;
};

/* The first of the user's struct iovec; bytes that it does not have are in those behind it. */
static __always_inline int first_iovec(u64 address, u64 count, struct message *message)
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
	message->iovec = address + sizeof(iov);
	message->iovecs = count - 1;
	return 0;
}

/* Fill in the message from a system call's registers; length already holds its result. Returns
 * 1 for a message, 0 for another system call, -1 for memory that could not be read. */
static __always_inline int message_of(u64 number, u64 arg1, u64 arg2, u64 arg3, struct message *message)
{
	struct {
		u64 iovec;
		u64 count;
	} header;

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
		return first_iovec(arg1, arg2, message) ? -1 : 1;
	case NR_RECVMSG:
		if (arg2 & MSG_PEEK)
			return 0;
		message->received = 1;
		/* fall through */
	case NR_SENDMSG:
		/* struct msghdr of user space: name, namelen, then the iovecs and their number at 16 */
		if (bpf_probe_read_user(&header, sizeof(header), (void *)(arg1 + 16)))
			return -1;
		return first_iovec(header.iovec, header.count, message) ? -1 : 1;
	}
	return 0;
}

/* Read the first bytes of a message, at most HEAD_MAX, into head. Returns 0 if they could be read. */
static __always_inline int read_head(struct head *head, u32 length, u64 buffer)
{
	asm volatile("%0 &= 0x7ff" : "+r"(length)); /* what clang proved, said to the verifier */
	if (length > HEAD_MAX)
		return -1;
	return bpf_probe_read_user(head->bytes, length, (void *)buffer);
}

/* Which way a message went. A program for one way alone is shorter, for the verifier and for the caches. */
enum direction { SENT = 0, RECEIVED = 1, EITHER = 2 };

#define DIRECTION(head) (direction == EITHER ? RECALL((head)->received) : direction)

#endif
