"""Compile BPF sources with bcc, in a process of its own: clang's 100 MB end with it.

Run by compiler.py as a script in isolated mode, so this file imports nothing but the standard library and bcc. Standard
input is a JSON object:

    bcc       the folder that has the package bcc
    sources   texts; tables that one of them exports are there for those behind it
    flags     for clang

Standard output is a JSON object of what the last source became, or of why it did not become anything:

    functions   name -> instructions in hexadecimal; where they refer to a map, they have its descriptor
    tables      name -> [descriptor, type, key size, value size, max entries, flags], also of those that others exported
    error       the exception's words; clang's own are on standard error
    imported    whether bcc could be imported
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from typing import Any

# bcc's Python side has no names for these.
_FIELDS = ("fd", "type", "key_size", "leaf_size", "max_entries", "flags")


def _compile(bcc: Any, sources: list[str], flags: list[str]) -> dict[str, Any]:
    modules = [bcc.BPF(text=source.encode(), cflags=flags) for source in sources]
    lib, last = ctypes.CDLL("libbcc.so.0"), modules[-1]
    module = ctypes.c_void_p(last.module)

    def ask(function: str, index: int, kind: Any) -> Any:
        asked = getattr(lib, function)
        asked.restype = kind
        return asked(module, ctypes.c_size_t(index))

    lib.bpf_num_tables.restype = lib.bpf_num_functions.restype = ctypes.c_size_t
    functions = [ask("bpf_function_name", index, ctypes.c_char_p) for index in range(lib.bpf_num_functions(module))]
    tables = {
        ask("bpf_table_name", index, ctypes.c_char_p).decode(): [
            ask(f"bpf_table_{field}_id", index, ctypes.c_int if field in ("fd", "type", "flags") else ctypes.c_size_t)
            for field in _FIELDS
        ]
        for index in range(lib.bpf_num_tables(module))
    }
    return {"functions": {name.decode(): last.dump_func(name).hex() for name in functions}, "tables": tables}


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    # The last on the path: nothing else may come from there.
    sys.path.append(request["bcc"])
    try:
        import bcc

        # The PyPI project of the same name is something else.
        if not hasattr(bcc, "BPF"):
            raise ImportError(f"{bcc.__file__} is not the BPF Compiler Collection")
    except (ImportError, OSError, AttributeError) as error:
        return {"error": str(error), "imported": False}
    try:
        return _compile(bcc, request["sources"], request["flags"])
    except Exception as error:
        return {"error": str(error), "imported": True}


if __name__ == "__main__":
    # Whatever libraries print is no part of the answer.
    with os.fdopen(os.dup(1), "w") as answer:
        os.dup2(2, 1)
        json.dump(_answer(json.load(sys.stdin)), answer)
