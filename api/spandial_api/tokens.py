"""Tokens: who is let in over TCP, what for, and for which rules. Pure; only their hashes are kept."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from spandial_api.bindings import EVERYTHING, binding_fields, parse_binding
from spandial_api.selectors import Selector

__all__ = ["SCOPES", "Scope", "Token", "Tokens", "check_token_name", "digest_of", "new_token"]

Scope = Literal["read", "write", "admin"]

SCOPES: dict[Scope, frozenset[Scope]] = {
    "read": frozenset({"read"}),
    "write": frozenset({"read", "write"}),
    "admin": frozenset({"read", "write", "admin"}),
}
"""What each implies."""

TOKENS_MAX = 1000

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", re.ASCII)


@dataclass(frozen=True)
class Token:
    """One token.

    Attributes:
        digest: the SHA-256 of what its holder sends. No salt and no slow hash: it is random, and as long.
        scope: what it may do, with what this implies.
        binding: the rules that it may touch; without a field, all.
        created: Unix time in seconds.
        expires: Unix time in seconds from which on it is refused; None: never.
    """

    name: str
    digest: bytes
    scope: Scope
    binding: Selector = EVERYTHING
    created: float = 0.0
    expires: float | None = None


class Tokens:
    """Tokens of different names."""

    def __init__(self, tokens: Iterable[Token] = ()) -> None:
        self._by_name = {token.name: token for token in tokens}

    def __iter__(self) -> Iterator[Token]:
        return iter(self._by_name.values())

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def __len__(self) -> int:
        return len(self._by_name)

    def find(self, given: str) -> Token | None:
        """The token that was given, expired or not. Takes as long for every token that is none."""
        digest, found = digest_of(given), None
        for token in self:
            if hmac.compare_digest(token.digest, digest):
                found = token
        return found

    def with_token(self, token: Token) -> Tokens:
        """Raises ValueError where there is one of this name, or where there are too many."""
        check_token_name(token.name)
        if token.name in self:
            raise ValueError(f"there is a token {token.name} already: another name, or 'spandial token rm' first")
        if len(self) >= TOKENS_MAX:
            raise ValueError(f"there are {TOKENS_MAX} tokens, and there can be no more: 'spandial token rm' first")
        return Tokens([*self, token])

    def without(self, name: str) -> Tokens:
        """Raises KeyError."""
        if name not in self:
            raise KeyError(name)
        return Tokens(token for token in self if token.name != name)

    def to_json(self) -> str:
        """What `from_json` reads."""
        rows = [
            {
                "name": token.name,
                "sha256": token.digest.hex(),
                "scope": token.scope,
                "binding": binding_fields(token.binding),
                "created": token.created,
                "expires": token.expires,
            }
            for token in self
        ]
        return json.dumps({"tokens": rows}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Tokens:
        """Raises ValueError for anything that `to_json` does not write."""
        try:
            rows = _File.model_validate_json(text).tokens
        except ValidationError as error:
            problem = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(str(part) for part in problem["loc"])
            raise ValueError(f"{where or 'JSON'}: {problem['msg']}") from None
        names = [row.name for row in rows]
        if len(set(names)) < len(names):
            raise ValueError("two tokens have the same name")
        return cls(row.token() for row in rows)


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    scope: Scope
    binding: dict[str, str] = {}
    created: float = Field(0.0, allow_inf_nan=False)
    expires: float | None = Field(None, allow_inf_nan=False)

    def token(self) -> Token:
        check_token_name(self.name)
        binding = parse_binding(self.binding)
        return Token(self.name, bytes.fromhex(self.sha256), self.scope, binding, self.created, self.expires)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    tokens: list[_Row] = Field(max_length=TOKENS_MAX)


def check_token_name(name: str) -> None:
    """Raises ValueError."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"a token's name is 1 to 64 letters, digits and . _ @ - after the first; received {name!r}")


def digest_of(token: str) -> bytes:
    """Of what its holder sends, whatever that is."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def new_token() -> str:
    """256 random bits."""
    return secrets.token_urlsafe(32)
