"""One request to every agent behind a name: a release tool calls one URL, and each node has an agent of its own."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import re
import signal
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import structlog
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from spandial_agent.errors import SpandialError
from spandial_agent.serving.binding import bind_tcp
from spandial_agent.serving.certificate import ServerCertificate
from spandial_agent.serving.connections import Connections
from spandial_agent.serving.listeners import serve_tcp
from spandial_api.origins import OwnOrigin

__all__ = ["Lending", "Resolve", "build_relay", "run_relay", "serve_relay"]

Resolve = Callable[[str, int], Awaitable[list[str]]]

_METHODS = ["DELETE", "POST", "PUT"]
# Not undo: each node counts revisions of its own.
_PATHS = ("/sampling", "/sampling/renew", "/sampling/restore", "/sampling/batch")
_BODY_MAX = 1 << 20
_CONNECTIONS_MAX = 100
_CONNECTIONS_OF_A_PEER = 50
_SECRET = re.compile(r"[A-Za-z0-9._~-]{22,512}", re.ASCII)  # 128 bits in base64, and nothing that a path must escape
_TELL_S = 60.0
_TOLD_MAX = 100  # nodes that failed, in one answer

_NO_TOKEN = (
    "the relay lends its token to who names its secret (--secret-file) in the path, as /via/SECRET/sampling, or shows "
    "a certificate (--client-ca); others bring a token of their own in the header 'Authorization: Bearer <token>'"
)

# RFC 9110, section 7.6.1, and what belongs to one connection or is made anew.
_NOT_FORWARDED = {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
_NOT_FORWARDED |= {"host", "content-length", "accept-encoding", "expect"}

_log = structlog.get_logger("spandial.relay")


class _Outcome(NamedTuple):
    """What one agent answered; status 0: nothing."""

    address: str
    status: int
    answer: Any

    @property
    def done(self) -> bool:
        return 200 <= self.status < 300


class Lending(NamedTuple):
    """A token for requests that bring none, and who gets it.

    Attributes:
        token_file: read anew for each request.
        secret_file: who names what is in it in the path, as `/via/SECRET/sampling`. Read anew, too.
        to_all: every client has shown a certificate.
    """

    token_file: Path
    secret_file: Path | None = None
    to_all: bool = False

    def check(self) -> None:
        """Raises SpandialError for files that cannot be used."""
        try:
            self.token_file.read_text()
            if self.secret_file is None or _SECRET.fullmatch(self.secret_file.read_text().strip()):
                return
        except (OSError, ValueError) as error:
            raise SpandialError(f"--token-file and --secret-file take files that can be read: {error}") from error
        raise SpandialError(
            f"--secret-file={self.secret_file} must hold 22 to 512 letters, digits and . _ ~ -: "
            "'openssl rand -hex 32' makes one"
        )

    def token(self, shown: str | None) -> str | None:
        """The token for who has shown this, None where he gets none. Takes as long for every secret that is wrong.
        Raises OSError."""
        allowed = self.to_all
        if shown is not None and self.secret_file is not None:
            secret = self.secret_file.read_text().strip()
            allowed = bool(_SECRET.fullmatch(secret)) and hmac.compare_digest(secret.encode(), shown.encode())
        return self.token_file.read_text().strip() if allowed else None


async def _resolve(host: str, port: int) -> list[str]:
    """Every address of a name. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return sorted({str(address[0]) for *_, address in found})


def build_relay(
    to: str,
    *,
    lending: Lending | None = None,
    ca: Path | None = None,
    timeout_s: float = 8.0,
    host_names: Collection[str] = (),
    resolve: Resolve = _resolve,
) -> Starlette:
    """The relay. It answers 200 once every agent has done what was asked; what they all refuse alike as they refuse it;
    502 with those that failed otherwise.

    Args:
        to: the agents' URL. Each address that its host's name has is an agent; certificates are checked for the name.
        lending: the token for requests that bring none.
        ca: certificates to trust, instead of the system's.
        timeout_s: for all agents together, who are asked at the same time.
        host_names: by which the relay is asked, beside addresses and `localhost`.

    Raises SpandialError for a URL or files that cannot be used.
    """
    url = httpx.URL(to)
    if url.scheme not in ("http", "https") or not url.host or url.path != "/" or url.query:
        raise SpandialError(f"--to takes a URL such as https://spandial-agents:5778; received {to!r}")
    trusted: ssl.SSLContext | bool = True
    if lending is not None:
        lending.check()
    try:
        if ca is not None:
            trusted = ssl.create_default_context(cadata=ca.read_text())
    except (OSError, ValueError) as error:
        raise SpandialError(f"--ca takes a file that can be read, in PEM: {error}") from error
    limits = httpx.Limits(max_connections=_CONNECTIONS_MAX)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with httpx.AsyncClient(verify=trusted, timeout=timeout_s, limits=limits, trust_env=False) as client:
            app.state.client = client
            yield

    async def ask(client: httpx.AsyncClient, address: str, request: httpx.Request) -> _Outcome:
        to_one = client.build_request(
            request.method,
            request.url.copy_with(host=address),
            headers={name: value for name, value in request.headers.items() if name != "host"},  # its own: the address
            content=request.content,
            extensions={"sni_hostname": url.host},
        )
        try:
            answer = await asyncio.wait_for(client.send(to_one), timeout_s)
        except (httpx.TransportError, asyncio.TimeoutError) as error:
            return _Outcome(address, 0, {"detail": f"no answer: {error or f'none within {timeout_s:g} s'}"})
        with contextlib.suppress(ValueError):
            return _Outcome(address, answer.status_code, answer.json())
        return _Outcome(address, answer.status_code, {"detail": answer.text[:200]})

    async def relay(request: Request, path: str) -> JSONResponse:
        headers = {name: value for name, value in request.headers.items() if name not in _NOT_FORWARDED}
        shown = request.path_params.get("secret")
        try:
            if "authorization" not in headers or shown is not None:
                token = None if lending is None else await asyncio.to_thread(lending.token, shown)
                if token is None:
                    return JSONResponse({"detail": _NO_TOKEN}, 401, {"WWW-Authenticate": "Bearer"})
                headers["authorization"] = f"Bearer {token}"
            body = await _read(request)
            if body is None:
                return JSONResponse({"detail": f"a body of more than {_BODY_MAX} bytes"}, 413)
            addresses = await asyncio.wait_for(resolve(url.host, url.port or 0), timeout_s)
        except (OSError, asyncio.TimeoutError) as error:
            return JSONResponse({"detail": f"the agents of {url.host} cannot be asked: {error}"}, 502)
        target = url.copy_with(raw_path=path.encode() + b"?" + request.scope["query_string"])
        one = httpx.Request(request.method, target, headers=headers, content=body)
        outcomes = await asyncio.gather(*(ask(request.app.state.client, address, one) for address in addresses))
        return _answer(outcomes)

    def endpoint(path: str) -> Callable[[Request], Awaitable[JSONResponse]]:
        async def relay_one(request: Request) -> JSONResponse:
            return await relay(request, path)

        return relay_one

    async def healthz(_request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    routes = [Route("/healthz", healthz, methods=["GET"])]
    for path in _PATHS:
        routes += [Route(prefix + path, endpoint(path), methods=_METHODS) for prefix in ("", "/via/{secret}")]
    own = Middleware(OwnOrigin, names=host_names, setting="--host-name")
    return Starlette(routes=routes, lifespan=lifespan, middleware=[own])


def run_relay(
    relay: Starlette, host: str, port: int, certificate: Path | None, key: Path | None, client_ca: Path | None = None
) -> None:
    """Serve until SIGTERM or SIGINT. Raises SpandialError."""
    if certificate is None and (client_ca is not None or not _is_loopback(host)):
        raise SpandialError(
            f"whoever reads what is sent to {host} could read secrets and tokens, and nobody could show a certificate: "
            "give --certificate and --key, or listen on 127.0.0.1 without --client-ca"
        )
    tls = None if certificate is None else ServerCertificate(certificate, key, client_ca, _log.warning)
    with bind_tcp(host, port, tls=tls is not None, purpose=" for the relay", setting="--port") as listener:
        asyncio.run(serve_relay(relay, listener, tls))


async def serve_relay(
    relay: Starlette, listener: socket.socket, certificate: ServerCertificate | None, stop: asyncio.Event | None = None
) -> None:
    """Serve on a bound socket until SIGTERM or SIGINT, or until told to stop."""
    if stop is None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
    connections = Connections(_CONNECTIONS_MAX, _CONNECTIONS_OF_A_PEER)
    beside = [asyncio.create_task(_tell(connections.refused))]
    if certificate is not None:
        beside.append(asyncio.create_task(certificate.run()))
    async with relay.router.lifespan_context(relay):
        await serve_tcp(relay, listener, stop, connections, certificate.context if certificate is not None else None)
    for task in beside:
        task.cancel()


async def _tell(refused: Counter[str]) -> None:
    """Say now and then how many connections and handshakes were refused, until cancelled."""
    before = Counter(refused)
    while True:
        await asyncio.sleep(_TELL_S)
        if more := Counter(refused) - before:
            _log.warning("too many connections, or too slow ones", **more)
        before = Counter(refused)


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


async def _read(request: Request) -> bytes | None:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _BODY_MAX:
            return None
    return body


def _answer(outcomes: list[_Outcome]) -> JSONResponse:
    failed = [outcome for outcome in outcomes if not outcome.done]
    reached = sum(o.answer.get("reached") or 0 for o in outcomes if o.done and isinstance(o.answer, dict))
    answer: dict[str, Any] = {"nodes": len(outcomes), "reached": reached, "failed": []}
    if not failed:
        return JSONResponse(answer)
    for address, status, said in failed[:_TOLD_MAX]:
        detail = said.get("detail") if isinstance(said, dict) else said
        answer["failed"].append({"address": address, "status": status, "detail": detail})
        _log.warning("an agent did not do it", address=address, status=status, detail=detail)
    statuses = {outcome.status for outcome in outcomes}
    status = statuses.pop() if len(statuses) == 1 else 0
    detail = f"{len(failed)} of {len(outcomes)} agents did not do it; the others did"
    return JSONResponse({"detail": detail, **answer}, status if 400 <= status < 500 else 502)
