/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* A connection begins to be followed. */
#ifndef SPANDIAL_CONNECTIONS_H
#define SPANDIAL_CONNECTIONS_H

#include "core/outcome.h"
#include "core/sock.h"
#include "protocols/http2.h"

/* A connection is followed from now on: tell whose it is, while it can be seen. */
static __always_inline void emit_addresses(const struct connection *connection, connection_key key, u32 tgid, u32 row)
{
#ifdef SPANDIAL_SOCKETS
	struct sock_common_head sock;
	struct spandial_addresses *addresses;
	struct walk *walk = this_walk();

	if (!walk || bpf_probe_read_kernel(&sock, sizeof(sock), key))
		return;
	if (sock.family != AF_INET && sock.family != AF_INET6)
		return;
	addresses = (struct spandial_addresses *)walk->record.request;
	__builtin_memset(addresses, 0, sizeof(*addresses));
	addresses->family = sock.family;
	addresses->local_port = sock.local_port;
	addresses->peer_port = __builtin_bswap16(sock.peer_port);
	if (sock.family == AF_INET) {
		__builtin_memcpy(addresses->local, &sock.local, 4);
		__builtin_memcpy(addresses->peer, &sock.peer, 4);
	} else {
		__builtin_memcpy(addresses->local, sock.local6, 16);
		__builtin_memcpy(addresses->peer, sock.peer6, 16);
	}
	describe_answer(connection, walk, tgid, row);
	walk->at.captured = sizeof(*addresses);
	emit_record(walk, SPANDIAL_EVENT_CONNECTION);
#endif
}

static __always_inline struct connection *begin_connection(struct spandial_target *target, connection_key key, u32 tgid,
							   u32 protocol, int received, int fresh)
{
	struct connection *connection = make_connection(key);

	if (!connection) {
		count_loss(SPANDIAL_LOSS_NO_MEMORY);
		return 0;
	}
	target->follows = 1;
	__builtin_memset(&connection->requests, 0, sizeof(connection->requests));
	__builtin_memset(&connection->responses, 0, sizeof(connection->responses));
	__builtin_memset(&connection->kept, 0, sizeof(connection->kept));
	__builtin_memset(&connection->ended, 0, sizeof(connection->ended));
	connection->id = (u64)bpf_get_prandom_u32() << 32 | bpf_get_prandom_u32();
	connection->attachment = target->attachment;
	connection->protocol = protocol;
	connection->server = received;
	if (protocol == SPANDIAL_HTTP2 && fresh) {
		connection->requests.skip = PREFACE_LENGTH;
		connection->requests.fresh = connection->responses.fresh = 1;
	}
	connection->in_step = fresh;
	connection->awaiting_reply = connection->pending = connection->answered = 0;
	connection->unnamed_known = connection->body = 0;
	if (target->answers && protocol != ENCRYPTED)
		emit_addresses(connection, key, tgid, target->row);
	return connection;
}

#endif
