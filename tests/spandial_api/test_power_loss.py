"""Power fails: of every file the disk holds what had been synced. No answered write is lost, and none is there by half.

The power is not really cut: a library between SQLite and libc keeps what each sync made durable.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spandial_api.store import Store

_CUTS = 40
_WRITER = """
import sys
from pathlib import Path
from spandial_api.rules import Rule
from spandial_api.selectors import Selector
from spandial_api.store import Store
from tests.spandial_api.saving import entry_of
store = Store(Path(sys.argv[1]))
book = store.load()
print(book.revision, flush=True)
while True:
    rate = float((book.revision + 1) % 101)
    changed = book.change([Rule(Selector(service=f"service-{number:040}"), rate) for number in range(60)])
    store.write(entry_of(changed, book))
    book = changed
    print(book.revision, flush=True)
"""


@pytest.mark.needs("gcc")
def test_an_answered_write_survives_power_loss(tmp_path: Path) -> None:
    library = tmp_path / "power.so"
    source = Path(__file__).with_name("power.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library, source, "-ldl"], check=True)
    pauses = random.Random(1)
    disk = tmp_path / "disk"
    disk.mkdir()
    last = 0
    for cut in range(_CUTS):
        shadow = tmp_path / f"shadow{cut}"
        shadow.mkdir()
        for path in disk.iterdir():  # what the disk held when the power came back
            (shadow / path.name).write_bytes(path.read_bytes())
        environment = {**os.environ, "LD_PRELOAD": str(library), "POWER_SHADOW": str(shadow)}
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(disk / "rules.sqlite")], env=environment, stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        assert int(writer.stdout.readline()) == last
        time.sleep(pauses.uniform(0.005, 0.1))
        writer.kill()
        answered = [int(line) for line in writer.stdout.read().split()]
        writer.wait()
        last = max([last, *answered])
        for path in shadow.glob("*.part"):
            path.unlink()
        disk = shadow
        store = Store(disk / "rules.sqlite")
        book = store.load()
        store.close()
        assert book.revision >= last
        assert len(book.rules) == (60 if book.revision else 0)
        assert {rule.rate for rule in book} == ({float(book.revision % 101)} if book.revision else set())
        last = book.revision
    assert last > _CUTS
