"""Servers and clients under load, by name, and what they need."""

from __future__ import annotations

import shutil
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Protocol

from bench.databases import DATABASES, missing_for
from bench.servers import SERVERS, GrpcServer, Load, Server
from spandial.abi import EntryKind

__all__ = ["WORKLOADS", "Workload", "lacking", "workload"]

WORKLOADS = (*SERVERS, *DATABASES)
_TOOLS = {"nginx": ("taskset", "h2load", "nginx")}
_OF_SERVERS = ("taskset", "h2load")


class Workload(Protocol):
    """Something that does an exact number of operations, and a process in it that is the target."""

    kind: EntryKind
    beside: int

    def begin(self, operations: int) -> int: ...
    def finish(self) -> Load: ...


def workload(kind: str, folder: Path, cores: list[int], stack: ExitStack) -> Workload:
    """Started, on the last core as to its target, on the first as to the rest; the stack takes it down."""
    places = cores[-1], cores[0]
    if kind in DATABASES:
        return stack.enter_context(closing(DATABASES[kind](stack, *places)))
    server = GrpcServer if kind == "grpcio" else Server
    return stack.enter_context(closing(server(kind, folder, None, *places)))


def lacking(kind: str) -> list[str]:
    """One sentence for each program that a workload lacks here."""
    if kind in DATABASES:
        return missing_for(kind)
    tools = _TOOLS.get(kind, _OF_SERVERS)
    return [f"{tool} is not installed." for tool in tools if shutil.which(tool) is None]
