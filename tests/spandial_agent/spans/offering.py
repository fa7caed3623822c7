"""Exchanges offered to an exporter, and what became of them."""

from __future__ import annotations

from opentelemetry.sdk.resources import Resource

from spandial_agent.spans.export import ExportCounts, Exporter
from tests.agent_process import eventually
from tests.spandial_agent.spans.exchanges import exchange

__all__ = ["CHECKOUT", "PAYMENT", "offered", "settled"]

CHECKOUT = Resource({"service.name": "checkout", "process.pid": 7, "host.name": "node-3"})
PAYMENT = Resource({"service.name": "payment", "process.pid": 8})


def offered(exporter: Exporter, count: int, start: int = 1, uid: int = -1) -> None:
    for number in range(start, start + count):
        exporter.offer(exchange(number=number, method="GET", path="/"), CHECKOUT, uid)


def settled(exporter: Exporter) -> ExportCounts:
    """The counts once nothing is queued any more."""
    counts: ExportCounts = eventually(
        lambda: counts if (counts := exporter.counts()).queued == 0 else None, "the queue is empty"
    )
    return counts
