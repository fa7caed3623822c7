"""What a process says when it registers. It comes from any process. Pure."""

from __future__ import annotations

import json

from spandial import abi
from spandial.labels import ATTRIBUTES_MAX, LABEL_MAX, Labels, other_labels
from spandial_agent.processes.counter_page import HookVersion

__all__ = ["BadHello", "parse_hello"]

_VERSION_MAX = 64


class BadHello(ValueError):
    """A registration that is not one; says what was wrong."""


def parse_hello(message: bytes) -> tuple[Labels, int, HookVersion]:
    """Labels, default word and version of a registration. Raises BadHello on all that is odd."""
    try:
        hello = json.loads(message)
    except (ValueError, RecursionError):
        raise BadHello("a registration is a JSON object") from None
    if not isinstance(hello, dict):
        raise BadHello("a registration is a JSON object")
    said, hook = hello.get("abi"), hello.get("hook", "")
    if not isinstance(said, int) or said not in abi.SPOKEN:
        raise BadHello(f"the agent speaks ABI version {' or '.join(map(str, abi.SPOKEN))}, the process {said!r:.40}")
    if not isinstance(hook, str) or len(hook) > _VERSION_MAX or not hook.isprintable():
        raise BadHello(f"hook is a version of spandial, a printable text of up to {_VERSION_MAX} characters")
    main = [hello.get(name, "") for name in ("service", "version", "env", "tenant")]
    attributes = hello.get("attributes", {})
    if not isinstance(attributes, dict) or len(attributes) > ATTRIBUTES_MAX:
        raise BadHello(f"attributes are an object of up to {ATTRIBUTES_MAX} texts")
    for label in (*main, *attributes, *attributes.values()):
        if not isinstance(label, str) or len(label) > LABEL_MAX or not label.isprintable():
            raise BadHello(f"labels are printable texts of up to {LABEL_MAX} characters")
    default = hello.get("default")
    if not isinstance(default, int) or not 0 <= default < 1 << 64 or not default & abi.Flag.VALID:
        raise BadHello("default is a valid rate word")
    labels = Labels(*main)._replace(others=other_labels(attributes.items()))
    rate_alone = ~(abi.Flag.OPERATIONS | abi.Flag.EMIT | abi.Flag.THIN | abi.MODE_MASK)
    return labels, default & rate_alone, HookVersion(int(said), hook)
