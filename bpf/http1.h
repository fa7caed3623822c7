/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* HTTP/1.x: is this the start of a request, and where in its head are the trace context headers? */
#ifndef SPANDIAL_HTTP1_H
#define SPANDIAL_HTTP1_H

#include "loop.h"
#include "operation_key.h"
#include "spandial.h"

#define HEAD_MAX 1024 /* bytes of the head that are looked at; a power of two */
#define HEAD_PAD 128  /* reads at a bounded offset never leave the buffer */

#define SCAN_STEPS 256 /* 8 bytes each, plus one for every line: enough for 128 lines */
#define SCAN_BURST 64  /* steps that one callback takes: a call costs as much as some of them */

/* A head under examination. */
struct head {
	__u8 bytes[HEAD_MAX + HEAD_PAD];
	__u32 length;
	__u32 request_line; /* length without the line end; 0: its end is not within reach */
	__u32 traceparent;  /* offset of the value; 0: none */
	__u32 tracestate;
	__u32 at;	      /* where the scan is */
	__u32 within;	      /* a part of it */
	__u32 refused;	      /* no request after all */
	__u32 found;	      /* offset; 0: nothing */
	__u32 window;	      /* the last four bytes of a search */
	__u32 received;	      /* by the process, as opposed to sent */
	__u32 parent_settles; /* nothing behind a traceparent matters */
	struct operation_key operation;
	__u64 operation_end; /* a bounded length behind the key's beginning stays within */
};

/* Loop state is kept in the map and not in registers: what comes back from there is an unknown number
 * to the verifier, which otherwise would follow each of its values through all iterations. */
#define REMEMBER(field, value) (*(volatile __u32 *)&(field) = (value))
#define RECALL(field) (*(volatile __u32 *)&(field))

/* An offset within HEAD_MAX, in an instruction that clang cannot prove away: the verifier does not
 * know what clang knows. */
static __always_inline __u32 bounded(__u32 offset)
{
	asm volatile("%0 &= 0x3ff" : "+r"(offset));
	return offset;
}

static __always_inline __u8 byte_at(const struct head *head, __u32 offset)
{
	return head->bytes[bounded(offset)];
}

/* Eight bytes at an offset; the first byte is the least significant (little-endian hosts only). */
static __always_inline __u64 load8(const struct head *head, __u32 offset)
{
	return *(const __u64 *)(head->bytes + bounded(offset));
}

#define BYTES(c) (0x0101010101010101ULL * (c))
#define LOWER(word) ((word) | BYTES(0x20))
#define CHARS8(a, b, c, d, e, f, g, h)                                                                                 \
	((__u64)(a) | (__u64)(b) << 8 | (__u64)(c) << 16 | (__u64)(d) << 24 | (__u64)(e) << 32 | (__u64)(f) << 40 |    \
	 (__u64)(g) << 48 | (__u64)(h) << 56)
#define CHARS4(a, b, c, d) CHARS8(a, b, c, d, 0, 0, 0, 0)

/* 0x80 in every byte that equals c, exactly (no borrow between bytes). */
static __always_inline __u64 bytes_equal(__u64 word, __u8 c)
{
	__u64 x = word ^ BYTES(c);

	return ~(((x & BYTES(0x7f)) + BYTES(0x7f)) | x | BYTES(0x7f));
}

/* Index of the lowest byte that has its high bit set; the mask must not be zero. Without a branch,
 * because the verifier would follow each of the eight outcomes to the end of the loop. */
static __always_inline __u32 first_byte(__u64 mask)
{
	__u64 below = (mask & -mask) - 1; /* ones in every byte up to the one looked for */

	return (((below & BYTES(0x01)) * BYTES(0x01) >> 56) - 1) & 7;
}

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
	__u32 length = RECALL(head->length);
	int step;

	for (step = 0; step < SCAN_BURST; step++) {
		__u32 at = RECALL(head->at), end;
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

#endif
