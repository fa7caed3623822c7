"""Jaeger's remote sampling: what the rules are in its messages."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict, ParseDict
from hypothesis import given
from hypothesis import strategies as st

from spandial.abi import EntryKind
from spandial.labels import Labels
from spandial_agent.serving.jaeger_grpc import messages
from spandial_api.jaeger import strategy_for
from spandial_api.rules import Rule, RuleBook
from spandial_api.selectors import Selector
from tests.spandial_api import books

SHOP = Labels("shop")
_, RESPONSE = messages()


def rule(rate: float | None = None, *, target: float | None = None, **selector: Any) -> Rule:
    return Rule(Selector(**selector), rate, target=target)


def strategy(*rules: Rule, labels: Labels = SHOP, now: float | None = None) -> dict[str, Any]:
    return strategy_for(RuleBook().change(rules), labels, lambda kind: now, 5.0).message


def shares(message: dict[str, Any]) -> dict[str, float]:
    strategies = message["operationSampling"]["perOperationStrategies"]
    return {each["operation"]: each["probabilisticSampling"]["samplingRate"] for each in strategies}


def probabilistic(share: float) -> dict[str, Any]:
    return {"strategyType": "PROBABILISTIC", "probabilisticSampling": {"samplingRate": share}}


def test_a_percentage_is_a_share() -> None:
    assert strategy(rule(30, service="shop")) == probabilistic(0.3)
    assert strategy(rule(7, service="shop")) == probabilistic(0.07)
    assert strategy(rule(0, service="shop")) == probabilistic(0.0)


def test_without_a_rule_it_is_the_agents_default() -> None:
    assert strategy(rule(30, service="bank")) == probabilistic(0.05)


def test_a_rule_for_an_env_is_for_those_that_are_known_to_be_there() -> None:
    rules = rule(1, service="shop"), rule(100, service="shop", env="gray")
    assert strategy(*rules) == probabilistic(0.01)
    assert strategy(*rules, labels=Labels("shop", env="gray")) == probabilistic(1.0)


def test_the_rate_is_that_of_http() -> None:
    assert strategy(rule(1), rule(2, protocol="http"), rule(3, protocol="grpc")) == probabilistic(0.02)


def test_of_a_service_without_a_rule_for_http_it_is_that_of_grpc() -> None:
    assert strategy(rule(3, protocol="grpc"), rule(4, protocol="db")) == probabilistic(0.03)


def test_what_is_in_force_is_told_and_not_what_the_rule_wishes() -> None:
    assert strategy(rule(30), now=12.5) == probabilistic(0.125)


def test_a_throughput_is_a_limit() -> None:
    limited = {"strategyType": "RATE_LIMITING", "rateLimitingSampling": {"maxTracesPerSecond": 100}}
    assert strategy(rule(target=100), now=12.5) == limited


def test_a_throughput_beside_rules_by_operation_is_the_share_that_holds_it() -> None:
    message = strategy(rule(target=100), rule(0, operation="GET /healthz"), now=12.5)
    assert message["strategyType"] == "PROBABILISTIC"
    assert message["operationSampling"]["defaultSamplingProbability"] == 0.125
    assert message["operationSampling"]["defaultUpperBoundTracesPerSecond"] == 100
    assert message["operationSampling"]["defaultLowerBoundTracesPerSecond"] == 0


def test_where_nobody_measures_the_client_is_given_the_bound() -> None:
    bounds = strategy(rule(target=100), rule(50, operation="GET /pay"))["operationSampling"]
    assert bounds["defaultSamplingProbability"] == 0.00001
    assert bounds["defaultLowerBoundTracesPerSecond"] == 100


def test_no_bound_lifts_an_operation_that_is_to_be_dropped() -> None:
    bounds = strategy(rule(target=100), rule(0, operation="GET /healthz"))["operationSampling"]
    assert bounds["defaultLowerBoundTracesPerSecond"] == 0


def test_operations_come_with_the_default() -> None:
    assert strategy(rule(1), rule(100, operation="GET /pay")) == {
        **probabilistic(0.01),
        "operationSampling": {
            "defaultSamplingProbability": 0.01,
            "defaultLowerBoundTracesPerSecond": 0.0,
            "perOperationStrategies": [{"operation": "GET /pay", "probabilisticSampling": {"samplingRate": 1.0}}],
        },
    }


def test_a_path_is_told_with_every_method() -> None:
    told = shares(strategy(rule(100, operation="/pay", protocol="http")))
    assert {"GET /pay", "POST /pay", "DELETE /pay", "/pay"} <= set(told)
    assert set(told.values()) == {1.0}


def test_a_call_is_told_as_its_span_is_named() -> None:
    assert shares(strategy(rule(50, operation="/pkg.Shop/Buy", protocol="grpc"))) == {
        "pkg.Shop/Buy": 0.5,
        "/pkg.Shop/Buy": 0.5,
    }
    assert "pkg.Shop/Buy" in shares(strategy(rule(50, operation="/pkg.Shop/Buy")))


def test_a_spans_name_is_told_as_it_is() -> None:
    assert shares(strategy(rule(50, operation="nightly report"))) == {"nightly report": 0.5}


def test_globs_tell_no_names_but_decide_about_those_that_are_known() -> None:
    assert "operationSampling" not in strategy(rule(50, operation="GET /p*"))
    message = strategy(rule(50, operation="GET /p*", service="shop"), rule(100, operation="/pay"))
    assert shares(message)["GET /pay"] == 0.5
    assert shares(message)["POST /pay"] == 1.0


@given(books.books, books.labels, st.none() | st.floats(0, 100))
def test_whatever_the_rules_are_it_is_jaegers_message(book: RuleBook, labels: Labels, now: float | None) -> None:
    message = strategy_for(book, labels, lambda kind: now, 5.0).message
    parsed = ParseDict(message, RESPONSE())  # refuses unknown fields, numbers that do not fit and enums that are none
    assert MessageToDict(parsed, always_print_fields_with_no_presence=True)["strategyType"] == message["strategyType"]
    shown = [message["probabilisticSampling"]["samplingRate"]] if "probabilisticSampling" in message else []
    assert ("rateLimitingSampling" in message) == (message["strategyType"] == "RATE_LIMITING") == (not shown)
    if "operationSampling" in message:
        operations = message["operationSampling"]
        assert operations["defaultSamplingProbability"] == shown[0]
        told = [each["operation"] for each in operations["perOperationStrategies"]]
        assert told
        assert len(set(told)) == len(told)
        shown += shares(message).values()
    if message["strategyType"] == "RATE_LIMITING":
        assert type(message["rateLimitingSampling"]["maxTracesPerSecond"]) is int
        assert message["rateLimitingSampling"]["maxTracesPerSecond"] >= 1
    assert all(0 <= share <= 1 for share in shown)


@given(books.books, books.labels)
def test_a_rate_is_what_the_book_resolves(book: RuleBook, labels: Labels) -> None:
    wanted = book.resolve(labels, EntryKind.HTTP)
    message = strategy_for(book, labels, lambda kind: None, 5.0).message
    if wanted is not None and wanted.rate is not None:
        assert message["probabilisticSampling"]["samplingRate"] == pytest.approx(wanted.rate / 100)
    if wanted is not None and wanted.rate is None:
        assert message.get("operationSampling") or message["strategyType"] == "RATE_LIMITING"
