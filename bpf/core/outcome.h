/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* What becomes of a request: the word that it obeys, the counts, and the record that user space gets. */
#ifndef SPANDIAL_OUTCOME_H
#define SPANDIAL_OUTCOME_H

#include "core/maps.h"
#include "decision.h"

/* Nothing comes between on this CPU, but where a uprobe runs the program: a tracepoint's, which counts the same. */
#ifdef SPANDIAL_TLS
#define COUNT(counter) __sync_fetch_and_add(&(counter), 1)
#else
#define COUNT(counter) ((counter)++)
#endif

/* 56 random bits, for an entry without trace context. */
static __always_inline u64 draw_randomness(void)
{
	return ((u64)bpf_get_prandom_u32() << 24 ^ bpf_get_prandom_u32()) & 0x00ffffffffffffffULL;
}

/* Whether user space is to hear of what this walk finds. */
static __always_inline int emitting(const struct walk *walk)
{
	return (walk->entries || walk->answers) && (walk->word & SPANDIAL_EMIT);
}

static __always_inline void count_loss(u32 kind)
{
	u64 *loss = losses.lookup(&kind);

	if (loss)
		COUNT(*loss);
}

static __always_inline void count_entry(struct walk *walk, u32 kind, int kept, int traced)
{
	u32 row = walk->record.row;
	struct spandial_counts *count = counts.lookup(&row);

	if (!count || kind >= SPANDIAL_ENTRY_KINDS)
		return;
	if (!walk->entries) {
		COUNT(count->reverse[kind]);
		if (kept)
			COUNT(count->reverse_kept[kind]);
		if (traced)
			COUNT(count->reverse_traced[kind]);
		return;
	}
	COUNT(count->seen[kind]);
	if (traced)
		COUNT(count->seen_traced[kind]);
	if (!kept)
		return;
	COUNT(count->kept[kind]);
	if (traced)
		COUNT(count->kept_traced[kind]);
}

/* The word that the target obeys now; 0 if its row is somebody else's. */
static __always_inline u64 word_of(u32 tgid, u32 row_index, u32 epoch, u32 kind)
{
	u32 header_index = SPANDIAL_HEADER_ROW;
	struct spandial_row *row = rates.lookup(&row_index);
	struct spandial_row *header = rates.lookup(&header_index);

	if (!row || !header)
		return 0;
	if (row_index != SPANDIAL_DEFAULT_ROW && row->words[SPANDIAL_WORD_OWNER] != ((u64)epoch << 32 | tgid)) {
		count_loss(SPANDIAL_LOSS_STALE_ROW);
		return 0;
	}
	return spandial_choose_word(row->words[kind], row->words[SPANDIAL_WORD_FALLBACK],
				    header->words[SPANDIAL_HEADER_LEASE], bpf_ktime_get_boot_ns());
}

/* The word for the operation of which the key is laid out: what the row of its rule says of this kind, else the base
 * word. Whether kept entries are handed over, the base word says. */
static __always_inline u64 word_of_operation(u64 base, u32 kind, struct operation_key *key)
{
	struct spandial_row *row;
	u32 *rule;
	u64 word;

	base &= ~(u64)SPANDIAL_OPERATIONS;
	rule = operations.lookup(key);
	if (!rule) {
		key->operation.kind_method &= 0xff;
		rule = operations.lookup(key);
	}
	row = rule ? rates.lookup(rule) : 0;
	word = row ? row->words[kind & 3] : 0;
	if (!(word & SPANDIAL_VALID))
		return base;
	return (word & ~(u64)(SPANDIAL_EMIT | SPANDIAL_OPERATIONS)) | (base & SPANDIAL_EMIT);
}

/* A kept entry is a span, or what somebody watches; no other record is. */
static __always_inline void count_ring_full(u32 event)
{
	count_loss(event == SPANDIAL_EVENT_ENTRY ? SPANDIAL_LOSS_RING_FULL : SPANDIAL_LOSS_RING_FULL_OTHERS);
}

/* Hand over what is captured, as the record says. Returns -1 where there is no room. */
static __always_inline int emit_record(struct walk *walk, u32 event)
{
	struct spandial_entry *record = &walk->record;
	u32 length = walk->at.captured;

	asm volatile("%0 &= 0x7ff" : "+r"(length));
	record->time_ns = walk->at.start_ns;
	record->word = walk->word;
	record->event = event;
	record->length = length;
	if (!entries.ringbuf_output(record, offsetof(struct spandial_entry, request) + length, BPF_RB_NO_WAKEUP))
		return 0;
	count_ring_full(event);
	return -1;
}

/* What the record of an answer, or of a connection's end, has in common. */
static __always_inline void describe_answer(const struct connection *connection, struct walk *walk, u32 tgid, u32 row)
{
	struct spandial_entry *record = &walk->record;

	record->trace_id[0] = record->trace_id[1] = record->span_id = record->randomness = 0;
	record->serving = 0;
	record->tgid = tgid;
	record->row = row;
	record->connection = connection->id;
	record->protocol = connection->protocol;
	record->kind = connection->protocol == SPANDIAL_HTTP1 ? SPANDIAL_HTTP : SPANDIAL_DB;
	record->parent = SPANDIAL_NO_PARENT;
	record->stream = record->flags = record->bytes = record->body = 0;
	walk->word = 0;
	walk->at.start_ns = bpf_ktime_get_boot_ns();
	walk->at.captured = 0;
}

#endif
