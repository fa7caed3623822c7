"""The quickstart: an agent, a stable and a gray version of a FastAPI service with the hook, a Node service without,
a steady load, and the gray version's dial turned up and back. Leaves nothing behind."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from load import SteadyLoad
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
PER_SECOND = 100
NOTE = (
    "* of the requests with a traceparent; for those without, kernel and hook draw their own random bits. "
    "A request between the two when the dial turns is decided by both rates"
)


class Service(NamedTuple):
    name: str
    version: str
    env: str
    port: int
    process: subprocess.Popen[bytes]


class Stage:
    """All processes and files of the demonstration."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run_dir = folder / "run"
        self.log = folder / "log"
        self._processes: list[subprocess.Popen[bytes]] = []
        transport = httpx.HTTPTransport(uds=str(self.run_dir / "api.sock"))
        self.api = httpx.Client(transport=transport, base_url="http://localhost", timeout=10)

    def start(self, command: list[str], **environment: str) -> subprocess.Popen[bytes]:
        with open(self.log, "ab") as log:
            process = subprocess.Popen(
                command, env={**os.environ, **environment}, stdout=log, stderr=log, start_new_session=True
            )
        self._processes.append(process)
        return process

    def agent(self) -> None:
        process = self.start(
            [sys.executable, "-m", "spandial_agent", "agent"],
            SPANDIAL_RUN_DIR=str(self.run_dir),
            SPANDIAL_STATE_DIR=str(self.folder / "state"),
            SPANDIAL_PORT="0",
        )
        self.wait(lambda: self.api.get("/healthz").is_success, "the agent", process)

    def python_service(self, version: str, env: str) -> Service:
        port = free_port()
        process = self.start(
            [
                str(BIN / "opentelemetry-instrument"),
                *(str(BIN / "uvicorn"), "--port", str(port), "--app-dir", str(HERE), "--no-access-log", "service:app"),
            ],
            **labels("shop", version, env),
            OTEL_TRACES_SAMPLER="spandial",
            OTEL_TRACES_EXPORTER="none",
            OTEL_METRICS_EXPORTER="none",
            OTEL_LOGS_EXPORTER="none",
            SPANDIAL_RUN_DIR=str(self.run_dir),
        )
        self.wait(lambda: self.kind(process.pid) == "hooked" and listens(port), f"shop {version}", process)
        return Service("shop", version, env, port, process)

    def node_service(self) -> Service:
        port = free_port()
        process = self.start(["node", str(HERE / "service.js")], **labels("front", "1", "stable"), PORT=str(port))
        self.wait(lambda: listens(port), "front", process)
        return Service("front", "1", "stable", port, process)

    def kind(self, pid: int) -> str:
        return next((target["kind"] for target in self.api.get("/targets").json() if target["pid"] == pid), "")

    def put(self, **parameters: str) -> dict[str, Any]:
        answer = self.api.put("/sampling", params=parameters)
        answer.raise_for_status()
        return dict(answer.json())

    def wait(self, ready: Callable[[], bool], what: str, process: subprocess.Popen[bytes]) -> None:
        """Raises SystemExit with the log where it does not come."""
        end = time.monotonic() + 30
        while time.monotonic() < end and process.poll() is None:
            with contextlib.suppress(httpx.TransportError, OSError):
                if ready():
                    return
            time.sleep(0.05)
        raise SystemExit(f"{what} did not start:\n{self.log.read_text()}")

    def close(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in self._processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
            for process in self._processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(5)
        shutil.rmtree(self.folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def labels(service: str, version: str, env: str) -> dict[str, str]:
    return {
        "OTEL_SERVICE_NAME": service,
        "OTEL_RESOURCE_ATTRIBUTES": f"service.version={version},deployment.environment.name={env}",
    }


class View:
    """The table, with rates per second since it was last made."""

    def __init__(self, stage: Stage, services: list[Service]) -> None:
        self._stage = stage
        self._services = services
        self._before: dict[int, tuple[float, int]] = {}

    def counts(self, service: Service) -> dict[str, Any] | None:
        """The service's HTTP counts; None before the first."""
        for target in self._stats:
            if target["pid"] == service.process.pid:
                found: dict[str, Any] | None = target["kinds"].get("http")
                return found
        return None

    def refresh(self) -> None:
        self._stats = self._stage.api.get("/stats").json()["targets"]

    def table(self) -> Table:
        self.refresh()
        rates = {t["pid"]: t["rates"]["http"] for t in self._stage.api.get("/targets").json()}
        table = Table(box=None, header_style="bold", pad_edge=False)
        for name in ("target", "req/s", "rate", "kernel seen", "kept*", "hook seen", "kept*", "difference"):
            table.add_column(name, justify="left" if name == "target" else "right", no_wrap=True)
        for service in self._services:
            counts, rate = self.counts(service), rates.get(service.process.pid)
            if counts is None or rate is None:
                continue
            kernel, hook = counts["kernel"] or {}, counts["hook"]
            hook_seen = sum(n for name, n in hook.items() if not name.startswith("local")) if hook else None
            seen = kernel.get("seen", hook_seen) or 0
            now = time.monotonic()
            then, seen_then = self._before.get(service.process.pid, (now - 1, seen))
            self._before[service.process.pid] = (now, seen)
            difference = "-"
            if counts["difference_seen"] is not None:
                difference = f"{counts['difference_seen']:+d}/{counts['difference_kept']:+d}"
            cells = (
                f"{service.name} {service.version} {service.env}",
                f"{(seen - seen_then) / max(now - then, 0.001):.0f}",
                f"{rate['rate']:g} %" + ("" if rate["mode"] == "follow" else f" {rate['mode']}"),
                kernel.get("seen"),
                kernel.get("kept_traced"),
                hook_seen,
                hook["remote_kept"] if hook else None,
                difference,
            )
            table.add_row(*("-" if cell is None else str(cell) for cell in cells))
        return table


def main() -> int:
    parser = argparse.ArgumentParser(prog="deploy/quickstart", description=__doc__)
    parser.add_argument("--seconds", type=float, help="end by itself after so long; exit code 1 if a check fails")
    seconds = parser.parse_args().seconds
    if seconds is not None and seconds < 6:
        parser.error(f"--seconds must be at least 6, to see three states of the dial; received {seconds:g}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = Path(tempfile.mkdtemp(prefix="spandial-quickstart-"))
    folder.chmod(0o755)
    stage = Stage(folder)
    try:
        return perform(stage, seconds)
    except KeyboardInterrupt:
        return 0
    finally:
        stage.close()


def perform(stage: Stage, seconds: float | None) -> int:
    console = Console()
    console.print("starting the agent, shop 1 (stable), shop 2 (gray), front (Node, no hook) ...")
    stage.agent()
    for sentence in stage.api.get("/healthz").json()["missing"]:
        console.print(f"[yellow]missing[/]: {sentence}")
    stage.put(rate="1")
    services = [stage.python_service("1", "stable"), stage.python_service("2", "gray")]
    if shutil.which("node"):
        services.append(stage.node_service())
    else:
        console.print("[yellow]missing[/]: node, for the service without the hook")
    loads = [SteadyLoad(service.port, PER_SECOND) for service in services]
    view = View(stage, services)
    curl = f"curl -X PUT --unix-socket {stage.run_dir}/api.sock 'http://localhost/sampling?rate=100&env=gray&mode=boost&ttl=10m'"
    said = Text("everyone at 1 %")
    kept: list[int] = []

    def picture() -> Group:
        if live is None:
            return Group(view.table(), said, Text())
        return Group(
            view.table(), Text(NOTE, style="dim"), Text(), said, Text(f"turn it yourself: {curl}", style="dim")
        )

    def turn(text: str, **parameters: str) -> None:
        view.refresh()
        kept.append(sum(kept_of(view.counts(services[1]))))
        answer = stage.put(**parameters)
        targets = "1 target" if answer["reached"] == 1 else f"{answer['reached']} targets"
        said.plain = f"{text}, obeyed by {targets} (revision {answer['revision']})"

    span = seconds / 3 if seconds else 10.0
    turns: Iterator[Callable[[], None]] = iter(
        [
            lambda: turn("gray turned up to 100 %", rate="100", env="gray", mode="boost", ttl="10m"),
            lambda: turn("gray turned back to 1 %", rate="1", env="gray"),
        ]
    )
    if not console.is_terminal:
        console.print(f"turn it yourself: {curl}\n{NOTE}\n", soft_wrap=True, highlight=False)
    begin = time.monotonic()
    due = begin + span
    with contextlib.ExitStack() as stack:
        live = stack.enter_context(Live(console=console, auto_refresh=False)) if console.is_terminal else None
        while seconds is None or time.monotonic() - begin < seconds:
            if time.monotonic() >= due:
                due += span
                if (do := next(turns, None)) is not None:
                    do()
            if live is not None:
                live.update(picture(), refresh=True)
            else:
                console.print(picture())
            time.sleep(1 if live is not None or seconds is None else min(span / 2, 2.0))
    for load in loads:
        load.stop()
    view.refresh()
    kept.append(sum(kept_of(view.counts(services[1]))))
    console.print(view.table())
    return report(console, view, services, loads, kept)


def kept_of(counts: dict[str, Any] | None) -> tuple[int, int]:
    """What the hook kept, roots and entries with a caller."""
    hook = (counts or {}).get("hook") or {"root_kept": 0, "remote_kept": 0}
    return hook["root_kept"], hook["remote_kept"]


def agreement(counts: dict[str, Any]) -> tuple[str, bool]:
    """Whether kernel and hook saw the same requests and kept the same traces, and which requests may differ."""
    turned = counts["in_flight_at_turns"]
    text = f", but for at most {turned} in flight when the dial turned" if turned else ""
    return text, counts["difference_seen"] == 0 and abs(counts["difference_kept"]) <= turned


def report(console: Console, view: View, services: list[Service], loads: list[SteadyLoad], kept: list[int]) -> int:
    """What was shown, checked; the exit code."""
    up, back = kept[1] - kept[0], kept[2] - kept[1]
    checks = {
        f"{sum(load.sent for load in loads)} requests, every one answered": not any(load.failed for load in loads),
        f"gray kept {kept[0]} at 1 %, {up} at 100 %, {back} at 1 % again": up > 5 * max(kept[0], back, 1),
        "no service restarted": all(service.process.poll() is None for service in services),
    }
    for service, load in zip(services, loads):
        counts = view.counts(service) or {}
        if counts.get("kernel"):
            checks[f"{service.name} {service.version}: the kernel saw all {load.sent}"] = (
                counts["kernel"]["seen"] == load.sent
            )
        if counts.get("difference_seen") is not None:
            text, holds = agreement(counts)
            checks[f"{service.name} {service.version}: kernel and hook agree{text}"] = holds
    for text, holds in checks.items():
        console.print(f"{'[green]ok[/]' if holds else '[red]FAILED[/]':<16} {text}")
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
