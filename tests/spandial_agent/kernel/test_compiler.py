"""What a compilation depends on, and what is said where there can be none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from spandial_agent.errors import KernelUnavailable
from spandial_agent.kernel import compiler
from spandial_agent.kernel.compiler import Build, compile_build, missing_to_compile, toolchain
from spandial_agent.kernel.source import bpf_directory, join_source

NO_MODULE = "bcc cannot be imported (there is no such module): install python3-bpfcc."


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the BPF sources, which are compiled instead of them."""
    folder = tmp_path / "bpf"
    shutil.copytree(bpf_directory(), folder)
    monkeypatch.setattr(compiler, "bpf_directory", lambda: folder)
    return folder


@pytest.mark.parametrize("changed", ["capture.c", "protocols/stream.h", "rates.c"])
def test_another_source_or_header_is_another_build(sources: Path, changed: str) -> None:
    build = Build("capture.c", shared=("rates",))
    before = build.key()
    assert build.key() == before
    (sources / changed).write_text((sources / changed).read_text() + "\n")
    assert build.key() != before


def test_a_file_that_it_does_not_include_is_not_its_business(sources: Path) -> None:
    before = Build("capture.c").key()
    (sources / "kafka.h").touch()
    assert Build("capture.c").key() == before


def test_a_source_becomes_one_text_with_all_that_it_includes(tmp_path: Path) -> None:
    (tmp_path / "protocols").mkdir()
    (tmp_path / "protocols" / "redis.h").write_text('#include "core.h"\nint redis;')
    (tmp_path / "core.h").write_text("int core;\n")
    source = tmp_path / "main.c"
    source.write_text('#include <linux/types.h>\n# include "protocols/redis.h"\n#include "core.h"\n#include "no.h"\n')
    assert join_source(source, tmp_path).splitlines() == [
        '#line 1 "main.c"',
        "#include <linux/types.h>",
        '#line 1 "protocols/redis.h"',
        '#line 1 "core.h"',
        "int core;",
        '#line 2 "protocols/redis.h"',
        "int redis;",
        '#line 3 "main.c"',
        "",
        '#include "no.h"',
    ]


def test_a_source_from_elsewhere_is_looked_at_too(sources: Path, tmp_path: Path) -> None:
    source = tmp_path / "decide.c"
    source.write_text("int f;")
    before = Build(source).key()
    source.write_text("int g;")
    assert Build(source).key() != before


def test_each_variant_has_a_name_and_a_key_of_its_own() -> None:
    builds = [
        Build("capture.c"),
        Build("capture.c", {"PAGES": 1}),
        Build("capture.c", {"PAGES": 2}),
        Build("capture.c", {"PAGES": 1, "MORE": 1}),
        Build("capture.c", shared=("rates",)),
        Build("rates.c"),
    ]
    assert len({build.name for build in builds}) == len({build.key() for build in builds}) == len(builds)
    assert Build("a.c", {"X": 1, "Y": 2}).name == Build("a.c", {"Y": 2, "X": 1}).name


@pytest.mark.parametrize("field", ["release", "version", "machine"])
def test_another_kernel_is_another_build(monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    before = Build("rates.c").key()
    running = os.uname()
    kernel = {name: getattr(running, name) for name in ("release", "version", "machine")}
    monkeypatch.setattr(compiler.os, "uname", lambda: SimpleNamespace(**{**kernel, field: "another"}))
    assert Build("rates.c").key() != before


def test_another_bcc_is_another_toolchain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "missing_to_compile", list)
    monkeypatch.setattr(compiler, "_bcc_folder", lambda: tmp_path)
    (tmp_path / "bcc").mkdir()
    (tmp_path / "bcc" / "version.py").write_text("__version__ = '0.26.0'")
    before = toolchain()
    (tmp_path / "bcc" / "version.py").write_text("__version__ = '0.27.0'")
    assert None not in (before, toolchain())
    assert toolchain() != before


def test_other_headers_are_another_toolchain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "missing_to_compile", list)
    monkeypatch.setattr(compiler, "_MODULES", tmp_path)
    monkeypatch.setattr(compiler, "_bcc_folder", lambda: tmp_path)
    (tmp_path / "bcc").mkdir()
    (tmp_path / "bcc" / "version.py").touch()
    said = [toolchain()]
    generated = tmp_path / os.uname().release / "build" / "include" / "generated"
    generated.mkdir(parents=True)
    for text in ("#define A", "#define AB"):
        (generated / "autoconf.h").write_text(text)
        said.append(toolchain())
    shutil.move(tmp_path / os.uname().release / "build", tmp_path / "another")
    (tmp_path / os.uname().release / "build").symlink_to(tmp_path / "another")
    said.append(toolchain())
    assert len(set(said)) == len(said)


def test_without_bcc_or_headers_there_is_no_toolchain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_bcc_folder", lambda: None)
    assert toolchain() is None
    assert NO_MODULE in missing_to_compile(tmp_path)
    with pytest.raises(KernelUnavailable) as raised:
        compile_build(Build("rates.c"))
    assert raised.value.missing[0] == NO_MODULE


def test_a_package_of_the_same_name_is_not_bcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bcc").mkdir()
    (tmp_path / "bcc" / "__init__.py").touch()
    monkeypatch.setattr(compiler, "_SYSTEM_PACKAGES", str(tmp_path))
    monkeypatch.setattr(compiler.sys, "path", [str(tmp_path)])
    assert any("python3-bpfcc" in sentence for sentence in missing_to_compile())


Ending = Callable[[str], None]


@pytest.fixture
def bcc_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ending:
    """Compile with a bcc of so many lines."""
    monkeypatch.setattr(compiler, "missing_to_compile", list)
    monkeypatch.setattr(compiler, "_bcc_folder", lambda: tmp_path)

    def write(lines: str) -> None:
        (tmp_path / "bcc.py").write_text(lines)

    return write


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (
            "raise OSError('libbcc.so.0: cannot open shared object file')",
            "bcc cannot be imported (libbcc.so.0: cannot open shared object file): install python3-bpfcc.",
        ),
        ("import os; os.kill(os.getpid(), 9)", "rates.c does not compile: the compiler ended with -9"),
        (
            "import os\ndef BPF(**_): os.write(2, b'1\\n2\\n rates.c:3: error: no\\n 1 error'); raise Exception",
            "rates.c does not compile: 2 rates.c:3: error: no 1 error",
        ),
        ("def BPF(**_): raise Exception('no room')", "rates.c does not compile: no room"),
        ("def BPF(**_): print('talk', flush=True); raise Exception", "rates.c does not compile: talk"),
    ],
)
def test_why_there_is_no_program_is_one_sentence(bcc_is: Ending, lines: str, sentence: str) -> None:
    bcc_is(lines)
    with pytest.raises(KernelUnavailable) as raised:
        compile_build(Build("rates.c"))
    assert raised.value.missing == [sentence]
