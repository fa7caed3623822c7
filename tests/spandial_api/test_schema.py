"""Everything that the interface says of itself is true of it: schemathesis plays requests, those that the description
allows and those that it does not, to a live agent's interface."""

# What Python 3.10 does not have comes first:

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

pytest.importorskip("schemathesis", reason="schemathesis needs Python 3.11")

import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from spandial.labels import Labels
from spandial_api.app import build_app
from spandial_api.control import Control
from spandial_api.store import Store
from tests.live_app import served
from tests.spandial_api.conftest import TOKEN, access_of
from tests.spandial_api.fake_node import FakeNode, entry


def application(folder: Path) -> FastAPI:
    node = FakeNode()
    node.processes = [Labels("checkout", "v1", "stable"), Labels("checkout", "v2", "gray")]
    node.entries = [entry(), entry(path="/pay")]  # and there its stream ends, as an agent's does when it stops
    # Each look at the clock is a second later: a wrong token is 401 as often as it is tried, and never 429.
    access = access_of(folder, now=itertools.count().__next__)
    return build_app(Control(Store(folder / "rules.sqlite"), node), node, access=access, version="0")


with TemporaryDirectory() as folder:
    schema = schemathesis.openapi.from_dict(application(Path(folder)).openapi())

schema.config.generation.codec = "latin-1"  # as the patterns are exact for it
schema.config.generation.with_security_parameters = False  # every request brings the token
# What says nothing of the data: 412, the rules are others than a change was meant for; 413, too much of it.
for check in (schema.config.checks.positive_data_acceptance, schema.config.checks.negative_data_rejection):
    check.expected_statuses = [*check.expected_statuses, "412", "413"]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(application(tmp_path_factory.mktemp("live"))) as url:
        yield url


# What a description of single parameters cannot say.
BEYOND = (
    "a rate, such as 30; or target=100",
    "either a rate or a target",
    "nobody counts the entries of one operation alone",
    "names each selector once",
)


@schema.parametrize()
@settings(max_examples=30, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_described(case: schemathesis.Case, url: str) -> None:
    answer = case.call(base_url=url, headers={"Authorization": f"Bearer {TOKEN}"})
    excluded = []
    if answer.status_code == 422 and any(sentence in answer.text for sentence in BEYOND):
        excluded.append(positive_data_acceptance)
    if answer.status_code == 200 and "if-match" in case.headers:
        # What is so already may be answered with 200 whatever If-Match says (RFC 9110, section 13.1.1).
        excluded.append(negative_data_rejection)
    case.validate_response(answer, excluded_checks=excluded)
