/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* HTTP/1.x: is this the start of a request, and where in its head are the trace context headers? */
#ifndef SPANDIAL_HTTP1_H
#define SPANDIAL_HTTP1_H

#include "core/bytes.h"
#include "core/loop.h"
#include "core/state.h"

#define SCAN_STEPS 256 /* 8 bytes each, plus one for every line: enough for 128 lines */
#define SCAN_BURST 64  /* steps that one callback takes: a call costs as much as some of them */

/* Whether eight bytes begin with a method and its space (RFC 9110, section 9.3, and PATCH). */
static __always_inline int starts_with_method(__u64 first)
{
	__u32 four = first;

	switch (four) {
	case CHARS4('G', 'E', 'T', ' '):
	case CHARS4('P', 'U', 'T', ' '):
		return 1;
	case CHARS4('P', 'O', 'S', 'T'):
	case CHARS4('H', 'E', 'A', 'D'):
		return (first >> 32 & 0xff) == ' ';
	case CHARS4('P', 'A', 'T', 'C'):
		return (first >> 32 & 0xffff) == ('H' | ' ' << 8);
	case CHARS4('T', 'R', 'A', 'C'):
		return (first >> 32 & 0xffff) == ('E' | ' ' << 8);
	case CHARS4('D', 'E', 'L', 'E'):
		return (first >> 32 & 0xffffff) == ('T' | 'E' << 8 | ' ' << 16);
	case CHARS4('O', 'P', 'T', 'I'):
		return first >> 32 == CHARS4('O', 'N', 'S', ' ');
	case CHARS4('C', 'O', 'N', 'N'):
		return first >> 32 == CHARS4('E', 'C', 'T', ' ');
	}
	return 0;
}

/* Whether eight bytes begin a response: "HTTP/1." (RFC 9112, section 4). */
static __always_inline int is_http1_response(__u64 first)
{
	return first << 8 == CHARS8(0, 'H', 'T', 'T', 'P', '/', '1', '.');
}

/* Whether a response is an interim one, 1xx (RFC 9110, section 15.2): "HTTP/1.1 100". */
static __always_inline int is_interim(const __u8 *response)
{
	return response[9] == '1';
}

/* Skip the spaces and tabs before a header's value (at most 8; nobody sends more than one). */
static __always_inline __u32 skip_blanks(const struct head *head, __u32 offset)
{
	__u64 word = load8(head, offset);
	__u64 text = ~(bytes_equal(word, ' ') | bytes_equal(word, '\t')) & BYTES(0x80);

	return offset + (text ? first_byte(text) : 8);
}

/* What the line that starts at this offset means. Returns 1 where nothing behind it matters. */
static __always_inline int look_at_line(struct head *head, __u32 start)
{
	__u64 first = load8(head, start);
	__u64 name = LOWER(first);

	if ((first & 0xff) == '\r' || (first & 0xff) == '\n')
		return 1;
	if (name == CHARS8('t', 'r', 'a', 'c', 'e', 'p', 'a', 'r')) {
		__u64 rest = load8(head, start + 8);

		if ((LOWER(rest) & 0xffffff) == CHARS4('e', 'n', 't', 0) && (rest >> 24 & 0xff) == ':') {
			REMEMBER(head->traceparent, skip_blanks(head, start + 12));
			return RECALL(head->parent_settles);
		}
	} else if (name == CHARS8('t', 'r', 'a', 'c', 'e', 's', 't', 'a')) {
		__u64 rest = load8(head, start + 8);

		if ((LOWER(rest) & 0xffff) == ('t' | 'e' << 8) && (rest >> 16 & 0xff) == ':')
			REMEMBER(head->tracestate, start + 11);
	}
	return 0;
}

/* Whether the line that ends here is a request line: "... HTTP/1.0" or "... HTTP/1.1". */
static __always_inline int ends_request_line(struct head *head, __u32 end)
{
	__u32 text = end - 8;

	if (end < 14) /* "GET / HTTP/1.1" */
		return 0;
	if (byte_at(head, end - 1) == '\r') {
		text--;
		end--;
	}
	REMEMBER(head->request_line, end);
	return (load8(head, text) | 1ULL << 56) == CHARS8('H', 'T', 'T', 'P', '/', '1', '.', '1');
}

/* Find the end of the request line and the trace context headers, eight bytes at a time: as many steps
 * as a callback takes. Returns 1 at the end. */
static __always_inline int scan_http1(struct head *head)
{
	int step;

	for (step = 0; step < SCAN_BURST; step++) {
		/* The length, too: were it kept, the verifier would follow what each step has learned of it. */
		__u32 at = RECALL(head->at), length = RECALL(head->length), end;
		__u64 ends;

		if (at >= length)
			return 1;
		ends = bytes_equal(load8(head, at), '\n');
		if (!ends) {
			REMEMBER(head->at, at + 8);
			continue;
		}
		end = at + first_byte(ends);
		if (end >= length)
			return 1;
		REMEMBER(head->at, end + 1);
		if (!RECALL(head->request_line) && !ends_request_line(head, end)) {
			REMEMBER(head->refused, 1);
			return 1;
		}
		if (look_at_line(head, end + 1))
			return 1;
	}
	return 0;
}

/* Returns whether this is a request: its first line says so, or is longer than the bytes in reach. */
static __always_inline int scan_head(struct head *head, __u32 length)
{
	REMEMBER(head->length, length);
	REMEMBER(head->request_line, 0);
	REMEMBER(head->traceparent, 0);
	REMEMBER(head->tracestate, 0);
	REMEMBER(head->refused, 0);
	REMEMBER(head->at, 0);
	if (!scan_http1(head)) /* most heads are short, and do without a call */
		bpf_loop(SCAN_STEPS / SCAN_BURST - 1, CALLBACK(SCAN_HTTP1), 0, 0);
	return !RECALL(head->refused) && (RECALL(head->request_line) || length >= HEAD_MAX);
}

/* Lay out the key of this request's operation: its method, and its path up to the space behind it. */
static __always_inline void lay_out_operation(struct head *head, __u32 set, __u32 kind)
{
	struct operation_key *key = &head->operation;
	struct operation *operation = &key->operation;
	__u64 first = load8(head, 0), space = bytes_equal(first, ' ');
	__u32 at = first_byte(space | 1ULL << 63) + 1, word;

	key->prefix = OPERATION_BITS;
	key->set = set;
	operation->kind_method = (first & (((space & -space) >> 7) - 1)) << 8 | kind;
	__builtin_memset(operation->path, 0, sizeof(operation->path));
#pragma unroll
	for (word = 0; word < OPERATION_PATH_WORDS; word++) {
		__u64 text = load8(head, at + 8 * word);
		__u64 ends = bytes_equal(text, ' ');

		/* All bytes below the first space; without one, all eight. */
		operation->path[word] = text & (((ends & -ends) >> 7) - 1);
		if (ends)
			break;
	}
}

/* What bpf_loop calls. this_head() is that of core/maps.h; a test brings its own. */
int scan_head_callback(void *index)
{
	struct head *head = this_head();

	return head ? scan_http1(head) : 1;
}

#endif
