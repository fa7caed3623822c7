/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* HTTP/2 (RFC 9113): a connection's frames, and of those the header blocks of requests. */
#ifndef SPANDIAL_HTTP2_H
#define SPANDIAL_HTTP2_H

#include "hpack.h"

#define FRAME_HEADER 9
#define PREFACE_LENGTH 24

enum frame_type {
	FRAME_DATA = 0,
	FRAME_HEADERS = 1,
	FRAME_RST_STREAM = 3,
	FRAME_CONTINUATION = 9,
	FRAME_TYPE_MAX = 0x20,
};
enum frame_flag { END_STREAM = 0x1, END_HEADERS = 0x4, PADDED = 0x8, PRIORITY = 0x20 };
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

static __always_inline u32 place_of(u32 stream)
{
	stream = stream >> 1 & (KEPT_STREAMS - 1);
	asm volatile("%0 &= 0x3f" : "+r"(stream));
	return stream;
}

static __always_inline void want_answer(struct walk *walk)
{
	u32 stream = walk->at.stream, place = place_of(stream), other = walk->kept.streams[place];

	if (other && other != stream && walk->ended.streams[place] != other)
		walk->kept.crowded = 1;
	walk->kept.streams[place] = stream;
	walk->kept.body[place] = 0;
	walk->pending = 1;
}

static __always_inline int answer_wanted(const struct walk *walk)
{
	return walk->kept.crowded || walk->kept.streams[place_of(walk->at.stream)] == walk->at.stream;
}

/* A frame of DATA begins, of the request or of the answer. */
static __always_inline void count_body(struct walk *walk, u32 stream, u32 length, u32 flags)
{
	u32 place = place_of(stream), *body = walk->responses ? walk->ended.body : walk->kept.body;

	if (walk->kept.streams[place] != stream)
		return;
	if (flags & PADDED || body[place] > SPANDIAL_BODY_UNKNOWN - length)
		body[place] = SPANDIAL_BODY_UNKNOWN;
	else
		body[place] += length;
}

/* Hand over what is captured of a stream's answer. */
static __always_inline void emit_answer(struct walk *walk, u32 flags)
{
	struct spandial_entry *record = &walk->record;
	u32 place = place_of(walk->at.stream);
	int lost, known = walk->kept.streams[place] == walk->at.stream;

	record->trace_id[0] = record->trace_id[1] = record->span_id = record->randomness = 0;
	record->serving = 0;
	record->kind = SPANDIAL_HTTP;
	record->parent = SPANDIAL_NO_PARENT;
	record->stream = walk->at.stream;
	record->flags = flags;
	record->bytes = known ? walk->ended.body[place] : SPANDIAL_BODY_UNKNOWN;
	record->body = known ? walk->kept.body[place] : SPANDIAL_BODY_UNKNOWN;
	lost = emit_record(walk, SPANDIAL_EVENT_ANSWER) != 0;
	if (walk->at.captured && !(flags & SPANDIAL_RECORD_RESET))
		walk->at.gap = lost;
	if (walk->responses &&
	    known) /* behind an answer's first header block comes its body, behind its end another answer */
		walk->ended.body[place] = 0;
	if (!(flags & SPANDIAL_RECORD_END))
		return;
	if (walk->responses)
		walk->ended.streams[place] = walk->at.stream;
	else if (walk->kept.streams[place] == walk->at.stream)
		walk->kept.streams[place] = 0;
}

/* A response's header block, or its trailers, is complete. */
static __always_inline void on_response_block(struct walk *walk)
{
	struct block *block = &walk->block;
	u32 flags = walk->at.ends ? SPANDIAL_RECORD_END : 0;

	if (walk->at.block_length > walk->at.captured)
		block->cut = 1;
	if (block->changed || block->cut || answer_wanted(walk)) {
		if (block->cut)
			flags |= SPANDIAL_RECORD_CUT;
		if (walk->at.fresh)
			flags |= SPANDIAL_RECORD_FRESH;
		if (walk->at.gap)
			flags |= SPANDIAL_RECORD_GAP;
		emit_answer(walk, flags);
	}
	walk->at.fresh = 0;
}

/* A stream ends without a header block. */
static __always_inline void on_stream_end(struct walk *walk, int reset)
{
	if (!answer_wanted(walk))
		return;
	walk->at.start_ns = bpf_ktime_get_boot_ns();
	emit_answer(walk, SPANDIAL_RECORD_END | (reset ? SPANDIAL_RECORD_RESET : 0));
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
	block->context_known = block->changed = block->indexed = block->cut = block->undecided = 0;
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

#endif
