"""GET /entries as a test reads it: in a thread, trace ids only."""

from __future__ import annotations

import json
import threading
from typing import Any

import httpx

from tests.agent_process import AgentProcess, eventually

__all__ = ["EntryStream"]


class EntryStream:
    """The entries that the kernel keeps of a service, from the moment this exists."""

    def __init__(self, agent: AgentProcess, service: str) -> None:
        self.entries: list[dict[str, Any]] = []
        self._agent = agent
        self._service = service
        self._open = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        assert self._open.wait(10)

    def trace_ids(self, count: int = 0) -> set[int]:
        """The trace ids, once there are at least so many entries. Raises AssertionError if any was lost."""
        eventually(lambda: len(self.entries) >= count, f"{count} entries, there are {len(self.entries)}")
        assert not any(entry["lost"] for entry in self.entries)
        return {int(entry["trace_id"], 16) for entry in self.entries if entry["trace_id"]}

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
                        self.entries.append(json.loads(line[5:]))
            except httpx.TransportError:
                return
