"""The agent's parts: built in order, obeyed, served, and taken down in reverse."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from spandial.abi import encode_word
from spandial_agent.capture.cost import CostLimit
from spandial_agent.capture.follower import TlsFollower
from spandial_agent.clock import KernelClock
from spandial_agent.discovery.discovery import Discovery
from spandial_agent.discovery.registrar import Registrar
from spandial_agent.discovery.rules import parse_rules
from spandial_agent.dispatch import RecordDispatch
from spandial_agent.errors import SpandialError
from spandial_agent.kernel_side import KernelSide
from spandial_agent.log import Log
from spandial_agent.memory_limit import MemoryLimit, Step
from spandial_agent.node import LocalNode
from spandial_agent.propagation.watch import PropagationWatch
from spandial_agent.serving.binding import bind_tcp, bind_unix
from spandial_agent.serving.certificate import ServerCertificate
from spandial_agent.serving.renewal import Renewal
from spandial_agent.settings import Settings
from spandial_agent.spans.export import Exporter
from spandial_agent.spans.kubelet import Kubelet
from spandial_agent.spans.ledger import Ledger
from spandial_agent.spans.pipeline import SpanPipeline
from spandial_agent.spans.resource import Resources, node_name
from spandial_agent.supervised import Supervised, Watched
from spandial_agent.table.rates import RateTable
from spandial_agent.targets.targets import Targets
from spandial_api.budgets import Limits
from spandial_api.control import Control
from spandial_api.folders import NotOurs
from spandial_api.guard import Guard
from spandial_api.last_good import LastGoodRules
from spandial_api.opening import open_store
from spandial_api.store import StoreError
from spandial_api.switch import Switch
from spandial_api.token_file import TokenFile

__all__ = ["run_parts"]

_log = structlog.get_logger("spandial.agent")


async def run_parts(
    settings: Settings,
    log: Log,
    stop: asyncio.Event,
    stack: contextlib.ExitStack,
    certificate: ServerCertificate | None,
    renew_lock: Callable[[], None],
    kernel_made: Callable[[], KernelSide],
) -> None:
    """Run until `stop`. Raises SpandialError where a part cannot be made.

    Args:
        stack: takes the parts down, the last one first.
        renew_lock: as `lock.only_agent` yields it.
        kernel_made: as `kernel_side.making` yields it.
    """
    backend, capture, missing = await asyncio.to_thread(kernel_made)  # signals are taken meanwhile
    if stop.is_set():
        return
    for sentence in missing:
        _log.warning("the kernel side is incomplete", missing=sentence)

    table = RateTable(backend)
    stack.callback(table.sheet.close)
    table.renew_lease(settings.lease_seconds)
    targets = Targets(table, encode_word(settings.default_rate), capture)
    registrar = Registrar(settings.run_dir / "app.sock", table, targets, settings.lease_seconds)
    discovery = Discovery(targets, parse_rules(settings.discover))
    clock = KernelClock()
    spans = _spans(settings, clock) if capture is not None else None
    if spans is not None:
        stack.callback(spans.close)
    propagation = None
    if capture is not None and settings.propagation_seconds:
        interval_s = settings.propagation_seconds
        propagation = PropagationWatch(targets, table, capture, interval_s, settings.redact_paths, clock)
    dispatch = RecordDispatch(table, targets, capture, spans, propagation, settings.redact_paths, clock)
    stack.callback(dispatch.close)
    if capture is not None:
        stack.callback(capture.finish)
    tls = None
    if capture is not None and settings.capture_tls == "auto":
        tls = TlsFollower(capture.tls, settings.trusted_owners)
        stack.callback(tls.close)
    memory = _memory_limit(settings.memory_limit_mib, dispatch, spans)
    telling = Supervised("spandial-log", "telling of what the log leaves out")
    renewing = Supervised("spandial-certificate", "renewal of the certificate")
    steering = Supervised("spandial-steering", "steering of rates")
    limiting = Supervised("spandial-cost", "limit of what capture costs")
    shedding = Supervised("spandial-memory", "limit of memory")
    supervised: list[Watched] = [telling, renewing, steering, limiting, shedding, *discovery.supervised]
    if capture is not None:
        supervised.append(capture.reader)
    if tls is not None:
        supervised.append(tls.thread)
    if spans is not None:
        supervised += [*spans.supervised, dispatch.crowded]
    lease_s = settings.lease_seconds
    node = LocalNode(
        table,
        targets,
        registrar,
        discovery,
        capture,
        dispatch,
        missing,
        lease_s,
        tls,
        propagation,
        settings.thresholds,
        log.losses,
        [*supervised, memory],
        CostLimit(settings.capture_cpu_limit) if settings.capture_cpu_limit and capture is not None else None,
    )
    stack.callback(node.close)
    try:
        copy = LastGoodRules(settings.state_dir / "rules.json")
        store = open_store(settings.state_dir / "rules.sqlite", copy)
        stack.callback(store.close)
        for sentence in store.damage:
            _log.error("what was stored is damaged", reason=sentence)
        # The rules come first: no process is ever told a rate that a stored rule contradicts.
        control = Control(store, node, copy=None if store.newer else copy)
        guard = Guard(control, node, Limits(settings.budget, settings.quota))
        switch = Switch(control, node)
        if control.trouble:
            _log.error("the rules cannot be changed", reason=control.trouble)
        token_file = TokenFile(settings.state_dir, _log.warning)
        token_file.make()
    except NotOurs as error:
        raise SpandialError(str(error)) from error
    except (StoreError, OSError) as error:
        raise SpandialError(f"{error}: is {settings.state_dir} writable?") from error

    await asyncio.sleep(0)  # a signal that came
    if stop.is_set():
        return
    discovery.start()
    stack.callback(discovery.close)
    unix_path = settings.run_dir / "api.sock"
    try:
        registrar.start()
        stack.callback(registrar.close)
        unix = stack.enter_context(bind_unix(unix_path, settings.group))
    except OSError as error:
        raise SpandialError(
            f"cannot listen in {settings.run_dir} ({error}): SPANDIAL_RUN_DIR sets another folder"
        ) from error
    stack.callback(unix_path.unlink, missing_ok=True)
    renewed = Renewal(renew_lock, registrar.renew, unix_path, settings.group, _log.error)
    tcp = stack.enter_context(bind_tcp(settings.host, settings.port, tls=certificate is not None))
    running = asyncio.create_task(_run(node, steering, control, guard, switch))
    running.add_done_callback(lambda _: stop.set())  # no lease, or rules without an end: no agent
    stack.callback(running.cancel)
    stack.callback(asyncio.create_task(telling.run_task(log.run)).cancel)
    stack.callback(asyncio.create_task(limiting.run_task(node.limit_cost)).cancel)
    stack.callback(asyncio.create_task(shedding.run_task(memory.run)).cancel)
    if certificate is not None:
        stack.callback(asyncio.create_task(renewing.run_task(certificate.run)).cancel)
    serve_interface = await asyncio.to_thread(_import_interface)  # processes register meanwhile
    if stop.is_set():
        return
    gc.freeze()  # what is there by now stays: no collection need look at it
    gc.enable()
    _log.info(
        "serving",
        url=_url(settings.host, tcp.getsockname()[1], certificate is not None),
        socket=str(unix_path),
        table=backend.name,
        capture=capture.path if capture else "off",
        targets=len(targets),
    )
    await serve_interface(
        settings,
        control,
        node,
        guard,
        switch,
        token_file,
        tcp=tcp,
        unix=unix,
        certificate=certificate,
        stop=stop,
        end_streams=node.end_watches,
        renewed=renewed,
    )
    dispatch.ending()
    if running.done():
        running.result()


async def _run(node: LocalNode, steering: Supervised, control: Control, guard: Guard, switch: Switch) -> None:
    await asyncio.gather(node.run(), steering.run_task(node.steer), control.run(), guard.run(), switch.run())


def _import_interface() -> Callable[..., Coroutine[Any, Any, None]]:
    """It is imported last, and in a thread: nobody's rate waits for it."""
    from spandial_agent.serving.interface import serve_interface

    return serve_interface


def _url(host: str, port: int, tls: bool) -> str:
    return f"http{'s' * tls}://{f'[{host}]' if ':' in host else host}:{port}"


def _memory_limit(limit_mib: float, dispatch: RecordDispatch, spans: SpanPipeline | None) -> MemoryLimit:
    """What is given up above it, what is needed least first: docs/architecture.md, "Limits of its own"."""
    waiting = [Step("spans that waited for the collector", spans.shed)] if spans is not None else []
    steps = [
        Step("event streams", dispatch.watchers.shed),
        Step("records that nobody had come to", dispatch.shed),
        *waiting,
        Step("what was known of connections", dispatch.forget),
    ]
    return MemoryLimit(limit_mib, steps)


def _spans(settings: Settings, clock: KernelClock) -> SpanPipeline | None:
    """Where the OTEL_EXPORTER_OTLP_* variables say that spans go, if they do. Raises SpandialError."""
    exporter = Exporter.from_environ()
    if exporter is None:
        return None
    _log.info("exporting the spans of processes without a hook")
    if settings.raw_statements:
        _log.warning("spans hold statements with all data that is in them: SPANDIAL_RAW_STATEMENTS is on")
    resources = Resources(Kubelet.from_environ(os.environ), node_name(os.environ))
    return SpanPipeline(exporter, resources, settings.raw_statements, Ledger(settings.state_dir / "spans"), clock)
