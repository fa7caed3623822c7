"""Processes as containers have them: with a pid, a network and a mount namespace and a cgroup of their own."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["CONTAINER_ID", "Container", "container"]

CONTAINER_ID = "5bda" * 16
_NETWORK = ipaddress.ip_network("198.18.0.0/15")  # RFC 2544: for tests of networks, and in nobody's use


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


@contextlib.contextmanager
def container() -> Iterator[Container]:
    """A network namespace that a veth pair ties to the host, and a cgroup that is named as Docker names them.

    Names and addresses are this process's own: what a run that was killed has left behind is in nobody's way.
    """
    first = _NETWORK[4 * os.getpid() % _NETWORK.num_addresses]
    host, inside = str(first + 1), str(first + 2)
    name = f"spandial{os.getpid()}"
    outer, inner = f"sd{os.getpid()}o", f"sd{os.getpid()}i"
    cgroup = _cgroup_root() / f"docker-{CONTAINER_ID}.scope"
    try:
        _run("ip", "netns", "add", name)
        _run("ip", "link", "add", outer, "type", "veth", "peer", "name", inner, "netns", name)
        _run("ip", "address", "add", f"{host}/30", "dev", outer)
        _run("ip", "link", "set", outer, "up")
        _run("ip", "-n", name, "address", "add", f"{inside}/30", "dev", inner)
        _run("ip", "-n", name, "link", "set", inner, "up")
        _run("ip", "-n", name, "link", "set", "lo", "up")
        cgroup.mkdir(exist_ok=True)
        into_cgroup = ["sh", "-c", f'echo $$ >{cgroup}/cgroup.procs && exec "$@"', "sh"]
        client = ["ip", "netns", "exec", name]
        server = [*into_cgroup, *client, "unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
        yield Container(inside, server, client)
    finally:
        subprocess.run(["ip", "link", "delete", outer], capture_output=True)
        subprocess.run(["ip", "netns", "delete", name], capture_output=True)
        with contextlib.suppress(OSError):  # never made, or another run's processes are in it
            cgroup.rmdir()


def _cgroup_root() -> Path:
    """Where the unified hierarchy is mounted."""
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    return next(Path(fields[1]) for fields in mounts if fields[2] == "cgroup2")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
