"""The rules on disk."""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import resource
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spandial.abi import Mode
from spandial_api.rules import Rule, RuleBook
from spandial_api.selectors import PROTOCOLS, Selector
from spandial_api.store import Store, StoreError

_NOBODY = 65534
_KILLS = 40

_texts = st.none() | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
_selectors = st.builds(Selector, _texts, _texts, _texts, st.sampled_from([None, *PROTOCOLS]))
_rules = st.builds(Rule, _selectors, st.floats(0, 100), st.sampled_from(Mode), expires=st.none() | st.floats(0, 1e12))


def reopened(path: Path) -> RuleBook:
    store = Store(path)
    try:
        return store.load()
    finally:
        store.close()


def test_a_new_store_is_empty(store: Store) -> None:
    assert store.load() == RuleBook()


@given(st.lists(_rules))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_book_comes_back_as_it_was_saved(tmp_path: Path, rules: list[Rule]) -> None:
    path = tmp_path / "rules.sqlite"
    book = RuleBook()
    for rule in rules:
        book = book.put(rule)
    store = Store(path)
    store.save(book)
    store.close()
    assert reopened(path) == book


def test_the_revision_survives_the_removal_of_all_rules(store: Store) -> None:
    book = RuleBook().put(Rule(Selector(), 1)).remove(Selector())
    store.save(book)
    assert reopened(store.path) == RuleBook({}, 2)


def _save_for_ever(path: Path, acknowledged: Connection) -> None:
    store = Store(path)
    book = store.load()
    while True:
        # So many rules that a book is written in more than one page; all have the rate of the last change.
        rate = float((book.revision + 1) % 101)
        rules = [Rule(Selector(service=f"service-{number:040}"), rate, revision=number) for number in range(150)]
        book = RuleBook.of(rules, book.revision + 151)
        store.save(book)
        acknowledged.send(book.revision)


def test_a_store_whose_writer_is_killed_loads_and_has_lost_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "rules.sqlite"
    fork = multiprocessing.get_context("fork")
    pauses = random.Random(1)
    last = 0
    for _ in range(_KILLS):
        told, acknowledged = fork.Pipe(duplex=False)
        saver = fork.Process(target=_save_for_ever, args=(path, acknowledged))
        saver.start()
        acknowledged.close()
        time.sleep(pauses.uniform(0.005, 0.06))
        saver.kill()
        saver.join()
        try:
            while True:
                last = told.recv()
        except EOFError:
            pass
        told.close()
        book = reopened(path)
        assert book.revision >= last
        assert len(book.rules) == (150 if book.revision else 0)
        assert len({rule.rate for rule in book}) <= 1
        last = book.revision
    assert last > 0


@contextmanager
def _full_disk() -> Iterator[None]:
    """No file of this process can grow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_book_that_finds_no_room_leaves_the_last_one_in_place(store: Store) -> None:
    book = RuleBook().put(Rule(Selector(env="gray"), 30))
    store.save(book)
    with _full_disk(), pytest.raises(StoreError, match=str(store.path)):
        store.save(book.put(Rule(Selector(), 1)))
    assert store.load() == book
    store.save(book.put(Rule(Selector(), 2)))
    assert reopened(store.path).revision == 2


@pytest.mark.parametrize(
    "content", [b"this is no database, and long enough for a header" * 100, b"SQLite format 3\0junk"]
)
def test_a_corrupt_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rules.sqlite"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=str(path)):
        Store(path)


@pytest.mark.parametrize(
    "row",
    [
        ("checkout", None, None, None, 30.0, 9, 1, None),
        ("checkout", None, None, "carrier pigeon", 30.0, 0, 1, None),
        ("checkout", None, None, None, 300.0, 0, 1, None),
        ("checkout", None, None, None, "much", 0, 1, None),
        ("checkout", None, None, None, 30.0, 0, 1, "soon"),
    ],
    ids=["mode", "protocol", "rate too high", "rate no number", "time no number"],
)
def test_a_row_that_no_rule_can_have_is_an_error_of_the_file(store: Store, row: tuple[object, ...]) -> None:
    database = sqlite3.connect(store.path)
    database.execute("INSERT INTO rules VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
    database.commit()
    database.close()
    with pytest.raises(StoreError, match=str(store.path)):
        store.load()


def test_a_store_of_a_version_without_expiry_is_read_and_written(tmp_path: Path) -> None:
    path = tmp_path / "rules.sqlite"
    database = sqlite3.connect(path)
    database.executescript(
        "CREATE TABLE rules (service TEXT, version TEXT, env TEXT, protocol TEXT, rate REAL NOT NULL, "
        "mode INTEGER NOT NULL, revision INTEGER NOT NULL); CREATE TABLE state (revision INTEGER NOT NULL); "
        "INSERT INTO rules VALUES ('checkout', NULL, NULL, NULL, 30.0, 0, 7); INSERT INTO state VALUES (7);"
    )
    database.close()
    old = Rule(Selector("checkout"), 30, revision=7)
    store = Store(path)
    assert list(store.load()) == [old]
    store.save(store.load().renew(Selector("checkout"), 1234.5))
    store.close()
    assert list(reopened(path)) == [Rule(Selector("checkout"), 30, revision=8, expires=1234.5)]


def _save_as_nobody(path: Path, said: Connection) -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    try:
        Store(path).save(RuleBook())
        said.send("it was saved")
    except StoreError as error:
        said.send(str(error))


@pytest.mark.parametrize("filled", [False, True], ids=["empty", "with rules"])
def test_a_folder_that_cannot_be_written_is_named(filled: bool) -> None:
    # Not under tmp_path, which nobody else may enter.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rules.sqlite"
        if filled:
            store = Store(path)
            store.save(RuleBook())
            store.close()
        os.chmod(folder, 0o555)
        fork = multiprocessing.get_context("fork")
        told, said = fork.Pipe(duplex=False)
        saver = fork.Process(target=_save_as_nobody, args=(path, said))
        saver.start()
        assert re.search(rf"{path} cannot be (opened|written): .+", told.recv())
        saver.join()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=str(tmp_path / "none" / "rules.sqlite")):
        Store(tmp_path / "none" / "rules.sqlite")
