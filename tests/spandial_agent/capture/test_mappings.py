"""Which file is read, and whose: what a hostile process maps, and swaps, and names."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from spandial_agent.capture import mappings as mappings_module
from spandial_agent.capture.images import Image, read_image
from spandial_agent.capture.mapped_file import MappedFile, Mapping, Mounts, Refused, distrust
from spandial_agent.capture.mappings import look_at
from spandial_agent.processes.held import Credentials, HeldProcess
from tests.spandial_agent.capture.mapping_process import HOSTILE, MappingProcess

root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
pytestmark = pytest.mark.needs("gcc")


def test_what_is_attached_to_is_the_file_that_was_read(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process maps another file at the same place as soon as the first was read."""
    mine, other = (Path(shutil.copy(library, tmp_path / name)) for name in ("libssl.so.1", "libssl.so.2"))
    with MappingProcess([mine, other]) as process:
        process.map(0)

        def read_and_be_swapped(descriptor: int, executable: bool) -> Image:
            image = read_image(descriptor, executable)
            if image.offsets:
                process.map(1)
            return image

        monkeypatch.setattr(mappings_module, "read_image", read_and_be_swapped)
        with process.held() as held, look_at(held) as seen:
            (found,) = seen.libraries
            assert os.path.samestat(os.stat(found.path), mine.stat())
        assert not os.path.exists(found.path)


@root
@pytest.mark.parametrize("user", [0, HOSTILE])
def test_only_files_of_root_and_of_the_process_itself_are_believed(library: Path, tmp_path: Path, user: int) -> None:
    of_root, his, of_another = (Path(shutil.copy(library, tmp_path / f"libssl.so.{n}")) for n in range(3))
    os.chown(his, HOSTILE, HOSTILE)
    os.chown(of_another, HOSTILE + 1, HOSTILE + 1)
    with MappingProcess([of_root, his, of_another], user) as process, process.held() as held:
        for file in range(3):
            process.map(file, place=file)
        with look_at(held) as seen:
            believed = {library.name for library in seen.libraries}
            assert believed == {"libssl.so.0"} | ({"libssl.so.1"} if user else set())
            assert f"libssl.so.2 (it belongs to user {HOSTILE + 1}: SPANDIAL_TLS_TRUST_OWNERS may name him)" in (
                seen.refused
            )
        with look_at(held, {HOSTILE + 1}) as seen:
            assert "libssl.so.2" in {library.name for library in seen.libraries}


@pytest.mark.parametrize(
    ("owner", "group", "mode", "believed"),
    [
        (0, 0, 0o755, True),
        (0, 0, 0o775, True),
        (0, 50, 0o775, False),
        (0, 0, 0o757, False),
        (1000, 1000, 0o755, True),  # whose rights the process has
        (1000, 1000, 0o775, False),
        (1001, 1001, 0o755, False),  # who started it
        (100000, 100000, 0o755, True),  # root of its user namespace
        (100000, 100000, 0o775, True),
        (65534, 65534, 0o755, False),
        (7, 7, 0o755, True),  # whom a setting names
    ],
)
def test_whose_files_are_believed(owner: int, group: int, mode: int, believed: bool) -> None:
    status: Any = SimpleNamespace(st_uid=owner, st_gid=group, st_mode=0o100000 | mode)
    who = Credentials(user=1001, effective=1000, root=100000, root_group=100000)
    assert bool(distrust(status, who, {7, 65534})) is not believed


def test_the_overflow_user_believes_nobody_of_that_number() -> None:
    """Every user without a number here has it."""
    status: Any = SimpleNamespace(st_uid=65534, st_gid=65534, st_mode=0o100755)
    assert distrust(status, Credentials(65534, 65534, 65534, 65534), ())


class Kinds(Mounts):
    """All mounts are of one kind."""

    def __init__(self, kind: str | None) -> None:
        self.answer = kind

    def kind(self, mount: int) -> str | None:
        return self.answer


@pytest.mark.parametrize("kind", ["fuse", "fuse.sshfs", "fuseblk", None])
def test_a_file_system_that_a_user_answers_for_is_asked_nothing(library: Path, kind: str | None) -> None:
    mapping = Mapping((b"root" + os.fsencode(library),), library.stat().st_ino, "libssl.so")
    with HeldProcess(os.getpid()) as process, pytest.raises(Refused, match=f"file system is {kind or 'not known'}"):
        MappedFile(process, mapping, Kinds(kind))


def test_another_file_of_the_same_name_is_refused(library: Path) -> None:
    mapping = Mapping((b"root" + os.fsencode(library),), library.stat().st_ino + 1, "libssl.so")
    with HeldProcess(os.getpid()) as process, pytest.raises(Refused, match="another file has its name"):
        MappedFile(process, mapping, Mounts(process))


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    """Nobody would ever write into it."""
    pipe = tmp_path / "libssl.so"
    os.mkfifo(pipe)
    mapping = Mapping((b"root" + os.fsencode(pipe),), pipe.stat().st_ino, "libssl.so")
    with HeldProcess(os.getpid()) as process, pytest.raises(Refused, match="no regular file"):
        MappedFile(process, mapping, Mounts(process))


@pytest.mark.parametrize("name", [b"libssl\xff\x1b[31m\n.so", b"libgnutls.so.\xff\n", b"libssl" + b"x" * 200 + b".so"])
def test_whatever_a_file_is_called_its_name_can_be_printed(library: Path, tmp_path: Path, name: bytes) -> None:
    path = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
    shutil.copy(library, path)
    with MappingProcess([path]) as process, process.held() as held:
        process.map(0)
        with look_at(held) as seen:
            words = [library.name for library in seen.libraries] + seen.hidden + seen.refused
            assert words
            for word in words:
                assert word.isprintable()
                assert len(word.encode("utf-8")) < 200


def test_no_more_than_some_files_of_a_process_are_looked_at(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mappings_module, "_FILES_MAX", 3)
    copies = [Path(shutil.copy(library, tmp_path / f"libssl{n}.so")) for n in range(5)]
    with MappingProcess(copies) as process, process.held() as held:
        for file in range(5):
            process.map(file, place=file)
        with look_at(held) as seen:
            assert len(seen.libraries) == 3
            assert seen.refused == ["2 more files: no more than 3 of a process are looked at"]


def test_a_look_may_be_ended_and_the_next_one_goes_on(library: Path, tmp_path: Path) -> None:
    copies = [Path(shutil.copy(library, tmp_path / f"libssl{n}.so")) for n in range(5)]
    with MappingProcess(copies) as process, process.held() as held:
        for file in range(5):
            process.map(file, place=file)
        answers = iter([True, True, False])
        with look_at(held, (), lambda: next(answers)) as seen:
            assert len(seen.libraries) == 2
            assert seen.refused == ["3 more files: not looked at yet"]
        with look_at(held) as seen:
            assert len(seen.libraries) == 5


def test_a_file_that_was_written_is_read_again(library: Path, tmp_path: Path) -> None:
    """Also if its size and its time of modification are as they were."""
    path = Path(shutil.copy(library, tmp_path / "libssl.so"))
    before = path.stat()
    with MappingProcess([path]) as process, process.held() as held:
        process.map(0)
        with look_at(held) as seen:
            (first,) = seen.libraries
        path.write_bytes(path.read_bytes().replace(b"SSL_read", b"SSL_reed"))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        with look_at(held) as seen:
            assert not seen.libraries
    assert first.offsets


def test_each_mount_of_this_process_has_its_kind() -> None:
    lines = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    with HeldProcess(os.getpid()) as process:
        mounts = Mounts(process)
        assert {int(fields[0]): mounts.kind(int(fields[0])) for fields in lines} == {
            int(fields[0]): fields[fields.index("-") + 1] for fields in lines
        }
        assert mounts.kind(1 << 30) is None
        assert mounts.kind(-1) is None
