/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Eight bytes at a time: what a word says of the characters in it. */
#ifndef SPANDIAL_BYTES_H
#define SPANDIAL_BYTES_H

#include "spandial.h"

/* Loop state is kept in the map and not in registers: what comes back from there is an unknown number
 * to the verifier, which otherwise would follow each of its values through all iterations. */
#define REMEMBER(field, value) (*(volatile __u32 *)&(field) = (value))
#define RECALL(field) (*(volatile __u32 *)&(field))

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

#endif
