"""Probes that end without anybody waiting, and those of kernels that have no such links."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spandial_agent.capture.elf import Elf
from spandial_agent.kernel import links as links_module
from spandial_agent.kernel.libbpf import load_program
from spandial_agent.kernel.links import Links
from spandial_agent.kernel.uprobes import attach_uprobe, attach_uprobes, takes_many
from tests.agent_process import eventually

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.needs("gcc"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="another breakpoint"),
]

NOTHING = bytes.fromhex("b7000000000000009500000000000000")  # r0 = 0; exit
NAMES = ("probed_one", "probed_two")
FIRST = 0xCC


class Probed:
    """A library that this process has mapped; its functions' first bytes say whether a probe is there."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        with open(path, "rb") as file:
            self.offsets = list(Elf(file.fileno()).functions(NAMES).values())
        library = ctypes.CDLL(self.path)
        self._addresses = [ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0 for name in NAMES]

    def probes(self) -> int:
        return sum(ctypes.string_at(address, 1)[0] == FIRST for address in self._addresses)


@pytest.fixture
def probed(tmp_path: Path) -> Probed:
    path = tmp_path / "probed.so"
    source = "int probed_one(void) { return 1; } int probed_two(void) { return 2; }"
    subprocess.run(["gcc", "-shared", "-fPIC", "-x", "c", "-o", path, "-"], input=source, text=True, check=True)
    return Probed(path)


@pytest.fixture
def many() -> Iterator[int]:
    program = load_program("nothing", NOTHING, (0,), None, "many")
    yield program
    os.close(program)


@pytest.fixture
def one() -> Iterator[int]:
    program = load_program("nothing", NOTHING, (0,), None, "one")
    yield program
    os.close(program)


@pytest.fixture
def links() -> Iterator[Links]:
    links = Links()
    yield links
    links.close()


@pytest.fixture(params=["many", "one"])
def attach(request: pytest.FixtureRequest, many: int, one: int, probed: Probed) -> Callable[[], list[int]]:
    """Attaches to all functions; the descriptors."""
    if request.param == "one":
        return lambda: [attach_uprobe(one, probed.path, at, at_return=True) for at in probed.offsets]
    if not takes_many(many):
        pytest.skip("this kernel has no links of many uprobes")
    return lambda: [attach_uprobes(many, probed.path, probed.offsets, at_return=True)]


def probe_descriptors() -> list[str]:
    """Of this process: whoever closes one waits for the kernel."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            link = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if "bpf_link" in link or "bpf-link" in link or "perf_event" in link:
            found.append(link)
    return found


def test_a_held_link_works_without_a_descriptor(links: Links, attach: Callable[[], list[int]], probed: Probed) -> None:
    before = probe_descriptors()
    number = [links.hold(descriptor) for descriptor in attach()]
    assert probed.probes() == 2
    assert probe_descriptors() == before
    links.end(*number)
    eventually(lambda: probed.probes() == 0, "the kernel has taken the probes away")


def test_all_links_end_together(attach: Callable[[], list[int]], probed: Probed) -> None:
    links = Links()
    for descriptor in attach():
        links.hold(descriptor)
    assert probed.probes() == 2
    links.close()
    eventually(lambda: probed.probes() == 0, "the kernel has taken the probes away")
    links.close()


def test_a_killed_process_leaves_no_probes(probed: Probed) -> None:
    program = f"""
from spandial_agent.kernel.libbpf import load_program
from spandial_agent.kernel.links import Links
from spandial_agent.kernel.uprobes import attach_uprobe
links = Links()
program = load_program("nothing", {NOTHING!r}, (0,), None, "one")
for offset in {probed.offsets!r}:
    links.hold(attach_uprobe(program, {probed.path!r}, offset))
print("attached", flush=True)
input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "attached\n"
        assert probed.probes() == 2
        process.kill()
    eventually(lambda: probed.probes() == 0, "the kernel has taken the probes away")


def test_where_nothing_can_be_pinned_descriptors_are_held(
    attach: Callable[[], list[int]], probed: Probed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(links_module, "_mount_nowhere", refuse)
    links = Links()
    for descriptor in attach():
        links.hold(descriptor)
    assert probed.probes() == 2
    links.close()
    assert probed.probes() == 0


def test_a_kernel_without_links_of_many_is_found_by_trying(one: int) -> None:
    """It says of a program for many what this one says of a program for one."""
    assert not takes_many(one)


def test_the_file_is_the_descriptors_also_when_its_name_is_anothers(
    links: Links, one: int, probed: Probed, tmp_path: Path
) -> None:
    with open(probed.path, "rb") as file:
        os.unlink(probed.path)
        (tmp_path / "probed.so").write_bytes(b"another")
        links.hold(attach_uprobe(one, f"/proc/self/fd/{file.fileno()}", probed.offsets[0]))
    assert probed.probes() == 1
