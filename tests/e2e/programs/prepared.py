"""Prepared statements in MariaDB's binary protocol through its own client library, which PyMySQL has nothing for.

The structure is that of mariadb_stmt.h (MariaDB Connector/C 3.x); a statement here takes one 64-bit integer.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_longlong, c_uint, c_ulong, c_void_p

__all__ = ["Connection", "PreparedError", "Statement"]

_MYSQL_TYPE_LONGLONG = 8


class _Bind(ctypes.Structure):
    """MYSQL_BIND."""

    _fields_ = [
        ("length", c_void_p),
        ("is_null", c_void_p),
        ("buffer", c_void_p),
        ("error", c_void_p),
        ("row_or_indicator", c_void_p),
        ("functions", c_void_p * 3),
        ("buffer_length", c_ulong),
        ("offset", c_ulong),
        ("length_value", c_ulong),
        ("flags", c_uint),
        ("pack_length", c_uint),
        ("buffer_type", c_uint),
        ("bools", ctypes.c_char * 4),
        ("extension", c_void_p),
    ]


def _library() -> ctypes.CDLL:
    library = ctypes.CDLL("libmariadb.so.3")
    signatures = {
        "mysql_init": (c_void_p, [c_void_p]),
        "mysql_real_connect": (c_void_p, [c_void_p, *[c_char_p] * 4, c_uint, c_char_p, c_ulong]),
        "mysql_close": (None, [c_void_p]),
        "mysql_errno": (c_uint, [c_void_p]),
        "mysql_error": (c_char_p, [c_void_p]),
        "mysql_stmt_init": (c_void_p, [c_void_p]),
        "mysql_stmt_prepare": (ctypes.c_int, [c_void_p, c_char_p, c_ulong]),
        "mysql_stmt_bind_param": (ctypes.c_char, [c_void_p, c_void_p]),
        "mysql_stmt_execute": (ctypes.c_int, [c_void_p]),
        "mysql_stmt_store_result": (ctypes.c_int, [c_void_p]),
        "mysql_stmt_field_count": (c_uint, [c_void_p]),
        "mysql_stmt_num_rows": (ctypes.c_ulonglong, [c_void_p]),
        "mysql_stmt_errno": (c_uint, [c_void_p]),
        "mysql_stmt_error": (c_char_p, [c_void_p]),
        "mysql_stmt_close": (ctypes.c_char, [c_void_p]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class PreparedError(Exception):
    """An error of the server, or of the library.

    Attributes:
        number: the server's error number; 2000 to 2999 and 5000 on are the library's.
    """

    def __init__(self, number: int, message: bytes) -> None:
        super().__init__(f"{number}: {message.decode(errors='replace')}")
        self.number = number


class Statement:
    """COM_STMT_PREPARE; COM_STMT_CLOSE when closed. Raises PreparedError."""

    def __init__(self, library: ctypes.CDLL, connection: int, text: str) -> None:
        self._library = library
        self._handle = library.mysql_stmt_init(connection)
        if library.mysql_stmt_prepare(self._handle, text.encode(), len(text.encode())):
            error = self._error()
            library.mysql_stmt_close(self._handle)
            raise error
        self._value = c_longlong()
        self._bind = _Bind(buffer=ctypes.addressof(self._value), buffer_type=_MYSQL_TYPE_LONGLONG)
        library.mysql_stmt_bind_param(self._handle, byref(self._bind))

    def execute(self, number: int) -> int:
        """COM_STMT_EXECUTE; the number of rows it gave. Raises PreparedError."""
        self._value.value = number
        if self._library.mysql_stmt_execute(self._handle):
            raise self._error()
        if self._library.mysql_stmt_field_count(self._handle) == 0:
            return 0
        if self._library.mysql_stmt_store_result(self._handle):
            raise self._error()
        return int(self._library.mysql_stmt_num_rows(self._handle))

    def close(self) -> None:
        self._library.mysql_stmt_close(self._handle)

    def _error(self) -> PreparedError:
        return PreparedError(self._library.mysql_stmt_errno(self._handle), self._library.mysql_stmt_error(self._handle))


class Connection:
    """A connection over TCP, or over a Unix socket where `unix_socket` is its path. Raises PreparedError."""

    def __init__(self, host: str, port: int, user: str, database: str, unix_socket: str | None = None) -> None:
        self._library = _library()
        self._handle = self._library.mysql_init(None)
        where = None if unix_socket else host.encode()
        path = unix_socket.encode() if unix_socket else None
        if not self._library.mysql_real_connect(
            self._handle, where, user.encode(), None, database.encode(), port, path, 0
        ):
            error = PreparedError(self._library.mysql_errno(self._handle), self._library.mysql_error(self._handle))
            self._library.mysql_close(self._handle)
            raise error

    def prepare(self, text: str) -> Statement:
        return Statement(self._library, self._handle, text)

    def close(self) -> None:
        self._library.mysql_close(self._handle)
