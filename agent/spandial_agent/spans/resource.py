"""Where a span comes from: the process, its container and pod, and the host."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from opentelemetry.sdk.resources import Resource

from spandial.labels import Labels
from spandial_agent.processes.crowd import SharedMap
from spandial_agent.spans.kubelet import Kubelet

__all__ = ["Container", "Resources", "node_name", "parse_cgroup", "parse_mountinfo"]

_PROC = Path("/proc")
_READ_MAX = 1 << 20  # bytes of a file in /proc
_KEPT_MAX = 4096  # processes
_RETRY_S = 30.0  # until a pod that the kubelet did not know is looked up again

# Docker "docker-<id>.scope" or "<id>", containerd "cri-containerd-<id>.scope" or "...:cri-containerd:<id>", CRI-O
# "crio-<id>.scope", Podman "libpod-<id>.scope". A conmon is the container's monitor and runs outside it.
_CONTAINER = re.compile(r"^(?!.*conmon-)(?:.*[-:])?([0-9a-f]{64})(?:\.scope)?$")
# "pod<uid>" or "kubepods-burstable-pod<uid>.slice", where systemd's driver writes `_` for `-`; a static pod has a hash.
_POD = re.compile(r"(?:^|-)pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?![0-9a-f])")
# What Docker and Podman mount into a container is named by its id; the kubelet's mounts are named by the pod.
_MOUNTED_CONTAINER = re.compile(r"/(?:containers|overlay-containers)/([0-9a-f]{64})/")
_MOUNTED_POD = re.compile(r"/pods/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32})/")
_MOUNTED_FILES = frozenset({"/etc/hostname", "/etc/hosts", "/etc/resolv.conf"})
# The process's id in each pid namespace that it is in, the innermost last (proc_pid_status(5)).
_NAMESPACED_PIDS = re.compile(r"^NSpid:((?:\t[0-9]+)+)$", re.MULTILINE)

# Conventions for hosts: the names that host.arch may have.
_ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm32",
    "i686": "x86",
    "ppc64le": "ppc64",
    "s390x": "s390x",
}


class Container(NamedTuple):
    """The container of a process, and the pod of that; empty strings: none, or not known."""

    id: str = ""
    pod_uid: str = ""


def parse_cgroup(text: str) -> Container:
    """/proc/<pid>/cgroup, of version 1 or 2 (cgroups(7)): the innermost container that any of the paths names."""
    found = Container()
    for line in text.splitlines():
        segments = line.split(":", 2)[-1].split("/")
        ids = [match[1] for segment in segments if (match := _CONTAINER.match(segment))]
        pods = [match[1].replace("_", "-") for segment in segments for match in _POD.finditer(segment)]
        found = Container(found.id or (ids[-1] if ids else ""), found.pod_uid or (pods[-1] if pods else ""))
    return found


def parse_mountinfo(text: str) -> Container:
    """/proc/<pid>/mountinfo (proc(5)): the same, by the files that runtimes mount into their containers.

    In a pod these belong to its sandbox, a container of its own: only the pod is taken from them.
    """
    container = pod = ""
    for line in text.splitlines():
        fields = line.split(" ")
        if len(fields) > 4 and fields[4] in _MOUNTED_FILES:
            if match := _MOUNTED_POD.search(fields[3]):
                pod = match[1]
            elif match := _MOUNTED_CONTAINER.search(fields[3]):
                container = match[1]
    return Container("" if pod else container, pod)


def node_name(environ: Mapping[str, str]) -> str:
    """The Kubernetes node's name as a pod's manifest passes it on by the downward API, or an empty string."""
    return environ.get("NODE_NAME") or environ.get("K8S_NODE_NAME") or ""


class Resources:
    """Resources of processes: looked up once each, and again as long as Kubernetes does not know the pod yet.

    Reads files and asks the kubelet, so it blocks: ask from a worker thread.

    Args:
        node: the name of the Kubernetes node, if the agent knows it.
        now: seconds of a steady clock.
    """

    def __init__(
        self,
        kubelet: Kubelet | None = None,
        node: str = "",
        proc: Path = _PROC,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kubelet = kubelet
        self._node = node
        self._proc = proc
        self._now = now
        self._lock = threading.Lock()
        self._kept: SharedMap[tuple[int, int, Labels], tuple[Resource, float]] = SharedMap(_KEPT_MAX)
        host = os.uname()
        architecture = _ARCHITECTURES.get(host.machine, host.machine)
        self._host = {"host.name": host.nodename, "host.arch": architecture}

    def of(self, pid: int, start_time: int, labels: Labels, uid: int = -1) -> Resource:
        """The resource of a user's process (pid and start time, as in `Process`); the labels' alone if it is gone."""
        key = pid, start_time, labels
        with self._lock:
            kept = self._kept.use(key)
            if kept is not None and self._now() < kept[1]:
                return kept[0]
        container = self._container(pid)
        pod = self._pod(container)
        known = {**self._process(pid, labels), **self._host, **_known({"container.id": container.id}), **pod}
        expected = "k8s.container.name" if container.id else "k8s.pod.name"
        missing = self._kubelet is not None and container.pod_uid and expected not in pod
        resource = Resource(known)
        with self._lock:
            self._kept.put(uid, key, (resource, self._now() + _RETRY_S if missing else float("inf")))
        return resource

    def _process(self, pid: int, labels: Labels) -> dict[str, str | int]:
        """`process.pid` is what the host calls it, unique together with `host.name`; `process.vpid` what it calls
        itself, and what an SDK in it says, where that differs (conventions for processes)."""
        executable = self._executable(pid)
        named = {
            # Resource SDK: what a service without a name is called.
            "service.name": labels.service or (f"unknown_service:{executable}" if executable else "unknown_service"),
            "service.version": labels.version,
            "deployment.environment.name": labels.env,
            "process.executable.name": executable,
        }
        virtual = self._virtual_pid(pid)
        return {"process.pid": pid, **({"process.vpid": virtual} if virtual != pid else {}), **_known(named)}

    def _pod(self, container: Container) -> dict[str, str]:
        if not container.pod_uid and not (self._kubelet and container.id):
            return {}
        found = self._kubelet.find(container.pod_uid, container.id) if self._kubelet else {}
        if not found and not container.pod_uid:
            return {}
        return _known({"k8s.pod.uid": container.pod_uid, "k8s.node.name": self._node, **found})

    def _container(self, pid: int) -> Container:
        container = parse_cgroup(self._read(pid, "cgroup"))
        return container if any(container) else parse_mountinfo(self._read(pid, "mountinfo"))

    def _virtual_pid(self, pid: int) -> int:
        found = _NAMESPACED_PIDS.search(self._read(pid, "status"))
        return int(found[1].split()[-1]) if found else pid

    def _executable(self, pid: int) -> str:
        try:
            return os.path.basename(os.readlink(self._proc / str(pid) / "exe")).removesuffix(" (deleted)")
        except OSError:  # gone, or somebody else's
            return ""

    def _read(self, pid: int, name: str) -> str:
        try:
            with open(self._proc / str(pid) / name, "rb") as file:
                return file.read(_READ_MAX).decode(errors="replace")
        except OSError:
            return ""


def _known(attributes: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in attributes.items() if value}
