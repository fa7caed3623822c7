"""A gray release under load: the dial of one version turns, the other's stays, nothing restarts, nothing leaks."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spandial.abi import RANDOMNESS_MASK
from tests.agent_process import AgentProcess, eventually
from tests.e2e.load import start_load
from tests.e2e.services import Server, uvicorn

pytestmark = [pytest.mark.kernel, pytest.mark.e2e]


def http_counts(agent: AgentProcess, server: Server) -> dict[str, Any]:
    """The counts, once the hook has told of all that the kernel saw: ``/stats`` waits for hooks 50 ms and no longer."""

    def told() -> dict[str, Any] | None:
        target = next(t for t in agent.get("/stats")["targets"] if t["pid"] == server.pid)
        counts: dict[str, Any] = target["kinds"].get("http") or {"kernel": {"seen": 0, "kept": 0}}
        return None if counts.get("difference_seen") else counts

    found: dict[str, Any] = eventually(told, "the hook tells what it has decided")
    return found


def test_a_turn_reaches_the_next_gray_request_and_no_stable_one(agent: AgentProcess, tmp_path: Path) -> None:
    agent.set(1, mode="strict")
    with (
        uvicorn(agent, tmp_path, version="1", env="stable") as stable,
        uvicorn(agent, tmp_path, version="2", env="gray") as gray,
    ):
        count = 4_000
        loads = [start_load(server.url, count, seed) for seed, server in enumerate((stable, gray))]
        for load in loads:
            load.finish()
        for server in (stable, gray):
            assert kept_within_bounds(http_counts(agent, server)["kernel"], count, 0.01)

        stable_before, gray_before = http_counts(agent, stable), http_counts(agent, gray)
        steady = start_load(stable.url, count, 7)
        answer = agent.set(100, env="gray", mode="strict")
        assert answer["reached"] == 1
        # The very first gray request after the answer, and each one after it.
        rng = random.Random(3)
        for sent in range(1, 201):
            trace_id = (rng.getrandbits(72) << 56) | rng.randrange(RANDOMNESS_MASK // 2)
            gray.get(headers={"traceparent": f"00-{trace_id:032x}-b7ad6b7169203331-00"})
            if sent in (1, 200):
                now = http_counts(agent, gray)
                assert now["kernel"]["kept"] - gray_before["kernel"]["kept"] == sent
                assert now["hook"]["remote_kept"] - gray_before["hook"]["remote_kept"] == sent
        steady.finish()

        after = http_counts(agent, stable)
        seen = after["kernel"]["seen"] - stable_before["kernel"]["seen"]
        kept = after["kernel"]["kept"] - stable_before["kernel"]["kept"]
        assert kept_within_bounds({"seen": seen, "kept": kept}, count, 0.01)
        assert after["difference_seen"] == after["difference_kept"] == 0

        assert agent.http.delete("/sampling", params={"env": "gray"}).is_success
        before = http_counts(agent, gray)["kernel"]["kept"]
        start_load(gray.url, 1_000, 11).finish()
        assert kept_within_bounds(
            {"seen": 1_000, "kept": http_counts(agent, gray)["kernel"]["kept"] - before}, 1_000, 0.01
        )
        assert stable.process.poll() is None
        assert gray.process.poll() is None


def test_a_turn_with_a_ttl_ends_by_itself_also_while_the_agent_is_down(
    make_agent: Callable[..., AgentProcess], tmp_path: Path
) -> None:
    agent = make_agent()
    agent.set(1)
    with uvicorn(agent, tmp_path, env="gray") as server:

        def rate() -> float:
            target = agent.target(server.pid)
            assert target is not None
            return float(target["rates"]["http"]["rate"])

        expires = agent.set(100, env="gray", ttl="1s")["expires"]
        assert rate() == 100
        eventually(lambda: rate() == 1, "the turn has ended")
        assert time.time() >= expires
        assert [rule["selector"] for rule in agent.get("/sampling")["rules"]] == ["default"]

        agent.set(100, env="gray", ttl="1s")
        agent.kill()
        time.sleep(1.1)
        agent.start()
        assert [rule["selector"] for rule in agent.get("/sampling")["rules"]] == ["default"]
        agent.hooked("shop")
        assert rate() == 1


def kept_within_bounds(counts: dict[str, int], requests: int, share: float) -> bool:
    """Six standard deviations of a binomial distribution: wrong once in half a billion runs."""
    bound = 6 * (requests * share * (1 - share)) ** 0.5
    return counts["seen"] == requests and abs(counts["kept"] - requests * share) <= bound


def test_a_thousand_turns_leave_nothing_behind(agent: AgentProcess, tmp_path: Path) -> None:
    env = f"gray-{os.getpid()}"  # nobody else's on this host
    with uvicorn(agent, tmp_path, env=env) as server:

        def turn(times: int) -> None:
            for n in range(times):
                assert agent.set(n % 100, env=env)["reached"] == 1

        def state() -> tuple[int, int, int]:
            """Rows and descriptors beside those of other processes of this node: one each."""
            health = agent.get("/healthz")
            targets = health["targets"]
            return health["free_rows"] + targets, descriptors(agent.pid) - targets, descriptors(server.pid)

        turn(200)
        before, resident = state(), memory_kib(agent.pid)
        turn(1000)
        eventually(lambda: state() == before, "rows and descriptors are as before")
        assert memory_kib(agent.pid) - resident < 4096
        assert len(agent.get("/sampling")["rules"]) == 1


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def memory_kib(pid: int) -> int:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1])
