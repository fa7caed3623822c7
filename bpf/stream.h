/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* A connection's bytes as the stream that they are: messages of a protocol begin and end anywhere in
 * what a system call reads or writes, and in the buffers that it names.
 *
 * A walk takes one step after the other, each a call of the protocol's step function: a header, or a
 * part of a message that is passed over, or the next buffer.
 */
#ifndef SPANDIAL_STREAM_H
#define SPANDIAL_STREAM_H

#include "decision.h"
#include "tracecontext.h"

#define WALK_STEPS (1 << 16) /* more than one system call's messages, but for an attack */
#define HEADER_MAX 16
#define KEPT_STREAMS 64			       /* a power of two */
#define WINDOW_MAX 256			       /* bytes read at once by who looks at many small pieces */
#define CAPTURE_MAX (SPANDIAL_REQUEST_MAX - 1) /* bytes of a message, so that a mask bounds them */

/* Where a connection's requests stand between two system calls. */
struct requests {
	__u64 skip;	/* bytes of the current message still to come */
	__u64 start_ns; /* when the current operation began */
	__u64 randomness;
	__u64 serving;	 /* the connection whose request the current operation is for; 0: none is known */
	__u32 have;	 /* bytes of the current message's header, so far */
	__u32 elements;	 /* of the current command still to come (Redis) */
	__u32 inside;	 /* what the current message is, if its end matters; 0: it does not */
	__u32 capturing; /* the current message, up to so many bytes; 0: not at all */
	__u32 captured;	 /* bytes, of this message or, behind its end, of the last one */
	__u32 decided;	 /* the current operation: enum decided */
	__u32 cut;	 /* the current message is longer than what is captured */
	__u32 encrypted; /* the rest cannot be followed */
	/* HTTP/2 */
	__u32 stream;
	__u32 last_stream;	    /* of the last request */
	__u32 padding;		    /* bytes behind the current fragment */
	__u32 ends;		    /* the stream ends with the current block */
	__u32 block_length;	    /* of the current header block, captured or not */
	__u32 fresh;		    /* the connection begins: its dynamic table is empty */
	__u32 gap;		    /* changes of the dynamic table were not handed over */
	__u32 grpc;		    /* enum grpc */
	__u32 traceparent_inserted; /* into the dynamic table, so that an index may stand for it */
	/* Entries of the dynamic table are numbered as they come, from 1 on. */
	__u32 insertions;
	__u32 traceparent_entry; /* the last one of this name; 0: there is none, or it is not known */
	__u32 tracestate_entry;
	struct trace_context context; /* of traceparent_entry */
	__u8 header[HEADER_MAX + 8];  /* 16 bytes can be read from any of the first eight on */
};

enum grpc { GRPC_UNKNOWN = 0, GRPC = 1, NOT_GRPC = 2 };
enum decided { UNDECIDED = 0, KEPT = 1, DROPPED = 2 };

/* The streams (HTTP/2) whose answers are wanted, each in its place. Requests and responses may be walked through at the
 * same time, on two CPUs: each of the two has one writer. */
struct kept { /* by the requests */
	__u32 streams[KEPT_STREAMS];
	__u32 body[KEPT_STREAMS]; /* bytes of DATA, or SPANDIAL_BODY_UNKNOWN */
	__u64 crowded;		  /* two had the same place: every answer is handed over from now on */
};
struct ended { /* by the responses */
	__u32 streams[KEPT_STREAMS];
	__u32 body[KEPT_STREAMS]; /* of answers that have not ended */
} __attribute__((aligned(8)));	  /* copied by eight bytes */

/* A connection that is followed. */
struct connection {
	__u64 id;
	__u32 protocol;
	__u32 server;	      /* the target received its requests */
	__u32 awaiting_reply; /* to a PREPARE */
	__u32 pending;	      /* a kept entry was handed over, and its answer is wanted */
	__u32 answered;	      /* some of that has been there */
	__u32 unnamed_known;  /* the unnamed statement was handed over (PostgreSQL) */
	__u32 body;	      /* bytes of the request behind its first message (HTTP/1) */
	struct requests requests;
	struct requests responses; /* HTTP/2's, where answers are wanted */
	struct kept kept;
	__u64 in_step; /* responses are followed; between the two, or clang clears both by one call that there is not */
	struct ended ended;
	__u8 capture[SPANDIAL_REQUEST_MAX];
	__u8 response_capture[SPANDIAL_REQUEST_MAX];
};

/* A header block under examination (HTTP/2). Offsets are of values; 0: there is none. */
struct block {
	__u32 at; /* where the scan is */
	__u32 end;
	__u32 traceparent;
	__u32 traceparent_huffman;
	__u32 traceparent_inserted;
	__u32 context_known; /* the traceparent is the one that was inserted last */
	__u32 tracestate;
	__u32 tracestate_length;
	__u32 tracestate_huffman;
	__u32 changed; /* the dynamic table */
	__u32 indexed; /* a field that only the dynamic table knows */
	__u32 grpc;
	__u32 cut;
	__u32 undecided;
	/* The operation, where rules may be about it: http2_operation.h. */
	__u64 method;	    /* its bytes; 0: not known */
	__u32 insertions;   /* into the dynamic table: before this block, then before the current field */
	__u32 method_entry; /* of the dynamic table: what a literal became; 0: none */
	__u32 path_static;  /* the path's entry of the static table; 0: it is not from there */
	__u32 path_entry;   /* of the dynamic table: what a literal became, or else where the path is; 0: none */
	__u32 path;
	__u32 path_length;
	__u32 path_huffman;
};

/* The request that a thread is serving. */
struct serving {
	__u64 connection; /* 0: it was dropped */
	__u64 trace_id[2];
	__u64 randomness;
	__u32 epoch; /* of the target: thread ids are used again */
	__u32 kept;
};

/* A walk through one system call's bytes. */
struct walk {
	__u64 buffer; /* of the process: the current chunk */
	__u64 iovec;  /* of the process: the next chunk */
	__u64 word;
	__u32 left;  /* bytes of the current chunk */
	__u32 total; /* bytes behind it */
	__u32 iovecs;
	__u32 entries;	 /* the requests are entries, as opposed to going the other way */
	__u32 answers;	 /* are wanted, and so are calls that the process sent (HTTP/2) */
	__u32 responses; /* what is walked through are responses (HTTP/2) */
	__u32 local;	 /* enum spandial_parent: what is decided for the request that the thread is serving */
	__u64 serving;	 /* its connection */
	__u64 trace_randomness;
	__u32 broken;
	__u32 prepared;
	__u32 pending;
	__u32 unnamed_known;
	__u32 epoch;
	struct block block;
	struct kept kept;
	struct ended ended;
	struct requests at;
	struct spandial_entry record;
	__u8 slack[SPANDIAL_REQUEST_MAX]; /* a bounded offset and a bounded length never leave the walk */
	__u64 window_at;		  /* of the process: what the window shows */
	__u64 window_length;
	__u8 window[2 * WINDOW_MAX];
};

/* With maps, and so in capture.c: bcc rewrites no access to a map in an included file. */
static __always_inline struct walk *this_walk(void);
static __always_inline int emit_record(struct walk *walk, __u32 event);
static __always_inline void count_entry(struct walk *walk, __u32 kind, int kept, int traced);
static __always_inline void decide_block(struct walk *walk);

static __always_inline void advance(struct walk *walk, __u32 bytes)
{
	walk->buffer += bytes;
	walk->left -= bytes;
}

/* Go on to the next buffer of the system call. Returns 0 where there is none. */
static __always_inline int next_chunk(struct walk *walk)
{
	struct {
		__u64 base;
		__u64 length;
	} iov;

	if (!walk->iovecs || !walk->total)
		return 0;
	if (bpf_probe_read_user(&iov, sizeof(iov), (void *)walk->iovec)) {
		walk->broken = 1;
		return 0;
	}
	walk->iovecs--;
	walk->iovec += sizeof(iov);
	walk->buffer = iov.base;
	walk->left = iov.length < walk->total ? iov.length : walk->total;
	walk->total -= walk->left;
	return 1;
}

/* Append bytes of the current chunk to what is captured, as far as there is room. */
static __always_inline void capture(struct walk *walk, __u32 bytes)
{
	__u32 captured = walk->at.captured;
	__u32 room = captured < walk->at.capturing ? walk->at.capturing - captured : 0;

	if (bytes > room) {
		bytes = room;
		walk->at.cut = 1;
	}
	if (!bytes)
		return;
	asm volatile("%0 &= 0x3ff" : "+r"(captured));
	asm volatile("%0 &= 0x3ff" : "+r"(bytes));
	if (bpf_probe_read_user(walk->record.request + captured, bytes, (void *)walk->buffer)) {
		walk->broken = 1;
		return;
	}
	walk->at.captured = captured + bytes;
}

/* Capture the message whose header has just been taken: so many bytes of it, from `first` on. */
static __always_inline void begin_capture(struct walk *walk, __u32 first, __u32 bytes, __u32 most)
{
	walk->at.capturing = most;
	walk->at.cut = 0;
	walk->at.captured = bytes;
	__builtin_memcpy(walk->record.request, walk->at.header + first, HEADER_MAX);
}

/* What a step does before it looks at a header. */
enum progress { AT_HEADER, ON_THE_WAY, AT_END };

static __always_inline void pass(struct walk *walk)
{
	__u64 skip = walk->at.skip;

	if (skip > walk->left)
		skip = walk->left;
	if (walk->at.capturing)
		capture(walk, skip);
	advance(walk, skip);
	walk->at.skip -= skip;
}

static __always_inline enum progress proceed(struct walk *walk)
{
	if (walk->broken)
		return AT_END;
	if (!walk->left)
		return next_chunk(walk) ? ON_THE_WAY : AT_END;
	if (!walk->at.skip)
		return AT_HEADER;
	pass(walk);
	return ON_THE_WAY;
}

/* Whether the header has this many bytes now; takes what the current chunk has of them. */
static __always_inline int take_header(struct walk *walk, __u32 wanted)
{
	__u32 have = walk->at.have, bytes = wanted - have;

	if (bytes > walk->left)
		bytes = walk->left;
	asm volatile("%0 &= 0xf" : "+r"(have));
	asm volatile("%0 &= 0xf" : "+r"(bytes));
	if (bytes && bpf_probe_read_user(walk->at.header + have, bytes, (void *)walk->buffer)) {
		walk->broken = 1;
		return 0;
	}
	advance(walk, bytes);
	walk->at.have = have + bytes;
	return have + bytes == wanted;
}

static __always_inline __u32 big_endian(const __u8 *bytes)
{
	return (__u32)bytes[0] << 24 | bytes[1] << 16 | bytes[2] << 8 | bytes[3];
}

#endif
