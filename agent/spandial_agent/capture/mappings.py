"""Which files with TLS in them a process has mapped (proc(5))."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from spandial_agent.capture.images import Image, read_image
from spandial_agent.capture.mapped_file import Identity, MappedFile, Mapping, Mounts, Refused, distrust
from spandial_agent.processes.held import Credentials, HeldProcess
from spandial_agent.text import text_of

__all__ = ["Library", "Seen", "look_at"]

# Libraries of TLS that are not followed.
_OTHERS = {
    "libgnutls.so": "GnuTLS",
    "libssl3.so": "NSS",
    "libmbedtls.so": "Mbed TLS",
    "libwolfssl.so": "wolfSSL",
    "libjvm.so": "Java's own",
}
_KNOWN = 4096  # files whose contents are remembered
_FILES_MAX = 64  # of one process that are looked at
_LINES_MAX = 1 << 18  # of one process's mappings
_NAME_MAX = 64
_EXECUTABLE = Mapping((b"exe",), 0, "")


class Library(NamedTuple):
    """A mapped file with functions that can be probed.

    Attributes:
        version: of its contents.
        path: leads to this very file, until what was seen is closed.
        name: for a person; all of it can be printed.
    """

    identity: Identity
    version: tuple[int, int, int]
    path: str
    name: str
    offsets: dict[str, int]


class Seen:
    """What a look at a process found. The files are open until it is closed.

    Attributes:
        user: who started the process.
        files: those that were looked at.
        libraries: those that can be followed.
        refused: files that are not trusted, or not looked at, in words.
        hidden: what there is that cannot be, in words.
    """

    def __init__(self, user: int) -> None:
        self.user = user
        self.files: dict[Identity, MappedFile] = {}
        self.libraries: list[Library] = []
        self.refused: list[str] = []
        self.hidden: list[str] = []

    def close(self) -> None:
        for file in self.files.values():
            file.close()
        self.files.clear()

    def __enter__(self) -> Seen:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_images: dict[tuple[Identity, tuple[int, int, int]], Image] = {}


def look_at(process: HeldProcess, trusted: Collection[int] = (), go_on: Callable[[], bool] = lambda: True) -> Seen:
    """The TLS libraries of a process as it is now.

    Args:
        trusted: users whose files are believed in every process.
        go_on: asked before each file; what is left is for another look, which knows what this one has read.

    Raises OSError where it is gone or may not be looked at.
    """
    credentials, mounts = process.credentials(), Mounts(process)
    seen = Seen(credentials.user)
    try:
        _look_at_file(seen, process, _EXECUTABLE, mounts, credentials, trusted)
        mappings, more = _mapped(process)
        for number, mapping in enumerate(mappings):
            if not go_on():
                seen.refused.append(f"{len(mappings) - number} more files: not looked at yet")
                break
            _look_at_file(seen, process, mapping, mounts, credentials, trusted)
    except BaseException:
        seen.close()
        raise
    if more:
        seen.refused.append(f"{more} more files: no more than {_FILES_MAX} of a process are looked at")
    return seen


def _look_at_file(
    seen: Seen,
    process: HeldProcess,
    mapping: Mapping,
    mounts: Mounts,
    credentials: Credentials,
    trusted: Collection[int],
) -> None:
    """Raises ProcessLookupError where the process has ended."""
    try:
        file = MappedFile(process, mapping, mounts)
    except ProcessLookupError:
        raise
    except OSError:  # unmapped meanwhile, or deleted where it must be looked for by its name
        return
    except Refused as refused:
        if mapping.name:
            seen.refused.append(f"{mapping.name} ({refused})")
        return
    if file.identity in seen.files:
        file.close()
        return
    seen.files[file.identity] = file
    image = _image(file, mapping is _EXECUTABLE)
    name = mapping.name or _shown(os.readlink(os.fsencode(file.path)))
    if image.offsets:
        why = distrust(file.status, credentials, trusted)
        if why:
            seen.refused.append(f"{name} ({why})")
        else:
            seen.libraries.append(Library(file.identity, file.version, file.path, name, image.offsets))
    elif image.hidden:
        seen.hidden.append(f"statically linked ({image.hidden})")
    else:
        seen.hidden += [f"{other} ({name})" for begin, other in _OTHERS.items() if name.startswith(begin)]


def _mapped(process: HeldProcess) -> tuple[list[Mapping], int]:
    """The mapped files whose names speak of TLS, each once, and how many more there are."""
    found: dict[tuple[bytes, bytes], Mapping] = {}
    more = set()
    for fields in _lines(process):
        # address perms offset dev inode pathname, which may contain spaces
        name = os.path.basename(fields[5]).removesuffix(b" (deleted)")
        if b"x" not in fields[1] or not (b"ssl" in name or name.startswith(tuple(map(str.encode, _OTHERS)))):
            continue
        key = (fields[3], fields[4])
        if key in found or key in more:
            continue
        if len(found) == _FILES_MAX:
            more.add(key)
            continue
        # maps pads addresses, map_files does not
        begin, end = (int(address, 16) for address in fields[0].split(b"-"))
        places = (b"map_files/%x-%x" % (begin, end), b"root" + fields[5])
        found[key] = Mapping(places, int(fields[4]), _shown(fields[5]))
    return list(found.values()), len(more)


def _lines(process: HeldProcess) -> Iterator[list[bytes]]:
    """The mappings of files, whose names may be any bytes but zero; a line feed is written `\\012`."""
    with open(process.open("maps", os.O_RDONLY), "rb") as maps:
        for _, line in zip(range(_LINES_MAX), maps, strict=False):
            fields = line.rstrip(b"\n").split(maxsplit=5)
            if len(fields) == 6 and fields[5].startswith(b"/"):
                yield fields


def _shown(path: bytes) -> str:
    """The name of a file, for a person: whatever it is, it can be printed on one line."""
    shown = text_of(os.path.basename(path).removesuffix(b" (deleted)"), _NAME_MAX + 1)
    return shown if len(shown) <= _NAME_MAX else shown[: _NAME_MAX - 3] + "..."


def _image(file: MappedFile, executable: bool) -> Image:
    key = (file.identity, file.version)
    known = _images.get(key)
    if known is None:
        known = _images[key] = read_image(file.descriptor, executable)
        if len(_images) > _KNOWN:
            del _images[next(iter(_images))]
    return known
