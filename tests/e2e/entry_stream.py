"""GET /entries as a test reads it: in a thread, trace ids only."""

from __future__ import annotations

import json
import threading
from typing import Any

import httpx

from tests.agent_process import PATIENCE_S, AgentProcess, eventually

__all__ = ["EntryStream"]


class EntryStream:
    """The entries that the kernel keeps of a service, from the moment this exists."""

    def __init__(self, agent: AgentProcess, service: str) -> None:
        self.entries: list[dict[str, Any]] = []
        self._ids: set[int] = set()
        self._agent = agent
        self._service = service
        self._open = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        assert self._open.wait(PATIENCE_S)

    def trace_ids(self, expected: set[int]) -> set[int]:
        """All trace ids, once these are among them. Raises AssertionError if any entry was lost."""
        eventually(lambda: expected <= self._ids, f"{len(expected)} entries")
        assert not any(entry["lost"] for entry in self.entries)
        return self._ids.copy()

    def _read(self) -> None:
        transport = httpx.HTTPTransport(uds=str(self._agent.run_dir / "api.sock"))
        with (
            httpx.Client(transport=transport, timeout=None) as client,
            client.stream("GET", "http://spandial/entries", params={"service": self._service}) as answer,
        ):
            self._open.set()
            try:
                for line in answer.iter_lines():
                    if line.startswith("data:"):
                        entry = json.loads(line[5:])
                        self.entries.append(entry)
                        if entry["trace_id"]:
                            self._ids.add(int(entry["trace_id"], 16))
            except httpx.TransportError:
                return
