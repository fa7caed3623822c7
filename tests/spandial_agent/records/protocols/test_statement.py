"""Statements without their data: nothing that was a literal or a comment is ever in what comes out."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spandial_agent.records.protocols.database import RAW_MAX, TEXT_MAX
from spandial_agent.records.protocols.statement import Dialect, read_statement, strip_literals

DIALECTS: tuple[Dialect, Dialect] = ("postgres", "mysql")

# The data of the generated literals: no other part of the generated statements has any of these characters.
SECRET = "zq789é"
_secrets = st.sampled_from(["zq", "ZQ", "zé9", "é", "987", "q7"])
_noise = st.sampled_from(["'", '"', "`", "\\", "\\'", "''", "$", "--", "#", "/*", "*/", "\n", " ", "(", ",", "?", ""])
_bodies = st.lists(_noise | _secrets, min_size=1, max_size=6).map("".join)


def _without(body: str, *parts: str) -> str:
    """The body without these; what is left of it does not make them anew."""
    while any(part in body for part in parts):
        for part in parts:
            body = body.replace(part, "")
    return body


_numbers = st.sampled_from(
    ["789", "-987", "7.89", ".789", "8.", "7e9", "7.8E-9", "0x789", "0b987", "7_8_9", "7zq", "9eq", "0xzq"]
)
_plain = _bodies.map(lambda body: "'" + body.replace("'", "''") + "'")


def _escaped(quote: str) -> st.SearchStrategy[str]:
    return st.tuples(_bodies, st.sampled_from([quote * 2, "\\" + quote])).map(
        lambda drawn: quote + drawn[0].replace("\\", "\\\\").replace(quote, drawn[1]) + quote
    )


_dollar = st.tuples(_bodies, st.sampled_from(["", "a", "A_1", "été"])).map(
    lambda drawn: f"${drawn[1]}${_without(drawn[0], '$')}${drawn[1]}$"
)
_block = _bodies.map(lambda body: "/*" + _without(body, "*/", "/*", "/", "*") + "*/")
_nested = st.tuples(_block, _block).map(lambda drawn: f"/*/*{drawn[0]} */ /**/ zq {drawn[1]}*/")
_literals: dict[str, st.SearchStrategy[str]] = {
    "postgres": _numbers
    | _plain
    | _dollar
    | _escaped("'").map("E".__add__)
    | _escaped("'").map("e".__add__)
    | st.tuples(st.sampled_from(["X", "b", "N", "U&", "DATE "]), _plain).map("".join)
    | _block
    | _nested
    | _bodies.map(lambda body: "--" + _without(body, "\n") + "\n"),
    "mysql": _numbers
    | _escaped("'")
    | _escaped('"')
    | st.tuples(st.sampled_from(["X", "b", "n", "_ascii", "_binary "]), _escaped("'")).map("".join)
    | _block
    | st.tuples(st.sampled_from(["/*!50000", "/*M!", "/*+"]), _bodies).map(
        lambda drawn: drawn[0] + _without(drawn[1], "*/", "/", "*") + "*/"
    )
    | st.tuples(st.sampled_from(["-- ", "--\t", "#"]), _bodies).map(
        lambda drawn: drawn[0] + _without(drawn[1], "\n") + "\n"
    ),
}
_shared = ["SELECT", "FROM", "INTO", "t", "a.b", "x1", "(", ")", ",", "=", "||", "-", "*", "IN", "VALUES", "IN (", "AS"]
_skeletons = {
    "postgres": st.sampled_from([*_shared, '"it\'s"', '"a""b"', "$1", "::int", "{#", "#>>", "@>", "a$b$c", "E", "{"]),
    "mysql": st.sampled_from([*_shared, "`it's`", "`a``b`", "?", "@v", "@@x.y", "a$b", "--1", "{", ":=", '`a"b`']),
}


def _statements(dialect: Dialect) -> st.SearchStrategy[str]:
    pieces = _skeletons[dialect] | _literals[dialect]
    return st.lists(st.tuples(pieces, st.sampled_from([" ", "\n", "\t "])).map("".join), max_size=12).map("".join)


def _everything(sql: str, dialect: Dialect, cut: bool) -> str:
    return "".join(strip_literals(sql, dialect, cut))


@pytest.mark.parametrize("dialect", DIALECTS)
@given(data=st.data(), part=st.floats(0, 1))
def test_no_literal_and_no_comment_survives_wherever_the_statement_is_cut(
    dialect: Dialect, data: st.DataObject, part: float
) -> None:
    sql = data.draw(_statements(dialect))
    assert not set(_everything(sql, dialect, False)) & set(SECRET)
    beginning = sql[: int(part * len(sql))]
    assert not set(_everything(beginning, dialect, True)) & set(SECRET)
    assert not set(_everything(beginning, dialect, False)) & set(SECRET)


@pytest.mark.parametrize("dialect", DIALECTS)
@given(data=st.data(), part=st.floats(0, 1))
def test_nor_in_the_operation_of_bytes_that_are_cut_anywhere(
    dialect: Dialect, data: st.DataObject, part: float
) -> None:
    statement = data.draw(_statements(dialect)).encode()
    length = int(part * len(statement))
    operation = read_statement(statement[:length], dialect, length == len(statement))
    assert not set(operation.name + operation.collection + operation.text) & set(SECRET)
    assert operation.complete == (length == len(statement))
    assert operation.raw == statement[:length][:RAW_MAX].decode(errors="backslashreplace")[:RAW_MAX]


@pytest.mark.parametrize("dialect", DIALECTS)
@given(statement=st.binary(max_size=400) | st.text(max_size=200).map(str.encode), complete=st.booleans())
@example(b"\xff", True)
@example(b"SELECT '\xff', 'b'", True)
@example(b"SELECT {# x", True)
@example(b"SELECT " + b"(" * 3000, False)
@example(b"IN (" * 700, False)
@example(b"VALUES (" * 400, False)
@example(b"/*" * 1500, True)
@example("é".encode() * 4000, True)
def test_nothing_makes_it_raise_or_grow(dialect: Dialect, statement: bytes, complete: bool) -> None:
    operation = read_statement(statement, dialect, complete)
    assert len(operation.text) <= TEXT_MAX
    assert len(operation.raw) <= RAW_MAX
    assert len(operation.collection) <= 128
    assert operation.text == operation.text.strip()


@pytest.mark.parametrize("dialect", DIALECTS)
@given(
    sql=st.text(st.sampled_from("'\"`$\\-/*#(,.;+ \n1aEn\ud800\0\xa0") | st.characters(), max_size=60),
    cut=st.booleans(),
)
def test_a_text_that_is_stripped_twice_is_stripped_once(dialect: Dialect, sql: str, cut: bool) -> None:
    name, collection, text = strip_literals(sql, dialect, cut)
    again = strip_literals(text, dialect, False)
    assert again[2] == text
    assert (name, collection) == again[:2] or "{#" in sql


@pytest.mark.parametrize(
    ("sql", "name", "collection", "text"),
    [
        ("SELECT * FROM t WHERE a = 'x' AND b=-1.5e3", "SELECT", "t", "SELECT * FROM t WHERE a = ? AND b=?"),
        ("select  a,\n\tb from T", "SELECT", "T", "select a, b from T"),
        ("SELECT 'it''s', 2 -- why\nFROM t", "SELECT", "t", "SELECT ?, ? FROM t"),
        ("SELECT a /* b */ FROM t;", "SELECT", "t", "SELECT a FROM t;"),
        ("SELECT a FROM t WHERE b IN (1, 'x', -3)", "SELECT", "t", "SELECT a FROM t WHERE b IN (?)"),
        ("SELECT a FROM t WHERE b IN (?,?,?)", "SELECT", "t", "SELECT a FROM t WHERE b IN (?)"),
        ("SELECT a FROM t WHERE (b, c) IN ((1, 2), (3, 4))", "SELECT", "t", "SELECT a FROM t WHERE (b, c) IN ((?, ?))"),
        ("SELECT a FROM t WHERE b IN (c, 1)", "SELECT", "t", "SELECT a FROM t WHERE b IN (c, ?)"),
        ("SELECT a FROM t WHERE b IN (SELECT c FROM u)", "SELECT", "", "SELECT a FROM t WHERE b IN (SELECT c FROM u)"),
        (
            "INSERT INTO t (a, b) VALUES (1, 'x'), (2, now()), (3, 'z')",
            "INSERT",
            "t",
            "INSERT INTO t (a, b) VALUES (?, ?)",
        ),
        ("UPDATE s.t SET a = TRUE, b = NULL WHERE c IS NOT TRUE", "UPDATE", "s.t", None),
        ("DELETE FROM t WHERE a BETWEEN -1 AND -2 AND b - 3 > 4", "DELETE", "t", None),
        ("WITH x AS (SELECT a FROM t) SELECT * FROM x", "SELECT", "t", None),
        ("WITH RECURSIVE x(n) AS (SELECT 1) INSERT INTO t SELECT n FROM x", "INSERT", "t", None),
        ("(SELECT a FROM t) UNION (SELECT a FROM T)", "SELECT", "t", None),
        ("SELECT * FROM a JOIN b USING (id)", "SELECT", "", None),
        ("SELECT * FROM a, b", "SELECT", "", None),
        ("SELECT * FROM t x, t y", "SELECT", "t", None),
        ("SELECT * FROM (SELECT b, c FROM t) AS x", "SELECT", "t", None),
        ("SELECT EXTRACT(YEAR FROM day) FROM t FOR UPDATE", "SELECT", "t", None),
        ("SELECT f(a) FROM g(b)", "SELECT", "", "SELECT f(a) FROM g(b)"),
        ("CREATE TABLE IF NOT EXISTS t (a int, b int)", "CREATE", "t", None),
        ("DROP TABLE a, b", "DROP", "", None),
        ("TRUNCATE TABLE t", "TRUNCATE", "t", None),
        ("ALTER TABLE t ADD a int, ADD b int", "ALTER", "t", None),
        ("EXPLAIN SELECT a FROM t", "EXPLAIN", "t", None),
        ("BEGIN", "BEGIN", "", "BEGIN"),
        ("START TRANSACTION", "START", "", "START TRANSACTION"),
        ("COMMIT;", "COMMIT", "", "COMMIT;"),
        ("secret words", "", "", "secret words"),
        ("", "", "", ""),
        (" -- nothing", "", "", ""),
        (";", "", "", ";"),
    ],
)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_statements(dialect: Dialect, sql: str, name: str, collection: str, text: str | None) -> None:
    found = strip_literals(sql, dialect, False)
    assert found[:2] == (name, collection)
    assert text is None or found[2] == text


@pytest.mark.parametrize(
    ("sql", "collection", "text"),
    [
        ("SELECT E'it\\'s', U&'d\\0061', x'1F', B'01'", "", "SELECT ?, ?, ?, ?"),
        ("SELECT $$it's$$, $a$ $b$ $a$, a$b$ FROM t", "t", "SELECT ?, ?, a$b$ FROM t"),
        ("SELECT 'C:\\temp' FROM t", "t", "SELECT ? FROM t"),
        ("SELECT 'a\\', secret, 'b'", "", "SELECT ?"),
        ("SELECT /* a /* b */ c */ d", "", "SELECT d"),
        ("SELECT /*/* a */ b */ c", "", "SELECT c"),
        ('SELECT "a b" FROM public."Order ""s"""', 'public.Order "s"', 'SELECT "a b" FROM public."Order ""s"""'),
        ("SELECT $1::int, a->>'b' FROM t WHERE c IN ($1,$2, $3)", "t", "SELECT $1::int, a->>? FROM t WHERE c IN ($1)"),
        ("INSERT INTO t VALUES ($1,$2),($3,$4) RETURNING a", "t", "INSERT INTO t VALUES ($1,$2) RETURNING a"),
        ("SELECT a FROM ONLY t WHERE a IS DISTINCT FROM b", "t", "SELECT a FROM ONLY t WHERE a IS DISTINCT FROM b"),
        ("COPY t (a) FROM STDIN", "t", "COPY t (a) FROM STDIN"),
        ("DELETE FROM a USING b WHERE a.c = b.c", "", "DELETE FROM a USING b WHERE a.c = b.c"),
        ("SELECT a -- b\r, c", "", "SELECT a , c"),
    ],
)
def test_statements_of_postgresql(sql: str, collection: str, text: str) -> None:
    assert strip_literals(sql, "postgres", False)[1:] == (collection, text)


@pytest.mark.parametrize(
    ("sql", "collection", "text"),
    [
        ("SELECT 'it\\'s', \"a\\\"b\", N'x', _utf8mb4 'y', 0x1F, x'1F'", "", "SELECT ?, ?, ?, ?, ?, ?"),
        ("SELECT `a``b` FROM `d`.`t` # why", "d.t", "SELECT `a``b` FROM `d`.`t`"),
        ("SELECT 5--1, @x, @@y -- why\n, @'z'", "", "SELECT ?--?, @x, @@y , @?"),
        ("SELECT /*+ MAX_EXECUTION_TIME(9) */ a FROM t", "t", "SELECT a FROM t"),
        ("SELECT 1 /*! , 'a */ secret' */, b", "", "SELECT ? ?"),
        ("SELECT /* /* */ a", "", "SELECT a"),
        ("SELECT a -- b\r, c\n, d", "", "SELECT a , d"),
        ("INSERT t VALUES (1), (2) ON DUPLICATE KEY UPDATE a = VALUES(a), b = VALUES(b)", "t", None),
        ("REPLACE INTO t SET a = 1", "t", "REPLACE INTO t SET a = ?"),
        ("UPDATE LOW_PRIORITY t SET a = REPLACE(a, 'x', 'y')", "t", "UPDATE LOW_PRIORITY t SET a = REPLACE(a, ?, ?)"),
        ("UPDATE a, b SET a.c = b.c", "", "UPDATE a, b SET a.c = b.c"),
        ("LOCK TABLES a READ, b WRITE", "", "LOCK TABLES a READ, b WRITE"),
        ("SHOW COLUMNS FROM t LIKE 'x'", "", "SHOW COLUMNS FROM t LIKE ?"),
    ],
)
def test_statements_of_mysql(sql: str, collection: str, text: str | None) -> None:
    found = strip_literals(sql, "mysql", False)
    assert found[1] == collection
    assert text is None or found[2] == text


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELE", ("", "", "")),
        ("SELECT a FROM orde", ("SELECT", "", "SELECT a FROM")),
        ("SELECT a FROM s.orde", ("SELECT", "", "SELECT a FROM s.")),
        ("SELECT a FROM orders ", ("SELECT", "orders", "SELECT a FROM orders")),
        ("SELECT a FROM t WHERE b = TRU", ("SELECT", "t", "SELECT a FROM t WHERE b =")),
        ("SELECT a FROM t WHERE b = 'secr", ("SELECT", "t", "SELECT a FROM t WHERE b = ?")),
        ("SELECT a FROM t WHERE b IN (1, 2, 'x", ("SELECT", "t", "SELECT a FROM t WHERE b IN (?")),
        ("INSERT INTO t VALUES (1, 'x'), (2, 'y", ("INSERT", "t", "INSERT INTO t VALUES (?, ?)")),
        ("SELECT a /* secr", ("SELECT", "", "SELECT a")),
        ("SELECT a FROM t WHERE b = $secr", ("SELECT", "t", "SELECT a FROM t WHERE b = ?")),
    ],
)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_of_a_statement_that_is_cut_off_what_is_certain_is_told(
    dialect: Dialect, sql: str, expected: tuple[str, str, str]
) -> None:
    assert strip_literals(sql, dialect, True) == expected


def test_what_sqlglot_cannot_read_has_its_name_and_no_literal() -> None:
    assert strip_literals("SELECT {#  'secret' FROM t", "postgres", False) == ("SELECT", "", "SELECT {# ? FROM t")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_text_ends_where_it_is_not_utf8(dialect: Dialect) -> None:
    operation = read_statement(b"SELECT a FROM t WHERE b = '\xbf\\' AND secret = 'x'", dialect, True)
    assert operation[:3] == ("SELECT", "t", "SELECT a FROM t WHERE b = ?")
    assert operation.complete


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_statement_that_is_longer_than_what_is_looked_at_is_not_complete(dialect: Dialect) -> None:
    operation = read_statement(b"SELECT a FROM t WHERE b = '" + b"x" * 3000 + b"'", dialect, True)
    assert operation[:3] == ("SELECT", "t", "SELECT a FROM t WHERE b = ?")
    assert not operation.complete
