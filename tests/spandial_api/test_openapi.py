"""The interface describes itself."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.anyio

METHODS = {"get", "put", "post", "delete", "patch"}


async def operations(client: httpx.AsyncClient) -> dict[str, dict[str, Any]]:
    paths = (await client.get("/openapi.json")).json()["paths"]
    return {
        f"{method.upper()} {path}": operation
        for path, item in paths.items()
        for method, operation in item.items()
        if method in METHODS
    }


async def test_the_documentation_is_served(remote: httpx.AsyncClient) -> None:
    answer = await remote.get("/docs")
    assert answer.status_code == 200
    assert "openapi.json" in answer.text


async def test_every_route_is_documented(remote: httpx.AsyncClient) -> None:
    assert set(await operations(remote)) >= {
        "PUT /sampling",
        "POST /sampling",
        "PUT /sampling/renew",
        "DELETE /sampling",
        "GET /sampling",
        "POST /sampling/batch",
        "GET /sampling/explain",
        "GET /audit",
        "POST /sampling/undo",
        "GET /targets",
        "GET /stats",
        "GET /entries",
        "GET /metrics",
        "GET /healthz",
        "GET /api/sampling",
        "POST /GetSamplingRules",
        "POST /SamplingTargets",
    }


async def test_every_operation_says_what_it_does(remote: httpx.AsyncClient) -> None:
    for name, operation in (await operations(remote)).items():
        assert operation.get("summary"), name
        assert operation.get("description", "").endswith("."), name


async def test_the_dials_parameters_are_described(remote: httpx.AsyncClient) -> None:
    parameters = {p["name"]: p for p in (await operations(remote))["PUT /sampling"]["parameters"]}
    selector = {"service", "version", "env", "tenant", "protocol", "operation"}
    assert set(parameters) == {*selector, "rate", "target", "floor", "mode", "ttl", "why", "if-match"}
    assert parameters["rate"]["schema"]["examples"] == ["30", "0.1", "30%"]
    assert parameters["mode"]["schema"]["enum"] == ["follow", "boost", "strict"]
