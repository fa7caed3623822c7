"""Each attack of bench/attacks.py takes nobody's rate, and neither the agent's memory nor its log."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest
from bench.attacks import ATTACKS
from bench.obedience import RATES

from tests.agent_process import eventually

from .attacked import MEMORY_MB, Attacked, attacked

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")

_SEEN_BY_THE_KERNEL = ("watchers", "libraries", "headers")
_ROUNDS = 5  # of PUTs
_LOG_BYTES = 64 << 10


@pytest.fixture(scope="module")
def node() -> Iterator[Attacked]:
    with attacked(SPANDIAL_TABLE="memfd", SPANDIAL_CAPTURE_TLS="off") as node:
        yield node


@pytest.fixture(scope="module")
def watching() -> Iterator[Attacked]:
    """With what the kernel sees."""
    with attacked() as node:
        yield node


@pytest.mark.parametrize("name", [name for name in ATTACKS if name not in _SEEN_BY_THE_KERNEL])
def test_everybody_else_is_served(node: Attacked, name: str) -> None:
    holds(node, name)


@pytest.mark.kernel
@pytest.mark.needs("gcc")
@pytest.mark.parametrize("name", _SEEN_BY_THE_KERNEL)
def test_everybody_else_is_served_whatever_is_captured(watching: Attacked, name: str) -> None:
    holds(watching, name)


def holds(node: Attacked, name: str) -> None:
    logged = node.agent.log.stat().st_size
    wrong = node.honest.counts().wrong
    with node.by(name):
        for _ in range(_ROUNDS):
            for rate in RATES:
                node.put(rate)
        node.newcomer_obeys()
        assert node.memory_mb() < MEMORY_MB
    assert node.honest.counts().wrong == wrong
    assert node.agent.log.stat().st_size < logged + _LOG_BYTES


@pytest.mark.kernel
@pytest.mark.needs("gcc")
def test_tls_of_others_is_followed_whatever_libraries_one_user_has(watching: Attacked) -> None:
    with (
        watching.by("libraries"),
        subprocess.Popen(
            ["/usr/bin/python3", "-c", "import ssl, sys; sys.stdin.read()"],
            env={"OTEL_SERVICE_NAME": "speaks-tls"},
            stdin=subprocess.PIPE,
        ) as process,
    ):

        def followed() -> bool:
            target = watching.agent.target(process.pid)
            return target is not None and "OpenSSL" in target["tls"]

        eventually(followed, "the honest process's TLS is followed")
        process.kill()


@pytest.mark.kernel
@pytest.mark.needs("gcc")
def test_a_killed_agent_is_followed_by_another_whatever_libraries_one_user_has() -> None:
    """The dying one has the lock for no longer than it takes to end; a stopped one ends."""
    with attacked() as node, node.by("libraries"):
        node.agent.stop()  # the next one finds them mapped: where that takes long, a look at them may be minutes away
        node.agent.start()
        eventually(lambda: is_looked_at(node), "the attacker's libraries are looked at")
        for end in (node.agent.kill, node.agent.stop):
            end()
            node.agent.start()
            node.newcomer_obeys()


def is_looked_at(node: Attacked) -> bool:
    return any("OpenSSL" in str(target["tls"]) for target in node.attackers())
