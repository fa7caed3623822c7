/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* A connection's bytes as the stream that they are: messages of a protocol begin and end anywhere in
 * what a system call reads or writes, and in the buffers that it names.
 *
 * A walk takes one step after the other, each a call of the protocol's step function: a header, or a
 * part of a message that is passed over, or the next buffer.
 */
#ifndef SPANDIAL_STREAM_H
#define SPANDIAL_STREAM_H

#include "core/state.h"

#define WALK_STEPS (1 << 16) /* more than one system call's messages, but for an attack */

static __always_inline void advance(struct walk *walk, __u32 bytes)
{
	walk->buffer += bytes;
	walk->left -= bytes;
}

/* Go on to the next buffer of the system call. Returns 0 where there is none. */
static __always_inline int next_chunk(struct walk *walk)
{
	struct {
		__u64 base;
		__u64 length;
	} iov;

	if (!walk->iovecs || !walk->total)
		return 0;
	if (bpf_probe_read_user(&iov, sizeof(iov), (void *)walk->iovec)) {
		walk->broken = 1;
		return 0;
	}
	walk->iovecs--;
	walk->iovec += sizeof(iov);
	walk->buffer = iov.base;
	walk->left = iov.length < walk->total ? iov.length : walk->total;
	walk->total -= walk->left;
	return 1;
}

/* Append bytes of the current chunk to what is captured, as far as there is room. */
static __always_inline void capture(struct walk *walk, __u32 bytes)
{
	__u32 captured = walk->at.captured;
	__u32 room = captured < walk->at.capturing ? walk->at.capturing - captured : 0;

	if (bytes > room) {
		bytes = room;
		walk->at.cut = 1;
	}
	if (!bytes)
		return;
	asm volatile("%0 &= 0x3ff" : "+r"(captured));
	asm volatile("%0 &= 0x3ff" : "+r"(bytes));
	if (bpf_probe_read_user(walk->record.request + captured, bytes, (void *)walk->buffer)) {
		walk->broken = 1;
		return;
	}
	walk->at.captured = captured + bytes;
}

/* Capture the message whose header has just been taken: so many bytes of it, from `first` on. */
static __always_inline void begin_capture(struct walk *walk, __u32 first, __u32 bytes, __u32 most)
{
	walk->at.capturing = most;
	walk->at.cut = 0;
	walk->at.captured = bytes;
	__builtin_memcpy(walk->record.request, walk->at.header + first, HEADER_MAX);
}

/* What a step does before it looks at a header. */
enum progress { AT_HEADER, ON_THE_WAY, AT_END };

static __always_inline void pass(struct walk *walk)
{
	__u64 skip = walk->at.skip;

	if (skip > walk->left)
		skip = walk->left;
	if (walk->at.capturing)
		capture(walk, skip);
	advance(walk, skip);
	walk->at.skip -= skip;
}

static __always_inline enum progress proceed(struct walk *walk)
{
	if (walk->broken)
		return AT_END;
	if (!walk->left)
		return next_chunk(walk) ? ON_THE_WAY : AT_END;
	if (!walk->at.skip)
		return AT_HEADER;
	pass(walk);
	return ON_THE_WAY;
}

/* Whether the header has this many bytes now; takes what the current chunk has of them. */
static __always_inline int take_header(struct walk *walk, __u32 wanted)
{
	__u32 have = walk->at.have, bytes = wanted - have;

	if (bytes > walk->left)
		bytes = walk->left;
	asm volatile("%0 &= 0xf" : "+r"(have));
	asm volatile("%0 &= 0xf" : "+r"(bytes));
	if (bytes && bpf_probe_read_user(walk->at.header + have, bytes, (void *)walk->buffer)) {
		walk->broken = 1;
		return 0;
	}
	advance(walk, bytes);
	walk->at.have = have + bytes;
	return have + bytes == wanted;
}

static __always_inline __u32 big_endian(const __u8 *bytes)
{
	return (__u32)bytes[0] << 24 | bytes[1] << 16 | bytes[2] << 8 | bytes[3];
}

#endif
