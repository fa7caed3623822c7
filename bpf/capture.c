// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* Capture: thin probes over the protocols' headers.
 *
 * Cheapest first: is this process a target, has it a connection that is followed, is this one, what do
 * the first eight bytes say. An HTTP/1 request needs no memory of its connection; every other protocol
 * does. Then count, find the trace context, decide; and only for a kept entry whose word has EMIT: copy,
 * submit.
 */
#include <uapi/linux/ptrace.h>
#include <linux/fcntl.h>
#include <linux/socket.h>
#include "regs.h"
#include "sock.h"
#include "tracecontext.h"
#include "postgres.h"
#include "mysql.h"
#include "redis.h"
#include "http2.h"
#include "http2_operation.h"
#include "tls.h"

BPF_TABLE("extern", u32, struct spandial_row, rates, SPANDIAL_ROWS);
BPF_HASH(targets, u32, struct spandial_target, SPANDIAL_ROWS);
BPF_PERCPU_ARRAY(counts, struct spandial_counts, SPANDIAL_ROWS);
BPF_PERCPU_ARRAY(losses, u64, SPANDIAL_LOSS_KINDS);
BPF_RINGBUF_OUTPUT(entries, SPANDIAL_RING_PAGES);
BPF_F_TABLE("lpm_trie", struct operation_key, u32, operations, SPANDIAL_OPERATION_KEYS, BPF_F_NO_PREALLOC); /* rows */

/* Methods and paths in the dynamic tables of connections (HTTP/2) whose words say that rules by operation may be about
 * them. */
struct table_field {
	u64 connection;
	u64 entry;
};
BPF_TABLE("lru_hash", struct table_field, struct operation, fields, SPANDIAL_FIELDS);

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

/* The requests that threads are serving, by pid_tgid: of processes whose answers are wanted, on sockets that block. A
 * thread that waits on a socket for one request does nothing else meanwhile; of an event loop's thread nobody knows. */
BPF_TABLE("lru_hash", u64, struct serving, serving, SPANDIAL_CONNECTIONS);

/* Nothing comes between on this CPU, but where a uprobe runs the program: a tracepoint's, which counts the same. */
#ifdef SPANDIAL_TLS
#define COUNT(counter) __sync_fetch_and_add(&(counter), 1)
#else
#define COUNT(counter) ((counter)++)
#endif

static __always_inline void count_loss(u32 kind)
{
	u64 *loss = losses.lookup(&kind);

	if (loss)
		COUNT(*loss);
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
	count_loss(SPANDIAL_LOSS_RING_FULL);
	return -1;
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

/* What a system call of the six read or wrote: its first buffer, and where the others are. */
struct message {
	u64 buffer;
	u64 length; /* of the first buffer */
	u64 total;
	u64 iovec;
	u32 iovecs; /* behind the first */
	int received;
};

/* The first of the user's struct iovec; bytes that it does not have are in those behind it. */
static __always_inline int first_iovec(u64 address, u64 count, struct message *message)
{
	struct {
		u64 base;
		u64 length;
	} iov;

	if (bpf_probe_read_user(&iov, sizeof(iov), (void *)address))
		return -1;
	message->buffer = iov.base;
	if (iov.length < message->length)
		message->length = iov.length;
	message->iovec = address + sizeof(iov);
	message->iovecs = count - 1;
	return 0;
}

/* Fill in the message from a system call's registers; length already holds its result. Returns
 * 1 for a message, 0 for another system call, -1 for memory that could not be read. */
static __always_inline int message_of(u64 number, u64 arg1, u64 arg2, u64 arg3, struct message *message)
{
	struct {
		u64 iovec;
		u64 count;
	} header;

	message->received = 0;
	message->buffer = arg1;
	switch (number) {
	case NR_RECVFROM:
		if (arg3 & MSG_PEEK)
			return 0;
		/* fall through */
	case NR_READ:
		message->received = 1;
		/* fall through */
	case NR_WRITE:
	case NR_SENDTO:
		return 1;
	case NR_READV:
		message->received = 1;
		/* fall through */
	case NR_WRITEV:
		return first_iovec(arg1, arg2, message) ? -1 : 1;
	case NR_RECVMSG:
		if (arg2 & MSG_PEEK)
			return 0;
		message->received = 1;
		/* fall through */
	case NR_SENDMSG:
		/* struct msghdr of user space: name, namelen, then the iovecs and their number at 16 */
		if (bpf_probe_read_user(&header, sizeof(header), (void *)(arg1 + 16)))
			return -1;
		return first_iovec(header.iovec, header.count, message) ? -1 : 1;
	}
	return 0;
}

static __always_inline struct connection *find_connection(connection_key key)
{
#ifdef SPANDIAL_SOCKETS
	return connections.sk_storage_get(key, 0, 0);
#else
	return connections.lookup(&key);
#endif
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

/* A request of HTTP/1 was kept and handed over: what goes the other way is its answer. */
static __always_inline struct connection *want_answers(struct spandial_target *target, connection_key key, u32 tgid,
						       int received)
{
	struct connection *connection = find_connection(key);

	if (!connection || connection->protocol != SPANDIAL_HTTP1 || connection->server != received)
		connection = begin_connection(target, key, tgid, SPANDIAL_HTTP1, received, 0);
	if (connection) {
		connection->pending = 1;
		connection->answered = connection->body = 0;
	}
	return connection;
}

/* A request was dropped: what follows is not the answer to the one before, if that has been answered. */
static __always_inline void end_answers(connection_key key)
{
	struct connection *connection = find_connection(key);

	if (connection && connection->answered)
		connection->pending = 0;
}

static __always_inline void end_serving(void)
{
#ifndef SPANDIAL_SYS_EXIT
	u64 thread = bpf_get_current_pid_tgid();

	serving.delete(&thread);
#endif
}

/* What a thread does from now on, it does for this request: until the first of the answer, or the thread's next one. */
static __always_inline void begin_serving(const struct spandial_target *target, connection_key key,
					  const struct trace_context *context, u64 connection, u32 kept)
{
#if defined(SPANDIAL_TLS)
	end_serving(); /* whether its socket blocks, the library's call does not tell */
#elif defined(SPANDIAL_SOCKETS)
	u64 thread = bpf_get_current_pid_tgid();
	struct serving now = {.connection = connection, .epoch = target->epoch, .kept = kept};

	now.randomness = context->randomness;
	now.trace_id[0] = context->trace_id[0];
	now.trace_id[1] = context->trace_id[1];
	if (never_blocks(key))
		serving.delete(&thread);
	else
		serving.update(&thread, &now);
#endif
}

/* The request that this thread is serving. Returns whether one is known. */
static __always_inline int served_request(const struct spandial_target *target, struct serving *served)
{
#ifndef SPANDIAL_SYS_EXIT
	u64 thread = bpf_get_current_pid_tgid();
	struct serving *known = serving.lookup(&thread);

	if (!known || known->epoch != target->epoch)
		return 0;
	*served = *known;
	return 1;
#else
	return 0;
#endif
}

/* A call that carries a trace context of its own belongs to that trace. */
static __always_inline int same_trace(const struct serving *served, const struct trace_context *context)
{
	return served->trace_id[0] == context->trace_id[0] && served->trace_id[1] == context->trace_id[1];
}

#define ANSWER_FIRST 128 /* bytes of an answer that a record carries: the first, and the last of the rest */
#define ANSWER_LAST 128
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
		count_loss(SPANDIAL_LOSS_RING_FULL);
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

/* Which way a message went. A program for one way alone is shorter, for the verifier and for the caches. */
enum direction { SENT = 0, RECEIVED = 1, EITHER = 2 };
#define DIRECTION(head) (direction == EITHER ? RECALL((head)->received) : direction)

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
		end_answers(key);
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

/* Read the first bytes of a message, at most HEAD_MAX, into head. Returns 0 if they could be read. */
static __always_inline int read_head(struct head *head, u32 length, u64 buffer)
{
	asm volatile("%0 &= 0x7ff" : "+r"(length)); /* what clang proved, said to the verifier */
	if (length > HEAD_MAX)
		return -1;
	return bpf_probe_read_user(head->bytes, length, (void *)buffer);
}

/* What bpf_loop calls: here, because bcc knows no function of an included file. */
int scan_head_callback(void *index)
{
	struct head *head = this_head();

	return head ? scan_http1(head) : 1;
}

int scan_tracestate_callback(void *index)
{
	struct head *head = this_head();

	return head ? scan_tracestate(head) : 1;
}

int step_postgres(void *index)
{
	return postgres_step();
}

int step_mysql(void *index)
{
	return mysql_step();
}

int step_redis(void *index)
{
	return redis_step();
}

int step_http2(void *index)
{
	struct walk *walk = this_walk();

	return walk ? http2_step(walk) : 1;
}

int scan_fields_callback(void *index)
{
	struct walk *walk = this_walk();

	return walk ? scan_fields(walk) : 1;
}

int scan_huffman_callback(void *index)
{
	struct walk *walk = this_walk();
	struct head *head = this_head();

	return walk && head ? scan_huffman(walk, head) : 1;
}

int scan_operation_callback(void *index)
{
	struct walk *walk = this_walk();

	return walk ? scan_operation(walk) : 1;
}

static __always_inline const struct operation *known_field(const struct walk *walk, u32 entry)
{
	struct table_field name = {.connection = walk->record.connection, .entry = entry};

	return fields.lookup(&name);
}

static __always_inline void remember_field(const struct walk *walk, u32 entry, struct operation *field)
{
	struct table_field name = {.connection = walk->record.connection, .entry = entry};

	fields.update(&name, field);
}

/* The walk's word becomes that of the operation that its block asks for, or stays where that cannot be known here. In a
 * loop of one, so that the verifier does not follow what is behind it once for each way through. */
int obey_operation_callback(void *index)
{
	struct walk *walk = this_walk();
	struct head *head = this_head();
	struct spandial_row *row;
	u32 row_index, kind;

	if (!walk || !head)
		return 1;
	row_index = walk->record.row;
	kind = walk->record.kind;
	row = rates.lookup(&row_index);
	if (row && lay_out_block_operation(walk, &head->operation, row->words[SPANDIAL_WORD_OPERATIONS] >> 32, kind))
		walk->word = word_of_operation(walk->word, kind, &head->operation);
	return 1;
}

/* Count and decide the request whose header block is captured, unless it is the trailer of an earlier one. */
static __always_inline void decide_block(struct walk *walk)
{
	u32 parent = SPANDIAL_NO_PARENT, kind, flags = 0;
	struct head *head = this_head();
	struct spandial_entry *record = &walk->record;
	struct block *block = &walk->block;
	struct trace_context context = {};
	int request = walk->at.stream > walk->at.last_stream, kept = 0, traced = 0;

	if (!head)
		return;
	if (walk->at.block_length > walk->at.captured)
		block->cut = 1;
	if (request) {
		walk->at.last_stream = walk->at.stream;
		if (block->grpc)
			walk->at.grpc = block->grpc;
	}
	record->kind = walk->at.grpc == GRPC ? SPANDIAL_GRPC : SPANDIAL_HTTP;
	kind = *(volatile u8 *)&record->kind & 3; /* from memory: not a way through for each, to the verifier */
	walk->word = word_of(record->tgid, record->row, walk->epoch, kind);
	if (request) {
		REMEMBER(head->parent_settles, !(walk->word & (SPANDIAL_THIN | SPANDIAL_MODE)));
		traced = parse_block_context(walk, head, &context);
		if (traced)
			parent = context.sampled ? SPANDIAL_REMOTE_KEPT : SPANDIAL_REMOTE_DROPPED;
		else
			context.randomness = draw_randomness();
		/* What the table alone knows may be the trace context, if one is in there. */
		if (!traced && (block->cut || (block->indexed && walk->at.traceparent_inserted)))
			block->undecided = 1;
		if (walk->word & SPANDIAL_OPERATIONS && (walk->entries || walk->answers)) {
			bpf_loop(1, CALLBACK(OBEY_OPERATION), 0, 0);
			block->undecided |= !!(walk->word & SPANDIAL_OPERATIONS);
		}
		if (!block->undecided)
			kept =
			    (walk->entries || walk->answers) && spandial_decide(walk->word, context.randomness, parent);
		count_entry(walk, kind, kept, traced);
	}
	walk->at.traceparent_inserted |= block->traceparent_inserted;
	if (block->cut || (block->traceparent_inserted && !traced)) /* who knows what came into the table */
		walk->at.traceparent_entry = walk->at.tracestate_entry = 0;
	if (block->cut) /* nor how much of it: what is there already, no index will reach */
		walk->at.insertions += TABLE_ENTRIES_MAX;
	if (emitting(walk) && (kept || block->changed || block->cut || (request && block->undecided))) {
		record->trace_id[0] = context.trace_id[0];
		record->trace_id[1] = context.trace_id[1];
		record->span_id = context.span_id;
		record->randomness = context.randomness;
		record->parent = parent;
		record->serving = 0;
		record->stream = walk->at.stream;
		if (block->cut)
			flags |= SPANDIAL_RECORD_CUT;
		if (walk->at.fresh)
			flags |= SPANDIAL_RECORD_FRESH;
		if (walk->at.gap)
			flags |= SPANDIAL_RECORD_GAP;
		if (request && block->undecided)
			flags |= SPANDIAL_RECORD_UNDECIDED;
		if (!walk->entries)
			flags |= SPANDIAL_RECORD_SENT;
		record->flags = flags;
		if (kept || (flags & SPANDIAL_RECORD_UNDECIDED)) {
			walk->at.gap = emit_record(walk, SPANDIAL_EVENT_ENTRY) != 0;
			if (walk->answers)
				want_answer(walk);
		} else {
			walk->at.gap = emit_record(walk, SPANDIAL_EVENT_BLOCK) != 0;
		}
	} else {
		if (block->changed || block->cut)
			walk->at.gap = 1;
		if (walk->entries && request && block->undecided)
			count_loss(SPANDIAL_LOSS_UNDECIDED);
	}
	walk->at.fresh = 0;
}

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
static __always_inline void on_end(connection_key key, u32 tgid, u32 row)
{
	struct connection *connection = find_connection(key);
	struct walk *walk = this_walk();

	if (!walk || !connection || !connection->pending)
		return;
	connection->pending = 0;
	describe_answer(connection, walk, tgid, row);
	emit_record(walk, SPANDIAL_EVENT_CLOSED);
	if (connection->protocol == SPANDIAL_HTTP1 && connection->server)
		end_serving();
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

	connection = target->follows ? find_connection(key) : 0;
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

#ifndef SPANDIAL_TLS
/* regs: readable as they are; result: what the system call returned. */
static __always_inline int on_syscall(const struct pt_regs *regs, s64 result, u32 tgid, struct spandial_target *target,
				      connection_key key, enum direction direction)
{
	struct message message = {.length = result, .total = result};
	int known =
	    message_of(SYSCALL_NUMBER(regs), SYSCALL_ARG1(regs), SYSCALL_ARG2(regs), SYSCALL_ARG3(regs), &message);

	if (known < 0)
		count_loss(SPANDIAL_LOSS_UNREADABLE);
	if (direction != EITHER)
		message.received = direction;
	return known > 0 ? on_message(&message, tgid, target, key, direction) : 0;
}
#endif

#if defined(SPANDIAL_TLS)
/* SSL_read, SSL_write (ssl, buffer, length), SSL_read_ex and SSL_write_ex (ssl, buffer, length, where to
 * put the number of bytes) begin: what they are about is in registers, and no longer there at their end. */
static __always_inline int on_tls_begin(struct pt_regs *ctx, u32 function)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct thread *thread;
	struct tls_call *call;

	if (!targets.lookup(&tgid))
		return 0;
	thread = threads.task_storage_get(bpf_get_current_task_btf(), 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!thread) {
		count_loss(SPANDIAL_LOSS_NO_MEMORY);
		return 0;
	}
	call = beginning_call(thread, CALL_STACK(ctx));
	call->ssl = CALL_ARG0(ctx);
	call->buffer = CALL_ARG1(ctx);
	call->bytes = CALL_ARG3(ctx);
	call->stack = CALL_STACK(ctx);
	call->function = function;
	return 0;
}

int on_tls_read(struct pt_regs *ctx)
{
	return on_tls_begin(ctx, TLS_READ);
}

int on_tls_read_ex(struct pt_regs *ctx)
{
	return on_tls_begin(ctx, TLS_READ_EX);
}

int on_tls_write(struct pt_regs *ctx)
{
	return on_tls_begin(ctx, TLS_WRITE);
}

int on_tls_write_ex(struct pt_regs *ctx)
{
	return on_tls_begin(ctx, TLS_WRITE_EX);
}

/* One of the four returns: a number of bytes, or 1. */
int on_tls_return(struct pt_regs *ctx)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct spandial_target *target = targets.lookup(&tgid);
	struct message message = {};
	connection_key key = {.tgid = tgid};
	struct thread *thread;
	struct tls_call *call;
	s32 result = CALL_RESULT(ctx);

	if (!target)
		return 0;
	thread = threads.task_storage_get(bpf_get_current_task_btf(), 0, 0);
	call = thread ? returning_call(thread, CALL_STACK(ctx) - CALL_RETURN_POPS) : 0;
	if (!call)
		return 0;
	key.ssl = call->ssl;
	call->ssl = 0;
	if (result <= 0)
		return 0;
	message.total = result;
	if ((call->function == TLS_READ_EX || call->function == TLS_WRITE_EX) &&
	    bpf_probe_read_user(&message.total, sizeof(message.total), (void *)call->bytes)) {
		count_loss(SPANDIAL_LOSS_UNREADABLE);
		return 0;
	}
	message.buffer = call->buffer;
	message.length = message.total;
	message.received = call->function <= TLS_READ_EX;
	if (!message.total || (message.total < 8 && !target->follows))
		return 0;
	return on_message(&message, tgid, target, key, EITHER);
}

/* SSL_free, SSL_clear (ssl): an SSL object of the same address may be another connection's. */
int on_tls_end(struct pt_regs *ctx)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct spandial_target *target = targets.lookup(&tgid);
	connection_key key = {.tgid = tgid, .ssl = CALL_ARG0(ctx)};

	if (!target || !target->follows)
		return 0;
	on_end(key, tgid, target->row);
	connections.delete(&key);
	return 0;
}
#elif defined(SPANDIAL_SYS_EXIT)
/* sys_exit (regs, ret): for kernels without the tracepoints below, from Linux 5.17 on (bpf_loop). It
 * cannot tell a socket from a file. */
int on_sys_exit(struct bpf_raw_tracepoint_args *ctx)
{
	s64 result = ctx->args[1];
	struct spandial_target *target;
	struct pt_regs regs;
	u64 key;
	u32 tgid;

	if (result < 0)
		return 0;
	tgid = bpf_get_current_pid_tgid() >> 32;
	target = targets.lookup(&tgid);
	if (!target)
		return 0;
	if (result < 8 && result && !target->follows)
		return 0;
	bpf_probe_read_kernel(&regs, sizeof(regs), (void *)ctx->args[0]);
	key = (u64)tgid << 32 | (u32)SYSCALL_ARG0(&regs);
	if (!result) {
		on_end(key, tgid, target->row);
		if (SYSCALL_NUMBER(&regs) == NR_CLOSE)
			connections.delete(&key);
		return 0;
	}
	return on_syscall(&regs, result, tgid, target, key, EITHER);
}
#else
/* sock_send_length, sock_recv_length (sk, ret, flags), Linux 6.3 (commit 6e6eda44b939): once for
 * every socket operation, after the data is in the user's buffer. As BTF-typed tracepoints, whose
 * arguments the verifier knows: a socket that may have storage (Linux 5.11, commit 8e4597c627fb). */
static __always_inline int on_socket(u64 *ctx, enum direction direction)
{
	s64 result = (s32)ctx[1];
	struct spandial_target *target;
	u32 tgid;

	/* The cheapest test first: half the receives of a busy server find nothing (EAGAIN). */
	if (result < 0 || (ctx[2] & MSG_PEEK))
		return 0;
	tgid = bpf_get_current_pid_tgid() >> 32;
	target = targets.lookup(&tgid);
	if (!target)
		return 0;
	if (!result) {
		if (direction == RECEIVED)
			on_end((struct sock *)ctx[0], tgid, target->row);
		return 0;
	}
	if (result < 8 && !target->follows)
		return 0;
	/* A pointer that the verifier knows and lets be read (Linux 5.15, commit dd6e10fbd9fb). */
	return on_syscall((const struct pt_regs *)bpf_task_pt_regs(bpf_get_current_task_btf()), result, tgid, target,
			  (struct sock *)ctx[0], direction);
}

int on_receive(u64 *ctx)
{
	return on_socket(ctx, RECEIVED);
}

int on_send(u64 *ctx)
{
	return on_socket(ctx, SENT);
}
#endif
