"""Redis: the name of a command and how many arguments it has ("Redis serialization protocol specification")."""

from __future__ import annotations

import re

from spandial_agent.records.protocols.database import Operation, Outcome, raw_text

__all__ = ["parse_command", "parse_reply"]

_SHOWN_MAX = 8  # arguments that a text shows
_UNKNOWN = "UNKNOWN"

_NAME = re.compile(rb"[A-Za-z][A-Za-z._-]{0,31}")  # GEORADIUS_RO, RESTORE-ASKING, JSON.GET
_WITH_SUBCOMMAND = frozenset(
    {"CLIENT", "CONFIG", "CLUSTER", "SCRIPT", "XGROUP", "XINFO", "OBJECT", "ACL", "MEMORY"}
    | {"COMMAND", "FUNCTION", "LATENCY", "PUBSUB", "SLOWLOG", "MODULE"}
)
_ARRAY = re.compile(rb"\*([0-9]{1,10})\r\n")
_BULK_STRING = re.compile(rb"\$([0-9]{1,10})\r\n")
_INLINE_WORD = re.compile(rb"""(?:"(?:[^"\\]|\\.?)*"?|'(?:[^'\\]|\\.?)*'?|[^\s"'])+""", re.DOTALL)
_ERROR = re.compile(rb"(?:-|![0-9]{1,10}\r\n)([A-Z][A-Z0-9_]{0,31})[ \r\n]")


def parse_command(message: bytes) -> Operation:
    """The command that a message begins with: an array of bulk strings, or a line.

    Of its arguments, all but `raw` say only how many there are. A name that has not the form of one is UNKNOWN; it is
    "" where it is not there, or not to its end.
    """
    words, rest, count = _array(message) if message.startswith(b"*") else _line(message)
    raw = raw_text(b" ".join([*words, rest] if rest else words))
    complete = count == len(words) and bool(message)
    if not words:
        return Operation(raw=raw, complete=complete)
    name = words[0].decode("ascii").upper() if _NAME.fullmatch(words[0]) else _UNKNOWN
    arguments = count - 1
    if name in _WITH_SUBCOMMAND and len(words) > 1 and _NAME.fullmatch(words[1]):
        name += " " + words[1].decode("ascii").upper()
        arguments -= 1
    text = name + " ?" * min(arguments, _SHOWN_MAX) + (" ..." if arguments > _SHOWN_MAX else "")
    return Operation(name=name, text=text, raw=raw, complete=complete, arguments=arguments)


def parse_reply(first: bytes) -> Outcome:
    """Whether a reply begins with an error, simple or (RESP3) blob, and the word in capitals that it starts with."""
    found = _ERROR.match(first)
    return Outcome(error=first[:1] in (b"-", b"!"), code=found[1].decode("ascii") if found else "")


def _array(message: bytes) -> tuple[list[bytes], bytes, int]:
    """Bulk strings that are there, what is there of one more, and how many there should be."""
    head = _ARRAY.match(message)
    if not head:
        return [], b"", 1
    count, at = int(head[1]), head.end()
    words: list[bytes] = []
    while len(words) < count and (length := _BULK_STRING.match(message, at)):
        start, end = length.end(), length.end() + int(length[1])
        if end > len(message):
            return words, message[start:], count
        words.append(message[start:end])
        at = end + len(b"\r\n")
    return words, b"", count


def _line(message: bytes) -> tuple[list[bytes], bytes, int]:
    """The same of an inline command."""
    line, ended, _ = message.partition(b"\n")
    words = _INLINE_WORD.findall(line)
    if ended or not words:
        return words, b"", len(words)
    return words[:-1], words[-1], len(words)
