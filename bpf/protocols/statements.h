/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Operations of a walk: decided when they begin, counted once, handed over when they end. */
#ifndef SPANDIAL_STATEMENTS_H
#define SPANDIAL_STATEMENTS_H

#include "core/outcome.h"
#include "protocols/stream.h"

/* The current operation begins, unless an earlier message began it. */
static __always_inline void decide_operation(struct walk *walk)
{
	if (walk->at.decided)
		return;
	walk->at.start_ns = bpf_ktime_get_boot_ns();
	walk->at.randomness = walk->local ? walk->trace_randomness : draw_randomness();
	walk->at.serving = walk->serving;
	walk->at.decided =
	    walk->entries && spandial_decide(walk->word, walk->at.randomness, walk->local) ? KEPT : DROPPED;
}

/* Whether the current operation is to be captured. */
static __always_inline int wanted(const struct walk *walk)
{
	return walk->at.decided == KEPT && emitting(walk);
}

static __always_inline void count_operation(struct walk *walk)
{
	count_entry(walk, SPANDIAL_DB, walk->at.decided == KEPT, 0);
}

/* Hand over the captured message of a database's client. */
static __always_inline void emit_operation(struct walk *walk, u32 event)
{
	struct spandial_entry *record = &walk->record;

	record->trace_id[0] = record->trace_id[1] = record->span_id = 0;
	record->randomness = walk->at.randomness;
	record->kind = SPANDIAL_DB;
	record->serving = walk->at.serving;
	record->parent = record->serving ? SPANDIAL_LOCAL_KEPT : SPANDIAL_NO_PARENT;
	record->flags = SPANDIAL_RECORD_SENT | (walk->at.cut ? SPANDIAL_RECORD_CUT : 0);
	emit_record(walk, event);
}

static __always_inline void end_operation(struct walk *walk)
{
	if (wanted(walk)) {
		emit_operation(walk, SPANDIAL_EVENT_ENTRY);
		walk->pending = 1;
	}
	walk->at.decided = UNDECIDED;
	walk->at.capturing = walk->at.captured = 0;
}

#endif
