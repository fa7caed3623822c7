"""Make the wheel of an older version, as the tests have it: `python tests/versions/make_wheel.py COMMIT FILE`.

It has what the build of that commit would put in: the packages, and the BPF sources. Nothing is installed from it: the
tests unpack it and run what is in it with the dependencies of today.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import zipfile

_PLACES = {
    "agent/spandial/": "spandial/",
    "hook/spandial/": "spandial/",
    "agent/spandial_agent/": "spandial_agent/",
    "api/spandial_api/": "spandial_api/",
    "bpf/": "spandial_agent/bpf/",
}


def main(commit: str, path: str) -> None:
    archive = subprocess.run(["git", "archive", commit], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files, zipfile.ZipFile(path, "w") as wheel:
        for member in files:
            for begins, place in _PLACES.items():
                if member.isfile() and member.name.startswith(begins):
                    content = files.extractfile(member)
                    assert content is not None
                    # One date for all: the same commit makes the same file.
                    entry = zipfile.ZipInfo(place + member.name.removeprefix(begins))
                    entry.external_attr = 0o644 << 16
                    wheel.writestr(entry, content.read(), zipfile.ZIP_DEFLATED, 9)


if __name__ == "__main__":
    main(*sys.argv[1:])
