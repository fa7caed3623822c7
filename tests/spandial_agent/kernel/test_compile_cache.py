"""What was compiled is used again, if nobody else can have written it and nothing has changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from spandial_agent.errors import KernelUnavailable
from spandial_agent.kernel import cache as cache_module
from spandial_agent.kernel.cache import CompileCache
from spandial_agent.kernel.compiled import Compiled, Function, MapDefinition
from spandial_agent.kernel.compiler import Build

EXIT = bytes.fromhex("9500000000000000")
NOBODY = 65534


class Compiler:
    """Stands in for bcc: what it makes tells how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.toolchain: str | None = "bcc and headers"

    def compile(self, build: Build) -> Compiled:
        self.asked += 1
        if self.toolchain is None:
            raise KernelUnavailable(["there is no bcc."])
        return Compiled({"counts": MapDefinition(6, 4, 8, self.asked, 0)}, {"f": Function(EXIT, {})})


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    compiler = Compiler()
    monkeypatch.setattr(cache_module, "compile_build", compiler.compile)
    monkeypatch.setattr(cache_module, "toolchain", lambda: compiler.toolchain)
    return compiler


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "probe.c"
    path.write_text("int f;")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "compiled"


@pytest.fixture
def cache(folder: Path) -> CompileCache:
    return CompileCache(folder)


def only_file(folder: Path) -> Path:
    [file] = folder.iterdir()
    return file


def test_a_source_is_compiled_once(compiler: Compiler, cache: CompileCache, source: Path, folder: Path) -> None:
    build = Build(source)
    assert not cache.holds(build)
    first = cache.compiled(build)
    assert cache.holds(build)
    assert cache.compiled(build) == CompileCache(folder).compiled(build) == first
    assert compiler.asked == 1


def test_folder_and_files_are_their_owners_alone(
    compiler: Compiler, cache: CompileCache, source: Path, folder: Path
) -> None:
    cache.compiled(Build(source))
    assert folder.stat().st_mode & 0o777 == 0o700
    assert only_file(folder).stat().st_mode & 0o777 == 0o600


def test_what_changed_is_compiled_anew_and_takes_the_place_of_the_old(
    compiler: Compiler, cache: CompileCache, source: Path, folder: Path
) -> None:
    cache.compiled(Build(source))
    source.write_text("int g;")
    assert not cache.holds(Build(source))
    cache.compiled(Build(source))
    compiler.toolchain = "another bcc"
    assert not cache.holds(Build(source))
    cache.compiled(Build(source))
    assert compiler.asked == 3
    assert cache.holds(Build(source))
    only_file(folder)


def test_variants_are_kept_side_by_side(compiler: Compiler, cache: CompileCache, source: Path) -> None:
    builds = [Build(source), Build(source, {"A": 1}), Build(source, {"A": 2})]
    for build in builds:
        cache.compiled(build)
    assert all(cache.holds(build) for build in builds)


def test_without_a_compiler_what_it_compiled_still_serves(
    compiler: Compiler, cache: CompileCache, source: Path
) -> None:
    build = Build(source)
    compiled = cache.compiled(build)
    compiler.toolchain = None
    assert cache.holds(build)
    assert cache.compiled(build) == compiled
    source.write_text("int g;")
    with pytest.raises(KernelUnavailable, match="there is no bcc"):
        cache.compiled(build)


@pytest.mark.parametrize("length", [0, 64, 100])
def test_a_damaged_file_is_rewritten_with_one_line_in_the_log(
    compiler: Compiler, cache: CompileCache, source: Path, folder: Path, length: int
) -> None:
    cache.compiled(Build(source))
    os.truncate(only_file(folder), length)
    with capture_logs() as logs:
        cache.compiled(Build(source))
    [line] = logs
    assert "damaged" in line["reason"]
    assert compiler.asked == 2
    assert cache.holds(Build(source))


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_is_not_used_but_replaced(
    compiler: Compiler, cache: CompileCache, source: Path, folder: Path, mode: int
) -> None:
    cache.compiled(Build(source))
    only_file(folder).chmod(mode)
    assert not cache.holds(Build(source))
    cache.compiled(Build(source))
    assert compiler.asked == 2
    assert only_file(folder).stat().st_mode & 0o777 == 0o600
    assert cache.holds(Build(source))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_of_somebody_elses_is_not_used_but_replaced(
    compiler: Compiler, cache: CompileCache, source: Path, folder: Path
) -> None:
    cache.compiled(Build(source))
    os.chown(only_file(folder), NOBODY, NOBODY)
    assert not cache.holds(Build(source))
    cache.compiled(Build(source))
    assert compiler.asked == 2
    assert only_file(folder).stat().st_uid == 0


def test_a_link_to_a_file_is_not_followed(
    compiler: Compiler, cache: CompileCache, source: Path, folder: Path, tmp_path: Path
) -> None:
    cache.compiled(Build(source))
    elsewhere = tmp_path / "elsewhere"
    only_file(folder).rename(elsewhere)
    (folder / f"{Build(source).name}.json").symlink_to(elsewhere)
    assert not cache.holds(Build(source))
    cache.compiled(Build(source))
    assert not only_file(folder).is_symlink()


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o1777])
def test_a_folder_that_others_may_write_is_neither_read_nor_written(
    compiler: Compiler, cache: CompileCache, source: Path, folder: Path, mode: int
) -> None:
    cache.compiled(Build(source))
    folder.chmod(mode)
    before = only_file(folder).stat().st_ino
    with capture_logs() as logs:
        cache.compiled(Build(source))
    assert compiler.asked == 2
    assert only_file(folder).stat().st_ino == before
    assert all("nobody else may write it" in line["reason"] for line in logs)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives folders away")
def test_a_folder_of_somebody_elses_is_neither_read_nor_written(
    compiler: Compiler, cache: CompileCache, source: Path, folder: Path
) -> None:
    folder.mkdir(parents=True)
    os.chown(folder, NOBODY, NOBODY)
    for _ in range(2):
        cache.compiled(Build(source))
    assert compiler.asked == 2
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("folder", [Path("/proc/spandial"), Path("/dev/null"), None])
def test_where_nothing_can_be_kept_it_is_compiled_each_time(
    compiler: Compiler, source: Path, folder: Path | None
) -> None:
    cache = CompileCache(folder)
    for _ in range(2):
        assert cache.compiled(Build(source)).functions
    assert compiler.asked == 2
    assert not cache.holds(Build(source))


def test_a_write_that_fails_leaves_nothing_behind(
    compiler: Compiler, cache: CompileCache, source: Path, folder: Path
) -> None:
    (folder / f"{Build(source).name}.json" / "in the way").mkdir(parents=True)
    with capture_logs() as logs:
        cache.compiled(Build(source))
    assert "not kept" in logs[-1]["event"]
    assert only_file(folder).is_dir()


def test_a_source_that_is_not_there_is_named(compiler: Compiler, cache: CompileCache) -> None:
    with pytest.raises(KernelUnavailable, match=r"nowhere\.c cannot be compiled"):
        cache.compiled(Build("nowhere.c"))
    assert not cache.holds(Build("nowhere.c"))
