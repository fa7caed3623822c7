"""What the kernel loses is counted. The reasons `ring_full`, `unreadable`, `stale_row`: test_capture.py; `desync`:
test_databases.py."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from spandial import abi
from spandial.abi import EntryKind
from spandial_agent.capture import capture as capture_module
from spandial_agent.capture.capture import Capture
from spandial_agent.kernel.cache import CompileCache
from spandial_agent.kernel.libbpf import RawTracepointRun, attach_tracepoint, load_program
from spandial_agent.records.record import is_entry
from spandial_agent.table.frozen import FrozenTable
from spandial_agent.table.rates import RateTable
from tests.agent_process import COMPILED
from tests.in_kernel.conftest import Watched
from tests.in_kernel.test_databases import Pair
from tests.in_kernel.test_http2 import PREFACE, Client, traceparent

pytestmark = pytest.mark.kernel

CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


def test_a_trace_context_that_nobody_can_read_is_counted(watched: Watched, pair: Pair) -> None:
    """The table alone knows it, and without a watcher nothing goes to user space, where it could be decided."""
    watched.set(abi.encode_word(100))
    before = watched.capture.losses()["undecided"]
    client = Client()
    first, second = traceparent(7, True), traceparent(8, True)
    pair.send(PREFACE, client.request(first), client.request(second), client.request(first))
    assert watched.capture.losses()["undecided"] == before + 1
    assert watched.counts().seen[EntryKind.GRPC] == 3
    assert watched.counts().kept[EntryKind.GRPC] == 2


# Since Linux 6.8 (commit f5769faeec36), each network namespace has one of its own.
OPTION_MEMORY = Path("/proc/sys/net/core/optmem_max")


def without_socket_memory(pair: list[socket.socket]) -> None:
    """A pair of sockets of a network namespace that allows them no memory beside their buffers. For a thread of its
    own, which the namespace ends with."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    if OPTION_MEMORY.exists():
        OPTION_MEMORY.write_text("64")  # bytes; what is known of a connection takes more
        pair.extend(socket.socketpair())


# The map by descriptor of sys_exit forgets the connection that was used longest ago.
@pytest.mark.parametrize("attached", ["socket"], indirect=True)
def test_a_connection_for_which_there_is_no_memory_is_counted(watched: Watched) -> None:
    pair: list[socket.socket] = []
    thread = threading.Thread(target=without_socket_memory, args=(pair,))
    thread.start()
    thread.join()
    if not pair:
        pytest.skip("a network namespace has no limit of its own here (Linux 6.8)")
    client, server = pair
    before = watched.capture.losses()["no_memory"]
    with client, server:
        for number in range(1, 4):
            client.send(b"*1\r\n$4\r\nPING\r\n")
            assert watched.capture.losses()["no_memory"] == before + number
    assert watched.counts().seen[EntryKind.DB] == 0


def test_what_is_in_the_ring_buffer_at_the_end_is_read(
    table: RateTable, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(table.backend, FrozenTable)
    monkeypatch.setattr(capture_module, "_LOOK_S", 3600.0)  # before the end nobody looks
    monkeypatch.setattr(capture_module, "_BATCH", 100)
    capture = Capture(table.backend.map_descriptor, cache=CompileCache(COMPILED))
    records: list[bytes] = []
    capture.start(records.extend)
    table.renew_lease(60)
    words = [abi.encode_word(100, emit=True)] * len(EntryKind)
    row = table.allocate(os.getpid(), words, abi.encode_word(0))
    try:
        capture.add_target(os.getpid(), row)
        for number in range(250):
            pair.send(f"GET /{number} HTTP/1.1\r\n\r\n".encode())
        assert not records
        capture.finish()
        assert sum(map(is_entry, records)) == capture.counts(row.number).kept[EntryKind.HTTP] == 250
        pair.send(b"GET / HTTP/1.1\r\n\r\n")
        assert capture.counts(row.number).seen[EntryKind.HTTP] == 250  # no program runs any more
    finally:
        capture.close()
        table.free(row)


def instruction(opcode: int, target: int = 0, source: int = 0, offset: int = 0, number: int = 0) -> bytes:
    """struct bpf_insn (include/uapi/linux/bpf.h)."""
    return struct.pack("=BBhi", opcode, source << 4 | target, offset, number)


# bpf_trace_printk("x", 2), which is a tracepoint itself.
PRINTS = b"".join(
    [
        instruction(0x7A, target=10, offset=-8, number=ord("x")),  # *(u64 *)(fp - 8) = 'x'
        instruction(0xBF, target=1, source=10),  # r1 = fp
        instruction(0x07, target=1, number=-8),  # r1 += -8
        instruction(0xB7, target=2, number=2),  # r2 = 2
        instruction(0x85, number=6),  # call bpf_trace_printk
        instruction(0xB7),  # r0 = 0
        instruction(0x95),  # exit
    ]
)


def test_a_program_that_interrupts_itself_is_counted(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the capture program makes that happen at a word, so this one takes its place."""
    program = load_program("prints", PRINTS, (), None)
    link = attach_tracepoint(program, "bpf_trace_printk")
    try:
        assert watched.capture.losses()["recursion"] == 0
        monkeypatch.setattr(watched.capture, "_programs", [program])
        assert watched.capture.losses()["recursion"] == 0
        RawTracepointRun(program)()
        assert watched.capture.losses()["recursion"] == 1
    finally:
        os.close(link)
        os.close(program)
