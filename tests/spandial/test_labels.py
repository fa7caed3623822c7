"""Labels from OpenTelemetry's environment variables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spandial.labels import Labels, labels_from_environ


def labels(attributes: str, **environ: str) -> Labels:
    return labels_from_environ({"OTEL_RESOURCE_ATTRIBUTES": attributes, **environ})


def test_an_empty_environment_has_no_labels() -> None:
    assert labels_from_environ({}) == Labels("", "", "") == Labels()


def test_labels_come_from_the_resource_attributes() -> None:
    found = labels(
        "service.name=shop,service.version=2.1,deployment.environment.name=gray,tenant.id=acme,team=pay,host.name=a"
    )
    others = (("host.name", "a"), ("team", "pay"))
    assert found == Labels(service="shop", version="2.1", env="gray", tenant="acme", others=others)
    assert (found.get("team"), found.get("service.name")) == ("pay", "")


def test_the_service_name_variable_wins_over_the_attribute() -> None:
    assert labels("service.name=shop", OTEL_SERVICE_NAME="cart").service == "cart"
    assert labels_from_environ({"OTEL_SERVICE_NAME": " cart "}).service == "cart"


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_service_name_variable_says_nothing(empty: str) -> None:
    assert labels("service.name=shop", OTEL_SERVICE_NAME=empty).service == "shop"


def test_the_older_name_of_the_environment_serves_where_the_newer_is_absent() -> None:
    assert labels("deployment.environment=old").env == "old"
    assert labels("deployment.environment=old,deployment.environment.name=new").env == "new"
    assert labels("deployment.environment.name=new,deployment.environment=old").env == "new"


def test_blanks_around_keys_and_values_are_dropped() -> None:
    assert labels(" service.name = shop , service.version = 1 ") == Labels("shop", "1", "")


def test_values_are_percent_decoded() -> None:
    assert labels("service.name=a%2Cb%3Dc%20d,service.version=%C3%A9") == Labels("a,b=c d", "é", "")


def test_a_value_may_hold_an_equals_sign() -> None:
    assert labels("service.name=a=b").service == "a=b"


@pytest.mark.parametrize("malformed", [",", "=", "service.name", ",,service.version,=x", "%", "service.name%3Dshop"])
def test_what_is_no_pair_is_passed_over(malformed: str) -> None:
    assert labels(malformed) == Labels()
    assert labels(malformed + ",service.version=1") == Labels(version="1")


@given(st.dictionaries(st.sampled_from(["OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"]), st.text()))
def test_no_environment_makes_it_fail(environ: dict[str, str]) -> None:
    found = labels_from_environ(environ)
    assert all(isinstance(label, str) for label in found[:4])
    assert all(name and value and f"{name}{value}".isprintable() for name, value in found.others)


def test_of_too_many_attributes_or_too_long_ones_the_rest_are_labels() -> None:
    many = ",".join(f"a{n:03}=x" for n in range(100))
    assert [name for name, _ in labels(many).others] == [f"a{n:03}" for n in range(32)]
    assert labels(f"a={256 * 'x'},b={255 * 'x'}").others == (("b", 255 * "x"),)
