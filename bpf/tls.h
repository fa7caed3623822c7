/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* TLS: the records on a socket, which say nothing, and the calls of OpenSSL that say what is in them. */
#ifndef SPANDIAL_TLS_H
#define SPANDIAL_TLS_H

#include "stream.h"

/* A socket's connection whose bytes are ciphertext: what it says, the library's calls tell. Also with
 * kernel TLS, where the socket is handed clear text. In the connection's memory only, never in a record. */
#define ENCRYPTED 0x100

/* content type, version, length; a handshake's message has its type and its length */
#define TLS_RECORD_HEADER 5
#define TLS_HANDSHAKE 22
#define TLS_APPLICATION_DATA 23

/* Whether eight bytes begin a hello of the client's or the server's, or one record of data that was there in one
 * piece (RFC 8446, sections 4 and 5.1): so from the handshake on, or from the middle of a connection. */
static __always_inline int is_tls(__u64 first, __u64 total)
{
	__u8 type = first, major = first >> 8, minor = first >> 16, message = first >> 40;
	__u32 length = (first >> 24 & 0xff) << 8 | (first >> 32 & 0xff);

	if (major != 3 || minor > 4)
		return 0;
	if (type == TLS_HANDSHAKE)
		return (message == 1 || message == 2) && !(first >> 48 & 0xff);
	return type == TLS_APPLICATION_DATA && total == TLS_RECORD_HEADER + length;
}

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

/* Where to remember a call that begins. One that never returned is not waited for: no other is within it unless it
 * is deeper on the stack, and then that has a place, too. */
static __always_inline struct tls_call *beginning_call(struct thread *thread, __u64 stack)
{
	return thread->call.ssl && thread->call.stack > stack ? &thread->inner : &thread->call;
}

/* The call that returns here; 0 if its begin has not been seen. */
static __always_inline struct tls_call *returning_call(struct thread *thread, __u64 stack)
{
	if (thread->inner.ssl && thread->inner.stack == stack)
		return &thread->inner;
	return thread->call.ssl && thread->call.stack == stack ? &thread->call : 0;
}

#endif
