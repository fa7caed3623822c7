"""An OTLP receiver that this project did not write: Datadog's test agent, as a process of its own."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from tests.agent_process import PATIENCE_S, eventually

__all__ = ["OtlpReceiver", "ReceivedSpan", "free_ports", "receiver_command"]

_PROGRAM = "ddapm-test-agent"
_CODES = {"STATUS_CODE_UNSET": "unset", "STATUS_CODE_OK": "ok", "STATUS_CODE_ERROR": "error"}


@cache
def receiver_command() -> str | None:
    """The program, if there is one that speaks OTLP.

    Its newer versions do, but want older libraries than the agent has: it has an environment of its own, named by
    SPANDIAL_OTLP_RECEIVER or made in `otlp-receiver` of this environment.
    """
    candidates = [
        os.environ.get("SPANDIAL_OTLP_RECEIVER"),
        str(Path(sys.prefix) / "otlp-receiver" / "bin" / _PROGRAM),
        str(Path(sys.prefix) / "bin" / _PROGRAM),
        shutil.which(_PROGRAM),
    ]
    for candidate in candidates:
        if candidate and os.access(candidate, os.X_OK):
            options = subprocess.run([candidate, "--help"], capture_output=True, text=True, timeout=PATIENCE_S).stdout
            if "--otlp-grpc-port" in options:
                return candidate
    return None


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that were free a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class ReceivedSpan(NamedTuple):
    name: str
    kind: str
    trace_id: int
    span_id: int
    parent_span_id: int
    trace_state: str
    start_ns: int
    end_ns: int
    attributes: dict[str, str | int]
    status: str
    message: str
    resource: dict[str, str | int]
    scope: str
    remote_parent: bool


class OtlpReceiver:
    """Its ports stay the same when it is started again; what it received does not."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own_port, self._http_port, self._grpc_port = free_ports(3)
        self._process: subprocess.Popen[bytes] | None = None

    def endpoint(self, protocol: str) -> str:
        return f"http://127.0.0.1:{self._grpc_port if protocol == 'grpc' else self._http_port}"

    def start(self) -> None:
        command = receiver_command()
        assert command is not None
        with open(self._folder / "receiver.log", "ab") as log:
            self._process = subprocess.Popen(
                [
                    *(command, "--port", str(self._own_port)),
                    *("--otlp-http-port", str(self._http_port), "--otlp-grpc-port", str(self._grpc_port)),
                ],
                cwd=self._folder,
                stdout=log,
                stderr=log,
            )
        eventually(self._serves, "the OTLP receiver serves")

    def _serves(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "receiver.log").read_text()
        socket.create_connection(("127.0.0.1", self._grpc_port), 1).close()
        return httpx.get(f"{self.endpoint('http')}/test/session/traces", timeout=PATIENCE_S).is_success

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def spans(self) -> list[ReceivedSpan]:
        answer = httpx.get(f"{self.endpoint('http')}/test/session/traces", timeout=PATIENCE_S)
        assert answer.is_success, answer.text
        return [
            _received(span, group.get("resource", {}), scope_spans.get("scope", {}))
            for request in answer.json()
            for group in request.get("resource_spans", [])
            for scope_spans in group["scope_spans"]
            for span in scope_spans["spans"]
        ]


def _received(span: dict[str, Any], resource: dict[str, Any], scope: dict[str, Any]) -> ReceivedSpan:
    status = span.get("status", {})
    return ReceivedSpan(
        name=span["name"],
        kind=span["kind"].removeprefix("SPAN_KIND_").lower(),
        trace_id=_id(span["trace_id"]),
        span_id=_id(span["span_id"]),
        parent_span_id=_id(span.get("parent_span_id", "")),
        trace_state=span.get("trace_state", ""),
        start_ns=int(span["start_time_unix_nano"]),
        end_ns=int(span["end_time_unix_nano"]),
        attributes=_attributes(span),
        status=_CODES[status.get("code", "STATUS_CODE_UNSET")],
        message=status.get("message", ""),
        resource=_attributes(resource),
        scope=scope.get("name", ""),
        remote_parent=bool(span.get("flags", 0) & 0x200),  # SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK of trace.proto
    )


def _id(encoded: str) -> int:
    return int.from_bytes(base64.b64decode(encoded), "big")


def _attributes(holder: dict[str, Any]) -> dict[str, str | int]:
    found: dict[str, str | int] = {}
    for attribute in holder.get("attributes", []):
        ((kind, value),) = attribute["value"].items()
        found[attribute["key"]] = int(value) if kind == "int_value" else value
    return found
