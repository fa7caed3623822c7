"""The log: hostile text, full disks, readers that have gone, and processes that have much to say."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spandial_agent.log import Log, LogLimit, configure_log

_HOSTILE = st.binary() | st.text(st.characters()) | st.integers() | st.floats() | st.none()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def make(path: Path) -> Iterator[Callable[..., Log]]:
    """What configures the log as an agent does; all is as before after the test."""
    before = structlog.get_config()
    handlers, level, raising = logging.root.handlers[:], logging.root.level, logging.raiseExceptions
    thread_hook, unraisable_hook = threading.excepthook, sys.unraisablehook
    opened: list[int] = []

    def make(how: Any = "console", where: str | None = None) -> Log:
        opened.append(os.open(where or path, os.O_WRONLY | os.O_CREAT | os.O_APPEND))
        return configure_log(how, opened[-1])

    yield make
    structlog.configure(**before)
    logging.root.handlers[:], logging.raiseExceptions = handlers, raising
    logging.root.setLevel(level)
    threading.excepthook, sys.unraisablehook = thread_hook, unraisable_hook
    for descriptor in opened:
        os.close(descriptor)


class Unsayable:
    def __str__(self) -> str:
        raise RuntimeError("no")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(how=st.sampled_from(["console", "json"]), value=_HOSTILE, key=st.text(st.characters(), min_size=1))
def test_nothing_that_is_said_forges_a_line(
    make: Callable[..., Log], path: Path, how: str, value: object, key: str
) -> None:
    path.unlink(missing_ok=True)
    log = make(how)
    log.processors[0] = LogLimit()
    structlog.get_logger().info("said", value=value, nested=[{key: value}], error=OSError(0, value))
    text = path.read_bytes().decode("utf-8")
    assert text.endswith("\n")
    assert text[:-1].isprintable()
    assert log.losses() == {"log_left_out": 0, "log_unwritten": 0}


def test_a_traceback_has_lines_of_its_own_and_none_like_the_logs(make: Callable[..., Log], path: Path) -> None:
    make()
    try:
        raise ValueError("x\n2026-01-01T00:00:00Z [info     ] all is well\x1b[2J")
    except ValueError as error:
        structlog.get_logger().error("failed", exc_info=error)
    first, *others = path.read_text().splitlines()
    assert "failed" in first
    assert others
    assert all(line.startswith("    ") and line.isprintable() for line in others)


def test_what_cannot_be_said_raises_nothing(make: Callable[..., Log], path: Path) -> None:
    log = make("json")
    structlog.get_logger().info("first", value=Unsayable())
    structlog.get_config()["processors"].insert(0, lambda *_: 1 / 0)
    structlog.get_logger().info("second")
    assert json.loads(path.read_text().splitlines()[0])["value"].startswith("a Unsayable that cannot be shown")
    assert log.losses()["log_unwritten"] == 1


def test_a_full_disk_is_survived_and_told_once_there_is_room(make: Callable[..., Log], path: Path) -> None:
    log = make()
    target = os.open(path, os.O_WRONLY | os.O_APPEND)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, log.stream._descriptor)
    for _ in range(3):
        structlog.get_logger().warning("lost")
    assert log.losses() == {"log_left_out": 0, "log_unwritten": 3}
    os.dup2(target, log.stream._descriptor)
    structlog.get_logger().warning("written")
    structlog.get_logger().warning("and more")
    os.close(target)
    os.close(full)
    lines = path.read_text().splitlines()
    assert len(lines) == 3
    assert "written" in lines[0]
    assert "could not be written" in lines[1]
    assert "count=3" in lines[1]


@pytest.mark.parametrize("gone", [False, True])
def test_nobody_waits_for_a_reader(make: Callable[..., Log], gone: bool) -> None:
    log = make()
    reader, writer = os.pipe()
    os.dup2(writer, log.stream._descriptor)
    os.close(writer)
    if gone:
        os.close(reader)
    for number in range(5000):  # a pipe holds 64 KiB
        log.stream.write(f"{number} {'x' * 100}")
    assert log.stream.unwritten > 3000
    if not gone:
        assert os.read(reader, 1 << 20).endswith(b"\n")
        os.close(reader)


def test_a_user_whose_processes_say_much_takes_no_line_from_others(make: Callable[..., Log], path: Path) -> None:
    log = make()
    for pid in range(1000):
        structlog.get_logger().warning("registration refused", uid=64321, pid=pid)
    structlog.get_logger().warning("registration refused", uid=1000, pid=1)
    lines = path.read_text().splitlines()
    assert len(lines) == 11
    assert "uid=1000" in lines[-1]
    assert log.losses()["log_left_out"] == 990


def test_many_users_together_are_bounded_too_and_what_was_left_out_is_told() -> None:
    now = [0.0]
    limit, passed = LogLimit(lambda: now[0]), 0
    for uid in range(5000):
        for _ in range(3):
            try:
                limit(None, "info", {"event": "hooked", "uid": uid})
                passed += 1
            except structlog.DropEvent:
                pass
    assert passed == 60
    assert limit.left_out == 15_000 - 60
    assert len(limit._windows) <= 1024
    now[0] = 61.0
    assert sum(limit.ended().values()) == limit.left_out
    assert limit.ended() == {}


def test_events_that_are_never_the_same_are_bounded_too() -> None:
    limit, passed = LogLimit(lambda: 0.0), 0
    for number in range(2000):
        try:
            limit(None, "info", {"event": f"failed: {number}"})
            passed += 1
        except structlog.DropEvent:
            pass
    assert passed == 600
    assert len(limit._windows) <= 1024


def test_a_flood_that_does_not_end_is_told_all_the_same(make: Callable[..., Log], path: Path) -> None:
    now = [0.0]
    log = make()
    log._limit._clock = lambda: now[0]
    for second in range(180):
        now[0] = float(second)
        for _ in range(10):
            structlog.get_logger().info("hooked", uid=1)
        if second % 10 == 0:
            log.tell()
    told = [line for line in path.read_text().splitlines() if "more were left out" in line]
    assert len(told) == 2
    assert "of=hooked" in told[0]
    assert "about=1" in told[0]
    assert "count=590" in told[0]


def test_libraries_say_what_they_say_by_the_same_way(make: Callable[..., Log], path: Path) -> None:
    make()
    for number in range(100):
        logging.getLogger("uvicorn.error").warning("Invalid HTTP request received: %s\n%s", number, "\x1b[2J")
    logging.getLogger("asyncio").error("%d", "no number")
    thread = threading.Thread(target=lambda: 1 / 0, name="doomed")
    thread.start()
    thread.join()
    text = path.read_text()
    assert text.replace("\n", "").isprintable()
    assert text.count("Invalid HTTP") == 10
    assert "ZeroDivisionError" in text
    assert "where=doomed" in text
