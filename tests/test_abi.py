"""The C header and its Python mirror say the same."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from spandial import abi

BPF = Path(__file__).parent.parent / "bpf"

CONSTANTS = {
    "SPANDIAL_ABI": abi.ABI,
    "SPANDIAL_MAGIC": abi.MAGIC,
    "SPANDIAL_ROWS": abi.ROWS,
    "SPANDIAL_ROW_WORDS": abi.ROW_WORDS,
    "SPANDIAL_HEADER_ROW": abi.HEADER_ROW,
    "SPANDIAL_DEFAULT_ROW": abi.DEFAULT_ROW,
    "SPANDIAL_SHEET_SIZE": abi.SHEET_SIZE,
    "SPANDIAL_HEADER_MAGIC": abi.HEADER_MAGIC,
    "SPANDIAL_HEADER_GENERATION": abi.HEADER_GENERATION,
    "SPANDIAL_HEADER_LEASE": abi.HEADER_LEASE,
    "SPANDIAL_HEADER_ROWS": abi.HEADER_ROWS,
    "SPANDIAL_BODY_UNKNOWN": abi.BODY_UNKNOWN,
    "SPANDIAL_WORD_EXAMPLES": abi.WORD_EXAMPLES,
    "SPANDIAL_WORD_OPERATIONS": abi.WORD_OPERATIONS,
    "SPANDIAL_WORD_FALLBACK": abi.WORD_FALLBACK,
    "SPANDIAL_WORD_OWNER": abi.WORD_OWNER,
    "SPANDIAL_INTERNAL": abi.EntryKind.INTERNAL,
    "SPANDIAL_HTTP": abi.EntryKind.HTTP,
    "SPANDIAL_GRPC": abi.EntryKind.GRPC,
    "SPANDIAL_DB": abi.EntryKind.DB,
    "SPANDIAL_ENTRY_KINDS": len(abi.EntryKind),
    "SPANDIAL_VALID": abi.Flag.VALID,
    "SPANDIAL_NEVER": abi.Flag.NEVER,
    "SPANDIAL_OPERATIONS": abi.Flag.OPERATIONS,
    "SPANDIAL_EMIT": abi.Flag.EMIT,
    "SPANDIAL_THIN": abi.Flag.THIN,
    "SPANDIAL_MODE": abi.MODE_MASK,
    "SPANDIAL_FOLLOW": abi.Mode.FOLLOW,
    "SPANDIAL_BOOST": abi.Mode.BOOST,
    "SPANDIAL_STRICT": abi.Mode.STRICT,
    "SPANDIAL_NO_PARENT": abi.Parent.NONE,
    "SPANDIAL_REMOTE_KEPT": abi.Parent.REMOTE_KEPT,
    "SPANDIAL_REMOTE_DROPPED": abi.Parent.REMOTE_DROPPED,
    "SPANDIAL_LOCAL_KEPT": abi.Parent.LOCAL_KEPT,
    "SPANDIAL_LOCAL_DROPPED": abi.Parent.LOCAL_DROPPED,
    "SPANDIAL_LOSS_RING_FULL": abi.Loss.RING_FULL,
    "SPANDIAL_LOSS_UNREADABLE": abi.Loss.UNREADABLE,
    "SPANDIAL_LOSS_STALE_ROW": abi.Loss.STALE_ROW,
    "SPANDIAL_LOSS_DESYNC": abi.Loss.DESYNC,
    "SPANDIAL_LOSS_NO_MEMORY": abi.Loss.NO_MEMORY,
    "SPANDIAL_LOSS_UNDECIDED": abi.Loss.UNDECIDED,
    "SPANDIAL_LOSS_RING_FULL_OTHERS": abi.Loss.RING_FULL_OTHERS,
    "SPANDIAL_LOSS_KINDS": len(abi.Loss),
    "SPANDIAL_UNKNOWN": abi.Protocol.UNKNOWN,
    "SPANDIAL_HTTP1": abi.Protocol.HTTP1,
    "SPANDIAL_HTTP2": abi.Protocol.HTTP2,
    "SPANDIAL_POSTGRES": abi.Protocol.POSTGRES,
    "SPANDIAL_MYSQL": abi.Protocol.MYSQL,
    "SPANDIAL_REDIS": abi.Protocol.REDIS,
    "SPANDIAL_EVENT_ENTRY": abi.Event.ENTRY,
    "SPANDIAL_EVENT_PREPARE": abi.Event.PREPARE,
    "SPANDIAL_EVENT_REPLY": abi.Event.REPLY,
    "SPANDIAL_EVENT_FORGET": abi.Event.FORGET,
    "SPANDIAL_EVENT_BLOCK": abi.Event.BLOCK,
    "SPANDIAL_EVENT_ANSWER": abi.Event.ANSWER,
    "SPANDIAL_EVENT_CLOSED": abi.Event.CLOSED,
    "SPANDIAL_EVENT_CONNECTION": abi.Event.CONNECTION,
    "SPANDIAL_EVENT_EXAMPLE": abi.Event.EXAMPLE,
    "SPANDIAL_EVENT_SESSION": abi.Event.SESSION,
    "SPANDIAL_RECORD_CUT": abi.RecordFlag.CUT,
    "SPANDIAL_RECORD_FRESH": abi.RecordFlag.FRESH,
    "SPANDIAL_RECORD_GAP": abi.RecordFlag.GAP,
    "SPANDIAL_RECORD_UNDECIDED": abi.RecordFlag.UNDECIDED,
    "SPANDIAL_RECORD_SENT": abi.RecordFlag.SENT,
    "SPANDIAL_RECORD_END": abi.RecordFlag.END,
    "SPANDIAL_RECORD_RESET": abi.RecordFlag.RESET,
    "SPANDIAL_REQUEST_MAX": abi.REQUEST_MAX,
    "SPANDIAL_PAGE_SIZE": abi.PAGE_SIZE,
    "SPANDIAL_PAGE_PUBLISHED": abi.PAGE_PUBLISHED,
    "SPANDIAL_PAGE_COUNTS": abi.PAGE_COUNTS,
    "SPANDIAL_PAGE_KIND_STRIDE": abi.PAGE_KIND_STRIDE,
    "SPANDIAL_PAGE_REMOTE": abi.PAGE_REMOTE,
    "SPANDIAL_PAGE_LOCAL": abi.PAGE_LOCAL,
    "SPANDIAL_PAGE_TURNS": abi.PAGE_TURNS,
    "sizeof(struct spandial_row)": abi.ROW_SIZE,
    "sizeof(struct spandial_row) * SPANDIAL_ROWS": abi.TABLE_SIZE,
    "sizeof(struct spandial_target)": abi.TARGET.size,
    "sizeof(struct spandial_counts)": abi.COUNTS.size,
    "offsetof(struct spandial_counts, reverse)": 4 * 8 * len(abi.EntryKind),
    "sizeof(struct spandial_addresses)": abi.ADDRESSES.size,
    "offsetof(struct spandial_addresses, local)": 8,
    "sizeof(struct spandial_entry)": abi.ENTRY.size + abi.REQUEST_MAX,
    "offsetof(struct spandial_entry, request)": abi.ENTRY.size,
    "offsetof(struct spandial_entry, tgid)": 64,
    "offsetof(struct spandial_entry, kind)": 72,
    "offsetof(struct spandial_entry, length)": 80,
}


@pytest.mark.needs("gcc", "g++")
@pytest.mark.parametrize("compiler", ["gcc", "g++"])
def test_header_and_python_agree_on_every_constant_size_and_offset(compiler: str, tmp_path: Path) -> None:
    lines = [f'printf("%s\\"%s\\": %llu", first++ ? ", " : "", "{c}", (unsigned long long)({c}));' for c in CONSTANTS]
    source = tmp_path / "abi.c"
    source.write_text(
        '#include <stdio.h>\n#include <stddef.h>\n#include "spandial.h"\n#include "decision.h"\n'
        'int main(void) { int first = 0; printf("{"); ' + "\n".join(lines) + ' printf("}"); return 0; }\n'
    )
    language = "c" if compiler == "gcc" else "c++"
    command = [
        compiler,
        "-x",
        language,
        "-Wall",
        "-Wextra",
        "-Werror",
        f"-I{BPF}",
        str(source),
        "-o",
        str(tmp_path / "abi"),
    ]
    subprocess.run(command, check=True)
    found = json.loads(subprocess.run([tmp_path / "abi"], check=True, capture_output=True, text=True).stdout)
    assert found == {name: int(value) for name, value in CONSTANTS.items()}


def test_every_constant_of_the_header_is_compared() -> None:
    header = (BPF / "spandial.h").read_text()
    defined = {
        line.split()[1 if line.startswith("#define") else 0].rstrip(",")
        for line in map(str.strip, header.splitlines())
        if line.startswith(("#define SPANDIAL_", "SPANDIAL_"))
    }
    assert defined - {"SPANDIAL_H"} == {name for name in CONSTANTS if name.startswith("SPANDIAL_")}
