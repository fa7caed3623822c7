"""The node as the control plane sees it: one small Protocol, and what passes through it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

from spandial.abi import EntryKind
from spandial.labels import Labels
from spandial_api.breaker import Circuit
from spandial_api.budgets import Limits
from spandial_api.node_states import BudgetUse, EntryEvent, Health, NodeStats, TargetExplanation, TargetState, TenantUse
from spandial_api.rules import RuleBook
from spandial_api.selectors import KindName, Selector

__all__ = ["Asker", "Connection", "KindName", "Node"]


class Connection(NamedTuple):
    """A TCP connection with the agent: the other side's address and port, and the agent's.

    Attributes:
        to_address: empty where it is not known.
        serial: its number, which no other has had; 0 where it is not known.
        peer: who has made it, by the name that shares go by; empty where it is not known.
    """

    address: str
    port: int
    to_port: int
    to_address: str = ""
    serial: int = 0
    peer: str = ""

    @property
    def sharer(self) -> str:
        """For whom shares are counted."""
        return self.peer or self.address


class Asker(NamedTuple):
    """A target that asks for its rates: its labels and its user."""

    labels: Labels
    uid: int


class Node(Protocol):
    """What the control plane asks of the node. All calls are made on the event loop's thread."""

    def apply(self, book: RuleBook) -> None:
        """Make every reader obey this book; they do when this returns."""

    def targets(self) -> list[TargetState]: ...

    def labels(self, service: str | None = None) -> Mapping[int, set[Labels]]:
        """The labels of each user's targets, each once; of one service, or of all."""

    async def asker(self, services: Sequence[str], connection: Connection, uid: int | None = None) -> Asker | None:
        """The target that has a connection to the agent open; None if it is none of these services', is not this
        user's, or cannot be found out."""

    def rate(self, labels: Labels, kind: EntryKind, uid: int | None = None) -> float | None:
        """The percentage that a user's targets with exactly these labels have at this moment; None where there are
        none. Without a user, those of the user who has most of them."""

    async def explain(self, pid: int) -> TargetExplanation:
        """Why a process is a target, or why it is none."""

    def reached(self) -> Mapping[Selector, int]:
        """For each rule's selector, how many targets have at least some entries under it."""

    def reached_by(self, selector: Selector) -> int:
        """The same for one selector; 0 where no rule has it. Costs far less than all of them."""

    async def stats(self) -> NodeStats: ...

    def health(self) -> Health: ...

    def switch(self, off: str) -> None:
        """Take everything away that costs others anything, and have hooks use their fallback rates; `off` says why.
        Empty: on again."""

    def limit(self, limits: Limits) -> None:
        """Hold the node to this budget and these quotas."""

    def budget_use(self) -> BudgetUse: ...

    def tenant_uses(self) -> list[TenantUse]:
        """The tenants that have a quota and are here, or whose circuit is not closed; by name."""

    def circuits(self) -> dict[str, Circuit]:
        """By tenant; those that are not in it are closed."""

    def restore(self, circuits: Mapping[str, Circuit]) -> None:
        """Go on with circuits as they were."""

    def watch(self, service: str, env: str) -> AbstractAsyncContextManager[AsyncIterator[EntryEvent]]:
        """The kept entries, from now on, of the services and environments that match these globs. Only as long as
        anybody watches them, the kernel emits them."""
