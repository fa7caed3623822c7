"""Programs that were compiled by bcc in another process, now or long ago, run here as they were written."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from spandial import abi
from spandial.abi import EntryKind
from spandial_agent.capture.capture import Capture, CapturePath, is_compiled
from spandial_agent.errors import KernelUnavailable
from spandial_agent.kernel import cache as cache_module
from spandial_agent.kernel.cache import CompileCache
from spandial_agent.kernel.compiled import MapDefinition
from spandial_agent.kernel.compiler import Build
from spandial_agent.kernel.libbpf import Map, RawTracepointRun
from spandial_agent.kernel.loader import Module
from spandial_agent.kernel.maps import create_map
from spandial_agent.table.frozen import RATES, FrozenTable
from spandial_agent.table.rates import RateTable
from tests.agent_process import COMPILED, PATIENCE_S

pytestmark = pytest.mark.kernel

REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
MYSQL_QUERY = b"\x09\0\0\0\x03SELECT 1"


@pytest.fixture(params=["socket", "sys_exit"])
def path(request: pytest.FixtureRequest) -> CapturePath:
    chosen: CapturePath = request.param
    return chosen


class Watching:
    """This process under a table and a capture of its own."""

    def __init__(self, stack: ExitStack, cache: CompileCache, path: CapturePath, rate: float) -> None:
        backend = FrozenTable(cache)
        table = RateTable(backend)
        stack.callback(table.close)
        table.renew_lease(60)
        self.row = table.allocate(os.getpid(), [abi.encode_word(rate, emit=True)] * len(EntryKind), 0)
        self.capture = stack.enter_context(closing(Capture(backend.map_descriptor, path, cache=cache)))
        self.capture.add_target(os.getpid(), self.row)

    def counted(self) -> tuple[int, int]:
        """HTTP entries seen and kept."""
        counts = self.capture.counts(self.row.number)
        return counts.seen[EntryKind.HTTP], counts.kept[EntryKind.HTTP]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def receive(count: int, message: bytes = REQUEST) -> None:
    a, b = socket.socketpair()
    with a, b:
        for _ in range(count):
            a.send(message)
            b.recv(4096)


def test_what_was_kept_counts_without_a_compiler(
    stack: ExitStack, path: CapturePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = CompileCache(COMPILED)
    with ExitStack() as first:
        Watching(first, cache, path, 100)
    assert is_compiled(cache, path)
    monkeypatch.setattr(cache_module, "toolchain", lambda: None)
    monkeypatch.setattr(cache_module, "compile_build", None)
    watching = Watching(stack, cache, path, 100)
    receive(23)
    assert watching.counted() == (23, 23)
    # A protocol whose connections are remembered: in the socket's storage, or in a map.
    receive(7, MYSQL_QUERY)
    assert watching.capture.counts(watching.row.number).seen[EntryKind.DB] == 7
    assert "bcc" not in sys.modules


def test_each_capture_obeys_the_table_that_it_was_given(stack: ExitStack, path: CapturePath) -> None:
    cache = CompileCache(COMPILED)
    all_kept, none_kept = (Watching(stack, cache, path, rate) for rate in (100, 0))
    receive(23)
    assert all_kept.counted() == (23, 23)
    assert none_kept.counted() == (23, 0)


def test_a_closed_capture_leaves_no_descriptor_and_no_memory_of_ring_buffers(path: CapturePath) -> None:
    def maps() -> int:
        return Path("/proc/self/maps").read_text().count("anon_inode:bpf-map")

    cache = CompileCache(COMPILED)
    descriptors, mapped = set(os.listdir("/proc/self/fd")), maps()
    for _ in range(2):
        with ExitStack() as stack:
            watching = Watching(stack, cache, path, 100)
            watching.capture.start(lambda records: None)
            receive(1)
    assert set(os.listdir("/proc/self/fd")) == descriptors
    assert maps() == mapped


@pytest.mark.parametrize("kind", [24, 29], ids=["of sockets", "of tasks"])
def test_storage_of_kernel_objects_is_made_with_the_types_that_it_demands(kind: int) -> None:
    # BPF_F_NO_PREALLOC, without which there is none.
    os.close(create_map("storage", MapDefinition(kind, 4, 1224, 0, 1)))


PROGRAM = """
BPF_ARRAY(values, u64, 4);

int answer(struct bpf_raw_tracepoint_args *ctx)
{
	u32 index = ctx->args[0];
	u64 *value = values.lookup(&index);

	if (!value)
		return -1;
	*value = %s;
	return *value;
}
"""


def answer(source: Path, cache: CompileCache | None, **defines: int) -> int:
    with closing(Module(Build(source, defines), cache=cache)) as module:
        said = RawTracepointRun(module.load("answer"))(3)
        assert Map(module.map_fd("values"), 8)[3] == [said.to_bytes(8, "little")]
        return said


def test_a_changed_source_or_define_is_compiled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, cache = tmp_path / "answer.c", CompileCache(tmp_path / "compiled")
    source.write_text(PROGRAM % "WHAT")
    assert (answer(source, cache, WHAT=1), answer(source, cache, WHAT=2)) == (1, 2)
    source.write_text(PROGRAM % "WHAT + 10")
    assert answer(source, cache, WHAT=1) == 11
    monkeypatch.setattr(cache_module, "compile_build", None)
    assert answer(source, cache, WHAT=1) == 11


def test_a_module_can_use_the_maps_of_another(tmp_path: Path) -> None:
    source, cache = tmp_path / "answer.c", CompileCache(tmp_path / "compiled")
    source.write_text(PROGRAM % "*value + 1")
    with ExitStack() as stack:
        first = stack.enter_context(closing(Module(Build(source), cache=cache)))
        values = first.map_fd("values")
        second = stack.enter_context(closing(Module(Build(source), {"values": values}, cache=cache)))
        runs = [RawTracepointRun(module.load("answer")) for module in (first, second)]
        assert [run(3) for run in (*runs, *runs)] == [1, 2, 3, 4]
        second.close()
        assert Map(values, 8)[3] == [(4).to_bytes(8, "little")]


def test_without_a_cache_a_source_is_compiled_each_time(tmp_path: Path) -> None:
    source = tmp_path / "answer.c"
    for value in (1, 2):
        source.write_text(PROGRAM % value)
        assert answer(source, None) == value


def test_what_clang_says_is_passed_on(tmp_path: Path) -> None:
    source = tmp_path / "answer.c"
    source.write_text(PROGRAM % "undeclared_thing")
    with pytest.raises(KernelUnavailable, match=r"answer\.c does not compile: .*1 error generated"):
        Module(Build(source), cache=CompileCache(tmp_path / "compiled"))
    assert not (tmp_path / "compiled").exists()


def test_what_the_verifier_says_is_passed_on(tmp_path: Path) -> None:
    source = tmp_path / "answer.c"
    source.write_text("int answer(void *ctx) { return *(volatile int *)0; }")
    with closing(Module(Build(source))) as module, pytest.raises(KernelUnavailable, match="refuses the program answer"):
        module.load("answer")


def test_two_that_compile_at_the_same_time_do_not_disturb_each_other(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from spandial_agent.kernel.cache import CompileCache;"
        "from spandial_agent.table.frozen import FrozenTable;"
        "table = FrozenTable(CompileCache(Path(sys.argv[1]))); table.write(3, [7] * 8, 255); print(table.read(3)[0])"
    )
    folder = tmp_path / "compiled"
    command = [sys.executable, "-c", code, str(folder)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=PATIENCE_S)
        assert (out.splitlines()[-1], process.returncode) == ("7", 0), err
    assert CompileCache(folder).holds(RATES)
    assert len(list(folder.iterdir())) == 1
