"""Kernel and hook keep the same traces: trace id by trace id, in every mode, at every rate, and while it changes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from spandial.abi import RANDOMNESS_MASK, Mode, Parent, encode_word
from spandial.decision import decide
from tests.agent_process import AgentProcess, eventually
from tests.e2e.entry_stream import EntryStream
from tests.e2e.load import Request, start_load
from tests.e2e.services import Server, uvicorn

pytestmark = [pytest.mark.kernel, pytest.mark.e2e]

RATES = [0, 0.1, 10, 50, 99.9, 100]
PER_SETTING = 5_600  # 18 settings: 100,800 requests


class Scene(NamedTuple):
    agent: AgentProcess
    server: Server
    stream: EntryStream
    folder: Path

    def hook_kept(self) -> set[int]:
        """The trace ids of all server spans that the service kept so far."""
        data = (self.folder / f"kept.{self.server.pid}").read_bytes()
        return {int.from_bytes(data[at : at + 16], "big") for at in range(0, len(data), 16)}

    def differences(self) -> tuple[int, int, int]:
        """Kernel less hook, seen and kept, of the service, and how many may have been in flight at turns."""
        target = next(t for t in self.agent.get("/stats")["targets"] if t["pid"] == self.server.pid)
        http = target["kinds"]["http"]
        return http["difference_seen"], http["difference_kept"], http["in_flight_at_turns"]


@pytest.fixture
def scene(agent: AgentProcess, tmp_path: Path) -> Iterator[Scene]:
    with uvicorn(agent, tmp_path) as server:
        stream = EntryStream(agent, "shop")
        agent.set(100, service="shop", mode="strict")

        def streaming() -> bool:
            server.get()
            return bool(stream.entries)

        eventually(streaming, "the stream has an entry")
        (tmp_path / f"kept.{server.pid}").touch()
        yield Scene(agent, server, stream, tmp_path)


def expected(requests: list[Request], rate: float, mode: Mode) -> set[int]:
    """What the decision table keeps of these requests."""
    word = encode_word(rate, mode)
    return {
        request.trace_id
        for request in requests
        if decide(
            word,
            request.trace_id & RANDOMNESS_MASK,
            Parent.REMOTE_KEPT if request.sampled else Parent.REMOTE_DROPPED,
        )
    }


def test_kept_sets_are_identical_in_every_mode_at_every_rate(scene: Scene) -> None:
    seed = 0
    for mode in Mode:
        for rate in RATES:
            seed += 1
            # Once the hook has told what it has decided, nothing is in flight at this turn.
            eventually(lambda: scene.differences()[0] == 0, "the hook tells what it has decided")
            scene.agent.set(rate, service="shop", mode=mode.name.lower())
            hook_before = scene.hook_kept()
            requests = start_load(scene.server.url, PER_SETTING, seed).finish()
            kept = expected(requests, rate, mode)
            kernel = scene.stream.trace_ids(kept)
            sent = {request.trace_id for request in requests}
            assert len(sent) == PER_SETTING
            assert kernel & sent == kept, (mode, rate)
            # A span ends after its response.
            eventually(lambda sent=sent, kept=kept: len(scene.hook_kept() & sent) >= len(kept), "the last span's end")
            assert (scene.hook_kept() - hook_before) & sent == kept, (mode, rate)
    eventually(lambda: scene.differences() == (0, 0, 0), "kernel and hook are at one")


def test_while_the_dial_turns_only_requests_in_flight_at_a_turn_differ(scene: Scene) -> None:
    load = start_load(scene.server.url, 20_000, 99)
    turns: list[tuple[int, int]] = []
    rates = [80, 20]
    while load.running():
        begin = time.monotonic_ns()
        scene.agent.set(rates[len(turns) % 2], service="shop", mode="strict")
        turns.append((begin, time.monotonic_ns()))
        time.sleep(0.02)
    requests = load.finish()
    assert len(turns) > 50

    def in_flight_at_a_turn(request: Request) -> bool:
        return any(request.sent_ns <= end and begin <= request.answered_ns for begin, end in turns)

    # Behind these, nothing of that load comes any more.
    scene.agent.set(100, service="shop", mode="strict")
    last = {request.trace_id for request in start_load(scene.server.url, 20, 98).finish()}
    kernel = scene.stream.trace_ids(last) - last
    eventually(lambda: last <= scene.hook_kept(), "the last spans' ends")
    hook = scene.hook_kept() - last
    unexplained = [
        request
        for request in requests
        if (request.trace_id in kernel) != (request.trace_id in hook) and not in_flight_at_a_turn(request)
    ]
    assert unexplained == []

    # The agent knows without trace ids how many those may be.
    differing = [request for request in requests if (request.trace_id in kernel) != (request.trace_id in hook)]
    eventually(lambda: scene.differences()[0] == 0, "the hook tells what it has decided")
    _, kept, at_turns = scene.differences()
    assert abs(kept) <= len(differing) <= at_turns

    # Between two turns, every decision is the one of the last answered PUT.
    for request in requests:
        before = [index for index, (_, end) in enumerate(turns) if end < request.sent_ns]
        if before and not in_flight_at_a_turn(request):
            word = encode_word(rates[before[-1] % 2], Mode.STRICT)
            keep = decide(word, request.trace_id & RANDOMNESS_MASK, Parent.REMOTE_KEPT)
            assert (request.trace_id in kernel) == (request.trace_id in hook) == keep

    scene.agent.set(50, service="shop", mode="strict")
    after = start_load(scene.server.url, 2_000, 100).finish()
    kept = expected(after, 50, Mode.STRICT)
    sent = {request.trace_id for request in after}
    assert scene.stream.trace_ids(kept) & sent == kept
    eventually(lambda: scene.hook_kept() & sent == kept, "the hook has kept the same")
