"""What a token may touch: a selector that the selectors of its rules must be inside of. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import translate

from spandial.labels import LABEL_MAX
from spandial.patterns import OperationPattern, parse_operation
from spandial_api.selectors import FIELDS, PROTOCOLS, Selector

__all__ = ["EVERYTHING", "binding_fields", "covers", "parse_binding"]

EVERYTHING = Selector()
"""No binding."""

_WILDCARD = re.compile(r"[*?\[\]]")
_LABEL = "label."


def parse_binding(fields: Mapping[str, str]) -> Selector:
    """A binding from what people write: `{"service": "checkout", "label.team": "pay-*"}`.

    Raises ValueError that says what was received.
    """
    labels = {}
    for name, text in fields.items():
        label = name.removeprefix(_LABEL) if name.startswith(_LABEL) else None
        if not label and name not in FIELDS:
            allowed = ", ".join([*FIELDS, "label.NAME"])
            raise ValueError(f"a binding names {allowed}; received {name!r}")
        if not isinstance(text, str) or not 1 <= len(text) <= LABEL_MAX or not text.isprintable():
            raise ValueError(f"{name} is a glob of 1 to {LABEL_MAX} printable characters; received {text!r}")
        if label:
            labels[label] = text
    protocol = fields.get("protocol")
    if protocol is not None and protocol not in PROTOCOLS:
        raise ValueError(f"protocol is one of {', '.join(PROTOCOLS)}; received {protocol!r}")
    operation = fields.get("operation")
    if operation is not None:
        parse_operation(operation)
    return Selector(
        service=fields.get("service"),
        version=fields.get("version"),
        env=fields.get("env"),
        protocol=protocol,
        operation=operation,
        tenant=fields.get("tenant"),
        labels=tuple(sorted(labels.items())),
    )


def binding_fields(binding: Selector) -> dict[str, str]:
    """What `parse_binding` makes this binding of."""
    fields = {name: str(value) for name in FIELDS if (value := getattr(binding, name)) is not None}
    return fields | {_LABEL + name: text for name, text in binding.labels}


def covers(bound: Selector, asked: Selector) -> bool:
    """Whether no process and no entry that `asked` selects is outside of `bound`.

    Each field of the binding must be named, too, by a value that it plainly covers: the answer may be no where a proof
    would be longer.
    """
    labels = dict(asked.labels)
    pairs = [(getattr(bound, name), getattr(asked, name)) for name in ("service", "version", "env", "tenant")]
    pairs += [(text, labels.get(name)) for name, text in bound.labels]
    if not all(outer is None or (inner is not None and _glob_covers(outer, inner)) for outer, inner in pairs):
        return False
    if bound.protocol not in (None, asked.protocol):
        return False
    return bound.pattern is None or (asked.pattern is not None and _operation_covers(bound.pattern, asked.pattern))


def _operation_covers(outer: OperationPattern, inner: OperationPattern) -> bool:
    return outer.method in ("", inner.method) and _glob_covers(outer.path, inner.path)


def _glob_covers(outer: str, inner: str) -> bool:
    if outer == inner:
        return True
    wildcards = _WILDCARD.findall(inner)
    if not wildcards:
        return re.compile(translate(outer)).match(inner) is not None
    if _WILDCARD.findall(outer) != ["*"]:
        return False
    # What is before a glob's first wildcard and after its last is in every string that it matches, in these places.
    head, tail = outer.split("*")
    return inner[: inner.index(wildcards[0])].startswith(head) and inner[inner.rindex(wildcards[-1]) + 1 :].endswith(
        tail
    )
