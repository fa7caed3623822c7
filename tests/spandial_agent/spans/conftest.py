"""Exporters as an operator's variables make them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from spandial_agent.spans.export import Exporter


@pytest.fixture(autouse=True)
def _no_otlp_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)


@pytest.fixture
def make_exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Exporter]]:
    """Exporters to an endpoint; all are closed at the end."""
    exporters: list[Exporter] = []

    def make(endpoint: str, protocol: str, timeout_s: float = 2.0, **options: Any) -> Exporter:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", str(timeout_s))
        exporter = Exporter.from_environ(**options)
        assert exporter is not None
        exporters.append(exporter)
        return exporter

    yield make
    for exporter in exporters:
        exporter.close(0)
