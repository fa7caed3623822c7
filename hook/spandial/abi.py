"""The layout that the agent, the BPF programs and every application process share.

`bpf/spandial.h` says the same in C; `tests/test_abi.py` compiles it and fails when the two differ.
"""

from __future__ import annotations

import enum
import struct

__all__ = [
    "ABI",
    "SPOKEN",
    "MAX_THRESHOLD",
    "RANDOMNESS_MASK",
    "EntryKind",
    "Flag",
    "Event",
    "Loss",
    "Mode",
    "Parent",
    "Protocol",
    "RecordFlag",
    "encode_word",
    "threshold_of",
    "word_rate",
]

ABI = 2
# What is understood, the newest first: an agent serves the hooks of these versions, a hook obeys agents of these. Hooks
# live in images that are rebuilt months later: who changes the layout leaves the version before here, and hands its
# hooks a copy of the table whose header and words are of that version. (Version 1 was never released.)
SPOKEN = (ABI,)
MAGIC = 0x5350414E44490000  # "SPANDI", ABI version in the lower 16 bits

ROWS = 4098  # header, node default, 4,096 targets
ROW_WORDS = 8
ROW_SIZE = 64
TABLE_SIZE = ROWS * ROW_SIZE  # bytes
SHEET_SIZE = 1 << 20  # bytes
HEADER_ROW = 0
DEFAULT_ROW = 1

HEADER_MAGIC = 0
HEADER_GENERATION = 1
HEADER_LEASE = 2  # deadline, CLOCK_BOOTTIME ns; 0: expired
HEADER_ROWS = 3

WORD_EXAMPLES = 4  # not 0: hand over requests that are received, and traced ones that are sent
WORD_OPERATIONS = 5  # set << 32 | offset in the sheet (spandial/sheet.py); 0: no rules by operation
WORD_FALLBACK = 6
WORD_OWNER = 7  # epoch << 32 | tgid; 0: free

MAX_THRESHOLD = 1 << 56
RANDOMNESS_MASK = MAX_THRESHOLD - 1


class EntryKind(enum.IntEnum):
    """What a request is as it enters; the index of its word in a row."""

    INTERNAL = 0
    HTTP = 1
    GRPC = 2
    DB = 3


class Flag:
    """The low byte of a rate word; its lowest two bits are a `Mode`. Plain numbers: IntFlag costs a microsecond."""

    VALID = 0x80
    NEVER = 0x40
    OPERATIONS = 0x10
    EMIT = 0x08
    THIN = 0x04


MODE_MASK = 0x03


class Mode(enum.IntEnum):
    """What a rate means for an entry whose remote parent was already decided."""

    FOLLOW = 0
    BOOST = 1
    STRICT = 2


class Parent(enum.IntEnum):
    """What is known of an entry's parent."""

    NONE = 0
    REMOTE_KEPT = 1
    REMOTE_DROPPED = 2
    LOCAL_KEPT = 3
    LOCAL_DROPPED = 4


class Loss(enum.IntEnum):
    """Why the kernel side lost an entry; an index into its losses map."""

    RING_FULL = 0
    UNREADABLE = 1
    STALE_ROW = 2
    DESYNC = 3
    NO_MEMORY = 4
    UNDECIDED = 5
    RING_FULL_OTHERS = 6


class Protocol(enum.IntEnum):
    """What a captured connection speaks."""

    UNKNOWN = 0
    HTTP1 = 1
    HTTP2 = 2
    POSTGRES = 3
    MYSQL = 4
    REDIS = 5


class Event(enum.IntEnum):
    """What a record of the ring buffer is about."""

    ENTRY = 0
    PREPARE = 1
    REPLY = 2
    FORGET = 3
    BLOCK = 4
    ANSWER = 5
    CLOSED = 6
    CONNECTION = 7
    EXAMPLE = 8
    SESSION = 9


class RecordFlag:
    """What else a record says. Plain numbers, as `Flag`: there are two records to a span."""

    CUT = 1
    FRESH = 2
    GAP = 4
    UNDECIDED = 8
    SENT = 16
    END = 32
    RESET = 64


# struct spandial_target: row, epoch, answers, follows, attachment
TARGET = struct.Struct("=IIIII")
# struct spandial_counts: seen, kept, seen_traced, kept_traced, reverse, reverse_kept, reverse_traced; by entry kind
COUNTS = struct.Struct("=28Q")
# struct spandial_addresses: family, local port, peer port, padding, local address, peer address
ADDRESSES = struct.Struct("=HHHH16s16s")
BODY_UNKNOWN = 0xFFFFFFFF
REQUEST_MAX = 1024
# struct spandial_entry without its request: time_ns, trace id (two halves), span id, randomness, word, connection,
# serving, tgid, row, kind, parent, protocol, event, stream, length, flags, bytes, body, padding
ENTRY = struct.Struct("=8QIIBBBBIHHII4x")

# The counter page of a hooked process, in u64 words; the counts are indexed by
# kind * PAGE_KIND_STRIDE + (no parent 0, PAGE_REMOTE, PAGE_LOCAL) + (kept 1).
PAGE_SIZE = 4096
PAGE_PUBLISHED = 0
PAGE_COUNTS = 8
PAGE_KIND_STRIDE = 8
PAGE_REMOTE = 2
PAGE_LOCAL = 4
PAGE_COUNT_WORDS = 32
# Two words for each kind: how often its rate word was found to be another one, and the decisions on spans with a remote
# parent before it last was.
PAGE_TURNS = 40
PAGE_TURN_WORDS = 8


def encode_word(rate: float, mode: Mode = Mode.FOLLOW, *, emit: bool = False, thin: bool = False) -> int:
    """Rate word of a percentage 0-100.

    The threshold is `2**56 - round(p * 2**56)` (OpenTelemetry, TraceState: Probability Sampling). A rate too small
    for it (below 100 / 2**57 percent) is rate 0.

    Raises ValueError for a rate outside 0-100.
    """
    if not 0 <= rate <= 100:
        raise ValueError(f"a rate is a percentage from 0 to 100, not {rate!r}")
    # A power of two first: dividing by 100 last rounds once.
    threshold = MAX_THRESHOLD - round(rate * MAX_THRESHOLD / 100)
    flags = Flag.VALID | mode
    if emit:
        flags |= Flag.EMIT
    if thin:
        flags |= Flag.THIN
    if threshold == MAX_THRESHOLD:
        return (RANDOMNESS_MASK << 8) | flags | Flag.NEVER
    return (threshold << 8) | flags


def threshold_of(word: int) -> int:
    """Threshold of a rate word: 0 (keep all) to `MAX_THRESHOLD` (keep none)."""
    return MAX_THRESHOLD if word & Flag.NEVER else word >> 8


def word_rate(word: int) -> float | None:
    """Percentage that a rate word stands for; None without VALID."""
    if not word & Flag.VALID:
        return None
    return (MAX_THRESHOLD - threshold_of(word)) * 100 / MAX_THRESHOLD
