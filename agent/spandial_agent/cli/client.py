"""The agent's HTTP interface as the command line uses it: over the Unix socket."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from spandial_agent.errors import AgentUnreachable, SpandialError

__all__ = ["Client"]

_PATIENCE_S = 60.0  # a node that traces are looked at on may be a busy one


class Client:
    """Talks to the agent of this run directory."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / "api.sock"
        transport = httpx.HTTPTransport(uds=str(self._path))
        self._http = httpx.Client(transport=transport, base_url="http://spandial", timeout=_PATIENCE_S)

    def request(self, method: str, path: str, body: Any = None, **params: str | None) -> Any:
        """The answer's JSON; the body is sent as JSON. Raises AgentUnreachable, and SpandialError with what the agent
        said against it."""
        given = {key: value for key, value in params.items() if value is not None}
        try:
            answer = self._http.request(method, path, params=given, json=body)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if answer.is_success:
            return answer.json()
        raise SpandialError(_complaint(answer))

    def stream(self, path: str, **params: str) -> Iterator[Any]:
        """The JSON of each server-sent event, until the agent ends. Raises AgentUnreachable, SpandialError."""
        try:
            with self._http.stream("GET", path, params=params, timeout=None) as answer:
                if not answer.is_success:
                    answer.read()
                    raise SpandialError(_complaint(answer))
                for line in answer.iter_lines():
                    if line.startswith("data:"):
                        yield json.loads(line[5:])
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: httpx.TransportError) -> SpandialError:
        if "[Errno 13]" in str(error):
            return SpandialError(
                f"user {os.geteuid()} may not use {self._path}: run this as root (sudo), or as a member of the group "
                "that SPANDIAL_GROUP names"
            )
        if isinstance(error, httpx.TimeoutException):
            return AgentUnreachable(
                f"the agent on {self._path} has not answered within {_PATIENCE_S:g} s: see its log, and whether the "
                "process is stopped or the node has no processor time for it"
            )
        return AgentUnreachable(
            f"no agent answers on {self._path} ({error}): start one with 'spandial agent', "
            "or set SPANDIAL_RUN_DIR to where it runs"
        )


def _complaint(answer: httpx.Response) -> str:
    try:
        detail = answer.json()["detail"]
    except (ValueError, KeyError, TypeError):
        return f"the agent answered {answer.status_code}: {answer.text[:200]}"
    if isinstance(detail, str):
        return detail
    return "; ".join(f"{item['field']}: {item['allowed']}" for item in detail)
