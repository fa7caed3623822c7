"""Imports go down only: agent, control plane, hook."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import spandial
import spandial_agent
import spandial_api

HOOK, API, AGENT = (Path(str(package.__file__)).parent for package in (spandial, spandial_api, spandial_agent))


def imports_of(module: Path) -> set[str]:
    """Every package that a module imports, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            found.add(str(node.module).partition(".")[0])
    return found


def importers_of(package: str, folder: Path) -> list[str]:
    modules = sorted(folder.rglob("*.py"))
    assert modules
    return [str(module.relative_to(folder)) for module in modules if package in imports_of(module)]


@pytest.mark.parametrize("package", ["spandial_agent", "bcc", "pyroute2"])
def test_the_control_plane_knows_no_node_and_no_kernel(package: str) -> None:
    assert importers_of(package, API) == []


@pytest.mark.parametrize(
    "package",
    [
        "spandial_api",
        "spandial_agent",
        "bcc",
        "pyroute2",
        "fastapi",
        "pydantic",
        "httpx",
        "uvicorn",
        "structlog",
        "typer",
    ],
)
def test_the_hook_needs_nothing_of_the_nodes(package: str) -> None:
    assert importers_of(package, HOOK) == []


def test_one_module_alone_imports_bcc() -> None:
    assert importers_of("bcc", AGENT) == ["kernel/bcc_process.py"]


def test_the_process_that_compiles_needs_nothing_of_the_agents() -> None:
    """It runs isolated: only what the interpreter brings can be imported."""
    assert imports_of(AGENT / "kernel" / "bcc_process.py") <= sys.stdlib_module_names | {"bcc"}


def test_decoders_of_protocols_are_pure() -> None:
    for module in (AGENT / "protocols").glob("*.py"):
        assert not imports_of(module) & {"os", "socket", "asyncio", "time", "ctypes"}, module
