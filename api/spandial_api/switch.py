"""The switch: everything of the agent's out of the kernel and out of the hooks' way, at once."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass

from spandial.abi import word_rate
from spandial_api.audit import Action
from spandial_api.clock import boot_s
from spandial_api.control import Author, Control
from spandial_api.node import Node
from spandial_api.store import StoreError

__all__ = ["Off", "Switch"]

_DOCUMENT = "switch"
_LOOK_S = 1.0


@dataclass(frozen=True)
class Off:
    """Who switched the node off.

    Attributes:
        time, until: Unix time in seconds; until None: somebody says so.
    """

    who: str
    why: str
    time: float
    until: float | None

    @property
    def sentence(self) -> str:
        """For people who wonder."""
        why = f" ({self.why})" if self.why else ""
        end = "until somebody runs 'spandial on'"
        if self.until is not None:
            end = f"until {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(self.until))}"
        rest = "nothing is captured, and hooks obey no rule but the node's default"
        return f"switched off by {self.who}{why}, {end}: {rest}."


class Switch:
    """On or off, with the node and the store.

    Attributes:
        off: who switched the node off; None while it is on.
    """

    def __init__(self, control: Control, node: Node) -> None:
        self.off: Off | None = None
        self._control = control
        self._node = node
        self._lock = asyncio.Lock()
        self._stored: Off | None = None  # what a restart would find
        self._ends_at: float | None = None  # by the boot clock
        try:
            self._load()
        except StoreError as error:
            control.damage.append(f"whether this node was switched off cannot be read, and it is on: {error}")

    @property
    def fallback_rate(self) -> float | None:
        """The percentage that hooks use while it is off: the node's default; None where each uses its own."""
        word = self._control.book.fallback
        return None if word is None else round(word_rate(word) or 0.0, 10)

    async def turn_off(self, author: Author, ttl_s: float | None = None) -> Off:
        """At once, whatever the disk says. Raises StoreError where it is off, and a restart would switch it on."""
        async with self._lock:
            now = self._control.now()
            off = Off(author.who, author.why, now, None if ttl_s is None else now + ttl_s)
            self._obey(off, ttl_s)
            await self._keep(off, "off", author)
            return off

    async def turn_on(self, author: Author) -> None:
        """Where it is on, what the node could not do the last time is tried again.

        Raises StoreError where it stays off: a restart would switch it off again.
        """
        async with self._lock:
            await self._turn_on(author)

    async def run(self) -> None:
        """Switch on when the time has come, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_S)
            async with self._lock:
                if self._ends_at is not None and boot_s() >= self._ends_at:
                    with suppress(StoreError, OSError):  # it is tried again
                        await self._turn_on(Author("spandial", "its time had come"))

    async def _turn_on(self, author: Author) -> None:
        if self.off is not None:
            try:
                await self._keep(None, "on", author)
            except StoreError:
                if self._stored is not None and self._left(self._stored) != 0:
                    raise
        self._obey(None, None)

    async def _keep(self, off: Off | None, action: Action, author: Author) -> None:
        body = None if off is None else vars(off)
        await asyncio.shield(self._control.keep_limit(_DOCUMENT, body, action, None, author))
        self._stored = off

    def _left(self, off: Off) -> float | None:
        """Seconds until it ends by itself."""
        return None if off.until is None else max(off.until - self._control.now(), 0.0)

    def _obey(self, off: Off | None, ttl_s: float | None) -> None:
        self.off = off
        self._ends_at = None if off is None or ttl_s is None else boot_s() + ttl_s
        self._node.switch("" if off is None else off.sentence)

    def _load(self) -> None:
        """What this version cannot read is as if it were not there."""
        stored = self._control.document(_DOCUMENT)
        with suppress(TypeError, ValueError, KeyError):
            until = stored["until"]
            off = Off(str(stored["who"]), str(stored["why"]), float(stored["time"]), until and float(until))
            self._stored, left = off, self._left(off)
            if left != 0:
                self._obey(off, left)
