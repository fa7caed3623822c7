"""The dial without HTTP: how a selector is written, and changes that are interrupted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spandial_api import control as control_module
from spandial_api.audit import Entry, LimitChange
from spandial_api.control import Author, Control
from spandial_api.last_good import LastGoodRules
from spandial_api.rules import Rule, RuleBook
from spandial_api.selectors import PROTOCOLS, Selector, selector_text
from spandial_api.store import Store, StoreError
from tests.spandial_api.fake_node import FakeNode
from tests.spandial_api.saving import entry_of, save

AUTHOR = Author("uid 0")

_pieces = st.sampled_from(["a", "b", "*", " ", '"', "\\", "\n", " env=", " version="]) | st.characters()
_texts = st.none() | st.lists(_pieces, min_size=1, max_size=4).map("".join)
_selectors = st.builds(Selector, _texts, _texts, _texts, st.sampled_from([None, *PROTOCOLS]))


@pytest.mark.parametrize(
    ("selector", "text"),
    [
        (Selector(), "default"),
        (Selector(env="gray", service="check*"), "service=check* env=gray"),
        (Selector("a", "b", "c", "http"), "service=a version=b env=c protocol=http"),
        (Selector(service="default"), "service=default"),
        (Selector(service="a env=b"), 'service="a env=b"'),
    ],
)
def test_a_selector_is_written_as_people_write_it(selector: Selector, text: str) -> None:
    assert selector_text(selector) == text


@given(_selectors, _selectors)
def test_no_two_selectors_are_written_alike(one: Selector, other: Selector) -> None:
    assert (selector_text(one) == selector_text(other)) == (one == other)


class SlowStore(Store):
    """A store whose disk answers when it is told to."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.committing = threading.Event()
        self.go_on = threading.Event()

    def commit(self) -> None:
        self.committing.set()
        assert self.go_on.wait(10)
        super().commit()


@pytest.mark.anyio
async def test_a_caller_who_goes_away_does_not_stop_a_change_half_way(tmp_path: Path, node: FakeNode) -> None:
    store = SlowStore(tmp_path / "rules.sqlite")
    control = Control(store, node)
    gone = asyncio.create_task(control.put(Rule(Selector(env="gray"), 30), AUTHOR))
    await asyncio.to_thread(store.committing.wait, 10)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    later = asyncio.create_task(control.put(Rule(Selector(env="blue"), 5), AUTHOR))
    await asyncio.sleep(0.01)
    assert [book.revision for book in node.applied] == [0, 1]  # obeyed, and not yet on disk
    assert control.book.revision == 0
    store.go_on.set()
    rule, *_ = await later
    assert rule.revision == 2
    assert control.book == node.applied[-1] == store.load()
    assert [book.revision for book in node.applied] == [0, 1, 2]
    store.close()


class FailingStore(Store):
    """A store whose disk takes what is written, and fails at the last moment."""

    def commit(self) -> None:
        self._database.execute("ROLLBACK")
        raise StoreError("disk I/O error")


@pytest.mark.anyio
async def test_what_does_not_reach_the_disk_is_obeyed_no_longer(tmp_path: Path, node: FakeNode) -> None:
    store = FailingStore(tmp_path / "rules.sqlite")
    control = Control(store, node)
    with pytest.raises(StoreError):
        await control.put(Rule(Selector(env="gray"), 30), AUTHOR)
    assert [book.revision for book in node.applied] == [0, 1, 0]
    assert control.book == node.applied[-1] == store.load() == RuleBook()
    with pytest.raises(StoreError):
        await control.put(Rule(Selector(env="gray"), 30), AUTHOR)
    store.close()


@pytest.mark.anyio
async def test_what_the_node_cannot_obey_is_not_stored_either(store: Store, node: FakeNode) -> None:
    control = Control(store, node)

    def refuse(book: RuleBook) -> None:
        if Selector(env="gray") in book.rules:
            raise OSError("no such table")

    node.on_apply = refuse
    with pytest.raises(OSError, match="no such table"):
        await control.put(Rule(Selector(env="gray"), 30), AUTHOR)
    assert control.book == node.applied[-1] == RuleBook()
    await control.keep("budget", 5)  # is not a part of what was given up
    await control.put(Rule(Selector(), 1), AUTHOR)
    assert control.book == store.load() == RuleBook().put(Rule(Selector(), 1))
    assert store.document("budget") == 5


class ForgetfulStore(Store):
    """A store whose audit log can be read once."""

    asked = 0

    def entry(self, revision: int) -> Entry | None:
        self.asked += 1
        if self.asked > 1:
            raise StoreError("disk I/O error")
        return super().entry(revision)


@pytest.mark.anyio
async def test_an_undo_that_is_done_says_so_whatever_can_be_read_then(tmp_path: Path, node: FakeNode) -> None:
    store = ForgetfulStore(tmp_path / "rules.sqlite")
    control = Control(store, node)
    await control.put(Rule(Selector(env="gray"), 30), AUTHOR)
    undone = await control.undo(1, AUTHOR)
    assert (undone.revision, undone.action) == (2, "undo")
    assert undone == store.audit(1)[0]
    assert control.book.rules == {}
    store.close()


@pytest.mark.anyio
async def test_the_node_has_the_stored_rules_before_anything_is_asked(tmp_path: Path) -> None:
    store = Store(tmp_path / "rules.sqlite")
    book = RuleBook().put(Rule(Selector(), 1))
    save(store, book)
    node = FakeNode()
    assert Control(store, node).book == book
    assert node.applied == [book]
    store.close()


class Clock:
    """Unix time as a test sets it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.anyio
async def test_a_rule_ends_when_its_time_has_come_and_not_before(
    store: Store, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_module, "_CLOCK_S", 0.01)
    clock = Clock()
    control = Control(store, node, clock)
    running = asyncio.create_task(control.run())
    gray, blue = Selector(env="gray"), Selector(env="blue")
    await control.put(Rule(gray, 30, expires=1010), AUTHOR)
    await control.put(Rule(blue, 5, expires=1020), AUTHOR)
    await control.put(Rule(Selector(), 1), AUTHOR)
    clock.now = 1009.9
    await asyncio.sleep(0.05)
    assert set(control.book.rules) == {gray, blue, Selector()}
    clock.now = 1010
    await asyncio.sleep(0.05)
    assert set(control.book.rules) == set(node.applied[-1].rules) == set(store.load().rules) == {blue, Selector()}
    assert control.book.revision == 4
    rule, *_ = await control.renew(blue, 600, AUTHOR)
    assert (rule.expires, rule.rate, rule.revision) == (1610, 5, 5)
    clock.now = 1600
    await asyncio.sleep(0.05)
    assert blue in control.book.rules
    clock.now = 5000  # the clock was set, or the host slept
    await asyncio.sleep(0.05)
    assert set(control.book.rules) == {Selector()}
    with pytest.raises(KeyError):
        await control.renew(blue, 600, AUTHOR)
    running.cancel()


@pytest.mark.anyio
async def test_a_rule_that_comes_first_ends_first(store: Store, node: FakeNode) -> None:
    control = Control(store, node)
    running = asyncio.create_task(control.run())
    now = control.now()
    await control.put(Rule(Selector(env="gray"), 30, expires=now + 3600), AUTHOR)
    await control.put(Rule(Selector(env="blue"), 30, expires=now + 0.05), AUTHOR)
    await asyncio.sleep(0.2)
    assert set(control.book.rules) == {Selector(env="gray")}
    running.cancel()


@pytest.mark.anyio
async def test_what_ended_while_nobody_looked_does_not_come_back(tmp_path: Path, node: FakeNode) -> None:
    path = tmp_path / "rules.sqlite"
    store = Store(path)
    save(store, RuleBook().put(Rule(Selector(env="gray"), 100, expires=1010)).put(Rule(Selector(), 1)))
    control = Control(store, node, lambda: 1010)
    assert set(control.book.rules) == set(node.applied[0].rules) == {Selector()}
    assert control.book.revision == 3
    await control.put(Rule(Selector(), 2), AUTHOR)
    assert set(store.load().rules) == {Selector()}
    store.close()


@pytest.mark.anyio
async def test_a_rule_ends_also_where_the_disk_fails(tmp_path: Path, node: FakeNode) -> None:
    store = FailingStore(tmp_path / "rules.sqlite")
    Store.commit(prepared(store, RuleBook().put(Rule(Selector(env="gray"), 100, expires=1010))))
    clock = Clock()
    control = Control(store, node, clock)
    clock.now = 1010
    running = asyncio.create_task(control.run())
    await asyncio.sleep(0.05)
    assert control.book.rules == node.applied[-1].rules == {}
    assert Control(store, node, clock).book.rules == {}
    running.cancel()
    store.close()


@pytest.mark.anyio
@pytest.mark.parametrize("fails", [False, True])
async def test_a_rule_ends_also_while_a_change_waits_for_the_disk(
    tmp_path: Path, node: FakeNode, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    monkeypatch.setattr(control_module, "_CLOCK_S", 0.01)
    store = SlowStore(tmp_path / "rules.sqlite")
    store.go_on.set()
    clock = Clock()
    control = Control(store, node, clock)
    gray, blue = Selector(env="gray"), Selector(env="blue")
    await control.put(Rule(gray, 100, expires=1010), AUTHOR)
    running = asyncio.create_task(control.run())
    store.committing.clear()
    store.go_on.clear()
    waiting = asyncio.create_task(control.put(Rule(blue, 5), AUTHOR))
    await asyncio.to_thread(store.committing.wait, 10)
    assert set(node.applied[-1].rules) == {gray, blue}
    clock.now = 1010
    await until(lambda: set(node.applied[-1].rules) == {blue})
    obeyed = len(node.applied)
    if fails:
        monkeypatch.setattr(Store, "commit", FailingStore.commit)
        store.go_on.set()
        with pytest.raises(StoreError):
            await waiting
        monkeypatch.undo()
    else:
        store.go_on.set()
        await waiting
    left = set() if fails else {blue}
    await until(lambda: set(store.load().rules) == set(control.book.rules) == set(node.applied[-1].rules) == left)
    assert not any(gray in book.rules for book in node.applied[obeyed:])
    running.cancel()
    store.close()


@pytest.mark.anyio
async def test_a_rule_that_ends_while_a_budget_waits_for_the_disk_is_not_back_for_a_moment(
    tmp_path: Path, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_module, "_CLOCK_S", 0.01)
    store = SlowStore(tmp_path / "rules.sqlite")
    store.go_on.set()
    clock = Clock()
    control = Control(store, node, clock)
    await control.put(Rule(Selector(env="gray"), 100, expires=1010), AUTHOR)
    running = asyncio.create_task(control.run())
    store.committing.clear()
    store.go_on.clear()
    limit = LimitChange(None, None, 5000)
    waiting = asyncio.create_task(control.keep_limit("limits", {}, "budget", limit, AUTHOR))
    await asyncio.to_thread(store.committing.wait, 10)
    clock.now = 1010
    await until(lambda: node.applied[-1].rules == {})
    obeyed = len(node.applied)
    store.go_on.set()
    await waiting
    await until(lambda: store.load().rules == control.book.rules == {})
    assert not any(book.rules for book in node.applied[obeyed:])
    running.cancel()
    store.close()


def prepared(store: Store, book: RuleBook) -> Store:
    store.prepare(entry_of(book))
    return store


class MovedStore(Store):
    """A store on a disk that is there or not, as a test says."""

    there = True

    def prepare(self, *entries: Entry, document: tuple[str, Any] | None = None) -> None:
        self.probe()
        super().prepare(*entries, document=document)

    def probe(self) -> None:
        if not self.there:
            raise StoreError("read-only file system")


@pytest.mark.anyio
async def test_while_the_disk_takes_nothing_the_last_rules_are_obeyed_and_it_is_said_why(
    tmp_path: Path, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_module, "_CLOCK_S", 0.01)
    store = MovedStore(tmp_path / "rules.sqlite")
    clock = Clock()
    control = Control(store, node, clock)
    gray, blue = Selector(env="gray"), Selector(env="blue")
    await control.put(Rule(gray, 30, expires=1010), AUTHOR)
    await control.put(Rule(blue, 5), AUTHOR)
    assert control.trouble == ""
    running = asyncio.create_task(control.run())
    store.there = False
    with pytest.raises(StoreError):
        await control.put(Rule(gray, 50), AUTHOR)
    assert control.trouble == "read-only file system"
    assert node.applied[-1] == control.book
    clock.now = 1010  # what ends meanwhile ends all the same
    await until(lambda: set(node.applied[-1].rules) == {blue})
    assert set(store.load().rules) == {gray, blue}
    store.there = True
    await until(lambda: control.trouble == "" and set(store.load().rules) == {blue})
    assert [(entry.revision, entry.action) for entry in store.audit(9)] == [(3, "expire"), (2, "put"), (1, "put")]
    rule, *_ = await control.put(Rule(gray, 50), AUTHOR)
    assert rule.revision == store.load().revision == 4
    running.cancel()
    store.close()


@pytest.mark.anyio
async def test_a_document_that_could_not_be_stored_is_trouble_until_the_disk_is_well(
    tmp_path: Path, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_module, "_CLOCK_S", 0.01)
    store = MovedStore(tmp_path / "rules.sqlite")
    control = Control(store, node)
    running = asyncio.create_task(control.run())
    await asyncio.sleep(0.05)  # until there is nothing for it to wait for
    limit = LimitChange(None, None, 5.0)
    for write in (
        lambda: control.keep_limit("limits", {}, "budget", limit, AUTHOR),
        lambda: control.put(Rule(Selector(), 1), AUTHOR),
    ):
        store.there = False
        with pytest.raises(StoreError):
            await write()
        assert control.trouble
        store.there = True
        await until(lambda: control.trouble == "")
    running.cancel()
    store.close()


@pytest.mark.anyio
async def test_the_copy_follows_the_rules(
    tmp_path: Path, store: Store, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_module, "_CLOCK_S", 0.01)
    monkeypatch.setattr(control_module, "_COPY_S", 0.02)
    copy = LastGoodRules(tmp_path / "rules.json")
    control = Control(store, node, copy=copy)
    running = asyncio.create_task(control.run())
    for rate in range(5):
        await control.put(Rule(Selector(env="gray"), rate), AUTHOR)
    await until(lambda: copy.path.exists() and copy.load() == control.book)
    running.cancel()


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(1000):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came")


@pytest.mark.anyio
async def test_a_rule_waits_for_nobodys_look_at_anything(store: Store, node: FakeNode) -> None:
    control, over = Control(store, node), threading.Event()
    looks = [asyncio.ensure_future(asyncio.to_thread(over.wait, 60)) for _ in range(100)]
    reads = [asyncio.ensure_future(control._reading(over.wait, 60)) for _ in range(10)]
    try:
        stored = await asyncio.wait_for(control.put(Rule(Selector(env="gray"), 30), AUTHOR), 30)
        assert stored.revision == store.load().revision == 1
    finally:
        over.set()
        await asyncio.gather(*looks, *reads)
