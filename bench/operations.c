// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* How many socket operations a process makes: what a target's share of the capture programs' time is laid on. */
#include <uapi/linux/bpf.h>

#define MOVED_DATA 0
#define MOVED_NONE 1 /* nothing there yet (EAGAIN), or the end */

BPF_ARRAY(operating_tgid, u32, 1);
BPF_PERCPU_ARRAY(operations, u64, 2);

/* sock_send_length, sock_recv_length (sk, ret, flags) */
int count_operation(struct bpf_raw_tracepoint_args *ctx)
{
	u32 zero = 0, outcome = (s32)ctx->args[1] > 0 ? MOVED_DATA : MOVED_NONE;
	u32 *tgid = operating_tgid.lookup(&zero);
	u64 *count = operations.lookup(&outcome);

	if (tgid && count && *tgid == bpf_get_current_pid_tgid() >> 32)
		*count += 1;
	return 0;
}
