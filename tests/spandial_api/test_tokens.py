"""Tokens, and what is kept of them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spandial_api.bindings import binding_fields
from spandial_api.selectors import Selector
from spandial_api.tokens import SCOPES, Token, Tokens, digest_of, new_token

CI = Token("ci", digest_of("secret"), "write", Selector("checkout", labels=(("team", "pay*"),)), 1.0, 2.0)
ROW = json.loads(Tokens([CI]).to_json())["tokens"][0]


def test_each_scope_implies_those_before() -> None:
    assert SCOPES["read"] < SCOPES["write"] < SCOPES["admin"]


def test_no_two_tokens_are_the_same_and_each_has_256_bits() -> None:
    made = {new_token() for _ in range(100)}
    assert len(made) == 100
    assert {len(token) for token in made} == {43}  # base64 of 32 bytes


def test_a_token_is_found_by_what_its_holder_sends() -> None:
    other = Token("other", digest_of("another"), "read")
    tokens = Tokens([CI, other])
    assert [tokens.find(given) for given in ("secret", "another", "", "secret ", CI.digest.hex())] == [
        CI,
        other,
        None,
        None,
        None,
    ]


@given(st.text())
def test_whatever_is_sent_is_nobodys(given_text: str) -> None:
    assert Tokens([CI]).find(given_text) is (CI if given_text == "secret" else None)


def test_what_is_kept_does_not_have_the_token() -> None:
    text = Tokens([CI]).to_json()
    assert "secret" not in text
    assert ROW["sha256"] == CI.digest.hex()


def test_what_is_kept_is_read_as_it_was() -> None:
    both = [CI, Token("b", digest_of("x"), "admin")]
    assert list(Tokens.from_json(Tokens(both).to_json())) == both


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "null",
        "[]",
        "{}",
        '{"tokens": {}}',
        b"\xff\xfe",
        json.dumps({"tokens": [ROW], "more": 1}),
        *(
            json.dumps({"tokens": [{**ROW, **changed}]})
            for changed in (
                {"sha256": "x" * 64},
                {"sha256": ROW["sha256"][:-1]},
                {"scope": "root"},
                {"scope": None},
                {"binding": {"servce": "x"}},
                {"binding": {"service": 1}},
                {"binding": None},
                {"name": ""},
                {"name": "a b"},
                {"expires": "soon"},
                {"scopes": ["read"]},
            )
        ),
        json.dumps({"tokens": [ROW, ROW]}),
        json.dumps({"tokens": [{**ROW, "name": f"t{number}"} for number in range(1001)]}),
    ],
)
def test_anything_else_is_no_file_of_tokens(content: str | bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Tokens.from_json(content)


_junk = st.recursive(
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers()
    | st.text(max_size=5)
    | st.sampled_from([*ROW.values()][:3]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*ROW, "label.x", "service"]), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*ROW]), _junk), st.sampled_from([*ROW]))
def test_whatever_is_in_the_file_it_is_read_whole_or_not_at_all(changed: dict[str, object], left_out: str) -> None:
    row = {**ROW, **changed}
    if left_out not in changed:
        del row[left_out]
    try:
        [token] = Tokens.from_json(json.dumps({"tokens": [row]}))
    except ValueError:
        return
    assert (token.name, token.scope, token.digest.hex()) == (row["name"], row["scope"], row["sha256"])
    assert binding_fields(token.binding) == row.get("binding", {})


def test_a_binding_that_cannot_be_read_never_becomes_none() -> None:
    for without in ("scope", "sha256", "name"):
        with pytest.raises(ValueError, match=without):
            Tokens.from_json(json.dumps({"tokens": [{key: value for key, value in ROW.items() if key != without}]}))


def test_names_are_taken_once_and_of_plain_characters() -> None:
    tokens = Tokens([CI])
    with pytest.raises(ValueError, match="there is a token ci already"):
        tokens.with_token(CI)
    for name in ("", "-x", "a b", "a\n", "é", "x" * 65):
        with pytest.raises(ValueError, match="a token's name is"):
            tokens.with_token(Token(name, b"", "read"))
    assert [token.name for token in tokens.with_token(Token("Flagger_1.x@y-z", b"", "read"))] == [
        "ci",
        "Flagger_1.x@y-z",
    ]


def test_there_can_be_so_many_and_no_more() -> None:
    tokens = Tokens(Token(f"t{number}", bytes(32), "read") for number in range(1000))
    with pytest.raises(ValueError, match="there can be no more"):
        tokens.with_token(CI)
    assert len(Tokens.from_json(tokens.to_json())) == 1000


def test_only_a_token_that_is_there_can_be_removed() -> None:
    tokens = Tokens([CI])
    assert list(tokens.without("ci")) == []
    with pytest.raises(KeyError):
        tokens.without("other")
