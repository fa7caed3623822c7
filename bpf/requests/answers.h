/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* The answers to kept requests of HTTP/1 and of databases, and the connection's end. */
#ifndef SPANDIAL_ANSWERS_H
#define SPANDIAL_ANSWERS_H

#include "core/serving.h"
#include "protocols/mysql.h"
#include "requests/connections.h"
#include "requests/message.h"

#define ANSWER_FIRST 128 /* bytes of an answer that a record carries: the first, and the last of the rest */
#define ANSWER_LAST 128

/* A request of HTTP/1 was kept and handed over: what goes the other way is its answer. */
static __always_inline struct connection *want_answers(struct spandial_target *target, connection_key key, u32 tgid,
						       int received)
{
	struct connection *connection = find_connection(target, key);

	if (!connection || connection->protocol != SPANDIAL_HTTP1 || connection->server != received)
		connection = begin_connection(target, key, tgid, SPANDIAL_HTTP1, received, 0);
	if (connection) {
		connection->pending = 1;
		connection->answered = connection->body = 0;
	}
	return connection;
}

/* A request was dropped: what follows is not the answer to the one before, if that has been answered. */
static __always_inline void end_answers(const struct spandial_target *target, connection_key key)
{
	struct connection *connection = find_connection(target, key);

	if (connection && connection->answered)
		connection->pending = 0;
}

/* The answer to a PREPARE (MySQL): its first bytes name the statement. */
static __always_inline void hand_over_reply(struct connection *connection, const struct message *message,
					    struct walk *walk, u32 tgid, u32 row)
{
	connection->awaiting_reply = 0;
	if (message->length < MYSQL_REPLY_MAX ||
	    bpf_probe_read_user(walk->record.request, MYSQL_REPLY_MAX, (void *)message->buffer))
		return;
	describe_answer(connection, walk, tgid, row);
	walk->at.captured = MYSQL_REPLY_MAX;
	walk->at.cut = 0;
	walk->at.serving = 0; /* left of another walk */
	emit_operation(walk, SPANDIAL_EVENT_REPLY);
}

/* A part of the answer to a kept entry: its first bytes, and its last. */
static __always_inline void hand_over_answer(struct connection *connection, const struct message *message,
					     struct walk *walk, u32 tgid, u32 row)
{
	u32 length = message->length, first, last;

	describe_answer(connection, walk, tgid, row);
	walk->record.bytes = message->total;
	walk->record.body = connection->body;
	connection->body = 0;
	connection->answered = 1;
	first = length < ANSWER_FIRST ? length : ANSWER_FIRST;
	last = length - first < ANSWER_LAST ? length - first : ANSWER_LAST;
	asm volatile("%0 &= 0xff" : "+r"(first));
	asm volatile("%0 &= 0xff" : "+r"(last));
	if (bpf_probe_read_user(walk->record.request, first, (void *)message->buffer) ||
	    bpf_probe_read_user(walk->record.request + ANSWER_FIRST, last, (void *)(message->buffer + length - last)))
		count_loss(SPANDIAL_LOSS_UNREADABLE);
	walk->at.captured = first + last;
	emit_record(walk, SPANDIAL_EVENT_ANSWER);
	if (connection->protocol == SPANDIAL_HTTP1 && connection->server && !is_interim(walk->record.request))
		end_serving();
}

/* The other side has ended the connection. */
static __always_inline void on_end(const struct spandial_target *target, connection_key key, u32 tgid)
{
	struct connection *connection = find_connection(target, key);
	struct walk *walk = this_walk();

	if (!walk || !connection || !connection->pending)
		return;
	connection->pending = 0;
	describe_answer(connection, walk, tgid, target->row);
	emit_record(walk, SPANDIAL_EVENT_CLOSED);
	if (connection->protocol == SPANDIAL_HTTP1 && connection->server)
		end_serving();
}

#endif
