/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* The ABI of spandial: what the agent, the BPF programs and every application process share.
 *
 * Plain C that BPF, C and C++ compile alike. hook/spandial/abi.py says the same in Python, and
 * tests/test_abi.py compiles this file and fails when the two differ.
 */
#ifndef SPANDIAL_H
#define SPANDIAL_H

#include <linux/types.h>

/* "SPANDI" in the upper 48 bits, the ABI version in the lower 16. */
#define SPANDIAL_ABI 2
#define SPANDIAL_MAGIC 0x5350414e44490000ULL

#define SPANDIAL_ROWS 4098 /* header + node default + 4,096 targets */
#define SPANDIAL_ROW_WORDS 8
#define SPANDIAL_HEADER_ROW 0
#define SPANDIAL_DEFAULT_ROW 1

/* The hooks' sheet: where a row's WORD_OPERATIONS points to, a u32 and so many bytes of JSON, [[pattern, row], ...],
 * the patterns that win first. The rate of an operation is in the rate words of its row. Sets are never numbered
 * twice, and a set's block and rows are freed only after no row names it: who reads the word, then block and rate,
 * and then the same word again has read what belongs together.
 */
#define SPANDIAL_SHEET_SIZE (1 << 20)

/* Words of the header row. */
#define SPANDIAL_HEADER_MAGIC 0
#define SPANDIAL_HEADER_GENERATION 1 /* counts the agent's writes */
#define SPANDIAL_HEADER_LEASE 2	     /* deadline, CLOCK_BOOTTIME ns; 0: expired */
#define SPANDIAL_HEADER_ROWS 3

/* Words of every other row; the first four are indexed by entry kind. */
#define SPANDIAL_WORD_EXAMPLES 4   /* not 0: hand over requests that are received, and traced ones that are sent */
#define SPANDIAL_WORD_OPERATIONS 5 /* set << 32 | offset in the hooks' sheet; 0: no rules by operation */
#define SPANDIAL_WORD_FALLBACK 6   /* obeyed when the lease has run out */
#define SPANDIAL_WORD_OWNER 7	   /* epoch << 32 | tgid; 0: free */

enum spandial_entry_kind {
	SPANDIAL_INTERNAL = 0,
	SPANDIAL_HTTP = 1,
	SPANDIAL_GRPC = 2,
	SPANDIAL_DB = 3,
	SPANDIAL_ENTRY_KINDS = 4,
};

/* A rate word: threshold << 8 | flags. */
#define SPANDIAL_VALID 0x80
#define SPANDIAL_NEVER 0x40
#define SPANDIAL_OPERATIONS 0x10 /* rules by operation may say otherwise: this word is for all other operations */
#define SPANDIAL_EMIT 0x08
#define SPANDIAL_THIN 0x04
#define SPANDIAL_MODE 0x03 /* mask */
#define SPANDIAL_FOLLOW 0
#define SPANDIAL_BOOST 1
#define SPANDIAL_STRICT 2

enum spandial_parent {
	SPANDIAL_NO_PARENT = 0,
	SPANDIAL_REMOTE_KEPT = 1,
	SPANDIAL_REMOTE_DROPPED = 2,
	SPANDIAL_LOCAL_KEPT = 3,
	SPANDIAL_LOCAL_DROPPED = 4,
};

struct spandial_row {
	__u64 words[SPANDIAL_ROW_WORDS];
};

/* Value of the kernel's targets map, keyed by tgid (u32). */
struct spandial_target {
	__u32 row;
	__u32 epoch;
	__u32 answers;	  /* hand over the answers to its kept entries, too */
	__u32 follows;	  /* the kernel follows connections of it: set by the kernel */
	__u32 attachment; /* of the programs, by its number: what was remembered under another is out of date */
};

/* Value of the kernel's counts map, keyed by row, per CPU; arrays by entry kind. */
struct spandial_counts {
	__u64 seen[SPANDIAL_ENTRY_KINDS];	 /* entries received */
	__u64 kept[SPANDIAL_ENTRY_KINDS];	 /* of those, kept by the decision */
	__u64 seen_traced[SPANDIAL_ENTRY_KINDS]; /* entries with a trace context */
	__u64 kept_traced[SPANDIAL_ENTRY_KINDS];
	/* Requests that go the other way, never entries: HTTP and gRPC calls sent, statements received. */
	__u64 reverse[SPANDIAL_ENTRY_KINDS];
	__u64 reverse_kept[SPANDIAL_ENTRY_KINDS];   /* of the calls sent: their spans are exported */
	__u64 reverse_traced[SPANDIAL_ENTRY_KINDS]; /* sent with a trace context */
};

/* Index into the kernel's losses map, per CPU. */
enum spandial_loss {
	SPANDIAL_LOSS_RING_FULL = 0,	    /* a kept entry found no room in the ring buffer */
	SPANDIAL_LOSS_UNREADABLE = 1,	    /* the process's buffer could not be read */
	SPANDIAL_LOSS_STALE_ROW = 2,	    /* the target's row belongs to somebody else */
	SPANDIAL_LOSS_DESYNC = 3,	    /* a connection's messages could not be followed any further */
	SPANDIAL_LOSS_NO_MEMORY = 4,	    /* no room for what is known of one more connection */
	SPANDIAL_LOSS_UNDECIDED = 5,	    /* a trace context or an operation that the kernel could not read */
	SPANDIAL_LOSS_RING_FULL_OTHERS = 6, /* another record found none: part of an answer, a connection */
	SPANDIAL_LOSS_KINDS = 7,
};

enum spandial_protocol {
	SPANDIAL_UNKNOWN = 0,
	SPANDIAL_HTTP1 = 1,
	SPANDIAL_HTTP2 = 2,
	SPANDIAL_POSTGRES = 3,
	SPANDIAL_MYSQL = 4,
	SPANDIAL_REDIS = 5,
};

/* What a record of the ring buffer is about. */
enum spandial_event {
	SPANDIAL_EVENT_ENTRY = 0,   /* a kept entry, or a kept call that the process sent */
	SPANDIAL_EVENT_PREPARE = 1, /* a statement was prepared: what later entries of the connection name */
	SPANDIAL_EVENT_REPLY = 2,   /* the first bytes of the answer to the last PREPARE */
	SPANDIAL_EVENT_FORGET = 3,  /* a prepared statement was closed */
	SPANDIAL_EVENT_BLOCK = 4,   /* a header block of no kept entry that changed the dynamic table */
	/* A part of the answer to the last entry: its first and last 128 bytes. HTTP/2: a header block of a stream's
	 * answer, which may be none that is wanted, but changed the dynamic table; or, without bytes, an answer's end.
	 */
	SPANDIAL_EVENT_ANSWER = 5,
	SPANDIAL_EVENT_CLOSED = 6,     /* the other side ended the connection */
	SPANDIAL_EVENT_CONNECTION = 7, /* followed from now on: struct spandial_addresses */
	SPANDIAL_EVENT_EXAMPLE = 8,    /* a request of HTTP/1 that is handed over for its row's EXAMPLES alone */
	SPANDIAL_EVENT_SESSION = 9,    /* a message of a database's client that names the database it works with */
};

enum spandial_record_flag {
	SPANDIAL_RECORD_CUT = 1,       /* the request was longer */
	SPANDIAL_RECORD_FRESH = 2,     /* the connection's first block: its dynamic table was empty */
	SPANDIAL_RECORD_GAP = 4,       /* changes of the dynamic table before this block are missing */
	SPANDIAL_RECORD_UNDECIDED = 8, /* user space decides: the trace context is known to it alone */
	SPANDIAL_RECORD_SENT = 16,     /* the process sent the request */
	SPANDIAL_RECORD_END = 32,      /* the stream's answer ends (HTTP/2) */
	SPANDIAL_RECORD_RESET = 64,    /* by RST_STREAM, whose error code is in the bytes */
};

/* Both ends of a connection of TCP or UDP; IPv4 addresses in the first four bytes, ports in host order. */
struct spandial_addresses {
	__u16 family; /* AF_INET or AF_INET6; 0: not known */
	__u16 local_port;
	__u16 peer_port;
	__u16 padding;
	__u8 local[16];
	__u8 peer[16];
};

#define SPANDIAL_BODY_UNKNOWN 0xffffffff /* too large, padded, or not looked at */
#define SPANDIAL_REQUEST_MAX 1024	 /* bytes of the request that a record carries at most */

/* A record of the ring buffer; it ends after `length` bytes of the request, or later. */
struct spandial_entry {
	__u64 time_ns;	   /* CLOCK_BOOTTIME */
	__u64 trace_id[2]; /* most significant half first; 0: no trace context */
	__u64 span_id;	   /* of the remote parent */
	__u64 randomness;  /* the 56 bits that were compared */
	__u64 word;	   /* the rate word that was obeyed */
	__u64 connection;  /* drawn for each connection that is followed; 0: none is */
	__u64 serving;	   /* the connection whose request the same thread is serving; 0: none is known */
	__u32 tgid;
	__u32 row;
	__u8 kind;     /* enum spandial_entry_kind */
	__u8 parent;   /* enum spandial_parent */
	__u8 protocol; /* enum spandial_protocol */
	__u8 event;    /* enum spandial_event */
	__u32 stream;  /* of the connection (HTTP/2) */
	__u16 length;  /* bytes of request that are valid */
	__u16 flags;   /* enum spandial_record_flag */
	__u32 bytes;   /* of the whole message; an answer's end (HTTP/2): of its body, SPANDIAL_BODY_UNKNOWN else */
	__u32 body; /* an answer's: bytes of the request that came behind the entry's message, or its body (HTTP/2) */
	__u32 padding;
	__u8 request[SPANDIAL_REQUEST_MAX];
};

/* The counter page of a hooked process: u64 words. Word 0 echoes the agent's last publish request;
 * the counts start at word 8, indexed by kind * 8 + (no parent 0, remote 2, local 4) + (kept 1). From word 40 on, two
 * for each kind: how often its rate word was found to be another one (0: not told), and the decisions on spans with a
 * remote parent before it last was. */
#define SPANDIAL_PAGE_SIZE 4096
#define SPANDIAL_PAGE_PUBLISHED 0
#define SPANDIAL_PAGE_COUNTS 8
#define SPANDIAL_PAGE_KIND_STRIDE 8
#define SPANDIAL_PAGE_REMOTE 2
#define SPANDIAL_PAGE_LOCAL 4
#define SPANDIAL_PAGE_TURNS 40

#endif
