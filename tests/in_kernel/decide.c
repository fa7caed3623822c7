// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* The decision as a program of its own, run by test_decision.py. */
#include <uapi/linux/bpf.h>
#include "decision.h"

/* args: word, randomness, parent */
int decide(struct bpf_raw_tracepoint_args *ctx)
{
	return spandial_decide(ctx->args[0], ctx->args[1], ctx->args[2]);
}

/* args: own, fallback, lease deadline, now; whether the own word is chosen */
int choose(struct bpf_raw_tracepoint_args *ctx)
{
	return spandial_choose_word(ctx->args[0], ctx->args[1], ctx->args[2], ctx->args[3]) == ctx->args[0];
}
