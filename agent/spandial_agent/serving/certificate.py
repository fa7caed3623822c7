"""The TCP listener's certificate. What is renewed on disk is used without a restart."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable
from pathlib import Path

from spandial_agent.errors import SpandialError

__all__ = ["ServerCertificate"]

_LOOK_S = 10.0


class ServerCertificate:
    """Certificate, key, and whose certificates clients must show.

    Args:
        certificate: PEM, with the chain that leads to it.
        key: PEM; None: it is in the certificate's file.
        client_ca: PEM; clients must show a certificate that leads to one of these.
        warn: called with a sentence when what is on disk begins to be unusable.

    Raises SpandialError that names the setting.

    Attributes:
        context: of the listener.
    """

    def __init__(
        self,
        certificate: Path,
        key: Path | None = None,
        client_ca: Path | None = None,
        warn: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._warn = warn
        self._trouble = ""
        self._version = self._look()
        self._contexts: list[ssl.SSLContext] = []
        self.context = self._made()

    def context_for(self, *protocols: str) -> ssl.SSLContext:
        """The context of another listener, which speaks these (RFC 7301, such as `h2`). It is renewed with the first.

        Raises SpandialError.
        """
        context = self._made()
        context.set_alpn_protocols(protocols)
        return context

    async def run(self) -> None:
        """Look for renewed files until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_S)
            self.refresh()

    def refresh(self) -> None:
        """Use what is on disk from the next connection on; what cannot be used changes nothing."""
        version = self._look()
        if version == self._version:
            return
        try:
            # In a context of its own first: one that takes a certificate and not its key serves neither.
            self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
            for context in self._contexts:
                self._load(context)
        except SpandialError as error:
            if str(error) != self._trouble:
                self._warn(f"{error}: the certificate from before is still used")
            self._trouble = str(error)
        else:
            self._version, self._trouble = version, ""

    def _made(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._load(context)
        if self._client_ca is not None:
            self._require_clients(context, self._client_ca)
        self._contexts.append(context)
        return context

    def _load(self, context: ssl.SSLContext) -> None:
        _check_readable("CERT", self._certificate)
        if self._key is not None:
            _check_readable("KEY", self._key)
        try:
            # Without a password here, OpenSSL would ask for one on the terminal.
            context.load_cert_chain(self._certificate, self._key, password="")
        except (ssl.SSLError, OSError, ValueError) as error:
            files = f"SPANDIAL_TLS_CERT={self._certificate}"
            if self._key is not None:
                files += f" and SPANDIAL_TLS_KEY={self._key}"
            raise SpandialError(
                f"{files} are no certificate in PEM and its key without a password, or do not fit together ({error})"
            ) from error

    def _require_clients(self, context: ssl.SSLContext, client_ca: Path) -> None:
        _check_readable("CLIENT_CA", client_ca)
        try:
            context.load_verify_locations(client_ca)
        except (ssl.SSLError, OSError) as error:
            raise SpandialError(f"SPANDIAL_TLS_CLIENT_CA={client_ca} holds no certificates in PEM ({error})") from error
        context.verify_mode = ssl.CERT_REQUIRED

    def _look(self) -> list[tuple[int, int, int] | None]:
        return [_version_of(path) for path in (self._certificate, self._key) if path is not None]


def _version_of(path: Path) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def _check_readable(name: str, path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise SpandialError(f"SPANDIAL_TLS_{name}={path} cannot be read: {error.strerror}") from error
