"""Rules that include processes as targets, or exclude them. Pure.

    include exe=nginx service=edge env=gray; exclude cmdline="*--self-test*"

Rules are separated by semicolons or line ends, their words by spaces; quotes and backslashes are a POSIX shell's. After
`include` or `exclude` come conditions, which must all hold:

    exe=GLOB            the executable's base name, or its path if the glob has a slash
    port=N, port=N-M    it listens on such a TCP port
    cgroup=GLOB         the path of one of its cgroups
    environ=NAME=GLOB   this environment variable is set, and to such a value
    cmdline=GLOB        its arguments, joined by spaces

and after `include` the labels to give: service, env, version. A `*` matches slashes too. Where an exclude rule holds,
no include rule counts. Of several include rules that hold, the first gives the labels; those that it does not name are
the environment's, and a service that neither names is the executable's base name.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple, get_args

from spandial.labels import Labels
from spandial_agent.errors import SpandialError
from spandial_agent.processes.proc import NAMED, Process, Traits

__all__ = [
    "Condition",
    "DiscoveryRule",
    "RuleError",
    "Verdict",
    "judge",
    "parse_rules",
    "wanted_traits",
    "wanted_variables",
]

Action = Literal["include", "exclude"]
Kind = Literal["exe", "port", "cgroup", "environ", "cmdline"]

_ACTIONS: tuple[Action, ...] = get_args(Action)
_KINDS: tuple[Kind, ...] = get_args(Kind)
_TRAITS = {"exe": "exe", "cgroup": "cgroups", "environ": "environ", "cmdline": "cmdline"}
_LABEL_MAX = 255
_NO_LABELS = Labels()
_LABELS = ("service", "env", "version", "tenant")


class RuleError(SpandialError, ValueError):
    """A rule that is none: says what was wrong, what was received and what is allowed."""


@dataclass(frozen=True)
class Condition:
    """One condition; the pattern is a glob, a port, a range of ports, or a variable's name with a glob."""

    kind: Kind
    pattern: str

    def __str__(self) -> str:
        return f"{self.kind}={_quoted(self.pattern)}"

    @property
    def ports(self) -> range:
        """The ports that a port condition names; of others none."""
        if self.kind != "port":
            return range(0)
        first, _, last = self.pattern.partition("-")
        return range(int(first), int(last or first) + 1)

    def holds(self, traits: Traits) -> bool | None:
        """None where it does not hold yet: a process may begin to listen at any time."""
        if self.kind == "port":
            return any(port in self.ports for port in traits.ports) or None
        if self.kind == "exe":
            exe = traits.exe if "/" in self.pattern else os.path.basename(traits.exe)
            return exe != "" and fnmatchcase(exe, self.pattern)
        if self.kind == "cgroup":
            return any(fnmatchcase(path, self.pattern) for path in traits.cgroups)
        if self.kind == "cmdline":
            return fnmatchcase(traits.cmdline, self.pattern)
        name, _, glob = self.pattern.partition("=")
        value = (traits.environ or {}).get(name)
        return value is not None and fnmatchcase(value, glob)

    def finding(self, traits: Traits) -> str:
        """What the process has of it. Values of variables and command lines may be secrets: they are not shown."""
        if self.kind == "port":
            ports = ", ".join(map(str, sorted(traits.ports)))
            return f"listens on {ports}" if ports else "listens on no TCP port"
        if self.kind == "exe":
            return f"executable is {traits.exe}" if traits.exe else "executable unreadable"
        if self.kind == "cgroup":
            return f"cgroup is {' or '.join(traits.cgroups)}" if traits.cgroups else "cgroup unreadable"
        if self.kind == "cmdline":
            return f"command line matches {self.pattern}" if self.holds(traits) else "command line is another"
        name = self.pattern.partition("=")[0]
        if traits.environ is None:
            return "environment unreadable"
        if name not in traits.environ:
            return f"variable {name} is not set"
        return f"variable {name} matches" if self.holds(traits) else f"variable {name} has another value"


@dataclass(frozen=True)
class DiscoveryRule:
    """A rule; its text parses to the same rule again. Labels that it does not name are empty."""

    action: Action
    conditions: tuple[Condition, ...]
    labels: Labels = _NO_LABELS

    def __str__(self) -> str:
        named = [f"{name}={_quoted(getattr(self.labels, name))}" for name in _LABELS if getattr(self.labels, name)]
        return " ".join([self.action, *map(str, self.conditions), *named])

    def holds(self, traits: Traits) -> bool | None:
        """None where it waits for a port alone."""
        held = [condition.holds(traits) for condition in self.conditions]
        return False if False in held else None if None in held else True

    def finding(self, traits: Traits) -> str:
        """Why it holds, or those conditions that do not."""
        holds = self.holds(traits)
        return "; ".join(
            condition.finding(traits) for condition in self.conditions if holds or not condition.holds(traits)
        )


class Verdict(NamedTuple):
    """What rules and environment make of a process.

    Attributes:
        labels: with a service if the process is to be a target.
        by_rule: a rule decided, rather than the environment.
        waits: it turns out otherwise once the process listens on a port that a rule names.
    """

    included: bool
    excluded: bool
    why: str
    labels: Labels = _NO_LABELS
    by_rule: bool = False
    waits: bool = False


def judge(rules: Iterable[DiscoveryRule], process: Process, traits: Traits) -> Verdict:
    """Whether this process is to be a target. Without a rule that holds it is if its environment names a service."""
    waits = False
    for rule in sorted(rules, key=lambda rule: rule.action == "include"):
        holds = rule.holds(traits)
        if holds is None:
            waits = True
        elif holds and rule.action == "exclude":
            return Verdict(False, True, f"rule: {rule}", by_rule=True)
        elif holds:
            named = rule.labels.over(process.labels)
            service = named.service or os.path.basename(traits.exe) or process.name
            return Verdict(True, False, f"rule: {rule}", named._replace(service=service), True, waits)
    if process.labels.service:
        return Verdict(True, False, NAMED, process.labels, waits=waits)
    return Verdict(False, False, "environment names no service, and no rule includes it", waits=waits)


def wanted_traits(rules: Iterable[DiscoveryRule]) -> frozenset[str]:
    """Those traits, by name, that it takes to judge by these rules; ports are not among them."""
    kinds = {condition.kind for rule in rules for condition in rule.conditions}
    # Whatever is included, the executable may have to give it its service's name.
    return frozenset({_TRAITS[kind] for kind in kinds if kind in _TRAITS} | ({"exe"} if kinds else set()))


def wanted_variables(rules: Iterable[DiscoveryRule]) -> frozenset[str]:
    """The names of the variables that it takes to judge by these rules."""
    conditions = (condition for rule in rules for condition in rule.conditions if condition.kind == "environ")
    return frozenset(condition.pattern.partition("=")[0] for condition in conditions)


def parse_rules(text: str) -> tuple[DiscoveryRule, ...]:
    """The rules of this text, in its order. Raises RuleError."""
    # Newlines are separators here, and a '#' begins no comment: globs may hold it.
    words = shlex.shlex(text, posix=True, punctuation_chars=";\n")
    words.whitespace, words.whitespace_split, words.commenters = " \t\r", True, ""
    rules: list[list[str]] = [[]]
    try:
        for word in words:
            if set(word) <= {";", "\n"} and word:
                rules.append([])
            else:
                rules[-1].append(word)
    except ValueError as error:
        raise RuleError(
            f"{str(error).lower()} in {text!r}; quotes come in pairs, and a backslash quotes the next character"
        ) from None
    return tuple(_parse_rule(words) for words in rules if words)


def _parse_rule(words: list[str]) -> DiscoveryRule:
    received = " ".join(words)
    action = next((action for action in _ACTIONS if action == words[0]), None)
    if action is None:
        raise RuleError(f"a rule begins with include or exclude, as in 'include exe=nginx'; received {received!r}")
    conditions: list[Condition] = []
    labels = Labels()
    for word in words[1:]:
        key, equals, value = word.partition("=")
        kind = next((kind for kind in _KINDS if kind == key), None)
        if equals and kind is not None:
            conditions.append(Condition(kind, _checked(kind, value, received)))
        elif equals and key in _LABELS and action == "include":
            if getattr(labels, key):
                raise RuleError(f"{key} is named twice in {received!r}; a label has one value")
            given: dict[str, Any] = {key: _checked_label(key, value, received)}
            labels = labels._replace(**given)
        elif equals and key in _LABELS:
            raise RuleError(
                f"an exclude rule gives no labels; received {word!r} in {received!r}. "
                "A variable is environ=NAME=GLOB; only include rules name service, env, version, tenant"
            )
        else:
            raise RuleError(
                f"no such condition: {word!r} in {received!r}; there are {', '.join(f'{kind}=' for kind in _KINDS)}"
                " and, to label what is included, service=, env=, version=, tenant="
            )
    if not conditions:
        raise RuleError(f"{received!r} has no condition; it takes one at least of {', '.join(_KINDS)}")
    return DiscoveryRule(action, tuple(conditions), labels)


def _checked(kind: Kind, value: str, received: str) -> str:
    if kind == "port":
        first, dash, last = value.partition("-")
        numbers = [int(text) if text.isascii() and text.isdigit() and len(text) <= 5 else 0 for text in (first, last)]
        low, high = numbers if dash else (numbers[0], numbers[0])
        if not 1 <= low <= high <= 65535:
            raise RuleError(f"port is 1-65535, or a range such as 8000-8099; received {value!r} in {received!r}")
        return f"{low}-{high}" if low < high else str(low)
    if kind == "environ" and (not value.partition("=")[0] or "=" not in value):
        raise RuleError(f"environ is NAME=GLOB, such as environ=STAGE=gray*; received {value!r} in {received!r}")
    if not value:
        raise RuleError(f"{kind} is a glob, such as {kind}=*nginx*; received nothing in {received!r}")
    return value


def _checked_label(name: str, value: str, received: str) -> str:
    if not value or len(value) > _LABEL_MAX or not value.isprintable():
        raise RuleError(
            f"{name} is a printable text of 1 to {_LABEL_MAX} characters; received {value!r:.300} in {received!r:.600}"
        )
    return value


def _quoted(value: str) -> str:
    """As a shell would need it, but with globs left bare."""
    plain = value and not any(char.isspace() or char in "\"'\\;" for char in value)
    return value if plain else shlex.quote(value)
