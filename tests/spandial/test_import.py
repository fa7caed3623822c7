"""What an application gets into its process with `import spandial`."""

from __future__ import annotations

import subprocess
import sys

from tests.agent_process import PATIENCE_S

STANDARD_LIBRARY = {"array", "atexit", "json", "mmap", "random", "select", "selectors", "socket", "stat", "struct"}


def modules_after(statement: str) -> set[str]:
    script = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=PATIENCE_S
    )
    return set(done.stdout.split())


def test_it_loads_only_itself_and_little_of_the_standard_library_on_top_of_the_sdk() -> None:
    added = modules_after("import spandial") - modules_after("import opentelemetry.sdk.trace")
    own = {name for name in added if name.partition(".")[0] == "spandial"}
    modules = [
        "abi",
        "clock",
        "decider",
        "decision",
        "labels",
        "link",
        "memory",
        "patterns",
        "peer",
        "plan",
        "sampler",
        "sheet",
    ]
    assert own == {"spandial", *(f"spandial.{module}" for module in modules)}
    assert {name.partition(".")[0].lstrip("_") for name in added - own} <= STANDARD_LIBRARY


def test_it_loads_nothing_of_the_floors_above_nor_of_what_they_need() -> None:
    above = {"spandial_agent", "spandial_api", "fastapi", "starlette", "uvicorn", "pydantic", "bcc", "pyroute2"}
    above |= {"asyncio", "sqlite3", "structlog", "typer", "httpx", "prometheus_client", "multiprocessing"}
    assert not above & {name.partition(".")[0] for name in modules_after("import spandial")}


def test_importing_it_starts_no_thread_and_says_nothing() -> None:
    script = "import threading, spandial; print(threading.active_count())"
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", script], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")
