"""How many handshakes of TLS may be going on."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

import httpx
import pytest

from spandial_agent.serving.binding import bind_tcp, bind_unix
from spandial_agent.serving.certificate import ServerCertificate
from spandial_agent.serving.handshakes import HANDSHAKE_S, Handshakes, TlsListener
from spandial_agent.serving.listeners import serve
from tests.agent_process import PATIENCE_S
from tests.certificates import self_signed
from tests.spandial_agent.serving.test_listeners import says_who_is_trusted


class Clock:
    """Seconds, which a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_of_one_address_and_of_all_there_are_only_so_many() -> None:
    handshakes = Handshakes(total=6, each=3, now=Clock())
    assert [handshakes.begin("a") for _ in range(5)] == [True] * 3 + [False] * 2
    assert [handshakes.begin("b") for _ in range(3)] == [True] * 3
    assert not handshakes.begin("c")
    assert handshakes.refused == {"handshakes": 3}
    handshakes.done("a")
    assert handshakes.begin("c")


def test_one_that_fails_counts_until_its_time_is_over() -> None:
    clock = Clock()
    handshakes = Handshakes(total=6, each=2, now=clock)
    for _ in range(50):
        assert handshakes.begin("a")
        handshakes.done("a")
        assert handshakes.begin("a")
        assert handshakes.begin("a")
        assert not handshakes.begin("a")
        clock.now += HANDSHAKE_S + 1
    assert handshakes.begin("b")
    assert not handshakes._done
    assert len(handshakes._begun) == 1


@pytest.mark.anyio
async def test_who_never_shakes_hands_keeps_nobody_else_out_for_long(tmp_path: Path) -> None:
    made, stop = self_signed(tmp_path), asyncio.Event()
    tls = ServerCertificate(made.certificate, made.key).context
    with bind_tcp("127.0.0.1", 0, tls=True) as tcp, bind_unix(tmp_path / "api.sock", "no-group-of-this-name") as unix:
        assert isinstance(tcp, TlsListener)
        serving = asyncio.create_task(serve(says_who_is_trusted, tcp, unix, stop, tls=tls))
        port = tcp.getsockname()[1]
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(40)]
        ended = [asyncio.ensure_future(reader.read()) for reader, _ in silent]
        done, _ = await asyncio.wait(ended, timeout=PATIENCE_S)
        assert len(done) == 40, "those that are too many at once, the others when their time is over"
        assert tcp.handshakes.refused["handshakes"] >= 24
        context = ssl.create_default_context(cafile=str(made.certificate))
        async with httpx.AsyncClient(verify=context) as client:
            for attempt in range(100):
                try:
                    assert (await client.get(f"https://127.0.0.1:{port}/")).text == "stranger"
                    break
                except httpx.TransportError:
                    assert attempt < 99
                    await asyncio.sleep(0.1)
        for _, writer in silent:
            writer.close()
        stop.set()
        await asyncio.wait_for(serving, PATIENCE_S)


def test_a_listener_without_tls_is_a_plain_one() -> None:
    with bind_tcp("127.0.0.1", 0) as plain:
        assert type(plain) is socket.socket
