/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* TLS: the records on a socket, which say nothing, and the calls of OpenSSL that say what is in them. */
#ifndef SPANDIAL_TLS_H
#define SPANDIAL_TLS_H

#include "core/state.h"

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
