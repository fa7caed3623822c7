"""Processes as containers have them: with a pid, a network and a mount namespace and a cgroup of their own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

__all__ = ["CONTAINER_ID", "Container", "container"]

CONTAINER_ID = "5bda" * 16
_HOST, _INSIDE = "198.18.0.1", "198.18.0.2"  # RFC 2544: for tests of networks, and in nobody's use


class Container(NamedTuple):
    """What a container runtime would set up.

    Attributes:
        address: where its servers are reached from the host.
        server: runs a command as the first process of a pid namespace, in here.
        client: runs a command in its network alone.
    """

    address: str
    server: list[str]
    client: list[str]


@contextmanager
def container() -> Iterator[Container]:
    """A network namespace that a veth pair ties to the host, and a cgroup that is named as Docker names them."""
    name = f"spandial{os.getpid()}"
    outer, inner = f"sd{os.getpid()}o", f"sd{os.getpid()}i"
    cgroup = _cgroup_root() / f"docker-{CONTAINER_ID}.scope"
    try:
        _run("ip", "netns", "add", name)
        _run("ip", "link", "add", outer, "type", "veth", "peer", "name", inner, "netns", name)
        _run("ip", "address", "add", f"{_HOST}/30", "dev", outer)
        _run("ip", "link", "set", outer, "up")
        _run("ip", "-n", name, "address", "add", f"{_INSIDE}/30", "dev", inner)
        _run("ip", "-n", name, "link", "set", inner, "up")
        _run("ip", "-n", name, "link", "set", "lo", "up")
        cgroup.mkdir(exist_ok=True)
        into_cgroup = ["sh", "-c", f'echo $$ >{cgroup}/cgroup.procs && exec "$@"', "sh"]
        client = ["ip", "netns", "exec", name]
        server = [*into_cgroup, *client, "unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
        yield Container(_INSIDE, server, client)
    finally:
        subprocess.run(["ip", "link", "delete", outer], capture_output=True)
        subprocess.run(["ip", "netns", "delete", name], capture_output=True)
        if cgroup.exists():
            cgroup.rmdir()


def _cgroup_root() -> Path:
    """Where the unified hierarchy is mounted."""
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    return next(Path(fields[1]) for fields in mounts if fields[2] == "cgroup2")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
