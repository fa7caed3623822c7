/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* The maps, and how they are looked up. */
#ifndef SPANDIAL_MAPS_H
#define SPANDIAL_MAPS_H

#include "core/state.h"

BPF_TABLE("extern", u32, struct spandial_row, rates, SPANDIAL_ROWS);
BPF_HASH(targets, u32, struct spandial_target, 2 * SPANDIAL_ROWS); /* some share the default row */
BPF_PERCPU_ARRAY(counts, struct spandial_counts, SPANDIAL_ROWS);
BPF_PERCPU_ARRAY(losses, u64, SPANDIAL_LOSS_KINDS);
BPF_RINGBUF_OUTPUT(entries, SPANDIAL_RING_PAGES);
BPF_F_TABLE("lpm_trie", struct operation_key, u32, operations, SPANDIAL_OPERATION_KEYS, BPF_F_NO_PREALLOC); /* rows */

/* Methods and paths in the dynamic tables of connections (HTTP/2) whose words say that rules by operation may be about
 * them. Of a full map the kernel takes what was not used for longest, whoever's it is: so each user has a map of his
 * own. */
struct table_field {
	u64 connection;
	u64 entry;
};
BPF_TABLE("lru_hash", struct table_field, struct operation, one_of_fields, SPANDIAL_FIELDS);
BPF_ARRAY_OF_MAPS(fields, "one_of_fields", SPANDIAL_FIELD_SHARES);

/* Which of them a user has: by his uid. By OWNER | number, whose it is; by TAKEN, how many are somebody's. */
enum { OWNER = 1, TAKEN = 2 };
BPF_HASH(field_shares, u64, u32, 2 * SPANDIAL_FIELD_SHARES);

#ifdef SPANDIAL_TLS
BPF_TASK_STORAGE(threads, struct thread);
#else
/* One a CPU: nothing preempts a program that a tracepoint runs (include/linux/tracepoint.h). */
BPF_PERCPU_ARRAY(heads, struct head, 1);
BPF_PERCPU_ARRAY(walks, struct walk, 1);
#endif

/* What is known of a connection. The kernel forgets it with the socket; without sockets, with the descriptor
 * or the SSL object. */
#if defined(SPANDIAL_SYS_EXIT) || defined(SPANDIAL_TLS)
#ifdef SPANDIAL_TLS
typedef struct tls_connection connection_key;
#else
typedef u64 connection_key; /* tgid << 32 | descriptor */
#endif
BPF_TABLE("lru_hash", connection_key, struct connection, connections, SPANDIAL_CONNECTIONS);
BPF_PERCPU_ARRAY(new_connections, struct connection, 1); /* zeros */
#else
#define SPANDIAL_SOCKETS
typedef struct sock *connection_key;
BPF_SK_STORAGE(connections, struct connection);
#endif

/* The requests that threads are serving: of processes whose answers are wanted, on sockets that block. A thread that
 * waits on a socket for one request does nothing else meanwhile; of an event loop's thread nobody knows. The kernel
 * forgets it with the thread. */
BPF_TASK_STORAGE(serving, struct serving);

static __always_inline struct walk *this_walk(void)
{
#ifdef SPANDIAL_TLS
	struct thread *thread = threads.task_storage_get(bpf_get_current_task_btf(), 0, 0);

	return thread ? &thread->walk : 0;
#else
	u32 zero = 0;

	return walks.lookup(&zero);
#endif
}

static __always_inline struct head *this_head(void)
{
#ifdef SPANDIAL_TLS
	struct thread *thread = threads.task_storage_get(bpf_get_current_task_btf(), 0, 0);

	return thread ? &thread->head : 0;
#else
	u32 zero = 0;

	return heads.lookup(&zero);
#endif
}

/* What is known of a connection, unless other bytes may have passed since, while the programs were detached. */
static __always_inline struct connection *find_connection(const struct spandial_target *target, connection_key key)
{
#ifdef SPANDIAL_SOCKETS
	struct connection *connection = connections.sk_storage_get(key, 0, 0);
#else
	struct connection *connection = connections.lookup(&key);
#endif

	return connection && connection->attachment == target->attachment ? connection : 0;
}

static __always_inline struct connection *make_connection(connection_key key)
{
#ifdef SPANDIAL_SOCKETS
	return connections.sk_storage_get(key, 0, BPF_SK_STORAGE_GET_F_CREATE);
#else
	u32 zero = 0;
	struct connection *new = new_connections.lookup(&zero);

	if (!new)
		return 0;
	connections.update(&key, new);
	return connections.lookup(&key);
#endif
}

/* The number of the current user's map. Whoever comes when all but the last are somebody's shares that one. */
static __always_inline u32 field_share(void)
{
	u64 user = (u32)bpf_get_current_uid_gid(), owner, taken_key = (u64)TAKEN << 32;
	u32 *known = field_shares.lookup(&user), *taken, share, next, uid = user;

	if (known)
		return *known;
	taken = field_shares.lookup(&taken_key);
	share = taken ? *taken : 0;
	if (share >= SPANDIAL_FIELD_SHARES - 1)
		return SPANDIAL_FIELD_SHARES - 1;
	owner = (u64)OWNER << 32 | share;
	if (field_shares.insert(&owner, &uid)) /* somebody else's, since just now */
		return SPANDIAL_FIELD_SHARES - 1;
	next = share + 1;
	field_shares.update(&taken_key, &next);
	field_shares.update(&user, &share);
	return share;
}

/* What an entry of the dynamic table is: a method, if there is one in kind_method, or else a path. */
static __always_inline const struct operation *known_field(const struct walk *walk, u32 entry)
{
	struct table_field name = {.connection = walk->record.connection, .entry = entry};
	u32 share = walk->block.share;
	void *field_map = fields.lookup(&share);

	return field_map ? bpf_map_lookup_elem(field_map, &name) : 0;
}

static __always_inline void remember_field(const struct walk *walk, u32 entry, struct operation *field)
{
	struct table_field name = {.connection = walk->record.connection, .entry = entry};
	u32 share = walk->block.share;
	void *field_map = fields.lookup(&share);

	if (field_map)
		bpf_map_update_elem(field_map, &name, field, BPF_ANY);
}

#endif
