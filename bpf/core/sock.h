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

/* Whether a socket's file is O_NONBLOCK. The offsets are the running kernel's (kernel/btf.py); without them nothing is
 * known. */
static __always_inline int never_blocks(const void *sock)
{
#ifdef SPANDIAL_SK_SOCKET
	__u64 socket, file;
	__u32 flags;

	if (bpf_probe_read_kernel(&socket, sizeof(socket), sock + SPANDIAL_SK_SOCKET) ||
	    bpf_probe_read_kernel(&file, sizeof(file), (void *)(socket + SPANDIAL_SOCKET_FILE)) ||
	    bpf_probe_read_kernel(&flags, sizeof(flags), (void *)(file + SPANDIAL_FILE_FLAGS)))
		return 1;
	return !!(flags & O_NONBLOCK);
#else
	return 1;
#endif
}

#endif
