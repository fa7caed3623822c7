/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* The sampling decision in C; hook/spandial/decision.py is the same function in Python. */
#ifndef SPANDIAL_DECISION_H
#define SPANDIAL_DECISION_H

#include "spandial.h"

/* The word to obey: the entry kind's own, or the row's fallback once the lease has run out. */
static inline __u64 spandial_choose_word(__u64 own, __u64 fallback, __u64 lease_deadline_ns, __u64 now_ns)
{
	return now_ns < lease_deadline_ns ? own : fallback;
}

/* Whether to keep an entry. A word without VALID keeps nothing here: its reader must have chosen
 * a default of its own before. randomness: 56 bits. parent: enum spandial_parent. */
static inline int spandial_decide(__u64 word, __u64 randomness, __u32 parent)
{
	int valid = !!(word & SPANDIAL_VALID);
	int hit = valid && !(word & SPANDIAL_NEVER) && randomness >= word >> 8;
	int thin = !!(word & SPANDIAL_THIN);
	__u32 mode = word & SPANDIAL_MODE;

	if (!valid)
		return 0;
	switch (parent) {
	case SPANDIAL_NO_PARENT:
		return hit;
	case SPANDIAL_LOCAL_KEPT:
		return thin ? hit : 1;
	case SPANDIAL_REMOTE_KEPT:
		return thin || mode == SPANDIAL_STRICT ? hit : 1;
	case SPANDIAL_REMOTE_DROPPED:
		return mode == SPANDIAL_BOOST || mode == SPANDIAL_STRICT ? hit : 0;
	default: /* SPANDIAL_LOCAL_DROPPED */
		return 0;
	}
}

#endif
