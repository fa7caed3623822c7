/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* HPACK (RFC 7541), as far as a decision needs it: which fields of a header block are literals, and
 * among those the trace context and gRPC's content type. Tables are user space's business. */
#ifndef SPANDIAL_HPACK_H
#define SPANDIAL_HPACK_H

#include "core/loop.h"
#include "core/maps.h"
#include "protocols/tracecontext.h"

#define FIELDS_MAX 120	  /* of a block that are looked at */
#define FIELDS_BURST 12	  /* that one callback looks at: a call costs as much as some of them */
#define STATIC_ENTRIES 61 /* RFC 7541, appendix A */
#define STATIC_CONTENT_TYPE 31
#define TABLE_ENTRIES_MAX (1 << 16) /* more than an index can tell (hpack_integer) */
#define TRACEPARENT_AT 8	    /* where values are laid for the parsers of tracecontext.h */
#define TRACESTATE_AT 128
#define HUFFMAN_BURST 5 /* a divisor of TRACEPARENT_LENGTH */

/* Names and values as Huffman's code (RFC 7541, appendix B) writes them; the first byte is the least significant. */
#define HUFFMAN_TRACEPARENT 0x3fa9851d6b21834dULL      /* 8 bytes */
#define HUFFMAN_TRACESTATE 0x00bfa4915021834dULL       /* 7 bytes; the first eight with the upper one cleared */
#define HUFFMAN_APPLICATION_GRPC 0x4c3d260d62d0751dULL /* the first 8 of 11 */
#define HUFFMAN_GRPC_REST 0x64654dULL
#define TRACESTATE_MASK 0x00ffffffffffffffULL

/* Eight bytes of the block at an offset within it. */
static __always_inline u64 block8(const struct walk *walk, u32 offset)
{
	asm volatile("%0 &= 0x3ff" : "+r"(offset));
	return *(const u64 *)(walk->record.request + offset);
}

/* An integer with a prefix of so many bits (RFC 7541, 5.1), at most two bytes behind it. Returns the
 * offset behind it; 0 where it is longer. Without a branch, because the verifier would follow each length. */
static __always_inline u32 hpack_integer(const struct walk *walk, u32 at, u32 bits, u32 *value)
{
	u64 bytes = block8(walk, at), most = (1 << bits) - 1, one = bytes & most, two, three;

	two = ((one ^ most) - 1) >> 63; /* 1 if there is a second byte */
	three = two & bytes >> 15;
	*value = one + two * (bytes >> 8 & 0x7f) + three * ((bytes >> 16 & 0x7f) << 7);
	return (at + 1 + two + three) * (1 ^ (three & bytes >> 23));
}

enum field_name { OTHER_NAME, TRACEPARENT_NAME, TRACESTATE_NAME, CONTENT_TYPE_NAME, INDEXED_NAME };

static __always_inline enum field_name literal_name(const struct walk *walk, u32 at, u32 length, int huffman)
{
	u64 first = block8(walk, at), rest;

	if (huffman) {
		if (length == 8 && first == HUFFMAN_TRACEPARENT)
			return TRACEPARENT_NAME;
		if (length == 7 && (first & TRACESTATE_MASK) == HUFFMAN_TRACESTATE)
			return TRACESTATE_NAME;
		return OTHER_NAME;
	}
	rest = block8(walk, at + 8);
	if (length == 11 && first == CHARS8('t', 'r', 'a', 'c', 'e', 'p', 'a', 'r') &&
	    (rest & 0xffffff) == CHARS4('e', 'n', 't', 0))
		return TRACEPARENT_NAME;
	if (length == 10 && first == CHARS8('t', 'r', 'a', 'c', 'e', 's', 't', 'a') &&
	    (rest & 0xffff) == ('t' | 'e' << 8))
		return TRACESTATE_NAME;
	if (length == 12 && first == CHARS8('c', 'o', 'n', 't', 'e', 'n', 't', '-') &&
	    (u32)rest == CHARS4('t', 'y', 'p', 'e'))
		return CONTENT_TYPE_NAME;
	return OTHER_NAME;
}

static __always_inline int is_grpc(const struct walk *walk, u32 at, u32 length, int huffman)
{
	u64 first = block8(walk, at), rest = block8(walk, at + 8);

	if (huffman)
		return length >= 11 && first == HUFFMAN_APPLICATION_GRPC && (rest & 0xffffff) == HUFFMAN_GRPC_REST;
	return length >= 16 && first == CHARS8('a', 'p', 'p', 'l', 'i', 'c', 'a', 't') &&
	       rest == CHARS8('i', 'o', 'n', '/', 'g', 'r', 'p', 'c');
}

/* Whether a value whose name is not known looks like a traceparent of version 00. */
static __always_inline int looks_like_traceparent(const struct walk *walk, u32 at, u32 length, int huffman)
{
	if (huffman) /* "00-": 00000 00000 010110 */
		return length >= 34 && length <= 42 && (block8(walk, at) & 0xffff) == 0x1600;
	return length == TRACEPARENT_LENGTH && (block8(walk, at) & 0xffffff) == CHARS4('0', '0', '-', 0) &&
	       (block8(walk, at + 35) & 0xff) == '-' && (block8(walk, at + 52) & 0xff) == '-';
}

/* The name of an entry of the dynamic table, as far as it was seen to come. */
static __always_inline enum field_name indexed_name(const struct walk *walk, u32 index)
{
	u32 entry = walk->at.insertions - (index - STATIC_ENTRIES - 1);

	if (entry && entry == walk->at.traceparent_entry)
		return TRACEPARENT_NAME;
	if (entry && entry == walk->at.tracestate_entry)
		return TRACESTATE_NAME;
	return INDEXED_NAME;
}

/* One field of the block. Returns 1 at the end. */
static __always_inline int scan_field(struct walk *walk)
{
	struct block *block = &walk->block;
	u32 at = RECALL(block->at), end = RECALL(block->end), first, index, length;
	enum field_name name = OTHER_NAME;
	int huffman, inserted = 0;

	if (at >= end)
		return 1;
	first = block8(walk, at) & 0xff;
	if (first & 0x80) { /* an indexed field */
		at = hpack_integer(walk, at, 7, &index);
		if (index > STATIC_ENTRIES) {
			name = indexed_name(walk, index);
			block->indexed |= name != TRACEPARENT_NAME;
			block->context_known |= name == TRACEPARENT_NAME;
			block->undecided |= name == TRACESTATE_NAME;
		}
		goto next;
	}
	if ((first & 0xe0) == 0x20) { /* a new size of the table */
		at = hpack_integer(walk, at, 5, &index);
		block->changed = 1;
		goto next;
	}
	if (first & 0x40) {
		at = hpack_integer(walk, at, 6, &index);
		block->changed = inserted = 1;
	} else {
		at = hpack_integer(walk, at, 4, &index);
	}
	if (!at || at >= end)
		goto cut;
	if (!index) {
		huffman = block8(walk, at) >> 7 & 1;
		at = hpack_integer(walk, at, 7, &length);
		if (!at || at + length > end)
			goto cut;
		name = literal_name(walk, at, length, huffman);
		at += length;
	} else if (index == STATIC_CONTENT_TYPE) {
		name = CONTENT_TYPE_NAME;
	} else if (index > STATIC_ENTRIES) {
		name = indexed_name(walk, index);
	}
	if (at >= end)
		goto cut;
	huffman = block8(walk, at) >> 7 & 1;
	at = hpack_integer(walk, at, 7, &length);
	if (!at || at + length > end)
		goto cut;
	if (name == INDEXED_NAME && looks_like_traceparent(walk, at, length, huffman))
		name = TRACEPARENT_NAME;
	switch (name) {
	case TRACEPARENT_NAME:
		block->traceparent = at;
		block->traceparent_huffman = huffman;
		block->traceparent_inserted |= inserted;
		if (inserted)
			walk->at.traceparent_entry = walk->at.insertions + 1;
		break;
	case TRACESTATE_NAME:
		block->tracestate = at;
		block->tracestate_length = length;
		block->tracestate_huffman = huffman;
		if (inserted)
			walk->at.tracestate_entry = walk->at.insertions + 1;
		break;
	case CONTENT_TYPE_NAME:
		block->grpc = is_grpc(walk, at, length, huffman) ? GRPC : NOT_GRPC;
		break;
	default:
		break;
	}
	walk->at.insertions += inserted;
	at += length;
next:
	if (!at)
		goto cut;
	REMEMBER(block->at, at);
	return 0;
cut:
	block->cut = 1;
	return 1;
}

/* As many fields as a callback looks at. Returns 1 at the end of the block. */
static __always_inline int scan_fields(struct walk *walk)
{
	int field;

	for (field = 0; field < FIELDS_BURST; field++)
		if (scan_field(walk))
			return 1;
	return 0;
}

/* The next characters of a Huffman-coded traceparent: only digits, a to f and dashes. Returns 1 at the end. */
static __always_inline int scan_huffman(struct walk *walk, struct head *head)
{
	u32 i;

	for (i = 0; i < HUFFMAN_BURST; i++) {
		u32 bit = RECALL(head->at), done = RECALL(head->within), six, symbol;
		u32 bytes = __builtin_bswap32((u32)block8(walk, RECALL(walk->block.traceparent) + (bit >> 3)));

		six = bytes >> (26 - (bit & 7)) & 0x3f;
		if (six < 20) { /* five bits: 0 1 2 a c e i o s t */
			symbol = CHARS8('0', '1', '2', 'a', 'c', 'e', 'x', 'x') >> (six >> 1) * 8 & 0xff;
			if (six >= 16)
				symbol = 'x';
			bit += 5;
		} else {
			symbol = 'x';
			if (six == 0x16)
				symbol = '-';
			else if (six >= 0x19 && six <= 0x1f)
				symbol = '3' + six - 0x19;
			else if (six == 0x23)
				symbol = 'b';
			else if (six == 0x24)
				symbol = 'd';
			else if (six == 0x25)
				symbol = 'f';
			bit += 6;
		}
		REMEMBER(head->at, bit);
		REMEMBER(head->within, done + 1);
		done += TRACEPARENT_AT;
		head->bytes[bounded(done)] = symbol;
	}
	return 0;
}

/* The block's trace context, laid out for the parser of heads. Returns 1 if there is a valid traceparent. */
static __always_inline int parse_block_context(struct walk *walk, struct head *head, struct trace_context *context)
{
	struct block *block = &walk->block;
	u32 at = block->traceparent, length = block->tracestate_length;

	if (!at && block->context_known)
		*context = walk->at.context;
	if (!at)
		return block->context_known;
	if (block->traceparent_huffman) {
		REMEMBER(head->at, 0);
		REMEMBER(head->within, 0);
		bpf_loop(TRACEPARENT_LENGTH / HUFFMAN_BURST, CALLBACK(SCAN_HUFFMAN), 0, 0);
	} else {
		asm volatile("%0 &= 0x3ff" : "+r"(at));
		bpf_probe_read_kernel(head->bytes + TRACEPARENT_AT, 56, walk->record.request + at);
	}
	REMEMBER(head->traceparent, TRACEPARENT_AT);
	head->length = TRACEPARENT_AT + TRACEPARENT_LENGTH;
	if (!parse_traceparent(head, context))
		return 0;
	if (block->traceparent_inserted)
		walk->at.context = *context;
	if (!block->tracestate)
		return 1;
	if (block->tracestate_huffman || length > TRACESTATE_MAX - 1) {
		block->undecided = 1;
		return 1;
	}
	at = block->tracestate;
	asm volatile("%0 &= 0x3ff" : "+r"(at));
	asm volatile("%0 &= 0x1ff" : "+r"(length));
	bpf_probe_read_kernel(head->bytes + TRACESTATE_AT, length, walk->record.request + at);
	REMEMBER(head->tracestate, TRACESTATE_AT);
	REMEMBER(head->length, TRACESTATE_AT + length);
	parse_randomness(head, context);
	return 1;
}

int scan_fields_callback(void *index)
{
	struct walk *walk = this_walk();

	return walk ? scan_fields(walk) : 1;
}

int scan_huffman_callback(void *index)
{
	struct walk *walk = this_walk();
	struct head *head = this_head();

	return walk && head ? scan_huffman(walk, head) : 1;
}

#endif
