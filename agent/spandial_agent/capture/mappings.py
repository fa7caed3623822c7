"""Which files with TLS in them a process has mapped (proc(5))."""

from __future__ import annotations

import os
from typing import NamedTuple

from spandial_agent.capture.images import Image, read_image

__all__ = ["Identity", "Library", "Seen", "look_at"]

# Device, inode, and what tells another file of the same inode: size and time of change (ns).
Identity = tuple[int, int, int, int]

# Libraries of TLS that are not followed.
_OTHERS = {
    "libgnutls.so": "GnuTLS",
    "libssl3.so": "NSS",
    "libmbedtls.so": "Mbed TLS",
    "libwolfssl.so": "wolfSSL",
    "libjvm.so": "Java's own",
}
_KNOWN = 4096  # files whose contents are remembered


class Library(NamedTuple):
    """A mapped file with functions that can be probed.

    Attributes:
        path: leads to this very file, in whatever mount namespace and whether it was deleted; as long as the process
            has it mapped.
        name: for a person.
    """

    identity: Identity
    path: str
    name: str
    offsets: dict[str, int]


class Seen(NamedTuple):
    """What a look at a process found.

    Attributes:
        libraries: those that can be followed.
        hidden: what there is that cannot be, in words.
    """

    libraries: list[Library]
    hidden: list[str]


_images: dict[Identity, Image] = {}


def look_at(pid: int) -> Seen:
    """The TLS libraries of a process as it is now. Raises OSError where it is gone or may not be looked at."""
    executable = os.stat(f"/proc/{pid}/exe")
    libraries, hidden = [], []
    seen: set[tuple[int, int]] = set()
    for path, name in [(f"/proc/{pid}/exe", ""), *_mapped(pid)]:
        try:
            status = os.stat(path)
        except OSError:  # unmapped meanwhile, or deleted where it must be looked for by its name
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        is_executable = os.path.samestat(status, executable)
        identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        image = _image(path, identity, is_executable)
        if image.offsets:
            shown = name or os.path.basename(os.readlink(path)).removesuffix(" (deleted)")
            libraries.append(Library(identity, path, shown, image.offsets))
        elif image.hidden:
            hidden.append(f"statically linked ({image.hidden})")
        else:
            hidden += [f"{other} ({name})" for begin, other in _OTHERS.items() if name.startswith(begin)]
    return Seen(libraries, hidden)


def _mapped(pid: int) -> list[tuple[str, str]]:
    """Path and name of the mapped files whose names speak of TLS, with repetitions."""
    found = []
    by_range = _may_follow_ranges(pid)
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            # address perms offset dev inode pathname, which may contain spaces
            fields = line.rstrip("\n").split(maxsplit=5)
            if len(fields) < 6 or "x" not in fields[1]:
                continue
            name = os.path.basename(fields[5]).removesuffix(" (deleted)")
            if "ssl" in name or name.startswith(tuple(_OTHERS)):
                # maps pads addresses, map_files does not
                begin, end = (int(address, 16) for address in fields[0].split("-"))
                by_name = f"/proc/{pid}/root{fields[5]}"
                found.append((f"/proc/{pid}/map_files/{begin:x}-{end:x}" if by_range else by_name, name))
    return found


def _may_follow_ranges(pid: int) -> bool:
    """Whether map_files leads to files, which takes CAP_CHECKPOINT_RESTORE (Linux 5.9, commit 12886f8ab10c)."""
    folder = f"/proc/{pid}/map_files"
    for name in os.listdir(folder):
        try:
            os.stat(f"{folder}/{name}")
            return True
        except PermissionError:
            return False
        except OSError:  # unmapped meanwhile
            continue
    return False


def _image(path: str, identity: Identity, executable: bool) -> Image:
    known = _images.get(identity)
    if known is None:
        try:
            with open(path, "rb") as file:
                known = read_image(file, executable)
        except OSError:  # gone meanwhile
            return Image({})
        _images[identity] = known
        if len(_images) > _KNOWN:
            del _images[next(iter(_images))]
    return known
