"""Nodes with agents that serve by TLS, and the relay of the recipes in front of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from spandial.abi import EntryKind
from spandial.labels import Labels
from spandial_agent.serving.relay import Lending, build_relay
from spandial_api.app import build_app
from spandial_api.control import Control
from spandial_api.store import Store
from spandial_api.token_file import TokenFile
from tests.agent_process import PATIENCE_S
from tests.certificates import Certificate
from tests.live_app import free_port, served
from tests.spandial_api.conftest import TOKEN, access_of
from tests.spandial_api.fake_node import FakeNode

__all__ = ["SECRET", "TOKEN", "Clock", "Cluster"]

SECRET = "5f" * 32


class Clock:
    """Unix time in seconds, which a test sets."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class _Expiring:
    """The application, and beside it what ends rules, as in an agent."""

    def __init__(self, app: ASGIApp, control: Control) -> None:
        self._app = app
        self._control = control

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        await receive()
        running = asyncio.create_task(self._control.run())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        running.cancel()
        await send({"type": "lifespan.shutdown.complete"})


class _Agent:
    def __init__(self, folder: Path, address: str, port: int, clock: Callable[[], float], tls: Certificate) -> None:
        self.address = address
        self.url = f"https://{address}:{port}"
        self.node = FakeNode()
        self._start = (folder / f"{address}.sqlite", port, clock, tls)
        self._stack = ExitStack()

    def start(self) -> None:
        path, port, clock, tls = self._start
        store = Store(path)
        self._stack.callback(store.close)
        control = Control(store, self.node, now=clock)
        app = build_app(control, self.node, access=access_of(path.parent), version="0")
        options = {"ssl_certfile": tls.certificate, "ssl_keyfile": tls.key}
        self._stack.enter_context(served(_Expiring(app, control), self.address, port, **options))

    def stop(self) -> None:
        self._stack.close()


class Cluster:
    """Three nodes behind one name, and a relay that is reached by TLS.

    Attributes:
        url: the relay's.
        token_file: what it lends those who show its secret.
        tokens: of all agents, who have the same file.
        clock: of all agents.
    """

    def __init__(self, folder: Path, tls: Certificate, stack: ExitStack) -> None:
        self.clock = Clock()
        self.token_file = folder / "relay-token"
        self.token_file.write_text(TOKEN)
        (folder / "relay-secret").write_text(SECRET)
        port = free_port()
        self.tokens = TokenFile(folder)
        self.agents = [_Agent(folder, f"127.0.0.{n}", port, self.clock, tls) for n in (1, 2, 3)]
        for agent in self.agents:
            agent.start()
            stack.callback(agent.stop)

        async def resolve(_host: str, _port: int) -> list[str]:
            return [agent.address for agent in self.agents]

        relay = build_relay(
            f"https://localhost:{port}",
            lending=Lending(self.token_file, folder / "relay-secret"),
            timeout_s=PATIENCE_S,
            ca=tls.certificate,
            resolve=resolve,
        )
        served_relay = served(relay, ssl_certfile=tls.certificate, ssl_keyfile=tls.key)
        self.url = stack.enter_context(served_relay).replace("127.0.0.1", "localhost")

    def rates(self, service: str, **attributes: str) -> list[tuple[float, str] | None]:
        """On each node, rate and mode of a process of this service with these attributes; None where no rule is for
        it."""
        labels = Labels(service, others=tuple(sorted(attributes.items())))
        found: list[tuple[float, str] | None] = []
        for agent in self.agents:
            rule = agent.node.applied[-1].resolve(labels, EntryKind.HTTP)
            found.append(None if rule is None or rule.rate is None else (rule.rate, rule.mode.name.lower()))
        return found

    def rules(self) -> list[int]:
        """How many rules each node obeys."""
        return [len(agent.node.applied[-1].rules) for agent in self.agents]
