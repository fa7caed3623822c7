/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* The answers of HTTP/2 that are wanted: which streams', their sizes, their ends. */
#ifndef SPANDIAL_HTTP2_ANSWERS_H
#define SPANDIAL_HTTP2_ANSWERS_H

#include "core/outcome.h"
#include "protocols/stream.h"

enum frame_flag { END_STREAM = 0x1, END_HEADERS = 0x4, PADDED = 0x8, PRIORITY = 0x20 };

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

#endif
