/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* W3C Trace Context: traceparent, and the explicit randomness (ot=rv:) of tracestate. */
#ifndef SPANDIAL_TRACECONTEXT_H
#define SPANDIAL_TRACECONTEXT_H

#include "protocols/http1.h"

#define TRACESTATE_MAX 512 /* bytes that a vendor must propagate: W3C Trace Context, 3.3.1.5 */
#define TRACESTATE_BURST 16
#define TRACEPARENT_LENGTH 55
#define RANDOMNESS_LENGTH 14 /* digits of rv */

/* Eight lower-case hexadecimal digits to a number; *bad becomes non-zero where one is not. */
static __always_inline __u64 hex8(__u64 text, __u64 *bad)
{
	__u64 digit, letter, nibbles;

	/* Per byte, bit 7: at least '0' and not past '9'; at least 'a' and not past 'f'. The sums
	 * stay below 256 because every byte is below 128, which the last term checks. */
	digit = ((text & BYTES(0x7f)) + BYTES(0x80 - '0')) & ~((text & BYTES(0x7f)) + BYTES(0x80 - ':'));
	letter = ((text & BYTES(0x7f)) + BYTES(0x80 - 'a')) & ~((text & BYTES(0x7f)) + BYTES(0x80 - 'g'));
	*bad |= (~(digit | letter) | text) & BYTES(0x80);

	nibbles = (text & BYTES(0x0f)) + 9 * (text >> 6 & BYTES(0x01));
	nibbles = __builtin_bswap64(nibbles);
	nibbles = (nibbles | nibbles >> 4) & 0x00ff00ff00ff00ffULL;
	nibbles = (nibbles | nibbles >> 8) & 0x0000ffff0000ffffULL;
	return (nibbles | nibbles >> 16) & 0xffffffffULL;
}

static __always_inline __u64 hex16(const struct head *head, __u32 offset, __u64 *bad)
{
	return hex8(load8(head, offset), bad) << 32 | hex8(load8(head, offset + 8), bad);
}

/* version-trace id-parent id-flags, 2-32-16-2 digits (W3C Trace Context, 3.2). Returns 1 if valid. */
static __always_inline int parse_traceparent(const struct head *head, struct trace_context *context)
{
	__u32 at = RECALL(head->traceparent);
	__u64 bad = 0, start, end, version, flags;
	__u8 after;

	if (!at || at + TRACEPARENT_LENGTH > head->length || at + TRACEPARENT_LENGTH >= HEAD_MAX)
		return 0;
	start = load8(head, at);
	version = hex8((start & 0xffff) | CHARS8(0, 0, '0', '0', '0', '0', '0', '0'), &bad) >> 24;
	context->trace_id[0] = hex16(head, at + 3, &bad);
	context->trace_id[1] = hex16(head, at + 19, &bad);
	context->span_id = hex16(head, at + 36, &bad);
	end = load8(head, at + 52); /* "-ff" and what follows */
	flags = hex8((end >> 8 & 0xffff) | CHARS8(0, 0, '0', '0', '0', '0', '0', '0'), &bad) >> 24;
	if (bad || (start >> 16 & 0xff) != '-' || (end & 0xff) != '-' || byte_at(head, at + 35) != '-')
		return 0;
	if (version == 0xff || !(context->trace_id[0] | context->trace_id[1]) || !context->span_id)
		return 0;
	if (at + TRACEPARENT_LENGTH < head->length) {
		/* Version 00 ends here; a later one may go on after a dash. */
		after = end >> 24;
		if (after != '\r' && after != '\n' && after != ' ' && after != '\t' && !(after == '-' && version))
			return 0;
	}
	context->sampled = flags & 1;
	context->randomness = context->trace_id[1] & 0x00ffffffffffffffULL;
	return 1;
}

/* Look for the value of "rv" in tracestate's member "ot", byte by byte: as many as a callback takes.
 * Returns 1 at the end. */
static __always_inline int scan_tracestate(struct head *head)
{
	__u32 i;

	for (i = 0; i < TRACESTATE_BURST; i++) {
		__u32 at = RECALL(head->at), window;
		__u8 byte = byte_at(head, at);

		if (at >= RECALL(head->length) || at >= HEAD_MAX || byte == '\r' || byte == '\n')
			return 1;
		if (byte == ',')
			REMEMBER(head->within, 0);
		if (byte == ' ' || byte == '\t') /* optional around members, part of no key */
			byte = ',';
		window = RECALL(head->window) << 8 | byte;
		REMEMBER(head->window, window);
		REMEMBER(head->at, at + 1);
		if (window == (',' << 24 | 'o' << 16 | 't' << 8 | '='))
			REMEMBER(head->within, 1);
		else if ((window == ('=' << 24 | 'r' << 16 | 'v' << 8 | ':') ||
			  window == (';' << 24 | 'r' << 16 | 'v' << 8 | ':')) &&
			 RECALL(head->within)) {
			REMEMBER(head->found, at + 1);
			return 1;
		}
	}
	return 0;
}

/* Offset of the value of "rv" in tracestate's member "ot"; 0: none. */
static __always_inline __u32 find_randomness(struct head *head)
{
	REMEMBER(head->at, RECALL(head->tracestate));
	REMEMBER(head->window, ',');
	REMEMBER(head->within, 0); /* the member "ot" */
	REMEMBER(head->found, 0);
	bpf_loop(TRACESTATE_MAX / TRACESTATE_BURST, CALLBACK(SCAN_TRACESTATE), 0, 0);
	return RECALL(head->found);
}

/* Replace the randomness by tracestate's "ot=...rv:" and 14 digits, where there is one
 * (OpenTelemetry, TraceState: Probability Sampling, "rv"). */
static __always_inline void parse_randomness(struct head *head, struct trace_context *context)
{
	__u64 bad = 0, high, low;
	__u32 at = 0;
	__u8 after;

	if (RECALL(head->tracestate))
		at = find_randomness(head);
	if (!at || at + RANDOMNESS_LENGTH > RECALL(head->length) || at + RANDOMNESS_LENGTH >= HEAD_MAX)
		return;
	high = hex8(load8(head, at), &bad);
	low = hex8(load8(head, at + 6), &bad);
	after = byte_at(head, at + RANDOMNESS_LENGTH);
	if (at + RANDOMNESS_LENGTH < RECALL(head->length) && after != ',' && after != ';' && after != '\r' &&
	    after != '\n' && after != ' ' && after != '\t')
		return;
	if (!bad)
		context->randomness = high << 24 | (low & 0xffffff);
}

int scan_tracestate_callback(void *index)
{
	struct head *head = this_head();

	return head ? scan_tracestate(head) : 1;
}

#endif
