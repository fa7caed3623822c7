"""Frames of HTTP/2 (RFC 9113, section 4.1)."""

from __future__ import annotations

import struct

__all__ = ["frame"]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload
