"""One request to every agent behind a name."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from spandial_agent.errors import SpandialError
from spandial_agent.serving import relay as relay_module
from spandial_agent.serving.binding import bind_tcp
from spandial_agent.serving.certificate import ServerCertificate
from spandial_agent.serving.handshakes import TlsListener
from spandial_agent.serving.relay import Lending, build_relay, run_relay, serve_relay
from spandial_api.app import build_app
from spandial_api.control import Control
from spandial_api.selectors import selector_text
from spandial_api.store import Store
from tests.agent_process import PATIENCE_S, eventually
from tests.certificates import self_signed
from tests.live_app import free_port, served
from tests.spandial_api.conftest import TOKEN, access_of
from tests.spandial_api.fake_node import FakeNode

GRAY = "/sampling?rate=100&env=gray&mode=boost&ttl=10m"
SECRET = "0123456789abcdefghijkl.~_-"
ADDRESSES = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]


def everywhere(*rules: str) -> dict[str, list[str]]:
    return {address: list(rules) for address in ADDRESSES}


class Agents:
    """Agents on the same port of several addresses, and a relay in front of them.

    Attributes:
        nodes: by address.
        known: the addresses that the name has.
    """

    def __init__(self, folder: Path, addresses: list[str], stack: ExitStack, **tls: Any) -> None:
        self.nodes: dict[str, FakeNode] = {}
        self.known = list(addresses)
        self.folder = folder
        self.port = free_port()
        for address in addresses:
            store, node = Store(folder / f"{address}.sqlite"), FakeNode()
            stack.callback(store.close)
            app = build_app(Control(store, node), node, access=access_of(folder), version="0")
            stack.enter_context(served(app, address, self.port, **tls))
            self.nodes[address] = node

    async def resolve(self, host: str, port: int) -> list[str]:
        if not self.known:
            raise OSError("Name or service not known")
        return self.known

    def rules(self) -> dict[str, list[str]]:
        """What each agent obeys."""
        return {a: [selector_text(rule.selector) for rule in node.applied[-1]] for a, node in self.nodes.items()}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def agents(tmp_path: Path, stack: ExitStack) -> Agents:
    return Agents(tmp_path, ADDRESSES, stack)


Relay = Callable[..., httpx.Client]


def secret_file(folder: Path) -> Path:
    (folder / "secret").write_text(f"{SECRET}\n")
    return folder / "secret"


@pytest.fixture
def relay(stack: ExitStack) -> Relay:
    """A client of a relay with these options, which lends its token to who shows the secret.

    Args:
        via: what the client's paths begin with.
    """

    def start(
        agents: Agents,
        to: str = "http://agents.example",
        *,
        token: Path | None = None,
        via: str = f"/via/{SECRET}",
        **options: Any,
    ) -> httpx.Client:
        if token is not None:
            options["lending"] = Lending(token, secret_file(agents.folder))
        app = build_relay(f"{to}:{agents.port}", resolve=agents.resolve, **options)
        url = stack.enter_context(served(app)) + (via if token is not None else "")
        return stack.enter_context(httpx.Client(base_url=url, timeout=PATIENCE_S))

    return start


def test_every_agent_does_what_one_request_asks(agents: Agents, relay: Relay) -> None:
    client = relay(agents, token=agents.folder / "token")
    answer = client.post(GRAY, json={"name": "checkout", "phase": "Progressing"})
    assert answer.status_code == 200
    assert answer.json() == {"nodes": 3, "reached": 0, "failed": []}
    assert agents.rules() == everywhere("env=gray")
    assert client.delete("/sampling?env=gray").status_code == 200
    assert agents.rules() == everywhere()


def test_the_targets_of_all_nodes_are_added_up(agents: Agents, relay: Relay) -> None:
    from spandial.labels import Labels

    agents.nodes["127.0.0.1"].processes = [Labels("checkout", env="gray")] * 2
    agents.nodes["127.0.0.3"].processes = [Labels("checkout", env="gray")]
    answer = relay(agents, token=agents.folder / "token").put(GRAY)
    assert answer.json()["reached"] == 3


def test_who_brings_a_token_is_asked_by_that_one(agents: Agents, relay: Relay) -> None:
    client = relay(agents, token=agents.folder / "token", via="")
    answer = client.put(GRAY, headers={"Authorization": "Bearer wrong"})
    assert answer.status_code == 401
    assert {failure["status"] for failure in answer.json()["failed"]} == {401}
    assert relay(agents).put(GRAY, headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_a_relay_without_a_token_lends_none(agents: Agents, relay: Relay) -> None:
    assert relay(agents).put(GRAY).status_code == 401
    assert agents.rules() == everywhere()


@pytest.mark.parametrize("via", ["", "/via/wrong", f"/via/{SECRET}x", "/via/%00", "/via/%C3%A9", f"/via/{SECRET[:-1]}"])
def test_who_shows_no_secret_is_lent_no_token(agents: Agents, relay: Relay, via: str) -> None:
    answer = relay(agents, token=agents.folder / "token", via=via).put(GRAY)
    assert answer.status_code == 401
    assert "--secret-file" in answer.json()["detail"]
    assert SECRET not in answer.text
    assert agents.rules() == everywhere()


def test_a_relay_without_a_secret_lends_its_token_to_nobody(agents: Agents, relay: Relay) -> None:
    client = relay(agents, lending=Lending(agents.folder / "token"))
    for path in (GRAY, f"/via/{GRAY}", f"/via/x{GRAY}"):
        assert client.put(path).status_code in (401, 404)
    assert agents.rules() == everywhere()


def test_a_new_secret_holds_from_the_next_request_on(agents: Agents, relay: Relay) -> None:
    client = relay(agents, token=agents.folder / "token")
    for text in ("another-secret-of-this-relay", "", "short"):
        (agents.folder / "secret").write_text(text)
        assert client.put(GRAY).status_code == 401
    secret_file(agents.folder)
    assert client.put(GRAY).status_code == 200


def test_who_has_shown_a_certificate_needs_no_secret(agents: Agents, relay: Relay) -> None:
    assert relay(agents, lending=Lending(agents.folder / "token", to_all=True)).put(GRAY).status_code == 200
    assert agents.rules() == everywhere("env=gray")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "null"},
        {"Host": "evil.example:5779"},
        {"Host": "evil.example:5779", "Origin": "http://evil.example:5779", "Sec-Fetch-Site": "same-origin"},
    ],
    ids=str,
)
def test_no_page_of_a_browser_uses_it_even_with_the_secret(
    agents: Agents, relay: Relay, headers: dict[str, str]
) -> None:
    assert relay(agents, token=agents.folder / "token").post(GRAY, headers=headers).status_code == 403
    assert agents.rules() == everywhere()


def test_it_is_asked_by_the_names_that_it_was_given(agents: Agents, relay: Relay) -> None:
    client = relay(agents, token=agents.folder / "token", host_names=["spandial-relay.spandial.svc"])
    assert client.put(GRAY, headers={"Host": "spandial-relay.spandial.svc:8443"}).status_code == 200
    answer = client.put(GRAY, headers={"Host": "spandial-relay.spandial:8443"})
    assert answer.status_code == 403
    assert "--host-name" in answer.json()["detail"]


def test_the_secret_is_in_no_line_of_the_log(agents: Agents, relay: Relay, caplog: pytest.LogCaptureFixture) -> None:
    agents.known.append("127.0.0.4")
    client = relay(agents, token=agents.folder / "token")
    with structlog.testing.capture_logs() as logged:
        assert client.put(GRAY).status_code == 502
        assert client.put("/nothing").status_code == 404
        assert client.get("/sampling").status_code == 405
        (agents.folder / "token").unlink()
        assert client.put(GRAY).status_code == 502
    said = [record.getMessage() for record in caplog.records if not record.name.startswith("http")]  # the client's
    assert any("127.0.0.4" in str(line) for line in logged)
    assert SECRET not in str(logged) + "".join(said)


@pytest.mark.parametrize("text", ["", "short", "x" * 21, "a secret with spaces in it", "y" * 513, "a/b" * 10, "é" * 30])
def test_a_secret_that_could_be_guessed_or_is_no_path_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "secret").write_text(text)
    with pytest.raises(SpandialError, match="--secret-file"):
        build_relay("http://agents", lending=Lending(tmp_path / "token", tmp_path / "secret"))


def test_a_new_token_holds_from_the_next_request_on(agents: Agents, relay: Relay) -> None:
    token = agents.folder / "mounted"
    token.write_text("old")
    client = relay(agents, token=token)
    assert client.put(GRAY).status_code == 401
    token.write_text(TOKEN)
    assert client.put(GRAY).status_code == 200
    token.unlink()
    assert client.put(GRAY).status_code == 502


def test_what_all_agents_refuse_alike_is_refused_so(agents: Agents, relay: Relay) -> None:
    answer = relay(agents, token=agents.folder / "token").put("/sampling?rate=200&env=gray")
    assert answer.status_code == 422
    assert [failure["address"] for failure in answer.json()["failed"]] == ADDRESSES
    assert answer.json()["failed"][0]["detail"][0]["field"] == "rate"


def test_an_agent_that_does_not_answer_is_named_and_the_others_have_done_it(agents: Agents, relay: Relay) -> None:
    agents.known.append("127.0.0.4")
    answer = relay(agents, token=agents.folder / "token").put(GRAY)
    assert answer.status_code == 502
    assert answer.json()["nodes"] == 4
    assert [(f["address"], f["status"]) for f in answer.json()["failed"]] == [("127.0.0.4", 0)]
    assert answer.json()["failed"][0]["detail"].startswith("no answer")
    assert agents.rules() == everywhere("env=gray")


def test_an_agent_that_hangs_costs_its_time_and_no_more(agents: Agents, relay: Relay, stack: ExitStack) -> None:
    import socket

    silent = stack.enter_context(socket.socket())
    silent.bind(("127.0.0.4", agents.port))
    silent.listen()
    agents.known.append("127.0.0.4")
    answer = relay(agents, token=agents.folder / "token", timeout_s=1.0).put(GRAY)
    assert answer.status_code == 502
    assert [f["address"] for f in answer.json()["failed"]] == ["127.0.0.4"]


def test_nobody_behind_the_name_is_told(agents: Agents, relay: Relay) -> None:
    agents.known.clear()
    answer = relay(agents, token=agents.folder / "token").put(GRAY)
    assert answer.status_code == 502
    assert "agents.example" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/sampling"),
        ("GET", "/targets"),
        ("POST", "/audit"),
        ("PATCH", "/sampling"),
        ("POST", "/sampling/undo?revision=1"),
    ],
)
def test_only_changes_of_rules_are_passed_on(agents: Agents, relay: Relay, method: str, path: str) -> None:
    assert relay(agents).request(method, path).status_code in (404, 405)


def test_a_body_without_end_is_refused(agents: Agents, relay: Relay) -> None:
    client = relay(agents, token=agents.folder / "token")
    assert client.post(GRAY, content=b"x" * ((1 << 20) + 1)).status_code == 413


def test_the_relay_answers_for_itself(agents: Agents, relay: Relay) -> None:
    agents.known.clear()
    assert relay(agents).get("/healthz").json() == {"status": "ok"}


def test_a_certificate_is_that_of_the_name_whatever_the_address(tmp_path: Path, stack: ExitStack, relay: Relay) -> None:
    made = self_signed(tmp_path)
    files = {"ssl_certfile": made.certificate, "ssl_keyfile": made.key}
    agents = Agents(tmp_path, ["127.0.0.1", "127.0.0.2"], stack, **files)
    options: dict[str, Any] = {"token": tmp_path / "token", "ca": made.certificate}
    assert relay(agents, "https://localhost", **options).put(GRAY).status_code == 200
    assert agents.rules() == {"127.0.0.1": ["env=gray"], "127.0.0.2": ["env=gray"]}
    assert relay(agents, "https://agents.example", **options).put(GRAY).status_code == 502
    assert relay(agents, "https://localhost", token=tmp_path / "token").put(GRAY).status_code == 502


def test_rules_that_change_together_do_so_on_every_node(agents: Agents, relay: Relay) -> None:
    body = {"put": [{"env": "gray", "rate": 100, "ttl": "10m"}, {"env": "blue", "rate": 5}]}
    assert relay(agents, token=agents.folder / "token").post("/sampling/batch", json=body).status_code == 200
    assert {tuple(sorted(rules)) for rules in agents.rules().values()} == {("env=blue", "env=gray")}


@pytest.mark.parametrize("to", ["", "agents:5778", "ftp://agents", "http://", "http://agents/api", "http://agents?x=1"])
def test_a_url_that_is_none_of_agents_is_refused(to: str) -> None:
    with pytest.raises(SpandialError, match="--to takes a URL"):
        build_relay(to)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(SpandialError, match="nothing"):
        build_relay("http://agents", lending=Lending(tmp_path / "nothing"))
    with pytest.raises(SpandialError, match="nothing"):
        build_relay("https://agents", ca=tmp_path / "nothing")


def test_without_tls_a_relay_serves_its_own_host_only() -> None:
    with pytest.raises(SpandialError, match="--certificate"):
        run_relay(build_relay("http://agents"), "0.0.0.0", 0, None, None)


def test_certificates_can_be_shown_by_tls_alone(tmp_path: Path) -> None:
    with pytest.raises(SpandialError, match="--client-ca"):
        run_relay(build_relay("http://agents"), "127.0.0.1", 0, None, None, tmp_path / "ca.pem")


@pytest.mark.anyio
@pytest.mark.needs("openssl")
async def test_half_done_handshakes_keep_no_other_address_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "_TELL_S", 0.1)
    made, stop = self_signed(tmp_path), asyncio.Event()
    certificate = ServerCertificate(made.certificate, made.key)
    relay = build_relay("http://agents.example")
    with structlog.testing.capture_logs() as told, bind_tcp("127.0.0.1", 0, tls=True) as listener:
        assert isinstance(listener, TlsListener)
        port = listener.getsockname()[1]
        serving = asyncio.create_task(serve_relay(relay, listener, certificate, stop))
        half_done = []
        for _ in range(200):
            half_done.append(await asyncio.open_connection("127.0.0.1", port))
            half_done[-1][1].write(b"\x16\x03\x01\x02\x00\x01")  # the beginning of a ClientHello
        await asyncio.to_thread(
            eventually,
            lambda: listener.handshakes.refused["handshakes"] >= 200 - 16,
            "those that are too many are closed",
        )
        trusting = ssl.create_default_context(cafile=str(made.certificate))
        elsewhere = httpx.AsyncHTTPTransport(verify=trusting, local_address="127.0.0.2")
        async with httpx.AsyncClient(transport=elsewhere, timeout=PATIENCE_S) as honest:
            answer = await honest.get(f"https://127.0.0.1:{port}/healthz")
        assert answer.json() == {"status": "ok"}
        ended = [asyncio.ensure_future(reader.read()) for reader, _ in half_done]
        done, _ = await asyncio.wait(ended, timeout=PATIENCE_S)
        assert len(done) == 200, "a handshake may take so long, and no longer"
        for each in done:
            each.exception()
        for _, writer in half_done:
            writer.close()
        stop.set()
        await asyncio.wait_for(serving, PATIENCE_S)
    assert sum(line.get("handshakes", 0) for line in told) == listener.handshakes.refused["handshakes"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_when_told_to(number: signal.Signals) -> None:
    port = str(free_port())
    command = [sys.executable, "-m", "spandial_agent", "relay", "--to", "http://agents.example", "--port", port]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        try:
            eventually(lambda: httpx.get(f"http://127.0.0.1:{port}/healthz").is_success, "it serves")
            process.send_signal(number)
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()


def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SpandialError, match=r"for the relay .*--port"):
        run_relay(build_relay("http://agents"), "127.0.0.1", taken.getsockname()[1], None, None)
