// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* The rate table and its writer programs.
 *
 * The map is frozen right after it is made: from then on user space can map it only for reading, and programs alone can
 * write it. These are run through BPF_PROG_TEST_RUN and attached to nothing; that there are no others is why its
 * descriptor never leaves the agent.
 */
#include <uapi/linux/bpf.h>
#include "spandial.h"

BPF_F_TABLE("array", u32, struct spandial_row, rates, SPANDIAL_ROWS, BPF_F_MMAPABLE);
/* What BPF_TABLE_PUBLIC adds, which has no variant with flags: capture.c links this map. */
__attribute__((section("maps/export"))) struct rates_table_t __rates;

/* args[0]: row; args[1]: bit mask of the words to write; args[2..9]: the eight words.
 * Every word is one aligned 64-bit store, so no reader ever sees half a rate. Highest word first:
 * an owner is in place before the rates that belong to it. */
int write_row(struct bpf_raw_tracepoint_args *ctx)
{
	u32 index = ctx->args[0];
	u64 mask = ctx->args[1];
	struct spandial_row *row = rates.lookup(&index);

	if (!row)
		return 1;
#define WRITE(n)                                                                                                       \
	if (mask & (1 << n))                                                                                           \
	*(volatile u64 *)&row->words[n] = ctx->args[2 + n]
	WRITE(7);
	WRITE(6);
	WRITE(5);
	WRITE(4);
	WRITE(3);
	WRITE(2);
	WRITE(1);
	WRITE(0);
#undef WRITE
	return 0;
}

/* Read anew for each word: of a value that is kept the verifier remembers which bits were tested, and goes through all
 * combinations of them in all rows, which takes it a third of a second. */
#define MASK(ctx) (*(volatile u64 *)&(ctx)->args[0])

/* args[0]: bit mask of the words to write, 0-3, 5 and 6; args[1..6]: these words; args[7..11]: four row numbers each,
 * 0 for none. Highest word first in each row, as above. */
#define ROWS_A_RUN 20
int write_rows(struct bpf_raw_tracepoint_args *ctx)
{
#pragma unroll
	for (int n = 0; n < ROWS_A_RUN; n++) {
		u32 index = ctx->args[7 + n / 4] >> n % 4 * 16 & 0xffff;
		struct spandial_row *row;

		if (!index)
			continue;
		row = rates.lookup(&index);
		if (!row)
			return 1;
#define WRITE(n, arg)                                                                                                  \
	if (MASK(ctx) & (1 << n))                                                                                      \
	*(volatile u64 *)&row->words[n] = ctx->args[arg]
		WRITE(6, 6);
		WRITE(5, 5);
		WRITE(3, 4);
		WRITE(2, 3);
		WRITE(1, 2);
		WRITE(0, 1);
#undef WRITE
	}
	return 0;
}
