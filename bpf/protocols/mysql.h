/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* MySQL's and MariaDB's protocol: what a client sends ("Client/Server Protocol" of their documentation).
 * One operation is one COM_QUERY, or one COM_STMT_EXECUTE. */
#ifndef SPANDIAL_MYSQL_H
#define SPANDIAL_MYSQL_H

#include "protocols/statements.h"

#define COM_INIT_DB 0x02
#define COM_QUERY 0x03
#define COM_CHANGE_USER 0x11
#define COM_STMT_PREPARE 0x16
#define COM_STMT_EXECUTE 0x17
#define COM_STMT_CLOSE 0x19
#define COM_MAX 0x20	       /* no command has a higher number, but MariaDB's bulk and binlog ones */
#define COM_STMT_BULK 0xfa     /* COM_STMT_BULK_EXECUTE of MariaDB */
#define MYSQL_PACKET_HEADER 4  /* length of three bytes, sequence number */
#define MYSQL_COMMAND_HEADER 5 /* and the command */
#define EXECUTE_MAX 16	       /* bytes: the statement's number, no parameters */
#define MYSQL_REPLY_MAX 16
#define MYSQL_SSL_REQUEST 32 /* bytes of its payload */

/* What is no command, as one: the client's answer to the greeting, and a query that is handed over for its USE. */
enum { MYSQL_HANDSHAKE = 0x100, MYSQL_USE = 0x101 };

/* Whether a message of so many bytes is a command, judged by its first eight: COM_QUERY or
 * COM_STMT_PREPARE with a text, or a query with attributes (none of them: 0, 1). */
static __always_inline int is_mysql(u64 first, u64 length)
{
	u32 bytes = first & 0xffffff, command = first >> 32 & 0xff;
	u32 a = first >> 40 & 0xff, b = first >> 48 & 0xff;

	if (first >> 24 & 0xff || (command != COM_QUERY && command != COM_STMT_PREPARE))
		return 0;
	if (bytes + MYSQL_PACKET_HEADER != length && (length < 4096 || bytes < length))
		return 0;
	return (a == 0 && b == 1) || (a >= ' ' && a < 0x7f && b >= ' ' && b < 0x7f) || a == '\n' || a == '\t';
}

/* Whether a message is a server's greeting: HandshakeV10, whose version begins with a digit. A server may read a
 * packet's header and its rest by calls of their own, so that its clients' first command cannot be told. */
static __always_inline int is_mysql_greeting(u64 first, u64 length)
{
	u32 digit = (first >> 40 & 0xff) - '0';

	return (first & 0xffffff) + MYSQL_PACKET_HEADER == length && (first >> 24 & 0xffff) == 0x0a00 && digit <= 9;
}

static __always_inline void end_mysql_packet(struct walk *walk)
{
	switch (walk->at.inside) {
	case COM_QUERY:
	case COM_STMT_EXECUTE:
		end_operation(walk);
		break;
	case COM_STMT_PREPARE:
		emit_operation(walk, SPANDIAL_EVENT_PREPARE);
		walk->prepared = 1;
		break;
	case COM_STMT_CLOSE:
		emit_operation(walk, SPANDIAL_EVENT_FORGET);
		break;
	case MYSQL_HANDSHAKE:
	case MYSQL_USE:
	case COM_INIT_DB:
	case COM_CHANGE_USER:
		emit_operation(walk, SPANDIAL_EVENT_SESSION);
		break;
	}
	walk->at.inside = walk->at.capturing = walk->at.captured = 0;
}

/* Whether the query whose text follows names another database: it begins with USE. */
static __always_inline int is_use(const struct walk *walk)
{
	u64 first = 0;
	u32 length = walk->left < sizeof(first) ? walk->left : sizeof(first);

	asm volatile("%0 &= 0xf" : "+r"(length));
	if (length > sizeof(first) || bpf_probe_read_user(&first, length, (void *)walk->buffer))
		return 0;
	if ((first & 0xffff) == 0x0100) /* no attributes */
		first >>= 16;
	return (LOWER(first) & 0xffffff) == CHARS4('u', 's', 'e', 0) && !(first >> 24 & 0x80) &&
	       ((first >> 24 & 0xff) <= ' ' || (first >> 24 & 0xff) == '`');
}

/* A message that names the database begins: it is handed over from its command on. An answer to the greeting has none;
 * it is told by its sequence number, 1, before its payload. */
static __always_inline void begin_mysql_session(struct walk *walk, u32 message)
{
	u32 before = message == MYSQL_HANDSHAKE;

	walk->at.inside = message;
	walk->at.start_ns = bpf_ktime_get_boot_ns();
	begin_capture(walk, MYSQL_PACKET_HEADER - before, 1 + before, CAPTURE_MAX);
}

static __always_inline void begin_mysql_command(struct walk *walk, u32 command)
{
	switch (command) {
	case COM_STMT_BULK:
		command = COM_STMT_EXECUTE;
		/* fall through */
	case COM_QUERY:
	case COM_STMT_EXECUTE:
		walk->at.decided = UNDECIDED;
		decide_operation(walk);
		count_operation(walk);
		walk->at.inside = command;
		if (wanted(walk))
			begin_capture(walk, MYSQL_PACKET_HEADER, 1, command == COM_QUERY ? CAPTURE_MAX : EXECUTE_MAX);
		else if (command == COM_QUERY && emitting(walk) && is_use(walk))
			begin_mysql_session(walk, MYSQL_USE);
		break;
	case COM_INIT_DB:
	case COM_CHANGE_USER:
		if (emitting(walk))
			begin_mysql_session(walk, command);
		break;
	case COM_STMT_PREPARE:
	case COM_STMT_CLOSE:
		if (!emitting(walk))
			break;
		walk->at.inside = command;
		walk->at.start_ns = bpf_ktime_get_boot_ns();
		begin_capture(walk, MYSQL_PACKET_HEADER, 1, CAPTURE_MAX);
		break;
	}
}

static __always_inline int mysql_step(void)
{
	struct walk *walk = this_walk();
	u32 bytes, command;

	if (!walk)
		return 1;
	switch (proceed(walk)) {
	case AT_END:
		return 1;
	case ON_THE_WAY:
		break;
	case AT_HEADER:
		if (walk->at.have < MYSQL_PACKET_HEADER && !take_header(walk, MYSQL_PACKET_HEADER))
			return 0;
		bytes = *(u32 *)walk->at.header & 0xffffff;
		if (bytes && !take_header(walk, MYSQL_COMMAND_HEADER))
			return 0;
		walk->at.have = 0;
		if (!bytes)
			return 0;
		walk->at.skip = bytes - 1;
		command = walk->at.header[MYSQL_PACKET_HEADER];
		/* An SSLRequest: the rest is TLS. */
		if (walk->at.header[3] == 1 && bytes == MYSQL_SSL_REQUEST) {
			walk->at.encrypted = 1;
			return 1;
		}
		/* Whatever goes on with a command comes behind its beginning. */
		if (walk->at.header[3] == 1 && !walk->at.start_ns && emitting(walk))
			begin_mysql_session(walk, MYSQL_HANDSHAKE);
		/* What does not begin a sequence goes on with a command, or with the handshake. */
		if (walk->at.header[3] == 0) {
			if (command >= COM_MAX && command < COM_STMT_BULK) {
				walk->broken = 1;
				return 1;
			}
			begin_mysql_command(walk, command);
		}
	}
	if (!walk->at.skip && walk->at.inside)
		end_mysql_packet(walk);
	return 0;
}

int step_mysql(void *index)
{
	return mysql_step();
}

#endif
