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
    assert set(parameters) == {*selector, "rate", "target", "floor", "mode", "ttl", "why", "labels", "if-match"}
    assert parameters["rate"]["schema"]["examples"] == ["30", "0.1", "30%"]
    assert parameters["mode"]["schema"]["enum"] == ["follow", "boost", "strict"]


async def test_a_path_says_of_an_unknown_method_all_that_it_takes(remote: httpx.AsyncClient) -> None:
    answer = await remote.patch("/sampling")
    assert answer.status_code == 405
    assert answer.headers["Allow"] == "DELETE, GET, POST, PUT"
    assert answer.json()["detail"] == "PATCH does nothing here; /sampling takes DELETE, GET, POST, PUT"


async def test_every_write_says_that_it_needs_a_token_and_what_it_answers_without(remote: httpx.AsyncClient) -> None:
    for name, operation in (await operations(remote)).items():
        writes = not name.startswith("GET ") and name not in ("POST /GetSamplingRules", "POST /SamplingTargets")
        assert ("security" in operation) == writes, name
        assert ({"401", "503"} <= set(operation["responses"])) == writes, name


async def test_every_operation_describes_its_422_as_it_is(remote: httpx.AsyncClient) -> None:
    for name, operation in (await operations(remote)).items():
        content = operation["responses"]["422"]["content"]
        assert content == {"application/json": {"schema": {"$ref": "#/components/schemas/Problems"}}}, name


async def test_every_parameter_is_described_by_an_example_a_choice_or_a_default(remote: httpx.AsyncClient) -> None:
    for name, operation in (await operations(remote)).items():
        for parameter in operation.get("parameters", []):
            said = {*parameter, *parameter["schema"]}
            assert said & {"example", "examples", "enum", "default"}, (name, parameter["name"])
        for content in operation.get("requestBody", {}).get("content", {}).values():
            assert "$ref" in content["schema"] or "example" in content, name


async def test_further_labels_are_parameters_too(remote: httpx.AsyncClient) -> None:
    parameters = {p["name"]: p for p in (await operations(remote))["PUT /sampling"]["parameters"]}
    assert parameters["labels"]["example"] == {"label.team": "pay"}
    assert "labels" not in {p["name"] for p in (await operations(remote))["GET /audit"]["parameters"]}
