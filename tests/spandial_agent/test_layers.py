"""Imports go down only: agent, control plane, hook."""

from __future__ import annotations

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import spandial
import spandial_agent
import spandial_api

HOOK, API, AGENT = (Path(str(package.__file__)).parent for package in (spandial, spandial_api, spandial_agent))


def graph() -> dict[str, set[str]]:
    """Which modules of the project each of its modules imports, wherever it does, also for type checkers alone."""
    paths = {name_of(path): path for folder in (HOOK, API, AGENT) for path in folder.rglob("*.py")}
    found: dict[str, set[str]] = {}
    for name, path in paths.items():
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                full = {f"{node.module}.{alias.name}" for alias in node.names} & paths.keys()
                found[name] |= full or {str(node.module)} & paths.keys()
            elif isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names} & paths.keys()
    assert sum(map(len, found.values())) > 300
    return found


def name_of(path: Path) -> str:
    package = next(folder for folder in (HOOK, API, AGENT) if folder in path.parents)
    return ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    """The folder that a module is in; a module that is in none but its package's is a room of its own."""
    room, _, _ = module.rpartition(".")
    return room if "." in room else module


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_modules_import_in_a_circle() -> None:
    assert circle_in(graph()) == []


def test_rooms_lie_on_floors_and_import_down_only() -> None:
    rooms: dict[str, set[str]] = {}
    for module, imported in graph().items():
        rooms.setdefault(room_of(module), set()).update(map(room_of, imported))
    assert circle_in({room: below - {room} for room, below in rooms.items()}) == []


def test_a_circle_is_found() -> None:
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert set(circle_in({"a": {"b"}, "b": {"c"}, "c": {"a"}})) == {"a", "b", "c"}


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
    for module in (AGENT / "records" / "protocols").glob("*.py"):
        assert not imports_of(module) & {"os", "socket", "asyncio", "time", "ctypes"}, module
