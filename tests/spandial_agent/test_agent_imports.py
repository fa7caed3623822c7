"""What an agent imports until it serves, and when: whoever restarts it waits for what comes before the rates."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from tests.agent_process import PATIENCE_S, AgentProcess

# The HTTP interface, which is imported when hooks have their rates.
INTERFACE = {"fastapi", "starlette", "uvicorn", "prometheus_client"}
# What only some agents need, or only later: a statement is read, an exporter or a port for gRPC is set, a kubelet is
# asked, a source is compiled.
LATER = {"sqlglot", "httpx", "grpc", "h2", "hyperframe", "google", "requests", "bcc"}
# What the parts need that are made while the kernel verifies the programs.
PARTS = {"sqlite3", "pyroute2", "spandial_api.control", "spandial_agent.node"}


def imported_by(*modules: str) -> set[str]:
    script = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=PATIENCE_S
    )
    return {name for module in done.stdout.split() for name in (module, module.partition(".")[0])}


def test_until_the_kernel_verifies_the_programs_little_is_imported() -> None:
    imported = imported_by("spandial_agent.cli.app", "spandial_agent.agent")
    assert "spandial_agent.kernel_side" in imported
    assert not imported & (INTERFACE | LATER | PARTS)


def test_no_rate_waits_for_the_import_of_the_interface() -> None:
    imported = imported_by("spandial_agent.cli.app", "spandial_agent.agent", "spandial_agent.parts")
    assert imported >= PARTS
    assert not imported & (INTERFACE | LATER)


def imported_in(agent: AgentProcess) -> list[str]:
    lines = agent.log.read_text().splitlines()
    return [line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")]


def test_an_agent_that_serves_has_imported_nothing_for_later(make_agent: Callable[..., AgentProcess]) -> None:
    imported = imported_in(make_agent(SPANDIAL_TABLE="memfd", PYTHONPROFILEIMPORTTIME="1"))
    assert not {name.partition(".")[0] for name in imported} & LATER
    # A module is told of when all that it imports is there.
    order = [imported.index(f"spandial_agent.{name}") for name in ("agent", "parts", "serving.interface")]
    assert order == sorted(order)
    assert order[1] < imported.index("fastapi") < order[2]


def test_an_agent_that_serves_jaegers_grpc_does_so_without_grpcs_library(
    make_agent: Callable[..., AgentProcess],
) -> None:
    settings = {"SPANDIAL_TABLE": "memfd", "SPANDIAL_JAEGER_GRPC_PORT": "0", "PYTHONPROFILEIMPORTTIME": "1"}
    imported = {name.partition(".")[0] for name in imported_in(make_agent(**settings))}
    assert imported & LATER == {"h2", "hyperframe", "google"}
