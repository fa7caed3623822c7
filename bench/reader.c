// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* One decision in the kernel, to be run by hand (BPF_PROG_TEST_RUN): reads the table as capture.c does. */
#include <uapi/linux/bpf.h>
#include "decision.h"

BPF_TABLE("extern", u32, struct spandial_row, rates, SPANDIAL_ROWS);

/* args[0]: row; args[1]: randomness. Returns whether a root entry of kind INTERNAL is kept. */
int read_row(struct bpf_raw_tracepoint_args *ctx)
{
	u32 row_index = ctx->args[0], header_index = SPANDIAL_HEADER_ROW;
	struct spandial_row *row = rates.lookup(&row_index);
	struct spandial_row *header = rates.lookup(&header_index);
	u64 word;

	if (!row || !header)
		return 0;
	word = spandial_choose_word(row->words[SPANDIAL_INTERNAL], row->words[SPANDIAL_WORD_FALLBACK],
				    header->words[SPANDIAL_HEADER_LEASE], bpf_ktime_get_boot_ns());
	return spandial_decide(word, ctx->args[1], SPANDIAL_NO_PARENT);
}
