"""The control plane around a fake node, as a writer who is trusted and one who is not reach it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import ASGIApp

from spandial_api.app import build_app
from spandial_api.auth import Access, TrustedListener
from spandial_api.control import Control
from spandial_api.store import Store
from spandial_api.token_file import TokenFile
from tests.spandial_api.fake_node import FakeNode

TOKEN = "0123456789abcdefghijklmnopqrstuv"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def node() -> FakeNode:
    return FakeNode()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "rules.sqlite")
    yield store
    store.close()


@pytest.fixture
def make_app(node: FakeNode, tmp_path: Path) -> Callable[[Store], FastAPI]:
    def make(store: Store) -> FastAPI:
        return build_app(Control(store, node), node, access=access_of(tmp_path), version="0")

    return make


@pytest.fixture
def app(make_app: Callable[[Store], FastAPI], store: Store) -> FastAPI:
    return make_app(store)


def access_of(folder: Path, **limits: Any) -> Access:
    """With the operator's token, which is TOKEN."""
    (folder / "token").write_text(TOKEN)
    token_file = TokenFile(folder)
    token_file.make()
    return Access(token_file, **limits)


def client_of(app: ASGIApp) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1")


@pytest.fixture
def remote(app: FastAPI) -> httpx.AsyncClient:
    """A client over TCP."""
    return client_of(app)


@pytest.fixture
def local(app: FastAPI) -> httpx.AsyncClient:
    """A client over the Unix socket."""
    return client_of(TrustedListener(app))
