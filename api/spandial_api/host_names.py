"""The names of this host that a request's Host header may say. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection

__all__ = ["is_own_host", "parse_host_names"]

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::[0-9]{1,5})?", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*", re.ASCII)


def parse_host_names(text: str) -> frozenset[str]:
    """Names that are separated by commas or spaces. Raises ValueError for what is no name of a host."""
    names = text.replace(",", " ").split()
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(f"names of hosts are separated by commas, without ports and wildcards; received {name!r}")
    return frozenset(name.lower() for name in names)


def is_own_host(host: str, names: Collection[str]) -> bool:
    """Whether a Host header says an address, `localhost` or one of these names, with any port."""
    found = _HOST.fullmatch(host)
    if found is None:
        return False
    name = found[1].strip("[]").lower().removesuffix(".")
    if name == "localhost" or name in names:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
