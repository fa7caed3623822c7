/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* From a message to what understands it. */
#ifndef SPANDIAL_DISPATCH_H
#define SPANDIAL_DISPATCH_H

#include "protocols/postgres.h"
#include "protocols/redis.h"
#include "protocols/tls.h"
#include "requests/http1_request.h"

/* The protocol of a request that begins with what is in head: eight bytes, or more. */
static __always_inline u32 identify(const struct head *head, u64 total)
{
	u64 first = load8(head, 0);

	if (first == PREFACE ||
	    (total > FRAME_HEADER && is_http2_request(first, total, head->bytes[8], head->bytes[9])))
		return SPANDIAL_HTTP2;
	if (is_redis(first))
		return SPANDIAL_REDIS;
	if (is_postgres(first, total))
		return SPANDIAL_POSTGRES;
	if (is_mysql(first, total) || is_mysql_greeting(first, total))
		return SPANDIAL_MYSQL;
	if (is_tls(first, total))
		return ENCRYPTED;
	return SPANDIAL_UNKNOWN;
}

/* Walk through a message of a connection's requests, or of its responses (HTTP/2). */
static __always_inline void walk_stream(struct connection *connection, const struct message *message, struct walk *walk,
					u32 tgid, struct spandial_target *target, int responses)
{
	u8 *captured = responses ? connection->response_capture : connection->capture;
	struct serving served = {};

	walk->buffer = message->buffer;
	walk->left = message->length;
	walk->total = message->total - message->length;
	walk->iovec = message->iovec;
	walk->iovecs = message->iovecs;
	walk->broken = 0;
	walk->window_length = 0;
	walk->prepared = walk->pending = 0;
	walk->record.bytes = message->total;
	walk->unnamed_known = connection->unnamed_known;
	walk->responses = responses;
	walk->epoch = target->epoch;
	if (connection->protocol == SPANDIAL_HTTP2) {
		walk->entries = connection->server;
		walk->answers = target->answers;
		walk->word = 0; /* which one, its content type says */
		if (target->answers) {
			walk->kept = connection->kept;
			walk->ended = connection->ended;
		}
	} else {
		walk->entries = !connection->server;
		walk->answers = 0;
		walk->word = word_of(tgid, target->row, target->epoch, SPANDIAL_DB);
	}
	walk->local = SPANDIAL_NO_PARENT;
	walk->serving = 0;
	if (target->answers && !connection->server && served_request(target, &served)) {
		walk->local = served.kept ? SPANDIAL_LOCAL_KEPT : SPANDIAL_LOCAL_DROPPED;
		walk->serving = served.connection;
		walk->trace_randomness = served.randomness;
	}
	walk->record.stream = 0;
	walk->record.flags = 0;
	walk->record.body = 0;
	walk->record.tgid = tgid;
	walk->record.row = target->row;
	walk->record.connection = connection->id;
	walk->record.protocol = connection->protocol;
	if (responses)
		walk->at = connection->responses;
	else
		walk->at = connection->requests;
	if (walk->at.captured)
		bpf_probe_read_kernel(walk->record.request, SPANDIAL_REQUEST_MAX, captured);
	switch (connection->protocol) {
	case SPANDIAL_POSTGRES:
		bpf_loop(WALK_STEPS, CALLBACK(STEP_POSTGRES), 0, 0);
		break;
	case SPANDIAL_MYSQL:
		bpf_loop(WALK_STEPS, CALLBACK(STEP_MYSQL), 0, 0);
		break;
	case SPANDIAL_REDIS:
		bpf_loop(WALK_STEPS, CALLBACK(STEP_REDIS), 0, 0);
		break;
	case SPANDIAL_HTTP2:
		bpf_loop(WALK_STEPS, CALLBACK(STEP_HTTP2), 0, 0);
		break;
	}
	if (walk->answers && responses)
		connection->ended = walk->ended;
	else if (walk->answers)
		connection->kept = walk->kept;
	if (walk->broken || walk->left || walk->at.encrypted) {
		if (!walk->at.encrypted)
			count_loss(SPANDIAL_LOSS_DESYNC);
		if (responses)
			connection->in_step = 0;
		else
			connection->protocol = SPANDIAL_UNKNOWN;
		return;
	}
	if (walk->at.captured)
		bpf_probe_read_kernel(captured, SPANDIAL_REQUEST_MAX, walk->record.request);
	if (responses) {
		connection->responses = walk->at;
		return;
	}
	connection->requests = walk->at;
	if (walk->pending && target->answers) {
		connection->pending = 1;
		connection->answered = 0;
	} else if (connection->answered) {
		connection->pending = 0;
	}
	connection->unnamed_known = walk->unnamed_known;
	connection->awaiting_reply |= walk->prepared;
}

/* A connection's responses that could not be followed can be from a frame's beginning on. */
static __always_inline int find_step(struct connection *connection, const struct message *message)
{
	u8 header[FRAME_HEADER];

	if (message->length < FRAME_HEADER || bpf_probe_read_user(header, sizeof(header), (void *)message->buffer) ||
	    !begins_frame(connection, header))
		return 0;
	__builtin_memset(&connection->responses, 0, sizeof(connection->responses));
	connection->responses.gap = 1;
	connection->in_step = 1;
	return 1;
}

/* What a process received or sent on a connection, in clear text. */
static __always_inline int on_message(struct message *message, u32 tgid, struct spandial_target *target,
				      connection_key key, enum direction direction)
{
	u32 length, protocol;
	struct connection *connection;
	struct head *head;
	struct walk *walk;
	u64 first;
	int answers;

	connection = target->follows ? find_connection(target, key) : 0;
	if (!connection || connection->protocol <= SPANDIAL_HTTP1) {
		/* message->received and connection->server are 0 or 1 */
		if (connection && connection->pending && target->answers && message->received != connection->server) {
			walk = this_walk();
			if (walk)
				hand_over_answer(connection, message, walk, tgid, target->row);
			return 0;
		}
		head = this_head();
		if (message->length < 8) {
			if (connection && connection->pending)
				connection->body += message->total;
			return 0;
		}
		if (!head)
			return 0;
		length = message->length < HEAD_MAX ? message->length : HEAD_MAX;
		if (direction == EITHER)
			REMEMBER(head->received, message->received);
		/* What a server receives mostly is a request, and is read at once; what it sends mostly is none. */
		if (read_head(head, message->received ? length : 8, message->buffer))
			goto unreadable;
		first = load8(head, 0);
		if (is_http1_response(first)) {
			if (target->answers && !DIRECTION(head) && length >= 16 &&
			    !read_head(head, 16, message->buffer) && !is_interim(head->bytes))
				end_serving();
			return 0;
		}
		if (!DIRECTION(head) && read_head(head, length, message->buffer))
			goto unreadable;
		if (starts_with_method(first)) {
			on_http1_request(tgid, target, head, length, message->total, key, direction);
			return 0;
		}
		if (connection && connection->pending) { /* HTTP/1: a request's body */
			connection->body += message->total;
			return 0;
		}
		protocol = identify(head, message->total);
		if (!protocol)
			return 0;
		answers = protocol == SPANDIAL_MYSQL && is_mysql_greeting(first, message->total);
		connection =
		    begin_connection(target, key, tgid, protocol, message->received != answers, first == PREFACE);
		if (!connection)
			return 0;
	}
	if (connection->protocol == ENCRYPTED)
		return 0;
	walk = this_walk();
	if (!walk)
		return 0;
	if (!!message->received == !!connection->server) {
		walk_stream(connection, message, walk, tgid, target, 0);
		return 0;
	}
	if (connection->protocol == SPANDIAL_HTTP2) {
		if (target->answers && (connection->in_step || find_step(connection, message)))
			walk_stream(connection, message, walk, tgid, target, 1);
		return 0;
	}
	if (connection->awaiting_reply)
		hand_over_reply(connection, message, walk, tgid, target->row);
	if (connection->pending && target->answers)
		hand_over_answer(connection, message, walk, tgid, target->row);
	return 0;
unreadable:
	count_loss(SPANDIAL_LOSS_UNREADABLE);
	return 0;
}

#endif
