/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* The beginning of the kernel's struct sock_common (include/net/sock.h), which has been the same since Linux 4.4 where
 * there are network namespaces: both ends of a connection. */
#ifndef SPANDIAL_SOCK_H
#define SPANDIAL_SOCK_H

struct sock_common_head {
	__be32 peer;
	__be32 local;
	__u32 hash;
	__be16 peer_port;
	__u16 local_port;
	__u16 family;
	__u8 state;
	__u8 bits;
	__u32 bound_device;
	__u64 bind_node[2];
	__u64 prot;
	__u64 net;
	__u8 peer6[16];
	__u8 local6[16];
};

#endif
