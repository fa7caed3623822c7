/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* A request's header block of HTTP/2: counted, decided, handed over. */
#ifndef SPANDIAL_HTTP2_REQUEST_H
#define SPANDIAL_HTTP2_REQUEST_H

#include "core/outcome.h"
#include "protocols/http2_answers.h"
#include "protocols/http2_operation.h"

/* The operation cannot be known here: user space decides, or where nobody asked it to, the word for all others. */
static __always_inline void leave_operation(struct walk *walk)
{
	if (emitting(walk)) {
		walk->block.undecided = 1;
		return;
	}
	walk->word &= ~(u64)SPANDIAL_OPERATIONS;
	walk->block.unknown = 1;
}

/* Count and decide the request whose header block is captured, unless it is the trailer of an earlier one. */
static __always_inline void decide_block(struct walk *walk)
{
	u32 parent = SPANDIAL_NO_PARENT, kind, flags = 0;
	struct head *head = this_head();
	struct spandial_entry *record = &walk->record;
	struct block *block = &walk->block;
	struct trace_context context = {};
	int request = walk->at.stream > walk->at.last_stream, kept = 0, traced = 0;

	if (!head)
		return;
	if (walk->at.block_length > walk->at.captured)
		block->cut = 1;
	if (request) {
		walk->at.last_stream = walk->at.stream;
		if (block->grpc)
			walk->at.grpc = block->grpc;
	}
	record->kind = walk->at.grpc == GRPC ? SPANDIAL_GRPC : SPANDIAL_HTTP;
	kind = *(volatile u8 *)&record->kind & 3; /* from memory: not a way through for each, to the verifier */
	walk->word = word_of(record->tgid, record->row, walk->epoch, kind);
	if (request) {
		REMEMBER(head->parent_settles, !(walk->word & (SPANDIAL_THIN | SPANDIAL_MODE)));
		traced = parse_block_context(walk, head, &context);
		if (traced)
			parent = context.sampled ? SPANDIAL_REMOTE_KEPT : SPANDIAL_REMOTE_DROPPED;
		else
			context.randomness = draw_randomness();
		/* What the table alone knows may be the trace context, if one is in there. */
		if (!traced && (block->cut || (block->indexed && walk->at.traceparent_inserted)))
			block->undecided = 1;
		if (walk->word & SPANDIAL_OPERATIONS && (walk->entries || walk->answers)) {
			bpf_loop(1, CALLBACK(OBEY_OPERATION), 0, 0);
			if (walk->word & SPANDIAL_OPERATIONS)
				leave_operation(walk);
		}
		if (!block->undecided)
			kept =
			    (walk->entries || walk->answers) && spandial_decide(walk->word, context.randomness, parent);
		count_entry(walk, kind, kept, traced);
	}
	walk->at.traceparent_inserted |= block->traceparent_inserted;
	if (block->cut || (block->traceparent_inserted && !traced)) /* who knows what came into the table */
		walk->at.traceparent_entry = walk->at.tracestate_entry = 0;
	if (block->cut) /* nor how much of it: what is there already, no index will reach */
		walk->at.insertions += TABLE_ENTRIES_MAX;
	if (emitting(walk) && (kept || block->changed || block->cut || (request && block->undecided))) {
		record->trace_id[0] = context.trace_id[0];
		record->trace_id[1] = context.trace_id[1];
		record->span_id = context.span_id;
		record->randomness = context.randomness;
		record->parent = parent;
		record->serving = 0;
		record->stream = walk->at.stream;
		if (block->cut)
			flags |= SPANDIAL_RECORD_CUT;
		if (walk->at.fresh)
			flags |= SPANDIAL_RECORD_FRESH;
		if (walk->at.gap)
			flags |= SPANDIAL_RECORD_GAP;
		if (request && block->undecided)
			flags |= SPANDIAL_RECORD_UNDECIDED;
		if (!walk->entries)
			flags |= SPANDIAL_RECORD_SENT;
		record->flags = flags;
		if (kept || (flags & SPANDIAL_RECORD_UNDECIDED)) {
			walk->at.gap = emit_record(walk, SPANDIAL_EVENT_ENTRY) != 0;
			if (walk->answers)
				want_answer(walk);
		} else {
			walk->at.gap = emit_record(walk, SPANDIAL_EVENT_BLOCK) != 0;
		}
	} else {
		if (block->changed || block->cut)
			walk->at.gap = 1;
		if (walk->entries && request && (block->undecided || block->unknown))
			count_loss(SPANDIAL_LOSS_UNDECIDED);
	}
	walk->at.fresh = 0;
}

#endif
