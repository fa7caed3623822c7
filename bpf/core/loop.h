/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Loops by bpf_loop (Linux 5.17, commit e6f2dd0f8067): the verifier looks at a callback once, whatever
 * the number of its calls.
 *
 * bcc compiles every function alone: a callback is named by its number here, and the loader
 * (spandial_agent/kernel/linker.py) puts the function in its place. It has no argument that C could
 * name, because bcc takes second arguments for those of a traced function: what it works on is in a
 * map.
 */
#ifndef SPANDIAL_LOOP_H
#define SPANDIAL_LOOP_H

#define CALLBACK(number) ((void *)(0x5350414e00000000ULL | (number)))

enum callback {
	SCAN_HTTP1 = 1,
	SCAN_TRACESTATE = 2,
	STEP_POSTGRES = 3,
	STEP_MYSQL = 4,
	STEP_REDIS = 5,
	STEP_HTTP2 = 6,
	SCAN_FIELDS = 7,
	SCAN_HUFFMAN = 8,
	SCAN_OPERATION = 9,
	OBEY_OPERATION = 10,
};

#endif
