"""An agent above its memory limit gives up what it can, says so, and steers on."""

from __future__ import annotations

from collections.abc import Callable

from tests.agent_process import AgentProcess, eventually


def test_above_its_memory_limit_streams_end_and_rates_are_set_on(make_agent: Callable[..., AgentProcess]) -> None:
    agent = make_agent(
        SPANDIAL_TABLE="memfd", SPANDIAL_MEMORY_LIMIT_MIB="64"
    )  # which it needs when nothing is asked of it
    with agent.http.stream("GET", "/entries") as answer:
        assert answer.is_success
        assert not [line for line in answer.iter_lines() if line.startswith("data:")]  # and the stream ends

    def told() -> bool:
        return any("and gave up event streams" in sentence for sentence in agent.get("/healthz")["missing"])

    eventually(told, "what was given up is said")
    agent.set(30, service="checkout")
    assert "above the memory limit" in agent.log.read_text()
