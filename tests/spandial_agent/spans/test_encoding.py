"""Spans as OTLP messages, held equal to what the SDK's encoder makes of them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource

from spandial_agent.spans.encoding import encode
from spandial_agent.spans.export import span_of
from spandial_agent.spans.record import Exchange
from tests.spandial_agent.spans.exchanges import any_exchange, exchange

RESOURCES = [
    Resource({"service.name": "checkout", "process.pid": 7}),
    Resource({"service.name": "caf\N{LATIN SMALL LETTER E WITH ACUTE}"}, "https://opentelemetry.io/schemas/1.30.0"),
    Resource({}),
]


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    """The SDK warns of each tracestate that is none."""
    logger = logging.getLogger("opentelemetry.trace.span")
    logger.disabled = True
    yield
    logger.disabled = False


@given(st.lists(st.tuples(any_exchange, st.sampled_from(RESOURCES)), max_size=8))
def test_spans_are_encoded_as_the_sdk_encodes_them(exchanges: list[tuple[Exchange, Resource]]) -> None:
    spans = [span_of(each, resource) for each, resource in exchanges]
    assert encode(spans) == encode_spans(spans)


def test_spans_of_one_resource_are_encoded_together() -> None:
    spans = [span_of(exchange(number=number + 1), RESOURCES[number % 2]) for number in range(10)]
    groups = encode(spans).resource_spans
    assert [len(group.scope_spans[0].spans) for group in groups] == [5, 5]


def test_text_that_is_not_unicode_does_not_fail_the_others() -> None:
    torn = json.loads('"\\ud800"')
    spans = [span_of(exchange("redis", operation=torn, query_text=torn), Resource({"k8s.pod.name": torn}))]
    (group,) = encode(spans).resource_spans
    (span,) = group.scope_spans[0].spans
    assert span.name == "?"
    assert {attribute.value.string_value for attribute in span.attributes} == {"redis", "?"}
    assert group.resource.attributes[0].value.string_value == "?"


@pytest.mark.parametrize(("server", "remote"), [(True, True), (False, False)])
def test_only_a_servers_parent_is_remote(server: bool, remote: bool) -> None:
    parent = span_of(exchange(server=server, parent_span_id=3), RESOURCES[0]).parent
    assert parent is not None
    assert (parent.span_id, parent.is_remote) == (3, remote)


def test_a_root_has_no_parent() -> None:
    assert span_of(exchange(), RESOURCES[0]).parent is None
