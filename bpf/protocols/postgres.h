/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* PostgreSQL's protocol 3: what a client sends ("Message Formats" of its documentation). One operation
 * is one simple query, or one Execute. */
#ifndef SPANDIAL_POSTGRES_H
#define SPANDIAL_POSTGRES_H

#include "protocols/statements.h"

#define POSTGRES_3_0 0x00030000
#define POSTGRES_SSL_REQUEST 80877103
#define POSTGRES_GSS_REQUEST 80877104
#define POSTGRES_HEADER 5      /* type and length */
#define POSTGRES_STARTUP 0x100 /* as a type, which a StartupMessage has none of */
#define BIND_MAX 128	       /* bytes of a Bind: names, but as few parameters as can be */

#define TYPE(c) (1ULL << ((c) - 'A'))
#define POSTGRES_TYPES                                                                                                 \
	(TYPE('B') | TYPE('C') | TYPE('D') | TYPE('E') | TYPE('F') | TYPE('H') | TYPE('P') | TYPE('Q') | TYPE('S') |   \
	 TYPE('X') | TYPE('c') | TYPE('d') | TYPE('f') | TYPE('p'))

/* Whether a message of so many bytes begins as a client's, judged by its first eight. */
static __always_inline int is_postgres(u64 first, u64 length)
{
	u32 start = __builtin_bswap32((u32)first), code = __builtin_bswap32(first >> 32);
	u32 bytes = __builtin_bswap32(first >> 8);

	switch (first & 0xff) {
	case 0: /* StartupMessage and its kin have no type */
		return start == length &&
		       (code == POSTGRES_3_0 || code == POSTGRES_SSL_REQUEST || code == POSTGRES_GSS_REQUEST);
	case 'Q':
		return bytes + 1ULL == length && length > 6;
	case 'P':
	case 'B':
		/* Something follows: Describe, Bind or Execute, and Sync or Flush in the end. */
		return bytes >= 8 && bytes + 1ULL + POSTGRES_HEADER <= length && bytes < 1 << 20;
	}
	return 0;
}

/* All of a message that matters after its header has passed. */
static __always_inline void end_postgres_message(struct walk *walk)
{
	u32 type = walk->at.inside;

	walk->at.inside = walk->at.capturing = 0;
	if (type == POSTGRES_STARTUP) {
		emit_operation(walk, SPANDIAL_EVENT_SESSION);
		walk->at.captured = 0;
	} else if (type == 'Q') {
		end_operation(walk);
	} else if (type == 'P') {
		int named = walk->record.request[POSTGRES_HEADER] != 0;

		if (!named)
			walk->unnamed_known = wanted(walk);
		if (named || wanted(walk))
			emit_operation(walk, SPANDIAL_EVENT_PREPARE);
		walk->at.captured = 0;
	}
}

static __always_inline void begin_postgres_message(struct walk *walk, u32 type)
{
	switch (type) {
	case 'Q':
		decide_operation(walk);
		count_operation(walk);
		walk->at.inside = type;
		if (wanted(walk))
			begin_capture(walk, 0, POSTGRES_HEADER, CAPTURE_MAX);
		break;
	case 'P':
		decide_operation(walk);
		if (emitting(walk)) {
			walk->at.inside = type;
			begin_capture(walk, 0, POSTGRES_HEADER, CAPTURE_MAX);
		} else {
			walk->unnamed_known = 0; /* it may be the unnamed one */
		}
		break;
	case 'B':
		decide_operation(walk);
		walk->at.inside = type;
		if (wanted(walk))
			begin_capture(walk, 0, POSTGRES_HEADER, BIND_MAX);
		break;
	case 'E':
		decide_operation(walk);
		count_operation(walk);
		/* Never somebody else's text: an unnamed statement that was not handed over stays unknown. */
		if (!walk->unnamed_known &&
		    (walk->record.request[POSTGRES_HEADER] || !walk->record.request[POSTGRES_HEADER + 1]))
			walk->at.captured = 0;
		end_operation(walk);
		break;
	case 'S':
		walk->at.decided = UNDECIDED; /* whatever was parsed and not executed */
		break;
	}
}

static __always_inline int postgres_step(void)
{
	struct walk *walk = this_walk();
	u32 type, length;

	if (!walk)
		return 1;
	switch (proceed(walk)) {
	case AT_END:
		return 1;
	case ON_THE_WAY:
		break;
	case AT_HEADER:
		if (!take_header(walk, POSTGRES_HEADER))
			return 0;
		walk->at.have = 0;
		type = walk->at.header[0];
		if (type) {
			length = big_endian(walk->at.header + 1);
			if (length < 4 || type < 'A' || type > 'p' || !(POSTGRES_TYPES >> (type - 'A') & 1))
				goto broken;
			walk->at.skip = length - 4;
			begin_postgres_message(walk, type);
		} else {
			length = big_endian(walk->at.header);
			if (length < 8 || length > 10000) /* MAX_STARTUP_PACKET_LENGTH of PostgreSQL's pqcomm.h */
				goto broken;
			walk->at.skip = length - POSTGRES_HEADER;
			/* The code of its kin, SSLRequest and others, begins with 4. */
			if (!walk->at.header[4] && emitting(walk)) {
				walk->at.inside = POSTGRES_STARTUP;
				walk->at.start_ns = bpf_ktime_get_boot_ns();
				begin_capture(walk, 0, POSTGRES_HEADER, CAPTURE_MAX);
			}
		}
	}
	if (!walk->at.skip && walk->at.inside)
		end_postgres_message(walk);
	return 0;
broken:
	walk->broken = 1;
	return 1;
}

int step_postgres(void *index)
{
	return postgres_step();
}

#endif
