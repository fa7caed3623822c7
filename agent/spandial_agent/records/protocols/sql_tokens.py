"""The tokens of a statement that has no literals, by sqlglot. This takes 40 ms to import, so no start waits for it."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

from sqlglot import TokenType
from sqlglot.dialects.mysql import MySQL
from sqlglot.dialects.postgres import Postgres
from sqlglot.errors import SqlglotError

from spandial_agent.records.protocols.database import Dialect

__all__ = ["SqlglotError", "Token", "tokenize"]


class Token(NamedTuple):
    """Where it is in the text, and what stands in its quotes where it is a quoted identifier."""

    start: int
    end: int  # behind its last character
    quoted: str | None


# sqlglot takes what is behind some commands for a string, and `$1,$` for a dollar-quote. No strings are left to find.
class _PostgresTokenizer(Postgres.Tokenizer):
    COMMANDS: ClassVar[set[TokenType]] = set()
    HEREDOC_STRINGS: ClassVar[list[str | tuple[str, str]]] = []


class _MySQLTokenizer(MySQL.Tokenizer):
    COMMANDS: ClassVar[set[TokenType]] = set()


def tokenize(masked: str, dialect: Dialect) -> list[Token]:
    """Raises SqlglotError."""
    tokenizer = _PostgresTokenizer(Postgres) if dialect == "postgres" else _MySQLTokenizer(MySQL)
    return [
        Token(token.start, token.end + 1, token.text if token.token_type is TokenType.IDENTIFIER else None)
        for token in tokenizer.tokenize(masked)
    ]
