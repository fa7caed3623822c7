"""What is left of a path."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spandial_agent.records.redaction import redact_path


@pytest.mark.parametrize(
    ("path", "ids"),
    [
        ("/", "/"),
        ("/users/4711/orders/2026-01-02", "/users/{}/orders/{}"),
        ("/api/v1/users/ada@example.org", "/api/v1/users/{}"),
        ("/api/V2/u/ada%40example.org/", "/api/V2/u/{}/"),
        ("/carts/6f9619ff-8b86-d011-b42d-00c04fc964ff;jsessionid=1", "/carts/{}"),
        ("/reset/" + "x" * 41, "/reset/{}"),
        ("/name/Jürgen", "/name/{}"),
        ("*", "*"),
        ("", ""),
    ],
)
def test_what_may_be_an_id_is_hidden(path: str, ids: str) -> None:
    assert redact_path(path, "ids") == ids
    assert redact_path(path, "off") == path


@given(st.text(), st.sampled_from(["ids", "all"]))
def test_no_digit_is_left_but_a_versions(path: str, how: str) -> None:
    shown = redact_path(path, how)  # type: ignore[arg-type]
    assert shown.isascii()
    for segment in shown.split("/"):
        assert not any(char.isdigit() for char in segment) or segment[0] in "vV"
    assert how == "ids" or shown in ("", "{}", "/{}")
