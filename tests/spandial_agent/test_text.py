"""Text from elsewhere, whatever bytes it is made of."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spandial_agent.text import printable, text_of

_texts = st.text(st.characters())  # lone surrogates, too


@given(st.binary() | _texts, st.integers(0, 300))
def test_whatever_comes_can_be_shown_and_encoded(raw: bytes | str, limit: int) -> None:
    shown = text_of(raw, limit)
    assert len(shown) <= limit
    assert shown.isprintable()
    assert json.loads(json.dumps(shown, ensure_ascii=False).encode()) == shown


@given(_texts)
def test_what_is_shown_once_is_not_escaped_again(text: str) -> None:
    assert printable(printable(text)) == printable(text)


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"libgnutls.so.\xff", r"libgnutls.so.\xff"),
        ("libgnutls.so.\udcff", r"libgnutls.so.\udcff"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("evil\n2026-01-01 [info] all is well", r"evil\n2026-01-01 [info] all is well"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("a\u2028b\xa0c\x85d", r"a\u2028b\xa0c\x85d"),
        ("Größe 大きさ", "Größe 大きさ"),
    ],
)
def test_what_would_steer_a_terminal_is_escaped(raw: bytes | str, shown: str) -> None:
    assert text_of(raw) == shown


def test_text_without_an_end_is_cut() -> None:
    assert text_of(b"x" * 10_000_000) == "x" * 255
