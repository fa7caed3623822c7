"""What is on disk is damaged, or removed: what was answered is obeyed, or it is said that it may not be."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spandial_api.control import Author, Control
from spandial_api.last_good import LastGoodRules
from spandial_api.opening import open_store
from spandial_api.rules import Rule, RuleBook
from spandial_api.selectors import Selector
from spandial_api.store import Store, StoreError
from tests.spandial_api.fake_node import FakeNode
from tests.spandial_api.saving import entry_of

NAMES = ("rules.sqlite", "rules.sqlite-wal", "rules.sqlite-shm", "rules.json", "rules.log")
OLD = Selector(service="old")


class Killed:
    """What an agent that is killed leaves: a store with changes in its log, and an older copy beside it."""

    def __init__(self, folder: Path) -> None:
        copy = LastGoodRules(folder / "rules.json")
        store = open_store(folder / "rules.sqlite", copy)
        book = RuleBook()
        for number in range(60):
            rules = [Rule(Selector(service=f"s{number % 40}", env="gray"), float(number)), Rule(OLD, 1)][
                : 1 + number % 2
            ]
            changed = book.change(rules)
            store.write(entry_of(changed, book))
            book = changed
            if number == 30:
                copy.save(book)
                store._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.book = book
        self.files = {name: (folder / name).read_bytes() for name in NAMES}
        store.close()


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    return Killed(tmp_path_factory.mktemp("killed"))


def obeyed_or_said(folder: Path, newest: RuleBook) -> bool:
    """Whether the newest rules are obeyed. Fails where they are not and nothing is said."""
    try:
        store = open_store(folder / "rules.sqlite", LastGoodRules(folder / "rules.json"))
    except StoreError as error:
        said = str(error)
    else:
        said = ""
    if said:
        assert str(folder) in said
        return False
    try:
        control = Control(store, FakeNode(), lambda: 1000.0)
        for read in (lambda: store.audit(100), lambda: store.document("limits")):
            with suppress(StoreError):
                read()
        if control.book == newest:
            return True
        assert control.trouble or control.damage, f"revision {control.book.revision} is obeyed without a word"
        return False
    finally:
        store.close()


damages = st.tuples(
    st.sampled_from(["zeroes", "flip", "noise", "truncate", "remove"]),
    st.floats(0, 1, exclude_max=True),
    st.integers(1, 4096),
    st.integers(0, 2**32),
)


def damaged(content: bytes, how: str, where: float, length: int, seed: int) -> bytes | None:
    start = int(where * len(content))
    end = min(start + length, len(content))
    if how == "remove":
        return None
    if how == "truncate":
        return content[:start]
    if how == "flip":
        return content[:start] + bytes([content[start] ^ 1 << seed % 8]) + content[start + 1 :]
    filling = bytes(end - start) if how == "zeroes" else random.Random(seed).randbytes(end - start)
    return content[:start] + filling + content[end:]


@given(name=st.sampled_from(NAMES), damage=damages)
@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_that_is_damaged_never_brings_old_rules_back_in_silence(
    tmp_path: Path, killed: Killed, name: str, damage: tuple[str, float, int, int]
) -> None:
    folder = tmp_path / "state"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(0o700)
    for each, content in killed.files.items():
        left = damaged(content, *damage) if each == name else content
        if left is not None:
            (folder / each).write_bytes(left)
    obeyed = obeyed_or_said(folder, killed.book)
    if name != "rules.sqlite" or damage[0] in ("truncate", "remove"):
        assert obeyed  # what is damaged alone loses nothing
    assert obeyed_or_said(folder, killed.book) >= obeyed


def test_what_an_agent_that_is_killed_leaves_is_whole(tmp_path: Path, killed: Killed) -> None:
    for each, content in killed.files.items():
        (tmp_path / each).write_bytes(content)
    assert obeyed_or_said(tmp_path, killed.book)
    store = open_store(tmp_path / "rules.sqlite", LastGoodRules(tmp_path / "rules.json"))
    assert store.damage == []
    store.close()


@pytest.mark.parametrize("column", ["selector", "rule", "sum"])
@pytest.mark.parametrize("value", [None, 7, b"\xff", 1.5, "[" * 100_000, '{"rate": NaN}'])
def test_values_of_any_type_are_damage_and_no_accident(tmp_path: Path, column: str, value: object) -> None:
    store = Store(tmp_path / "rules.sqlite")
    store.write(entry_of(RuleBook().put(Rule(OLD, 1))))
    store.close()
    database = sqlite3.connect(store.path)
    rows = database.execute("SELECT selector, rule, sum FROM rules").fetchall()
    database.executescript("DROP TABLE rules; CREATE TABLE rules (selector, rule, sum);")
    for row in rows:
        named = dict(zip(("selector", "rule", "sum"), row)) | {column: value}
        database.execute("INSERT INTO rules VALUES (:selector, :rule, :sum)", named)
    database.commit()
    database.close()
    store = Store(store.path)
    with pytest.raises(StoreError, match=str(store.path)):
        store.load()
    store.close()


def test_a_rule_that_is_gone_is_missed_and_one_that_is_back_is_noticed(tmp_path: Path) -> None:
    store = Store(tmp_path / "rules.sqlite")
    store.write(entry_of(RuleBook().put(Rule(OLD, 1)).put(Rule(Selector(), 2))))
    row = store._database.execute("SELECT * FROM rules").fetchone()
    store._database.execute("DELETE FROM rules WHERE selector = ?", row[:1])
    with pytest.raises(StoreError, match="not all rules are there"):
        store.load()
    store._database.execute("INSERT INTO rules VALUES (?, ?, ?)", row)
    assert len(store.load().rules) == 2
    store.close()


def test_a_damaged_log_of_changes_is_changed_no_further_than_it_can_be_read(tmp_path: Path) -> None:
    store = Store(tmp_path / "rules.sqlite")
    store.write(entry_of(RuleBook().put(Rule(OLD, 1))))
    store._database.execute("UPDATE audit SET why = 'nothing'")
    with pytest.raises(StoreError, match="revision 1 is not what was written"):
        store.audit(9)
    store.set_document("limits", {"budget": 5})
    store._database.execute("UPDATE documents SET body = '{}'")
    with pytest.raises(StoreError, match=r"limits in .* is not what was written"):
        store.document("limits")
    store.close()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def copied(tmp_path: Path) -> Iterator[tuple[Store, LastGoodRules]]:
    copy = LastGoodRules(tmp_path / "rules.json")
    store = open_store(tmp_path / "rules.sqlite", copy)
    yield store, copy
    store.close()


def restarted(folder: Path) -> Store:
    """What an agent finds that is started after this one was killed."""
    after = folder / "after"
    after.mkdir(0o700)
    for path in folder.glob("rules.*"):
        shutil.copy(path, after)
    return open_store(after / "rules.sqlite", LastGoodRules(after / "rules.json"))


@pytest.mark.anyio
@pytest.mark.parametrize("names", [[name] for name in NAMES] + [list(NAMES), list(NAMES[:3])])
async def test_what_is_answered_is_there_after_a_restart_whatever_was_removed_before(
    copied: tuple[Store, LastGoodRules], tmp_path: Path, names: list[str]
) -> None:
    store, copy = copied
    control = Control(store, FakeNode(), copy=copy)
    await control.put(Rule(OLD, 1), Author("uid 0"))
    copy.save(control.book)
    for name in names:
        (tmp_path / name).unlink(missing_ok=True)
    await control.put(Rule(Selector(), 30), Author("uid 0"))
    again = restarted(tmp_path)
    assert again.load() == control.book
    assert [entry.revision for entry in again.audit(9)] == [2, 1]
    assert again.damage == []
    again.close()


@pytest.mark.anyio
async def test_a_store_that_was_replaced_takes_no_change_and_says_why(
    copied: tuple[Store, LastGoodRules], tmp_path: Path
) -> None:
    store, copy = copied
    control = Control(store, FakeNode(), copy=copy)
    await control.put(Rule(OLD, 1), Author("uid 0"))
    (tmp_path / "rules.sqlite").rename(tmp_path / "away")
    (tmp_path / "rules.sqlite").write_text("somebody's")
    with pytest.raises(StoreError, match="was replaced by another file"):
        await control.put(Rule(Selector(), 30), Author("uid 0"))
    assert "move it away" in control.trouble
    assert set(control.book.rules) == {OLD}
    assert (tmp_path / "rules.sqlite").read_text() == "somebody's"
    assert store.load() == control.book
    (tmp_path / "rules.sqlite").unlink()  # as it says
    await control.put(Rule(Selector(), 30), Author("uid 0"))
    assert control.trouble == ""


@pytest.mark.anyio
async def test_a_store_that_is_replaced_in_the_middle_of_a_change_does_not_have_it(
    copied: tuple[Store, LastGoodRules], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, copy = copied
    node = FakeNode()
    control = Control(store, node, copy=copy)

    def replace(book: RuleBook) -> None:  # the change is prepared, and obeyed from now on
        if book.revision == 1 and not (tmp_path / "away").exists():
            (tmp_path / "rules.sqlite").rename(tmp_path / "away")
            (tmp_path / "rules.sqlite").write_text("somebody's")

    node.on_apply = replace
    with pytest.raises(StoreError, match="was replaced by another file"):
        await control.put(Rule(OLD, 1), Author("uid 0"))
    assert store.load() == control.book == node.applied[-1] == RuleBook()


def test_what_cannot_be_read_can_be_asked_for_again_and_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "rules.sqlite")
    copy = LastGoodRules(tmp_path / "rules.json")
    copy.save(RuleBook())
    store.write(entry_of(RuleBook().put(Rule(OLD, 1))))
    store.close()
    (tmp_path / "rules.sqlite").write_bytes(b"damage" * 1000)
    unusable = open_store(tmp_path / "rules.sqlite", copy)
    depths = []
    for _ in range(3):
        with pytest.raises(StoreError) as raised:
            unusable.audit(1)
        depths.append(len(raised.traceback))
    assert len(set(depths)) == 1  # an exception that is raised again keeps each caller's frame


def test_a_history_that_was_lost_does_not_come_back_beside_the_new_one(tmp_path: Path) -> None:
    copy = LastGoodRules(tmp_path / "rules.json")
    kept = RuleBook().put(Rule(OLD, 1))
    copy.save(kept)
    copy.add([replace(entry_of(RuleBook().put(Rule(OLD, 2))), revision=3)])  # the line before it is missing
    store = open_store(tmp_path / "rules.sqlite", copy)
    assert store.load() == kept
    assert copy.log_path.read_bytes() == b""
    store.close()
