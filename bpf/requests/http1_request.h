/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* A request of HTTP/1: counted, decided, handed over. */
#ifndef SPANDIAL_HTTP1_REQUEST_H
#define SPANDIAL_HTTP1_REQUEST_H

#include "protocols/tracecontext.h"
#include "requests/answers.h"

#define HTTP1_LINE_MAX 256 /* bytes of a request line that a record carries */
#define HTTP1_RECORD (offsetof(struct spandial_entry, request) + HTTP1_LINE_MAX)

/* A request or call of HTTP/1 that is handed over. */
struct http1_request {
	u64 word;
	u64 connection;
	u64 serving;
	u32 parent;
	u32 event;
	u32 flags;
	u32 bytes;
};

static __always_inline void emit(const struct head *head, const struct trace_context *context,
				 const struct http1_request *request, u32 tgid, u32 row)
{
	struct spandial_entry *entry = entries.ringbuf_reserve(HTTP1_RECORD);
	u32 length = head->request_line ? head->request_line : head->length;

	if (!entry) {
		count_ring_full(request->event);
		return;
	}
	entry->time_ns = bpf_ktime_get_boot_ns();
	entry->trace_id[0] = context->trace_id[0];
	entry->trace_id[1] = context->trace_id[1];
	entry->span_id = context->span_id;
	entry->randomness = context->randomness;
	entry->word = request->word;
	entry->connection = request->connection;
	entry->serving = request->serving;
	entry->tgid = tgid;
	entry->row = row;
	entry->kind = SPANDIAL_HTTP;
	entry->parent = request->parent;
	entry->protocol = SPANDIAL_HTTP1;
	entry->event = request->event;
	entry->stream = entry->body = 0;
	entry->flags = request->flags;
	entry->bytes = request->bytes;
	entry->length = length < HTTP1_LINE_MAX ? length : HTTP1_LINE_MAX;
	/* Constant length: what lies behind entry->length is left of an older head of a target. */
	bpf_probe_read_kernel(entry->request, HTTP1_LINE_MAX, head->bytes);
	/* Waking the reader would cost more than all the rest: it looks by itself. */
	entries.ringbuf_submit(entry, BPF_RB_NO_WAKEUP);
}

/* Count and decide the request whose first bytes, and if it was received all of them, are in head. */
static __always_inline void on_http1_request(u32 tgid, struct spandial_target *target, struct head *head, u32 length,
					     u32 bytes, connection_key key, enum direction direction)
{
	struct connection *connection;
	struct serving served = {};
	struct trace_context context = {};
	struct spandial_counts *count;
	u32 parent = SPANDIAL_NO_PARENT, row = target->row, kind = SPANDIAL_HTTP, sent, kept;
	struct spandial_row *rates_row = rates.lookup(&row);
	struct http1_request request = {.bytes = bytes};
	int example;

	/* In mode follow a caller's decision stands, whatever the tracestate says. */
	REMEMBER(head->parent_settles,
		 rates_row && !(rates_row->words[kind] & (SPANDIAL_THIN | SPANDIAL_MODE | SPANDIAL_OPERATIONS)));
	if (!scan_head(head, length))
		return;
	count = counts.lookup(&row);
	if (!count || !rates_row)
		return;
	example = rates_row->words[SPANDIAL_WORD_EXAMPLES] != 0;
	sent = !DIRECTION(head);
	if (sent) {
		COUNT(count->reverse[kind]);
		if (RECALL(head->traceparent))
			COUNT(count->reverse_traced[kind]);
		if (!target->answers && !example)
			return;
		request.flags = SPANDIAL_RECORD_SENT;
	} else {
		COUNT(count->seen[kind]);
	}
	if (parse_traceparent(head, &context)) {
		if (!sent)
			COUNT(count->seen_traced[kind]);
		parent = context.sampled ? SPANDIAL_REMOTE_KEPT : SPANDIAL_REMOTE_DROPPED;
		parse_randomness(head, &context);
	} else {
		context.trace_id[0] = context.trace_id[1] = context.span_id = 0;
		context.randomness = draw_randomness();
		example = example && !sent;
	}
	if (sent && served_request(target, &served) && (!parent || same_trace(&served, &context))) {
		parent = served.kept ? SPANDIAL_LOCAL_KEPT : SPANDIAL_LOCAL_DROPPED;
		context.randomness = served.randomness;
		request.serving = served.connection;
	}
	request.word = word_of(tgid, row, target->epoch, kind);
	if (request.word & SPANDIAL_OPERATIONS) {
		lay_out_operation(head, rates_row->words[SPANDIAL_WORD_OPERATIONS] >> 32, kind);
		request.word = word_of_operation(request.word, kind, &head->operation);
	}
	kept = (!sent || target->answers) && spandial_decide(request.word, context.randomness, parent);
	if (kept && sent) {
		COUNT(count->reverse_kept[kind]);
	} else if (kept) {
		COUNT(count->kept[kind]);
		if (parent)
			COUNT(count->kept_traced[kind]);
	}
	if (!kept && target->answers) {
		end_answers(target, key);
		if (!sent)
			begin_serving(target, key, &context, 0, 0);
	}
	request.parent = parent;
	if (!kept || !(request.word & SPANDIAL_EMIT)) {
		if (!example)
			return;
		request.event = SPANDIAL_EVENT_EXAMPLE;
	} else if (target->answers) {
		connection = want_answers(target, key, tgid, !sent);
		request.connection = connection ? connection->id : 0;
		if (!sent)
			begin_serving(target, key, &context, request.connection, 1);
	}
	emit(head, &context, &request, tgid, row);
}

#endif
