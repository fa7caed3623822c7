"""The rules on disk."""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import resource
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spandial.abi import Mode
from spandial_api.last_good import LastGoodRules
from spandial_api.opening import open_store
from spandial_api.rules import Rule, RuleBook
from spandial_api.selectors import PROTOCOLS, Selector
from spandial_api.store import AUDIT_MAX, NewerStore, Store, StoreError
from spandial_api.tables import row_sum
from tests.spandial_api.saving import entry_of, save

_NOBODY = 65534
_KILLS = 1000

_texts = st.none() | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
_names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9)
_labels = st.dictionaries(_names, _names, max_size=3).map(lambda labels: tuple(sorted(labels.items())))
_operations = st.none() | st.sampled_from(["GET /pay*", "/pkg.Service/*", "nightly report"])
_selectors = st.builds(
    Selector, _texts, _texts, _texts, st.sampled_from([None, *PROTOCOLS]), _operations, _texts, _labels
)
_expiries = st.none() | st.floats(0, 1e12)
_rules = st.builds(Rule, _selectors, st.floats(0, 100), st.sampled_from(Mode), expires=_expiries) | st.builds(
    Rule, _selectors, st.none(), target=st.floats(0.1, 1e9), floor=st.floats(0, 100), expires=_expiries
)


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
    save(store, book)
    store.close()
    assert reopened(path) == book


def test_the_revision_survives_the_removal_of_all_rules(store: Store) -> None:
    book = RuleBook().put(Rule(Selector(), 1)).remove(Selector())
    save(store, book)
    assert reopened(store.path) == RuleBook({}, 2)


def _write_for_ever(path: Path, acknowledged: Connection) -> None:
    store = Store(path)
    book = store.load()
    acknowledged.send(book.revision)
    while True:
        # So many rules that a revision is written in more than one page; all have the rate of the last change.
        rate = float((book.revision + 1) % 101)
        changed = book.change([Rule(Selector(service=f"service-{number:040}"), rate) for number in range(150)])
        store.write(entry_of(changed, book))
        book = changed
        acknowledged.send(book.revision)


def test_a_store_whose_writer_is_killed_a_thousand_times_has_no_half_revision_and_lost_none_that_was_answered(
    tmp_path: Path,
) -> None:
    path = tmp_path / "rules.sqlite"
    fork = multiprocessing.get_context("fork")
    chance = random.Random(1)
    last, write_s = 0, 0.004
    for _ in range(_KILLS):  # each at some moment of one of the first writes, however long those take
        told, acknowledged = fork.Pipe(duplex=False)
        writer = fork.Process(target=_write_for_ever, args=(path, acknowledged))
        writer.start()
        acknowledged.close()
        loaded = told.recv()
        assert loaded >= last
        last = loaded
        before = time.monotonic()
        if written := chance.randrange(3):
            last = max(told.recv() for _ in range(written))
            write_s = min((time.monotonic() - before) / written, 1)
        time.sleep(chance.uniform(0, 1.5 * write_s))
        writer.kill()
        writer.join()
        try:
            while True:
                last = told.recv()
        except EOFError:
            pass
        told.close()
        store = Store(path)
        book = store.load()
        assert book.revision >= last
        assert len(book.rules) == (150 if book.revision else 0)
        assert {rule.rate for rule in book} == ({float(book.revision % 101)} if book.revision else set())
        assert {rule.revision for rule in book} <= {book.revision}
        if book.revision:
            [entry] = store.audit(1)
            assert (entry.revision, len(entry.changes)) == (book.revision, 150)
        store.close()
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
    save(store, book)
    with _full_disk(), pytest.raises(StoreError, match=str(store.path)):
        save(store, book.put(Rule(Selector(), 1)))
    assert store.load() == book
    save(store, book.put(Rule(Selector(), 2)))
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
    ("selector", "rule"),
    [
        ('{"service": "checkout"}', '{"rate": 30.0, "mode": 9, "revision": 1}'),
        ('{"protocol": "carrier pigeon"}', '{"rate": 30.0, "mode": 0, "revision": 1}'),
        ('{"moon": "full"}', '{"rate": 30.0, "mode": 0, "revision": 1}'),
        ('{"labels": {"team": 7}}', '{"rate": 30.0, "mode": 0, "revision": 1}'),
        ('["checkout"]', '{"rate": 30.0, "mode": 0, "revision": 1}'),
        ("{}", '{"rate": 300.0, "mode": 0, "revision": 1}'),
        ("{}", '{"rate": "much", "mode": 0, "revision": 1}'),
        ("{}", '{"mode": 0, "revision": 1}'),
        ("{}", '{"rate": 1, "target": 1, "mode": 0, "revision": 1}'),
        ("{}", '{"rate": 30.0, "mode": 0, "revision": 1, "expires": "soon"}'),
        ("{}", '{"rate": 30.0'),
        ("{}", '{"rate": 30.0, "mode": null, "revision": 1}'),
        ("{}", '{"rate": 30.0, "mode": [0], "revision": 1}'),
        ('{"protocol": ["http"]}', '{"rate": 30.0, "mode": 0, "revision": 1}'),
    ],
)
def test_a_row_that_no_rule_can_have_is_an_error_of_the_file(store: Store, selector: str, rule: str) -> None:
    database = sqlite3.connect(store.path)
    database.execute("INSERT INTO rules VALUES (?, ?, ?)", (selector, rule, row_sum(selector, rule)))
    database.commit()
    database.close()
    with pytest.raises(StoreError, match=str(store.path)):
        store.load()


def test_a_store_of_a_newer_version_is_left_alone(store: Store) -> None:
    save(store, store.load().put(Rule(Selector("checkout"), 30)))
    store.close()
    database = sqlite3.connect(store.path)
    database.execute("PRAGMA user_version = 99")
    database.execute("PRAGMA journal_mode = DELETE")
    database.close()
    written = store.path.read_bytes()
    with pytest.raises(NewerStore, match=r"newer version of spandial \(99, not .*start that version again"):
        Store(store.path)
    assert store.path.read_bytes() == written
    assert [path for path in store.path.parent.iterdir() if path.name != store.path.name] == []


def test_of_a_newer_versions_store_the_copy_is_obeyed_and_no_change_is_taken(store: Store, tmp_path: Path) -> None:
    copy = LastGoodRules(tmp_path / "copy.json")
    book = store.load().put(Rule(Selector("checkout"), 30))
    save(store, book)
    copy.save(book)
    store.close()
    database = sqlite3.connect(store.path)
    database.execute("PRAGMA user_version = 99")
    database.close()
    opened = open_store(store.path, copy)
    assert (opened.newer, list(opened.load())) == (True, list(book))
    with pytest.raises(StoreError, match=r"start that version again; obeying .* and no change is taken$"):
        opened.probe()


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
    save(store, store.load().renew(Selector("checkout"), 1234.5))
    store.close()
    assert list(reopened(path)) == [Rule(Selector("checkout"), 30, revision=8, expires=1234.5)]


def _save_as_nobody(path: Path, said: Connection) -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    try:
        save(Store(path), RuleBook())
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
            save(store, RuleBook())
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


def test_the_audit_log_has_the_latest_first_and_goes_back_so_far(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spandial_api.store.AUDIT_MAX", 5)
    book = RuleBook()
    for rate in range(8):
        changed = book.put(Rule(Selector(env="gray"), float(rate)))
        store.write(entry_of(changed, book))
        book = changed
    assert AUDIT_MAX >= 1000
    assert [entry.revision for entry in store.audit(100)] == [8, 7, 6, 5, 4]
    assert [entry.revision for entry in store.audit(2, before=7)] == [6, 5]
    assert store.entry(3) is None
    entry = store.entry(8)
    assert entry is not None
    [(selector, before, after)] = entry.changes
    assert (selector, before and before.rate, after and after.rate) == (Selector(env="gray"), 6, 7)


def test_a_log_that_cannot_be_read_is_an_error_of_the_file(store: Store) -> None:
    database = sqlite3.connect(store.path)
    database.execute("INSERT INTO audit VALUES (1, 0, '', 'put', '', '[7]', NULL)")
    database.commit()
    database.close()
    with pytest.raises(StoreError, match=str(store.path)):
        store.audit(1)


def test_it_is_not_closed_under_the_hands_of_a_writer(tmp_path: Path) -> None:
    store = Store(tmp_path / "rules.sqlite")
    writing, go_on = threading.Event(), threading.Event()

    def wait(_statement: str) -> None:
        writing.set()
        go_on.wait(10)

    store._database.set_trace_callback(wait)
    writer, closer = threading.Thread(target=store.probe), threading.Thread(target=store.close)
    writer.start()
    assert writing.wait(10)
    closer.start()
    closer.join(0.05)
    assert closer.is_alive()
    go_on.set()
    writer.join(10)
    closer.join(10)
    assert not closer.is_alive()
    with pytest.raises(StoreError, match="closed"):
        store.write(entry_of(RuleBook().put(Rule(Selector(), 30))))


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "100% #1?mode=rwc"
    folder.mkdir()
    store = Store(folder / "rules.sqlite")
    save(store, RuleBook().put(Rule(Selector(), 30)))
    assert [entry.revision for entry in store.audit(9)] == [1]
    store.close()


def test_long_revisions_are_handed_out_few_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spandial_api.store._PAGE_MAX", 1000)
    book = RuleBook()
    for rate in range(5):
        changed = book.change([Rule(Selector(service=f"service-{number}"), float(rate)) for number in range(20)])
        store.write(entry_of(changed, book))
        book = changed
    assert [entry.revision for entry in store.audit(100)] == [5]
    assert [entry.revision for entry in store.audit(100, before=5)] == [4]


def test_a_document_comes_back_as_it_was_set(store: Store) -> None:
    assert store.document("quotas") is None
    store.set_document("quotas", {"acme": [1.5, None]})
    store.set_document("quotas", {"acme": [2, "x"]})
    assert store.document("quotas") == {"acme": [2, "x"]}


@pytest.mark.parametrize("damage", [b"", b"this is no database, and long enough for a header" * 100])
def test_where_the_store_is_damaged_the_copy_is_obeyed_and_nothing_is_written(tmp_path: Path, damage: bytes) -> None:
    copy = LastGoodRules(tmp_path / "rules.json")
    path = tmp_path / "rules.sqlite"
    book = RuleBook().put(Rule(Selector(env="gray", labels=(("team", "pay"),)), 30)).put(Rule(Selector(), 1))
    with pytest.raises(FileNotFoundError):
        copy.load()
    copy.save(book)
    assert copy.load() == book
    path.write_bytes(damage)
    if not damage:
        path.unlink()
        path.mkdir()
    store = open_store(path, copy)
    assert store.load() == book
    for write in (store.probe, lambda: store.write(entry_of(book)), lambda: store.set_document("a", 1)):
        with pytest.raises(StoreError, match="obeying the rules of revision 2"):
            write()
    store.close()
    path.rmdir() if path.is_dir() else path.rename(tmp_path / "damaged")  # as the reason says
    for _ in range(2):
        store = open_store(path, copy)
        assert store.load() == book
        assert [(entry.revision, entry.who, len(entry.changes)) for entry in store.audit(9)] == [(2, "spandial", 2)]
        store.close()
    path.write_bytes(b"this is no database, and long enough for a header" * 100)
    copy.path.write_text("{}")
    with pytest.raises(StoreError, match=str(path)):
        open_store(path, copy)


def test_the_newer_of_store_and_copy_is_obeyed_and_what_the_store_lost_is_said(tmp_path: Path) -> None:
    copy = LastGoodRules(tmp_path / "rules.json")
    store = Store(tmp_path / "rules.sqlite")
    old = RuleBook().put(Rule(Selector(), 30)).put(Rule(Selector(env="gray"), 5))
    save(store, old)
    store.close()
    newer = old.remove(Selector(env="gray")).put(Rule(Selector(), 2))
    copy.save(newer)
    store = open_store(store.path, copy)
    assert store.load() == newer
    [sentence] = store.damage
    assert "revisions 3 to 4 were lost" in sentence
    assert "budgets and quotas" in sentence
    [entry, _] = store.audit(9)
    assert (entry.revision, entry.who, len(entry.changes)) == (4, "spandial", 2)
    newest = newer.put(Rule(Selector(), 3))
    store.write(entry_of(newest, newer))  # and it takes changes
    store.close()
    store = open_store(store.path, copy)
    assert store.load() == copy.load() == newest
    assert store.damage == []
    store.close()


def test_a_store_of_the_version_before_is_read_and_written_and_has_checksums_then(tmp_path: Path) -> None:
    path = tmp_path / "rules.sqlite"
    database = sqlite3.connect(path)
    database.executescript(
        "CREATE TABLE rules (selector TEXT PRIMARY KEY, rule TEXT NOT NULL) WITHOUT ROWID; "
        "CREATE TABLE audit (revision INTEGER PRIMARY KEY, time REAL NOT NULL, who TEXT NOT NULL, "
        "action TEXT NOT NULL, why TEXT NOT NULL, changes TEXT NOT NULL); "
        "CREATE TABLE state (revision INTEGER NOT NULL); "
        "CREATE TABLE documents (name TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID; "
        """INSERT INTO rules VALUES ('{"service": "checkout"}', '{"mode": 0, "revision": 7, "rate": 30.0}'); """
        "INSERT INTO audit VALUES (7, 1000, 'uid 0', 'put', '', '[]'); INSERT INTO state VALUES (7); "
        "INSERT INTO documents VALUES ('limits', '5'); PRAGMA user_version = 2;"
    )
    database.close()
    store = Store(path)
    assert list(store.load()) == [Rule(Selector("checkout"), 30, revision=7)]
    assert [entry.revision for entry in store.audit(9)] == [7]
    assert store.document("limits") == 5
    save(store, store.load().put(Rule(Selector(), 1)))
    store._database.execute("UPDATE rules SET rule = replace(rule, '30', '31')")
    with pytest.raises(StoreError, match="not what was written"):
        store.load()
    store.close()
