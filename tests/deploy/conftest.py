"""Nodes, a relay, and a client as the release tools' controllers have it: it trusts the recipe's certificates."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.certificates import Certificate, self_signed
from tests.deploy.nodes import Cluster


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return self_signed(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def cluster(tmp_path: Path, tls: Certificate) -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield Cluster(tmp_path, tls, stack)


@pytest.fixture
def controller(tls: Certificate) -> Iterator[httpx.Client]:
    trusted = ssl.create_default_context(cafile=str(tls.certificate))
    with httpx.Client(verify=trusted, trust_env=False) as client:
        yield client
