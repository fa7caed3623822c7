/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* What is remembered: of a head, of a connection and the directions of it, of a walk through one system call's bytes,
 * and of a thread. */
#ifndef SPANDIAL_STATE_H
#define SPANDIAL_STATE_H

#include "core/bytes.h"
#include "core/operation_key.h"
#include "spandial.h"

#define HEAD_MAX 1024 /* bytes of the head that are looked at; a power of two */
#define HEAD_PAD 128  /* reads at a bounded offset never leave the buffer */

/* A head under examination. */
struct head {
	__u8 bytes[HEAD_MAX + HEAD_PAD];
	__u32 length;
	__u32 request_line; /* length without the line end; 0: its end is not within reach */
	__u32 traceparent;  /* offset of the value; 0: none */
	__u32 tracestate;
	__u32 at;	      /* where the scan is */
	__u32 within;	      /* a part of it */
	__u32 refused;	      /* no request after all */
	__u32 found;	      /* offset; 0: nothing */
	__u32 window;	      /* the last four bytes of a search */
	__u32 received;	      /* by the process, as opposed to sent */
	__u32 parent_settles; /* nothing behind a traceparent matters */
	struct operation_key operation;
	__u64 operation_end; /* a bounded length behind the key's beginning stays within */
};

/* An offset within HEAD_MAX, in an instruction that clang cannot prove away: the verifier does not
 * know what clang knows. */
static __always_inline __u32 bounded(__u32 offset)
{
	asm volatile("%0 &= 0x3ff" : "+r"(offset));
	return offset;
}

static __always_inline __u8 byte_at(const struct head *head, __u32 offset)
{
	return head->bytes[bounded(offset)];
}

/* Eight bytes at an offset; the first byte is the least significant (little-endian hosts only). */
static __always_inline __u64 load8(const struct head *head, __u32 offset)
{
	return *(const __u64 *)(head->bytes + bounded(offset));
}

struct trace_context {
	__u64 trace_id[2]; /* most significant half first */
	__u64 span_id;
	__u64 randomness; /* 56 bits: tracestate's rv, else the end of the trace id */
	__u32 sampled;
};

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
	__u32 attachment;     /* of the programs, when it began to be followed: struct spandial_target */
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
	__u32 share;	    /* of the map of fields: its user's */
	__u32 unknown;	    /* the operation, and nobody in user space decides: the word for all others is obeyed */
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
	__u32 epoch;	  /* of the target: processes become other programs */
	__u32 attachment; /* of the programs: struct spandial_target */
	__u32 kept;
	__u32 ended; /* there is none any more */
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

/* A socket's connection whose bytes are ciphertext: what it says, the library's calls tell. Also with
 * kernel TLS, where the socket is handed clear text. In the connection's memory only, never in a record. */
#define ENCRYPTED 0x100

/* A connection of OpenSSL: its SSL object. */
struct tls_connection {
	__u64 tgid;
	__u64 ssl;
};

enum tls_function { TLS_READ = 0, TLS_READ_EX = 1, TLS_WRITE = 2, TLS_WRITE_EX = 3 };

/* A call of one of the functions, from its begin to its return. */
struct tls_call {
	__u64 ssl; /* 0: there is none */
	__u64 buffer;
	__u64 bytes; /* where SSL_read_ex and SSL_write_ex put their number */
	__u64 stack; /* pointer, at the begin: the return is known by it */
	__u32 function;
};

/* What a thread needs while it reads or writes. A program that a uprobe runs can be preempted by another
 * thread that runs it on the same CPU: bpf_prog_run_array_uprobe keeps off migration and nothing else
 * (Linux 6.0, commit 8c7dcb84e3b7). So this belongs to the thread and not to the CPU. */
struct thread {
	struct tls_call call;
	struct tls_call inner; /* within it: TLS through TLS, to a proxy */
	struct head head;
	struct walk walk;
};

#endif
