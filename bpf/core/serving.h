/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* The request that a thread is serving, for what it sends meanwhile. */
#ifndef SPANDIAL_SERVING_H
#define SPANDIAL_SERVING_H

#include "core/maps.h"
#include "core/sock.h"

static __always_inline void end_serving(void)
{
#ifndef SPANDIAL_SYS_EXIT
	struct serving *known = serving.task_storage_get(bpf_get_current_task_btf(), 0, 0);

	if (known)
		known->ended = 1;
#endif
}

/* What a thread does from now on, it does for this request: until the first of the answer, or the thread's next one. */
static __always_inline void begin_serving(const struct spandial_target *target, connection_key key,
					  const struct trace_context *context, u64 connection, u32 kept)
{
#if defined(SPANDIAL_TLS)
	end_serving(); /* whether its socket blocks, the library's call does not tell */
#elif defined(SPANDIAL_SOCKETS)
	struct serving *now;

	if (never_blocks(key)) {
		end_serving();
		return;
	}
	now = serving.task_storage_get(bpf_get_current_task_btf(), 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!now)
		return;
	now->connection = connection;
	now->trace_id[0] = context->trace_id[0];
	now->trace_id[1] = context->trace_id[1];
	now->randomness = context->randomness;
	now->epoch = target->epoch;
	now->attachment = target->attachment;
	now->kept = kept;
	now->ended = 0;
#endif
}

/* The request that this thread is serving. Returns whether one is known. */
static __always_inline int served_request(const struct spandial_target *target, struct serving *served)
{
#ifndef SPANDIAL_SYS_EXIT
	struct serving *known = serving.task_storage_get(bpf_get_current_task_btf(), 0, 0);

	if (!known || known->ended || known->epoch != target->epoch || known->attachment != target->attachment)
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

#endif
