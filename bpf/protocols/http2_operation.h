/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Which operation a request's header block asks for, where rules by operation may be about it: a second look
 * at the block's first fields. A path stays as it was sent, Huffman-coded or not: the map has both. */
#ifndef SPANDIAL_HTTP2_OPERATION_H
#define SPANDIAL_HTTP2_OPERATION_H

#include "core/outcome.h"
#include "protocols/hpack.h"

#define OPERATION_FIELDS 16 /* that are looked at: the pseudo-header fields come first (RFC 9113, section 8.3) */

/* RFC 7541, appendix A. */
enum static_entry { STATIC_GET = 2, STATIC_POST = 3, STATIC_ROOT = 4, STATIC_INDEX_HTML = 5 };

enum operation_field { OTHER_FIELD, METHOD_FIELD, PATH_FIELD };

/* The number of an entry of the dynamic table, by an index that the current field has. */
static __always_inline u32 table_entry(const struct walk *walk, u32 index)
{
	return RECALL(walk->block.insertions) - (index - STATIC_ENTRIES - 1);
}

static __always_inline enum operation_field field_by_index(const struct walk *walk, u32 index, u64 *method)
{
	const struct operation *known;

	if (index - STATIC_GET <= STATIC_INDEX_HTML - STATIC_GET) {
		*method = index == STATIC_GET ? CHARS4('G', 'E', 'T', 0) : CHARS4('P', 'O', 'S', 'T');
		return index >= STATIC_ROOT ? PATH_FIELD : METHOD_FIELD;
	}
	if (index <= STATIC_ENTRIES)
		return OTHER_FIELD;
	known = known_field(walk, table_entry(walk, index));
	if (!known)
		return OTHER_FIELD;
	*method = known->kind_method >> 8;
	return *method ? METHOD_FIELD : PATH_FIELD;
}

static __always_inline enum operation_field field_by_name(const struct walk *walk, u32 at, u32 length)
{
	u64 text = block8(walk, at);

	if (length == 5 && (text & 0xffffffffff) == CHARS8(':', 'p', 'a', 't', 'h', 0, 0, 0))
		return PATH_FIELD;
	if (length == 7 && (text & TRACESTATE_MASK) == CHARS8(':', 'm', 'e', 't', 'h', 'o', 'd', 0))
		return METHOD_FIELD;
	return OTHER_FIELD;
}

/* By the upper half of its first byte, the bits of it that belong to a field's index (RFC 7541, section 6): 7 of an
 * indexed field, 6 of one that is inserted, 5 of a new size of the table, 4 of the rest. */
#define INDEX_BITS 0x7777777766665544ULL

/* One field of the block. Returns 1 once there is nothing more to know. */
static __always_inline int scan_operation(struct walk *walk)
{
	struct block *block = &walk->block;
	u32 at = RECALL(block->at), end = RECALL(block->end), first, index, length, inserted, huffman;
	enum operation_field field;
	u64 method = 0;

	if (at >= end)
		return 1;
	first = block8(walk, at) & 0xff;
	at = hpack_integer(walk, at, INDEX_BITS >> (first >> 4) * 4 & 0xf, &index);
	if (!at || at > end)
		return 1;
	if ((first & 0xe0) == 0x20)
		goto next;
	field = field_by_index(walk, index, &method);
	if (first & 0x80) {
		if (field == METHOD_FIELD)
			block->method = method;
		else if (field == PATH_FIELD && index <= STATIC_INDEX_HTML)
			block->path_static = index;
		else if (field == PATH_FIELD)
			block->path_entry = table_entry(walk, index);
		goto next;
	}
	if (!index) {
		huffman = block8(walk, at) & 0x80;
		at = hpack_integer(walk, at, 7, &length);
		if (!at || at + length > end)
			return 1;
		field = huffman ? OTHER_FIELD : field_by_name(walk, at, length);
		at += length;
	}
	huffman = block8(walk, at) >> 7 & 1;
	at = hpack_integer(walk, at, 7, &length);
	if (!at || at + length > end)
		return 1;
	inserted = first >> 6 & 1;
	REMEMBER(block->insertions, RECALL(block->insertions) + inserted);
	if (field == METHOD_FIELD && !huffman && length < 8) {
		block->method = block8(walk, at) & ((1ULL << 8 * length) - 1);
		block->method_entry = inserted * RECALL(block->insertions);
	} else if (field == PATH_FIELD) {
		block->path = at;
		block->path_length = length;
		block->path_huffman = huffman;
		block->path_entry = inserted * RECALL(block->insertions);
	}
	at += length;
next:
	REMEMBER(block->at, at);
	return block->method && (block->path || block->path_static || block->path_entry);
}

/* Lay out a path that is a literal. */
static __always_inline void lay_out_literal(struct walk *walk, struct operation *operation)
{
	struct block *block = &walk->block;
	u32 at = block->path, length = block->path_length, word;
	u64 behind = -(u64)RECALL(block->path_huffman);

#pragma unroll
	for (word = 0; word < OPERATION_PATH_WORDS; word++)
		operation->path[word] = behind;
	if (length > sizeof(operation->path))
		length = sizeof(operation->path);
	asm volatile("%0 &= 0x3ff" : "+r"(at));
	asm volatile("%0 &= 0x7f" : "+r"(length));
	bpf_probe_read_kernel(operation->path, length, walk->record.request + at);
	operation->kind_method = behind & OPERATION_HUFFMAN;
}

/* Lay out the key of the block's operation. Returns 0 where it cannot be known here. */
static __always_inline int lay_out_block_operation(struct walk *walk, struct operation_key *key, u32 set, u32 kind)
{
	struct block *block = &walk->block;
	struct operation *operation = &key->operation;
	const struct operation *known;

	REMEMBER(block->at, 0);
	block->share = field_share();
	block->method = 0;
	block->method_entry = block->path = block->path_static = block->path_entry = block->path_huffman = 0;
	bpf_loop(OPERATION_FIELDS, CALLBACK(SCAN_OPERATION), 0, 0);
	if (RECALL(block->method_entry)) {
		operation->kind_method = block->method << 8;
		remember_field(walk, block->method_entry, operation);
	}
	if (RECALL(block->path)) {
		lay_out_literal(walk, operation);
		if (block->path_entry)
			remember_field(walk, block->path_entry, operation);
	} else if (RECALL(block->path_entry)) {
		known = known_field(walk, block->path_entry);
		if (!known)
			return 0;
		*operation = *known;
	} else if (block->path_static) {
		__builtin_memset(operation, 0, sizeof(*operation));
		operation->path[0] = '/';
		if (block->path_static == STATIC_INDEX_HTML) {
			operation->path[0] = CHARS8('/', 'i', 'n', 'd', 'e', 'x', '.', 'h');
			operation->path[1] = CHARS4('t', 'm', 'l', 0);
		}
	} else {
		return 0;
	}
	key->prefix = OPERATION_BITS;
	key->set = set;
	operation->kind_method |= block->method << 8 | kind;
	return block->method != 0;
}

int scan_operation_callback(void *index)
{
	struct walk *walk = this_walk();

	return walk ? scan_operation(walk) : 1;
}

/* The walk's word becomes that of the operation that its block asks for, or stays where that cannot be known here. In a
 * loop of one, so that the verifier does not follow what is behind it once for each way through. */
int obey_operation_callback(void *index)
{
	struct walk *walk = this_walk();
	struct head *head = this_head();
	struct spandial_row *row;
	u32 row_index, kind;

	if (!walk || !head)
		return 1;
	row_index = walk->record.row;
	kind = walk->record.kind;
	row = rates.lookup(&row_index);
	if (row && lay_out_block_operation(walk, &head->operation, row->words[SPANDIAL_WORD_OPERATIONS] >> 32, kind))
		walk->word = word_of_operation(walk->word, kind, &head->operation);
	return 1;
}

#endif
