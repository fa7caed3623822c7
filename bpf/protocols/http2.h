/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* HTTP/2 (RFC 9113): a connection's frames, and of those the header blocks of requests. */
#ifndef SPANDIAL_HTTP2_H
#define SPANDIAL_HTTP2_H

#include "protocols/http2_request.h"
#include "protocols/stream.h"

#define FRAME_HEADER 9
#define PREFACE_LENGTH 24

enum frame_type {
	FRAME_DATA = 0,
	FRAME_HEADERS = 1,
	FRAME_RST_STREAM = 3,
	FRAME_CONTINUATION = 9,
	FRAME_TYPE_MAX = 0x20,
};
/* What the current frame is, if its end matters: a part of a header block, with its flags, or one of these. */
enum inside { INSIDE_BLOCK = 0x100, INSIDE_LAST = 0x200, INSIDE_RESET = 0x400 };

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

/* Whether a frame of a stream that is known begins here, or one of the connection. */
static __always_inline int begins_frame(const struct connection *connection, const __u8 *header)
{
	u32 stream = big_endian(header + 5);

	return header[3] <= FRAME_CONTINUATION && stream <= connection->requests.last_stream;
}

/* A header block is complete. */
static __always_inline void on_block(struct walk *walk)
{
	struct block *block = &walk->block;

	REMEMBER(block->at, 0);
	REMEMBER(block->end, walk->at.captured);
	block->traceparent = block->tracestate = 0;
	block->tracestate_length = 0;
	block->traceparent_huffman = block->tracestate_huffman = block->traceparent_inserted = 0;
	block->context_known = block->changed = block->indexed = block->cut = block->undecided = block->unknown = 0;
	block->grpc = GRPC_UNKNOWN;
	block->insertions = walk->at.insertions;
	bpf_loop(FIELDS_MAX / FIELDS_BURST, CALLBACK(SCAN_FIELDS), 0, 0);
	if (RECALL(block->at) < RECALL(block->end)) /* more fields than are looked at */
		block->cut = 1;
	if (walk->responses)
		on_response_block(walk);
	else
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
	if (inside & (INSIDE_LAST | INSIDE_RESET))
		on_stream_end(walk, inside & INSIDE_RESET);
	else if (inside & END_HEADERS)
		on_block(walk);
	else
		return;
	walk->at.captured = 0;
}

static __always_inline int http2_step(struct walk *walk)
{
	u32 length, type, flags, wanted = FRAME_HEADER, prefix = 0;

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
			walk->at.stream = big_endian(walk->at.header + 5);
			walk->at.start_ns = bpf_ktime_get_boot_ns();
			walk->at.inside = INSIDE_BLOCK | flags;
			walk->at.ends = flags & END_STREAM;
			walk->at.capturing = CAPTURE_MAX;
			walk->at.captured = 0;
			walk->at.block_length = length - prefix - padding;
		} else if (type == FRAME_CONTINUATION) {
			walk->at.inside = INSIDE_BLOCK | flags;
			walk->at.capturing = CAPTURE_MAX;
			walk->at.block_length += length;
		} else if (walk->answers && type == FRAME_RST_STREAM) {
			walk->at.stream = big_endian(walk->at.header + 5);
			walk->at.inside = INSIDE_RESET;
			walk->at.capturing = CAPTURE_MAX;
			walk->at.captured = 0;
		} else if (walk->answers && type == FRAME_DATA) {
			u32 stream = big_endian(walk->at.header + 5);

			count_body(walk, stream, length, flags);
			if (walk->responses && flags & END_STREAM) {
				walk->at.stream = stream;
				walk->at.inside = INSIDE_LAST;
			}
		}
	}
	if (walk->at.skip)
		pass(walk);
	if (!walk->at.skip && walk->at.inside)
		end_fragment(walk);
	return 0;
broken:
	walk->broken = 1;
	return 1;
}

int step_http2(void *index)
{
	struct walk *walk = this_walk();

	return walk ? http2_step(walk) : 1;
}

#endif
