/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Redis: what a client sends, arrays of bulk strings or inline commands ("Redis serialization protocol
 * specification", "Sending commands to a Redis server"). One operation is one command. */
#ifndef SPANDIAL_REDIS_H
#define SPANDIAL_REDIS_H

#include "protocols/statements.h"

#define REDIS_LINE_MAX 15 /* bytes looked at to find the end of a line: "*1048576" is shorter */

#define REDIS_BURST 2 /* lines that one callback takes */

enum redis_inside { REDIS_COMMAND = 1, REDIS_INLINE = 2 };

/* Whether a message begins with an array's head and a bulk string, judged by its first eight bytes. */
static __always_inline int is_redis(u64 first)
{
	u32 digit = (first >> 8 & 0xff) - '0', second = (first >> 16 & 0xff) - '0';

	if ((first & 0xff) != '*' || digit > 9)
		return 0;
	if ((first >> 16 & 0xffffff) == ('\r' | '\n' << 8 | '$' << 16))
		return digit != 0;
	return second <= 9 && (first >> 24 & 0xffffff) == ('\r' | '\n' << 8 | '$' << 16);
}

/* The number behind a line's first byte; -1: none. `end` is where the line feed is. */
static __always_inline s64 redis_number(const struct walk *walk, u32 end)
{
	s64 number = 0;
	int i;

	if (end < 3 || walk->at.header[(end - 1) & 0xf] != '\r')
		return -1;
#pragma unroll
	for (i = 1; i < REDIS_LINE_MAX - 1; i++) {
		u32 digit = walk->at.header[i] - '0';

		if (i + 1 >= (int)end)
			break;
		if (digit > 9)
			return -1;
		number = number * 10 + digit;
	}
	return number;
}

static __always_inline void begin_redis_command(struct walk *walk, u32 inside, u32 bytes)
{
	walk->at.decided = UNDECIDED;
	decide_operation(walk);
	count_operation(walk);
	walk->at.inside = inside;
	if (wanted(walk))
		begin_capture(walk, 0, bytes, CAPTURE_MAX);
}

static __always_inline void end_redis_command(struct walk *walk)
{
	end_operation(walk);
	walk->at.inside = 0;
}

/* A line ends at header[end], or goes on behind the header. Returns -1 where it makes no sense. */
static __always_inline int on_redis_line(struct walk *walk, u32 end, u32 have)
{
	u32 type = walk->at.header[0];
	s64 number;

	if (walk->at.inside != REDIS_COMMAND && (walk->at.inside == REDIS_INLINE || type != '*')) {
		if (!walk->at.inside && type != '\r' && type != '\n') {
			if (type < 'A' || type > 'z')
				return -1;
			begin_redis_command(walk, REDIS_INLINE, have);
		}
		if (end < have && walk->at.inside)
			end_redis_command(walk);
		return 0;
	}
	if (end >= have)
		return -1;
	number = redis_number(walk, end);
	if (number < 0 || number > 1 << 30)
		return -1;
	if (!walk->at.inside) {
		walk->at.elements = number;
		if (number)
			begin_redis_command(walk, REDIS_COMMAND, end + 1);
		return 0;
	}
	if (type != '$')
		return -1;
	walk->at.elements--;
	walk->at.skip = number + 2;
	return 1;
}

/* Put the next bytes of the current chunk behind those that the header has. Lines are short and many: they are read
 * by the window. */
static __always_inline int read_line(struct walk *walk, u32 had, u32 bytes)
{
	u64 offset = walk->buffer - walk->window_at;

	if (had)
		return bpf_probe_read_user(walk->at.header + had, bytes, (void *)walk->buffer);
	if (offset + bytes > walk->window_length) {
		u32 length = walk->left < WINDOW_MAX ? walk->left : WINDOW_MAX;

		asm volatile("%0 &= 0x1ff" : "+r"(length));
		if (bpf_probe_read_user(walk->window, length, (void *)walk->buffer))
			return -1;
		walk->window_at = walk->buffer;
		walk->window_length = length;
		offset = 0;
	}
	asm volatile("%0 &= 0xff" : "+r"(offset));
	__builtin_memcpy(walk->at.header, walk->window + offset, HEADER_MAX);
	return 0;
}

static __always_inline int redis_line(struct walk *walk)
{
	u32 had, have, end, bytes;
	u64 ends;

	switch (proceed(walk)) {
	case AT_END:
		return 1;
	case ON_THE_WAY:
		break;
	case AT_HEADER:
		had = walk->at.have & 0xf;
		bytes = walk->left < REDIS_LINE_MAX - had ? walk->left : REDIS_LINE_MAX - had;
		asm volatile("%0 &= 0xf" : "+r"(bytes));
		if (read_line(walk, had, bytes))
			goto broken;
		have = had + bytes;
		ends = bytes_equal(*(u64 *)walk->at.header, '\n');
		end = 8 + first_byte(bytes_equal(*(u64 *)(walk->at.header + 8), '\n') | 1ULL << 63);
		if (ends)
			end = first_byte(ends);
		if (end >= have && have < REDIS_LINE_MAX && walk->at.inside != REDIS_INLINE) {
			/* The rest comes with the next chunk. */
			advance(walk, bytes);
			walk->at.have = have;
			return 0;
		}
		if (end < have)
			bytes = end + 1 - had;
		walk->at.have = 0;
		advance(walk, bytes);
		switch (on_redis_line(walk, end, have)) {
		case -1:
			goto broken;
		case 0:
			return 0;
		}
		if (walk->at.capturing) {
			if (walk->at.captured + HEADER_MAX <= CAPTURE_MAX) {
				u32 captured = walk->at.captured;

				asm volatile("%0 &= 0x3ff" : "+r"(captured));
				__builtin_memcpy(walk->record.request + captured, walk->at.header, HEADER_MAX);
				walk->at.captured = captured + end + 1;
			} else {
				walk->at.cut = 1;
			}
		} else if (walk->at.skip <= walk->left) {
			advance(walk, walk->at.skip);
			walk->at.skip = 0;
		}
	}
	if (!walk->at.skip && walk->at.inside == REDIS_COMMAND && !walk->at.elements)
		end_redis_command(walk);
	return 0;
broken:
	walk->broken = 1;
	return 1;
}

static __always_inline int redis_step(void)
{
	struct walk *walk = this_walk();
	int i;

	if (!walk)
		return 1;
#pragma unroll
	for (i = 0; i < REDIS_BURST; i++) {
		if (redis_line(walk))
			return 1;
	}
	return 0;
}

int step_redis(void *index)
{
	return redis_step();
}

#endif
