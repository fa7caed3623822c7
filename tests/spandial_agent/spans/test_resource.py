"""Where a span comes from: the process, its container and pod, and the host."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spandial.labels import Labels
from spandial_agent.spans import resource as resource_module
from spandial_agent.spans.kubelet import Kubelet
from spandial_agent.spans.resource import Container, Resources, node_name, parse_cgroup, parse_mountinfo
from tests.spandial_agent.spans.kubelet_stand_in import CONTAINER, POD, KubeletStandIn, pod

ID, OTHER = CONTAINER, "0123456789abcdef" * 4
UNDERSCORED = POD.replace("-", "_")
STATIC = "8f" * 16
CHECKOUT = Labels("checkout", "v2", "gray")

CGROUPS = {
    "docker, version 2": (f"0::/system.slice/docker-{ID}.scope", ID, ""),
    "docker, cgroupfs": (f"0::/docker/{ID}", ID, ""),
    "docker, version 1": (f"12:pids:/docker/{ID}\n11:memory:/docker/{ID}\n1:name=systemd:/docker/{ID}\n", ID, ""),
    "docker with systemd inside": (f"0::/system.slice/docker-{ID}.scope/init.scope", ID, ""),
    "docker in docker": (f"0::/docker/{OTHER}/docker/{ID}", ID, ""),
    "podman": (f"0::/machine.slice/libpod-{ID}.scope/container", ID, ""),
    "podman without root": (
        f"0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope",
        ID,
        "",
    ),
    "podman's monitor": (f"0::/machine.slice/libpod-conmon-{ID}.scope", "", ""),
    "cri-o's monitor": (f"0::/kubepods.slice/kubepods-pod{UNDERSCORED}.slice/crio-conmon-{ID}.scope", "", POD),
    "containerd, systemd": (
        f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UNDERSCORED}.slice/cri-containerd-{ID}.scope",
        ID,
        POD,
    ),
    "containerd, guaranteed": (
        f"0::/kubepods.slice/kubepods-pod{UNDERSCORED}.slice/cri-containerd-{ID}.scope",
        ID,
        POD,
    ),
    "containerd, cgroupfs": (f"0::/kubepods/besteffort/pod{POD}/{ID}", ID, POD),
    "containerd, version 1": (f"9:cpu,cpuacct:/kubepods/burstable/pod{POD}/{ID}\n0::/\n", ID, POD),
    "containerd, mixed drivers": (
        f"0::/system.slice/containerd.service/kubepods-burstable-pod{UNDERSCORED}.slice:cri-containerd:{ID}",
        ID,
        POD,
    ),
    "cri-o": (
        f"0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UNDERSCORED}.slice/crio-{ID}.scope",
        ID,
        POD,
    ),
    "a static pod": (f"0::/kubepods.slice/kubepods-pod{STATIC}.slice/cri-containerd-{ID}.scope", ID, STATIC),
    "seen from another cgroup namespace": (f"0::/../../pod{POD}/{ID}", ID, POD),
    "kubernetes in docker": (f"0::/docker/{OTHER}/kubelet/kubepods/burstable/pod{POD}/{ID}", ID, POD),
    "a service": ("0::/system.slice/nginx.service", "", ""),
    "a session": ("0::/user.slice/user-1000.slice/session-3.scope", "", ""),
    "its own namespace": ("0::/", "", ""),
    "a long number that is no id": (f"0::/system.slice/run-{'a' * 65}.scope", "", ""),
    "nothing": ("", "", ""),
}


@pytest.mark.parametrize(("text", "container", "uid"), CGROUPS.values(), ids=list(CGROUPS))
def test_cgroups(text: str, container: str, uid: str) -> None:
    assert parse_cgroup(text) == Container(container, uid)


def mount(root: str, point: str) -> str:
    return f"736 721 8:1 {root} {point} rw,relatime - ext4 /dev/sda1 rw\n"


SANDBOX = f"/run/containers/storage/overlay-containers/{OTHER}/userdata/resolv.conf"
MOUNTS = {
    "docker": (mount(f"/var/lib/docker/containers/{ID}/hostname", "/etc/hostname"), ID, ""),
    "docker on a partition of its own": (mount(f"/containers/{ID}/hosts", "/etc/hosts"), ID, ""),
    "podman": (
        mount(f"/var/lib/containers/storage/overlay-containers/{ID}/userdata/hostname", "/etc/hostname"),
        ID,
        "",
    ),
    "a pod": (mount(f"/var/lib/kubelet/pods/{POD}/etc-hosts", "/etc/hosts"), "", POD),
    "a pod and its sandbox": (
        mount(SANDBOX, "/etc/resolv.conf") + mount(f"/var/lib/kubelet/pods/{POD}/etc-hosts", "/etc/hosts"),
        "",
        POD,
    ),
    "a host that runs docker": (mount(f"/var/lib/docker/containers/{ID}/mounts/shm", "/var/lib/docker/shm"), "", ""),
    "a host": (mount("/", "/") + mount("/", "/proc"), "", ""),
    "nothing": ("", "", ""),
}


@pytest.mark.parametrize(("text", "container", "uid"), MOUNTS.values(), ids=list(MOUNTS))
def test_mounts(text: str, container: str, uid: str) -> None:
    assert parse_mountinfo(text) == Container(container, uid)


_pieces = st.sampled_from(
    [
        ID,
        POD,
        UNDERSCORED,
        "/",
        ":",
        "-",
        "pod",
        "docker",
        ".scope",
        "conmon-",
        "\n",
        " ",
        "/etc/hosts",
        "/pods/",
        "0::",
    ]
)
_almost = st.lists(_pieces | st.text(max_size=4), max_size=30).map("".join)


@given(_almost)
def test_any_text_names_a_container_or_none(text: str) -> None:
    for found in (parse_cgroup(text), parse_mountinfo(text)):
        assert re.fullmatch(r"([0-9a-f]{64})?", found.id)
        assert re.fullmatch(r"([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32})?", found.pod_uid)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_text_name_no_container(data: bytes) -> None:
    assert parse_cgroup(data.decode(errors="replace")) == Container()


def test_the_node_is_named_by_the_downward_api() -> None:
    assert node_name({"NODE_NAME": "a", "K8S_NODE_NAME": "b"}) == "a"
    assert node_name({"K8S_NODE_NAME": "b"}) == "b"
    assert node_name({}) == ""


@pytest.fixture
def sleeping() -> Iterator[int]:
    child = subprocess.Popen(["sleep", "60"])
    yield child.pid
    child.kill()
    child.wait()


def test_the_resource_of_a_process_of_this_host(sleeping: int) -> None:
    found = Resources().of(sleeping, 1, CHECKOUT).attributes
    assert found["service.name"] == "checkout"
    assert found["service.version"] == "v2"
    assert found["deployment.environment.name"] == "gray"
    assert found["process.pid"] == sleeping
    assert found["process.executable.name"] == os.path.basename(os.readlink(f"/proc/{sleeping}/exe"))
    assert found["host.name"] == os.uname().nodename
    assert found["host.arch"]
    assert "k8s.pod.uid" not in found


def test_a_process_that_is_gone_has_the_resource_that_its_labels_say() -> None:
    found = Resources().of(1 << 30, 1, Labels("checkout")).attributes
    assert found["service.name"] == "checkout"
    assert found["process.pid"] == 1 << 30
    assert {"process.executable.name", "container.id", "service.version"} & set(found) == set()


def test_a_process_without_a_name_is_called_unknown(sleeping: int) -> None:
    executable = os.path.basename(os.readlink(f"/proc/{sleeping}/exe"))
    assert Resources().of(sleeping, 1, Labels()).attributes["service.name"] == f"unknown_service:{executable}"
    assert Resources().of(1 << 30, 1, Labels()).attributes["service.name"] == "unknown_service"


class Proc:
    """A folder that stands in for /proc, with one process in a container that this host cannot run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "7").mkdir(parents=True)
        os.symlink("/usr/bin/shop (deleted)", folder / "7" / "exe")
        self.cgroup = folder / "7" / "cgroup"
        self.mountinfo = folder / "7" / "mountinfo"
        self.status = folder / "7" / "status"
        self.cgroup.write_text(f"0::/kubepods.slice/kubepods-pod{UNDERSCORED}.slice/cri-containerd-{ID}.scope\n")
        self.mountinfo.write_text(mount("/", "/"))


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path / "proc")


@pytest.fixture
def node() -> Iterator[KubeletStandIn]:
    node = KubeletStandIn()
    yield node
    node.stop()


@pytest.fixture
def kubelet(node: KubeletStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kubelet:
    token = tmp_path / "token"
    token.write_text("s3cret")
    return Kubelet(node.url, token, now=lambda: 0.0)


def test_a_container_without_kubernetes(proc: Proc) -> None:
    proc.cgroup.write_text(f"0::/system.slice/docker-{ID}.scope\n")
    found = Resources(proc=proc.folder, node="node-3").of(7, 1, CHECKOUT).attributes
    assert found["container.id"] == ID
    assert found["process.executable.name"] == "shop"
    assert not [name for name in found if name.startswith("k8s.")]


def test_a_container_that_only_its_mounts_name(proc: Proc) -> None:
    proc.cgroup.write_text("0::/\n")
    proc.mountinfo.write_text(mount(f"/var/lib/docker/containers/{ID}/hostname", "/etc/hostname"))
    assert Resources(proc=proc.folder).of(7, 1, CHECKOUT).attributes["container.id"] == ID


@pytest.mark.parametrize(
    ("pids", "virtual"), [("\t7\t12\t1", 1), ("\t7\t12", 12), ("\t7", None), ("", None), ("\t7\tx", None)]
)
def test_a_process_in_a_pid_namespace_has_the_hosts_pid_and_its_own(proc: Proc, pids: str, virtual: int | None) -> None:
    proc.status.write_text(f"Name:\tshop\nNStgid:\t7\t3\nNSpid:{pids}\nNSpgid:\t7\t2\n")
    found = Resources(proc=proc.folder).of(7, 1, CHECKOUT).attributes
    assert found["process.pid"] == 7
    assert found.get("process.vpid") == virtual


def test_a_pod_without_its_kubelet_is_known_by_its_uid_and_node(proc: Proc) -> None:
    found = Resources(proc=proc.folder, node="node-3").of(7, 1, CHECKOUT).attributes
    assert {name: value for name, value in found.items() if name.startswith("k8s.")} == {
        "k8s.pod.uid": POD,
        "k8s.node.name": "node-3",
    }


def test_a_pod_as_the_kubelet_knows_it(proc: Proc, node: KubeletStandIn, kubelet: Kubelet) -> None:
    node.pods.append(pod())
    found = Resources(kubelet, proc=proc.folder).of(7, 1, CHECKOUT).attributes
    assert found["service.name"] == "checkout"
    assert found["container.id"] == ID
    assert found["k8s.pod.name"] == "shop-6d4cf56db6-x2x9z"
    assert found["k8s.deployment.name"] == "shop"
    assert found["k8s.container.name"] == "app"


def test_a_process_is_looked_up_once(proc: Proc, node: KubeletStandIn, kubelet: Kubelet) -> None:
    node.pods.append(pod())
    resources = Resources(kubelet, proc=proc.folder)
    first = resources.of(7, 1, CHECKOUT)
    proc.cgroup.unlink()
    assert resources.of(7, 1, CHECKOUT) is first
    assert resources.of(7, 2, CHECKOUT) is not first
    assert resources.of(7, 1, Labels("other")).attributes["service.name"] == "other"


def test_a_pod_that_the_kubelet_did_not_know_yet_is_looked_up_again(
    proc: Proc, node: KubeletStandIn, tmp_path: Path
) -> None:
    now = 0.0
    (tmp_path / "token").write_text("s3cret")
    kubelet = Kubelet(node.url, tmp_path / "token", now=lambda: now)
    resources = Resources(kubelet, proc=proc.folder, now=lambda: now)
    assert "k8s.pod.name" not in resources.of(7, 1, CHECKOUT).attributes
    node.pods.append(pod())
    assert "k8s.pod.name" not in resources.of(7, 1, CHECKOUT).attributes
    now = 31.0
    complete = resources.of(7, 1, CHECKOUT)
    assert complete.attributes["k8s.pod.name"] == "shop-6d4cf56db6-x2x9z"
    now = 3600.0
    assert resources.of(7, 1, CHECKOUT) is complete


def test_no_more_resources_are_kept_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource_module, "_KEPT_MAX", 3)
    resources = Resources()
    first = resources.of(1 << 30, 0, CHECKOUT)
    for start_time in range(1, 3):
        resources.of(1 << 30, start_time, CHECKOUT)
        assert resources.of(1 << 30, 0, CHECKOUT) is first
    for start_time in range(3, 10):
        resources.of(1 << 30, start_time, CHECKOUT)
    assert len(resources._kept) == 3
    assert resources.of(1 << 30, 0, CHECKOUT) is not first


def test_several_threads_may_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource_module, "_KEPT_MAX", 2)
    resources = Resources()
    raised: list[BaseException] = []

    def ask() -> None:
        try:
            for number in range(300):
                assert resources.of(1 << 30, number % 5, CHECKOUT).attributes["service.name"] == "checkout"
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert raised == []
