/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* The operation of a request as a key of the map of rules by operation: a longest-prefix map, whose entries
 * agent/spandial_agent/capture/operation_map.py lays out. */
#ifndef SPANDIAL_OPERATION_KEY_H
#define SPANDIAL_OPERATION_KEY_H

#include <linux/types.h>

#define OPERATION_PATH_WORDS 15 /* of eight bytes */
#define OPERATION_HUFFMAN 0x80	/* beside the kind */

struct operation {
	__u64 kind_method; /* the kind, and behind it seven bytes of the method; zeros: whatever it is */
	/* As it is sent, with a query if it has one. Behind its end zeros, or, where it is Huffman-coded, ones: those
	 * no longer path has there. */
	__u64 path[OPERATION_PATH_WORDS];
};

struct operation_key {
	__u32 prefix; /* bits of what follows */
	__u32 set;    /* of the row's word SPANDIAL_WORD_OPERATIONS */
	struct operation operation;
};

#define OPERATION_BITS (8 * (sizeof(struct operation_key) - offsetof(struct operation_key, set)))

#endif
