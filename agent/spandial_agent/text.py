"""Text from elsewhere: names, labels, paths and errors of other processes, made fit to be shown.

Whoever chose it may be hostile: it may be no UTF-8, have no end, or hold what steers a terminal (escape sequences,
line ends, bidirectional controls) or what no encoder takes (lone surrogates).
"""

from __future__ import annotations

__all__ = ["TEXT_MAX", "printable", "text_of"]

TEXT_MAX = 255  # characters


def printable(text: str) -> str:
    """The text with an escape, as in a Python literal, for each character that is not printable.

    Printable is what `str.isprintable` says: no control characters, no format characters (which those of bidirectional
    text are), no surrogates, no spaces but the plain one. What comes out can be encoded, and is one line.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def text_of(raw: bytes | str, limit: int = TEXT_MAX) -> str:
    """Printable text of no more than `limit` characters. Never raises; bytes that are no UTF-8 come out as `\\xff`."""
    if isinstance(raw, bytes):
        raw = raw[: 4 * limit].decode("utf-8", "backslashreplace")  # no character of UTF-8 is longer than four bytes
    return printable(raw[:limit])[:limit]
