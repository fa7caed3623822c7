"""The agent's life: build the parts in order, serve, take them down in reverse."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
from contextlib import AbstractAsyncContextManager
from importlib.metadata import version

import structlog

from spandial.abi import encode_word
from spandial_agent.capture.capture import Capture, is_compiled
from spandial_agent.capture.follower import TlsFollower
from spandial_agent.discovery.discovery import Discovery
from spandial_agent.discovery.registrar import Registrar
from spandial_agent.discovery.rules import parse_rules
from spandial_agent.dispatch import RecordDispatch
from spandial_agent.errors import KernelUnavailable, SpandialError
from spandial_agent.kernel.cache import CompileCache
from spandial_agent.kernel.probe import missing_for_kernel
from spandial_agent.lock import only_agent
from spandial_agent.log import Log
from spandial_agent.node import LocalNode
from spandial_agent.propagation.watch import PropagationWatch
from spandial_agent.serving.certificate import ServerCertificate
from spandial_agent.serving.listeners import bind_tcp, bind_unix, is_loopback, serve
from spandial_agent.serving.renewal import Renewal
from spandial_agent.settings import Settings
from spandial_agent.spans.export import Exporter
from spandial_agent.spans.kubelet import Kubelet
from spandial_agent.spans.pipeline import SpanPipeline
from spandial_agent.spans.resource import Resources, node_name
from spandial_agent.supervised import Supervised
from spandial_agent.table.frozen import FrozenTable
from spandial_agent.table.memfd import MemfdTable
from spandial_agent.table.rates import RateTable, TableBackend
from spandial_agent.targets.targets import Targets
from spandial_api.app import build_app
from spandial_api.auth import Access
from spandial_api.budgets import Limits
from spandial_api.control import Control
from spandial_api.folders import NotOurs
from spandial_api.guard import Guard
from spandial_api.jaeger import Strategy
from spandial_api.last_good import LastGoodRules
from spandial_api.node import Connection
from spandial_api.opening import open_store
from spandial_api.remote import RemoteSampling
from spandial_api.store import StoreError
from spandial_api.switch import Switch
from spandial_api.token_file import TokenFile

__all__ = ["run_agent"]

_log = structlog.get_logger("spandial.agent")


async def run_agent(settings: Settings, log: Log) -> None:
    """Run until SIGTERM or SIGINT. Raises SpandialError where it cannot start."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with contextlib.ExitStack() as stack:
        os.umask(0o077)  # what others need is opened to them by name
        _raise_descriptor_limit()
        certificate = _certificate(settings)
        renew_lock = stack.enter_context(only_agent(settings.run_dir, settings.state_dir))
        backend, capture, missing = _kernel_side(settings)
        stack.callback(backend.close)
        if capture is not None:
            stack.callback(capture.close)
        for sentence in missing:
            _log.warning("the kernel side is incomplete", missing=sentence)

        table = RateTable(backend)
        stack.callback(table.sheet.close)
        table.renew_lease(settings.lease_seconds)
        targets = Targets(table, encode_word(settings.default_rate), capture)
        registrar = Registrar(settings.run_dir / "app.sock", table, targets, settings.lease_seconds)
        discovery = Discovery(targets, parse_rules(settings.discover))
        spans = _spans(settings) if capture is not None else None
        if spans is not None:
            stack.callback(spans.close)
        tls = None
        if capture is not None and settings.capture_tls == "auto":
            tls = TlsFollower(capture.tls, settings.trusted_owners)
            stack.callback(tls.close)
        propagation = None
        if capture is not None and settings.propagation_seconds:
            propagation = PropagationWatch(targets, table, capture, settings.propagation_seconds, settings.redact_paths)
        telling = Supervised("spandial-log", "telling of what the log leaves out")
        renewing = Supervised("spandial-certificate", "renewal of the certificate")
        steering = Supervised("spandial-steering", "steering of rates")
        supervised = [telling, renewing, steering, *discovery.supervised]
        if capture is not None:
            supervised.append(capture.reader)
        if tls is not None:
            supervised.append(tls.thread)
        if spans is not None:
            supervised += spans.supervised
        lease_s = settings.lease_seconds
        node = LocalNode(
            table,
            targets,
            registrar,
            discovery,
            capture,
            RecordDispatch(table, targets, capture, spans, propagation, settings.redact_paths),
            missing,
            lease_s,
            tls,
            propagation,
            settings.thresholds,
            log.losses,
            supervised,
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
        free_to_read = {"auto": is_loopback(tcp), "on": True, "off": False}[settings.read_without_token]
        access = Access(token_file, read_without_token=free_to_read, writes_per_second=settings.writes_per_second)
        remote = RemoteSampling(control, node, settings.default_rate, settings.xray_interval_seconds)
        app = build_app(
            control,
            node,
            access=access,
            version=version("spandial"),
            max_rate_without_ttl=settings.max_rate_without_ttl,
            guard=guard,
            remote=remote,
            turned=switch,
            host_names=settings.own_names,
        )
        running = asyncio.create_task(_run(node, steering, control, guard, switch))
        running.add_done_callback(lambda _: stop.set())  # no lease, or rules without an end: no agent
        stack.callback(running.cancel)
        stack.callback(asyncio.create_task(telling.run_task(log.run)).cancel)
        if certificate is not None:
            stack.callback(asyncio.create_task(renewing.run_task(certificate.run)).cancel)
        _log.info(
            "serving",
            url=_url(settings.host, tcp.getsockname()[1], certificate is not None),
            socket=str(unix_path),
            table=backend.name,
            capture=capture.path if capture else "off",
            targets=len(targets),
        )
        async with _jaeger_grpc(settings, tcp.getsockname()[0], remote, access, certificate):
            context = certificate.context if certificate else None
            await serve(app, tcp, unix, stop, node.end_watches, context, renewed, access.refused)
        if running.done():
            running.result()
    _log.info("stopped")


async def _run(node: LocalNode, steering: Supervised, control: Control, guard: Guard, switch: Switch) -> None:
    await asyncio.gather(node.run(), steering.run_task(node.steer), control.run(), guard.run(), switch.run())


def _jaeger_grpc(
    settings: Settings, address: str, remote: RemoteSampling, access: Access, certificate: ServerCertificate | None
) -> AbstractAsyncContextManager[object]:
    """Jaeger's remote sampling over gRPC, where a port for it is set. Raises SpandialError."""
    if settings.jaeger_grpc_port is None:
        return contextlib.nullcontext()
    from spandial_agent.serving import jaeger_grpc  # grpc takes memory

    async def strategy(service: str, connection: Connection, uid: int | None) -> Strategy:
        return await remote.strategy(service, connection=connection, uid=uid)

    return jaeger_grpc.serving(
        address,
        settings.jaeger_grpc_port,
        strategy,
        settings.run_dir,
        access.check_reader,
        certificate.context_for("h2") if certificate is not None else None,
        settings.own_names,
        access.refused,
    )


def _certificate(settings: Settings) -> ServerCertificate | None:
    """Raises SpandialError."""
    if settings.tls_cert is not None:
        return ServerCertificate(settings.tls_cert, settings.tls_key, settings.tls_client_ca, _log.warning)
    if settings.tls_key is not None or settings.tls_client_ca is not None:
        raise SpandialError("SPANDIAL_TLS_KEY and SPANDIAL_TLS_CLIENT_CA need SPANDIAL_TLS_CERT, too")
    return None


def _url(host: str, port: int, tls: bool) -> str:
    return f"http{'s' * tls}://{f'[{host}]' if ':' in host else host}:{port}"


def _kernel_side(settings: Settings) -> tuple[TableBackend, Capture | None, list[str]]:
    """The table's backend, the capture if there can be one, and what is missing for it."""
    if settings.table == "memfd":
        return MemfdTable(), None, ["the kernel side is off: SPANDIAL_TABLE=memfd."]
    cache = CompileCache(settings.compiled_dir)
    missing = missing_for_kernel(compiled=is_compiled(cache, settings.forced_path))
    backend: FrozenTable | None = None
    if not missing:
        try:
            backend = FrozenTable(cache)
            if settings.capture == "off":
                return backend, None, ["capture is off: SPANDIAL_CAPTURE=off."]
            return backend, Capture(backend.map_descriptor, settings.forced_path, cache=cache), []
        except KernelUnavailable as error:
            missing = error.missing
    if settings.require_kernel or (backend is None and settings.table == "bpf"):
        if backend is not None:
            backend.close()
        raise SpandialError("the kernel side is required, but " + " ".join(missing))
    return backend or MemfdTable(), None, missing


def _spans(settings: Settings) -> SpanPipeline | None:
    """Where the OTEL_EXPORTER_OTLP_* variables say that spans go, if they do. Raises SpandialError."""
    exporter = Exporter.from_environ(ledger=settings.state_dir / "spans")
    if exporter is None:
        return None
    _log.info("exporting the spans of processes without a hook")
    if settings.raw_statements:
        _log.warning("spans hold statements with all data that is in them: SPANDIAL_RAW_STATEMENTS is on")
    resources = Resources(Kubelet.from_environ(os.environ), node_name(os.environ))
    return SpanPipeline(exporter, resources, settings.raw_statements)


def _raise_descriptor_limit() -> None:
    """A hooked process takes three descriptors: connection, counter page, pidfd."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
