/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* HTTP/2 (RFC 9113): a connection's frames, and of those the header blocks of requests. */
#ifndef SPANDIAL_HTTP2_H
#define SPANDIAL_HTTP2_H

#include "hpack.h"

#define FRAME_HEADER 9
#define PREFACE_LENGTH 24

enum frame_type { FRAME_HEADERS = 1, FRAME_CONTINUATION = 9, FRAME_TYPE_MAX = 0x20 };
enum frame_flag { END_HEADERS = 0x4, PADDED = 0x8, PRIORITY = 0x20 };

#define PREFACE CHARS8('P', 'R', 'I', ' ', '*', ' ', 'H', 'T')

/* Whether a message of so many bytes begins with a request's HEADERS frame, judged by its first eight
 * bytes: what can be seen of a connection that was there before the agent. */
static __always_inline int is_http2_request(u64 first, u64 length, u8 ninth, u8 tenth)
{
	u32 payload = __builtin_bswap32((u32)first) >> 8, type = first >> 24 & 0xff, flags = first >> 32 & 0xff;
	u32 stream = (first >> 40 & 0x7fffff), last = ninth;

	/* A stream of a client's, odd; and :method, :path or :scheme from the static table first. */
	return type == FRAME_HEADERS && !(flags & ~0x5) && payload >= 3 && payload + FRAME_HEADER <= length &&
	       (last & 1) && !(stream & 0x80) && tenth >= 0x82 && tenth <= 0x87;
}

/* A request's header block is complete. */
static __always_inline void on_request_block(struct walk *walk)
{
	struct block *block = &walk->block;

	REMEMBER(block->at, 0);
	REMEMBER(block->end, walk->at.captured);
	block->traceparent = block->tracestate = 0;
	block->tracestate_length = 0;
	block->traceparent_huffman = block->tracestate_huffman = block->traceparent_inserted = 0;
	block->context_known = block->changed = block->indexed = block->cut = block->undecided = 0;
	block->grpc = GRPC_UNKNOWN;
	bpf_loop(FIELDS_MAX, CALLBACK(SCAN_FIELD), 0, 0);
	decide_block(walk);
}

/* All of a frame's fragment has passed. */
static __always_inline void end_fragment(struct walk *walk)
{
	u32 inside = walk->at.inside;

	walk->at.inside = 0;
	walk->at.capturing = 0;
	walk->at.skip = walk->at.padding;
	walk->at.padding = 0;
	if (inside & END_HEADERS) {
		on_request_block(walk);
		walk->at.captured = 0;
	}
}

static __always_inline int http2_step(void)
{
	struct walk *walk = this_walk();
	u32 length, type, flags, wanted = FRAME_HEADER, prefix = 0;

	if (!walk)
		return 1;
	switch (proceed(walk)) {
	case AT_END:
		return 1;
	case ON_THE_WAY:
		break;
	case AT_HEADER:
		if (walk->at.have < FRAME_HEADER && !take_header(walk, FRAME_HEADER))
			return 0;
		type = walk->at.header[3];
		flags = walk->at.header[4];
		length = big_endian(walk->at.header) >> 8;
		if (type > FRAME_TYPE_MAX || walk->at.header[5] & 0x80)
			goto broken;
		if (type == FRAME_HEADERS) {
			prefix = (flags & PADDED ? 1 : 0) + (flags & PRIORITY ? 5 : 0);
			wanted += prefix;
			if (length < prefix)
				goto broken;
			if (prefix && !take_header(walk, wanted))
				return 0;
		}
		walk->at.have = 0;
		walk->at.skip = length - prefix;
		walk->at.padding = 0;
		if (type == FRAME_HEADERS) {
			u32 padding = flags & PADDED ? walk->at.header[FRAME_HEADER] : 0;

			if (padding > length - prefix)
				goto broken;
			walk->at.skip -= padding;
			walk->at.padding = padding;
			walk->at.stream = big_endian(walk->at.header + 5) & 0x7fffffff;
			walk->at.start_ns = bpf_ktime_get_boot_ns();
			walk->at.inside = FRAME_HEADERS << 8 | flags;
			walk->at.capturing = CAPTURE_MAX;
			walk->at.captured = 0;
			walk->at.block_length = length - prefix - padding;
		} else if (type == FRAME_CONTINUATION) {
			walk->at.inside = FRAME_CONTINUATION << 8 | flags;
			walk->at.capturing = CAPTURE_MAX;
			walk->at.block_length += length;
		}
	}
	if (!walk->at.skip && walk->at.inside)
		end_fragment(walk);
	return 0;
broken:
	walk->broken = 1;
	return 1;
}

#endif
