"""The link with an agent that does not answer as it should: the application never suffers."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spandial import abi
from spandial.abi import encode_word
from tests.agent_process import eventually
from tests.spandial.applications import Application, run
from tests.spandial.fake_agent import F_SEAL_FUTURE_WRITE, FakeAgent, answer, counts, page, sealed, sheet, table

SEVENTY = encode_word(70)
Respond = Callable[[socket.socket, dict[str, Any]], None]


def send(message: bytes, *descriptors: Callable[[], int]) -> Respond:
    """Answer with this message and these descriptors."""

    def respond(connection: socket.socket, _hello: dict[str, Any]) -> None:
        opened = [descriptor() for descriptor in descriptors]
        socket.send_fds(connection, [message], opened)
        for descriptor in opened:
            os.close(descriptor)

    return respond


def proper_table() -> int:
    return table(SEVENTY)


ONE_SIZE = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
NO_WRITER = F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL
DESCRIPTORS = (proper_table, page, sheet)


def proper(**changes: Any) -> Respond:
    """Answer as an agent should, with changes to the message."""
    return send(answer(**changes), *DESCRIPTORS)


def pipe_end() -> int:
    reader, writer = os.pipe()
    os.close(writer)
    return reader


def unsealed(make: Callable[[], int], seals: int = 0) -> Callable[[], int]:
    """A copy of what this makes, with other seals."""

    def copy() -> int:
        proper, descriptor = make(), os.memfd_create("fake-copy", os.MFD_ALLOW_SEALING)
        os.write(descriptor, os.pread(proper, 1 << 21, 0))
        os.close(proper)
        return sealed(descriptor, seals)

    return copy


def hang_up(connection: socket.socket, _hello: dict[str, Any]) -> None:
    connection.close()


def say_nothing(_connection: socket.socket, _hello: dict[str, Any]) -> None:
    pass


BAD_MESSAGES: dict[str, bytes] = {
    "another ABI": answer(abi=9),
    "a refusal": json.dumps({"error": "not today", "abi": 1}).encode(),
    "a refusal that is no text": b'{"error": null}',
    "no JSON": b"\xff\x00 not JSON",
    "a list": b"[]",
    "a number": b"1",
    "null": b"null",
    "a text": b'"error"',
    "deep nesting": b"[" * 60_000,
    "an empty object": b"{}",
    "no row": b'{"abi": 1}',
    "the header's row": answer(row=0),
    "a row past the end": answer(row=abi.ROWS),
    "a negative row": answer(row=-1),
    "a row that is no number": answer(row="seven"),
    "half a row": answer(row=7.5),
}
RESPONSES: dict[str, Respond] = {
    **{name: send(message, *DESCRIPTORS) for name, message in BAD_MESSAGES.items()},
    "no descriptors": send(answer()),
    "one descriptor": send(answer(), proper_table),
    "two descriptors": send(answer(), proper_table, page),
    "a table too short": send(answer(), lambda: table(SEVENTY, size=4096), page, sheet),
    "an empty table": send(answer(), lambda: table(SEVENTY, size=0), page, sheet),
    "another table": send(answer(), lambda: table(SEVENTY, magic=abi.MAGIC | 9), page, sheet),
    "a counter page too short": send(answer(), proper_table, lambda: page(100), sheet),
    "a counter page for reading only": send(
        answer(), proper_table, lambda: os.open("/proc/self/exe", os.O_RDONLY), sheet
    ),
    "a pipe for a table": send(answer(), pipe_end, page, sheet),
    "a device for a table": send(answer(), lambda: os.open("/dev/zero", os.O_RDONLY), page, sheet),
    "a folder for a page": send(answer(), proper_table, lambda: os.open("/", os.O_RDONLY), sheet),
    "the descriptors the wrong way round": send(answer(), page, proper_table, sheet),
    "a sheet too short": send(answer(), proper_table, page, lambda: sheet(size=4096)),
    "a folder for a sheet": send(answer(), proper_table, page, lambda: os.open("/", os.O_RDONLY)),
    "a table that is not sealed": send(answer(), unsealed(proper_table), page, sheet),
    "a table that can be shortened": send(answer(), unsealed(proper_table, NO_WRITER | fcntl.F_SEAL_GROW), page, sheet),
    "a table that others can write": send(answer(), unsealed(proper_table, ONE_SIZE), page, sheet),
    "a sheet that can be shortened": send(answer(), proper_table, page, unsealed(sheet, NO_WRITER)),
    "a counter page that can be shortened": send(answer(), proper_table, unsealed(page, fcntl.F_SEAL_GROW), sheet),
    "a file for a table": send(answer(), lambda: os.open("/proc/self/exe", os.O_RDONLY), page, sheet),
    "the end at once": hang_up,
}
WHAT_IT_SAYS = {
    "another ABI": "it speaks ABI version 9, this process speaks 2",
    "a refusal": "not today",
    "a table too short": "4096 bytes long",
    "another table": "does not begin with ABI version 2",
    "no descriptors": "0 descriptors",
    "one descriptor": "1 descriptor",
    "two descriptors": "2 descriptor",
    "a sheet too short": "4096 bytes long",
    "a table that is not sealed": "the rate table is not sealed",
    "a table that can be shortened": "the rate table is not sealed",
    "a table that others can write": "the rate table is not sealed",
    "a sheet that can be shortened": "the sheet is not sealed",
    "a counter page that can be shortened": "the counter page is not sealed",
    "a file for a table": "the rate table is no sealed memory",
    "a device for a table": "the rate table is no sealed memory",
}


@pytest.mark.parametrize("name", RESPONSES)
def test_after_a_bad_answer_the_default_holds_and_one_line_says_so(name: str, tmp_path: Path) -> None:
    with FakeAgent(tmp_path, RESPONSES[name]) as agent, Application(tmp_path, DEFAULT="30%") as application:
        eventually(lambda: application.errors, "it says what is wrong")
        application.report()
        assert (application.end(), application.rates(), len(application.errors)) == (0, [30], 1)
        assert WHAT_IT_SAYS.get(name, "") in application.errors[0]
        assert agent.hellos[0]["pid"] == application.pid


def test_memory_that_is_shortened_once_it_is_handed_over_does_not_kill_the_application(tmp_path: Path) -> None:
    shared = [unsealed(make)() for make in DESCRIPTORS]
    respond = send(answer(), *[lambda each=each: os.dup(each) for each in shared])  # type: ignore[misc]
    with FakeAgent(tmp_path, respond), Application(tmp_path, DEFAULT="30%") as application:
        eventually(lambda: application.errors, "it says what is wrong")
        for descriptor in shared:
            os.ftruncate(descriptor, 0)
            os.close(descriptor)
        application.wait(len(application.reports()) + 30)
        assert (application.end(), application.rates(), len(application.errors)) == (0, [30], 1)


def test_an_agent_that_says_nothing_is_not_waited_for(tmp_path: Path) -> None:
    with FakeAgent(tmp_path, say_nothing) as agent:
        done = run(tmp_path, "sampler = Sampler('30%')\nfor _ in range(5): report(sampler)")
        assert [json.loads(line)["rate"] for line in done.stdout.splitlines()] == [30] * 5
        assert done.returncode == 0
        assert len(agent.hellos) <= 1


def test_bad_answers_leave_no_descriptors_behind(tmp_path: Path) -> None:
    with FakeAgent(tmp_path, send(b'{"abi": 2}', *DESCRIPTORS)) as agent, Application(tmp_path) as application:
        eventually(lambda: len(agent.hellos) >= 4, "it tries again and again")
        eventually(lambda: not descriptors_of(application.pid, "fake-"), "no descriptor is left")
        eventually(lambda: len(descriptors_of(application.pid, "socket:")) <= 1, "no connection is left")


def descriptors_of(pid: int, name: str) -> list[str]:
    links = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    return [link for link in links if name in link]


def test_after_bad_answers_a_proper_one_is_obeyed(tmp_path: Path) -> None:
    responses = [send(b"garbage"), send(b"{}", *DESCRIPTORS), hang_up, proper()]

    def respond(connection: socket.socket, hello: dict[str, Any]) -> None:
        responses.pop(0)(connection, hello)

    with FakeAgent(tmp_path, respond), Application(tmp_path, DEFAULT="30%") as application:
        assert application.obeys(70)
        assert (application.end(), application.rates()) == (0, [30, 70])


@pytest.mark.parametrize("surplus", [0, 3])
def test_a_newer_agents_additional_fields_and_descriptors_do_no_harm(surplus: int, tmp_path: Path) -> None:
    respond = send(answer(more={"to": "come"}), *DESCRIPTORS, *[page] * surplus)
    with FakeAgent(tmp_path, respond), Application(tmp_path) as application:
        assert application.obeys(70)
        assert len(descriptors_of(application.pid, "fake-")) == 3


OLDER = 1
SPEAKS_BOTH = f"from spandial import abi\nabi.SPOKEN = (abi.ABI, {OLDER})\nserve(Sampler('30%'))"


def older_agent(connection: socket.socket, hello: dict[str, Any]) -> None:
    """An agent of another ABI version."""
    if hello["abi"] != OLDER:
        send(json.dumps({"error": "another version", "abi": OLDER}).encode())(connection, hello)
        connection.close()
    else:
        send(answer(abi=OLDER), lambda: table(SEVENTY, magic=abi.MAGIC | OLDER), page, sheet)(connection, hello)


def test_an_agent_of_an_older_version_that_is_spoken_is_obeyed_and_a_newer_one_after_it(tmp_path: Path) -> None:
    with Application(tmp_path, SPEAKS_BOTH) as application:
        with FakeAgent(tmp_path, older_agent) as agent:
            assert application.obeys(70)
            assert [hello["abi"] for hello in agent.hellos] == [abi.ABI, OLDER]
        (tmp_path / "app.sock").unlink()
        newer = send(answer(), lambda: table(encode_word(20)), page, sheet)
        with FakeAgent(tmp_path, newer) as agent:
            assert application.obeys(20)
            assert agent.hellos[0]["abi"] == abi.ABI
        assert application.end() == 0


def test_an_agent_of_a_version_that_is_not_spoken_is_not_obeyed(tmp_path: Path) -> None:
    with FakeAgent(tmp_path, older_agent) as agent, Application(tmp_path, DEFAULT="30%") as application:
        eventually(lambda: application.errors, "it says what is wrong")
        application.report()
        assert (application.end(), application.rates()) == (0, [30])
        assert "another version" in application.errors[0]
        assert {hello["abi"] for hello in agent.hellos} == {abi.ABI}


def test_it_says_who_it_is(tmp_path: Path) -> None:
    attributes = "service.version=2.1,deployment.environment.name=gray"
    labels = {"OTEL_SERVICE_NAME": "shop", "OTEL_RESOURCE_ATTRIBUTES": attributes}
    with FakeAgent(tmp_path, proper()) as agent, Application(tmp_path, DEFAULT="25%", **labels) as application:
        assert application.obeys(70)
        hello = agent.hellos[0]
        assert {name: hello[name] for name in ("abi", "service", "version", "env", "pid", "default")} == {
            "abi": abi.ABI,
            "service": "shop",
            "version": "2.1",
            "env": "gray",
            "pid": application.pid,
            "default": encode_word(25),
        }


@pytest.mark.parametrize(
    "message",
    [
        b"\xff not JSON",
        b"[]",
        b"1",
        b"{}",
        b'{"publish": "x"}',
        b'{"publish": 1e999}',
        b'{"publish": -1}',
        b"[" * 60_000,
    ],
)
def test_garbage_from_a_linked_agent_changes_no_rate(message: bytes, tmp_path: Path) -> None:
    with FakeAgent(tmp_path, proper()) as agent, Application(tmp_path, DEFAULT="30%") as application:
        assert application.obeys(70)
        linked = len(application.reports())
        agent.connections[0].send(message)
        application.wait(linked + 30)
        assert {report["rate"] for report in application.reports()[linked:]} == {70}
        assert application.end() == 0
        assert len(application.errors) <= 1


@pytest.mark.parametrize(("fallback", "rate"), [(encode_word(20), 20), (0, 30)])
def test_a_lease_that_has_ended_before_it_began_puts_the_fallback_in_force(
    fallback: int, rate: int, tmp_path: Path
) -> None:
    respond = send(answer(), lambda: table(fallback, deadline=0), page, sheet)
    with FakeAgent(tmp_path, respond) as agent, Application(tmp_path, DEFAULT="30%") as application:
        eventually(lambda: any("lease ran out" in line for line in application.errors), "the lease has run out")
        assert application.rate() == rate
        assert len(agent.hellos) == 1


def test_counts_are_published_by_and_by_when_asked_and_at_the_end(tmp_path: Path) -> None:
    descriptor = page()
    respond = send(answer(), proper_table, lambda: os.dup(descriptor), sheet)
    script = "sampler = linked(Sampler())\nsay()\nfor line in sys.stdin: say(kept=decide(sampler, int(line)))"
    dropped, kept = abi.EntryKind.HTTP * abi.PAGE_KIND_STRIDE, abi.EntryKind.HTTP * abi.PAGE_KIND_STRIDE + 1

    def published() -> tuple[int, int]:
        found = counts(descriptor)
        assert sum(found) == found[dropped] + found[kept]
        return found[dropped], found[kept]

    with FakeAgent(tmp_path, respond) as agent, Application(tmp_path, script) as application:
        application.wait(1)
        application.send("100")
        assert application.wait(2)["kept"] == 70
        eventually(lambda: published() == (30, 70), "published by and by")
        application.send("1000")
        application.wait(3)
        agent.connections[0].send(b'{"publish": 7}')
        eventually(lambda: published() == (330, 770), "published when asked")
        application.send("100")
        application.wait(4)
        assert (application.end(), application.errors) == (0, [])
        assert published() == (360, 840)
    os.close(descriptor)


def test_what_was_decided_before_the_link_is_not_counted(tmp_path: Path) -> None:
    descriptor = page()
    script = "sampler = Sampler()\ndecide(sampler, 1000)\nsay()\ndecide(linked(sampler), 100)\nsay()\nsys.stdin.read()"
    with Application(tmp_path, script) as application:
        application.wait(1)
        with FakeAgent(tmp_path, send(answer(), proper_table, lambda: os.dup(descriptor), sheet)):
            application.wait(2)
            assert application.end() == 0
    assert sum(counts(descriptor)) == 100
    os.close(descriptor)


def test_at_its_limit_of_open_files_the_default_holds(tmp_path: Path) -> None:
    script = """
import resource
lowest_free = os.dup(0)
os.close(lowest_free)
resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + 1, lowest_free + 1))
serve(Sampler("30%"))
"""
    with FakeAgent(tmp_path, proper()), Application(tmp_path, script) as application:
        eventually(lambda: application.errors, "it says what is wrong")
        application.report()
        assert (application.end(), application.rates()) == (0, [30])
        assert ["limit of open files" in line for line in application.errors] == [True], application.errors


def test_an_applications_own_failing_log_handler_does_not_end_the_link(tmp_path: Path) -> None:
    script = """
import logging

class Failing(logging.Handler):
    def emit(self, record):
        raise RuntimeError("no room to log")

logging.getLogger().addHandler(Failing())
serve(Sampler("30%"))
"""
    responses = [hang_up, proper()]

    def respond(connection: socket.socket, hello: dict[str, Any]) -> None:
        responses.pop(0)(connection, hello)

    with FakeAgent(tmp_path, respond), Application(tmp_path, script) as application:
        assert application.obeys(70)
        assert (application.end(), application.errors) == (0, [])
