// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* The parser of heads as a program of its own, run by test_parse.py. */
#include <uapi/linux/bpf.h>
#include "core/state.h"

struct input {
	u8 bytes[HEAD_MAX];
};

struct output {
	u32 request;
	u32 request_line;
	u32 traced;
	u32 sampled;
	u64 trace_id[2];
	u64 span_id;
	u64 randomness;
};

BPF_ARRAY(input, struct input, 1);
BPF_ARRAY(output, struct output, 1);
BPF_PERCPU_ARRAY(heads, struct head, 1);

static __always_inline struct head *this_head(void)
{
	u32 zero = 0;

	return heads.lookup(&zero);
}

#include "protocols/tracecontext.h"

/* args: length */
int parse(struct bpf_raw_tracepoint_args *ctx)
{
	u32 zero = 0, length = ctx->args[0];
	struct input *in = input.lookup(&zero);
	struct output *out = output.lookup(&zero);
	struct head *head = heads.lookup(&zero);
	struct trace_context context = {};

	if (!in || !out || !head || length > HEAD_MAX)
		return 1;
	/* All bytes: what lies behind length must not matter. */
	bpf_probe_read_kernel(head->bytes, HEAD_MAX, in->bytes);
	REMEMBER(head->parent_settles, 0);
	out->request = starts_with_method(load8(head, 0)) && scan_head(head, length);
	out->request_line = out->request ? head->request_line : 0;
	out->traced = out->request && parse_traceparent(head, &context);
	if (out->traced)
		parse_randomness(head, &context);
	out->sampled = context.sampled;
	out->trace_id[0] = context.trace_id[0];
	out->trace_id[1] = context.trace_id[1];
	out->span_id = context.span_id;
	out->randomness = context.randomness;
	return 0;
}
