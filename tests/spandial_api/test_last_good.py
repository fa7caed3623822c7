"""The rules a second time: a commit waits for no copy, and no revision is lost between copy and log."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from spandial_api import last_good
from spandial_api.last_good import LastGoodRules
from spandial_api.rules import Rule, RuleBook
from spandial_api.selectors import Selector
from tests.agent_process import PATIENCE_S
from tests.spandial_api.saving import entry_of


class Books:
    """One revision after the other, each told to a copy."""

    def __init__(self, copy: LastGoodRules) -> None:
        self.copy = copy
        self.newest = RuleBook()

    def add(self) -> None:
        book = self.newest.change([Rule(Selector(service=f"s{self.newest.revision}"), 30.0)])
        self.copy.add([entry_of(book, self.newest)])
        self.newest = book


@pytest.fixture
def books(tmp_path: Path) -> Books:
    return Books(LastGoodRules(tmp_path / "rules.json"))


def loaded(books: Books) -> RuleBook:
    copy = LastGoodRules(books.copy.path)
    book = copy.load()
    assert copy.damage == []
    return book


@pytest.mark.parametrize("number", range(4))
def test_what_is_committed_while_the_disk_is_slow_waits_for_nothing(
    books: Books, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    stuck, go_on, calls = threading.Event(), threading.Event(), []

    def slow(store: Callable[[int], None]) -> Callable[[int], None]:
        def stores(descriptor: int) -> None:
            calls.append(descriptor)
            if len(calls) == number + 1:
                stuck.set()
                assert go_on.wait(PATIENCE_S)
            store(descriptor)

        return stores

    for _ in range(5):
        books.add()
    monkeypatch.setattr(os, "fsync", slow(os.fsync))
    with ThreadPoolExecutor(1) as other:
        saving = other.submit(books.copy.save, books.newest)
        assert stuck.wait(PATIENCE_S)
        for _ in range(3):
            books.add()
        assert not saving.done()
        go_on.set()
        saving.result(PATIENCE_S)
    assert len(calls) == 4
    assert loaded(books).revision == books.newest.revision == 8
    books.add()
    assert loaded(books).rules == books.newest.rules


def test_no_revision_is_lost_however_copies_and_commits_meet(books: Books) -> None:
    done = threading.Event()

    def save() -> None:
        while not done.is_set():
            books.copy.save(books.newest)

    with ThreadPoolExecutor(2) as others:
        saving = [others.submit(save) for _ in range(2)]
        for _ in range(300):
            books.add()
        done.set()
        for each in saving:
            each.result(PATIENCE_S)
    assert loaded(books).rules == books.newest.rules


@pytest.mark.parametrize("end", [9, -1])
def test_half_a_line_before_a_copy_leaves_no_damage_behind_it(
    books: Books, monkeypatch: pytest.MonkeyPatch, end: int
) -> None:
    books.add()
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, text: write(descriptor, text[:end]))
        books.add()
    copied = books.newest if end == 9 else RuleBook()
    shortened = last_good._written

    def meanwhile(path: Path, content: bytes) -> Path:
        if path == books.copy.log_path:
            books.add()
        return shortened(path, content)

    monkeypatch.setattr(last_good, "_written", meanwhile)
    books.copy.save(copied)
    assert loaded(books).rules == books.newest.rules


def test_an_older_copy_that_waited_does_not_take_the_place_of_a_newer_one(books: Books) -> None:
    older = books.newest
    for _ in range(3):
        books.add()
    books.copy.save(books.newest)
    books.copy.save(older)
    assert loaded(books).rules == books.newest.rules
