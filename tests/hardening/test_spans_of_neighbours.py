"""What another user's process is asked, and does not answer, costs nobody else a span."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from bench.attacks import USER

from tests.agent_process import eventually
from tests.spandial_agent.spans.otlp_receiver import OtlpReceiver, receiver_command

from .attacked import Attacked, attacked
from .hostile import ANSWERS_NOTHING, SERVES, hostile
from .test_neighbours import get

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else"),
    pytest.mark.skipif(receiver_command() is None, reason="there is no OTLP receiver: run deploy/setup"),
]

_CONNECTIONS, _REQUESTS = 60, 400  # both ends are his, and each has an exchange
_HONEST = "honest-neighbour"


def test_who_answers_nothing_ends_nobody_elses_spans_and_is_named(tmp_path: Path) -> None:
    receiver = OtlpReceiver(tmp_path)
    receiver.start()
    try:
        with attacked(SPANDIAL_CAPTURE_TLS="off", OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint("http")) as node:
            node.agent.set(100, service=_HONEST)
            with hostile(SERVES, user=0, service=_HONEST) as (_, port):
                eventually(lambda: get(int(port)) or spans(receiver), "the honest one's spans are exported")
                with hostile(ANSWERS_NOTHING, str(_CONNECTIONS), str(_REQUESTS)) as (attacker, said):
                    assert said == "asked"
                    eventually(lambda: named(node), "the user is named who left no room")
                    assert attacker.poll() is None
                    before = node.agent.get("/stats")["losses"]["spans_without_room"]
                    assert before > 0
                    come = spans(receiver)
                    for _ in range(20):
                        get(int(port))
                    eventually(lambda: spans(receiver) >= come + 20, "all of the honest one's spans are exported")
    finally:
        receiver.kill()


def spans(receiver: OtlpReceiver) -> int:
    return sum(span.resource["service.name"] == _HONEST for span in receiver.spans())


def named(node: Attacked) -> bool:
    health = node.agent.get("/healthz")
    sentence = f"open exchanges were lost for want of room in the last minutes: user {USER} had "
    return health["status"] == "degraded" and any(sentence in missing for missing in health["missing"])
