"""The pods of this node, from its kubelet."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from spandial_agent.spans import kubelet as kubelet_module
from spandial_agent.spans.kubelet import Kubelet, parse_pods
from tests.spandial_agent.spans.kubelet_stand_in import CONTAINER, POD, KubeletStandIn, pod

OTHER_POD, OTHER_CONTAINER = POD[:-1] + "2", "d1" * 32

SHOP = {
    "k8s.pod.uid": POD,
    "k8s.pod.name": "shop-6d4cf56db6-x2x9z",
    "k8s.namespace.name": "gray",
    "k8s.node.name": "node-3",
    "k8s.replicaset.name": "shop-6d4cf56db6",
    "k8s.deployment.name": "shop",
}


class Now:
    """A clock that stands until it is moved on."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def node() -> Iterator[KubeletStandIn]:
    node = KubeletStandIn()
    node.pods.append(pod())
    yield node
    node.stop()


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("s3cret\n")
    return path


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
def kubelet(node: KubeletStandIn, token: Path, now: Now) -> Kubelet:
    return Kubelet(node.url, token, now=now)


def test_a_pod_and_its_container(kubelet: Kubelet, node: KubeletStandIn) -> None:
    assert kubelet.find(POD, CONTAINER) == {**SHOP, "k8s.container.name": "app"}
    assert node.asked == ["Bearer s3cret"]


def test_a_pod_is_found_by_its_container_alone(kubelet: Kubelet) -> None:
    assert kubelet.find("", CONTAINER) == {**SHOP, "k8s.container.name": "app"}


def test_the_list_is_asked_for_once(kubelet: Kubelet, node: KubeletStandIn) -> None:
    for _ in range(5):
        kubelet.find(POD, CONTAINER)
        kubelet.find(POD, "")
    assert len(node.asked) == 1


def test_a_pod_that_is_not_listed_is_asked_for_again_but_not_each_time(
    kubelet: Kubelet, node: KubeletStandIn, now: Now
) -> None:
    for _ in range(5):
        assert kubelet.find(OTHER_POD, OTHER_CONTAINER) == {}
    assert len(node.asked) == 1
    node.pods.append(pod(OTHER_POD, OTHER_CONTAINER, name="late"))
    now.seconds += 11
    assert kubelet.find(OTHER_POD, OTHER_CONTAINER)["k8s.pod.name"] == "late"
    assert len(node.asked) == 2


def test_a_container_that_was_restarted_is_found_again(kubelet: Kubelet, node: KubeletStandIn, now: Now) -> None:
    kubelet.find(POD, CONTAINER)
    node.pods[:] = [pod(container=OTHER_CONTAINER)]
    assert kubelet.find(POD, OTHER_CONTAINER) == SHOP
    now.seconds += 11
    assert kubelet.find(POD, OTHER_CONTAINER) == {**SHOP, "k8s.container.name": "app"}


def test_a_new_token_is_read(kubelet: Kubelet, node: KubeletStandIn, token: Path, now: Now) -> None:
    kubelet.find(OTHER_POD, "")
    token.write_text("renewed")
    now.seconds += 11
    kubelet.find(OTHER_POD, "")
    assert node.asked == ["Bearer s3cret", "Bearer renewed"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda node: setattr(node, "status", 403),
        lambda node: setattr(node, "status", 302),
        lambda node: setattr(node, "body", b"{"),
        lambda node: setattr(node, "body", b"\xff\xfe"),
        lambda node: setattr(node, "body", b"[" * 200_000),
    ],
    ids=["forbidden", "redirect", "cut off", "no text", "deep"],
)
def test_a_kubelet_that_gives_no_list_leaves_what_is_known(
    kubelet: Kubelet, node: KubeletStandIn, now: Now, spoil: Callable[[KubeletStandIn], None]
) -> None:
    kubelet.find(POD, CONTAINER)
    spoil(node)
    now.seconds += 11
    with capture_logs() as logs:
        for _ in range(3):
            assert kubelet.find(OTHER_POD, "") == {}
        now.seconds += 61
        assert kubelet.find(OTHER_POD, "") == {}
    assert len(node.asked) == 3
    assert [line["event"] for line in logs] == ["kubelet does not answer"]
    assert kubelet.find(POD, CONTAINER)["k8s.container.name"] == "app"


def test_it_is_said_when_the_kubelet_answers_again(kubelet: Kubelet, node: KubeletStandIn, now: Now) -> None:
    node.status = 500
    kubelet.find(POD, "")
    node.status, now.seconds = 200, 61
    with capture_logs() as logs:
        assert kubelet.find(POD, "") == SHOP
    assert [line["event"] for line in logs] == ["kubelet answers"]


def test_a_kubelet_that_is_not_there(token: Path) -> None:
    gone = KubeletStandIn()
    gone.stop()
    assert Kubelet(gone.url, token).find(POD, CONTAINER) == {}


def test_a_kubelet_that_hangs_is_not_waited_for(
    node: KubeletStandIn, token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubelet_module, "_TIMEOUT_S", 0.2)
    node.slow.clear()
    kubelet = Kubelet(node.url, token)
    for _ in range(10):
        assert kubelet.find(POD, CONTAINER) == {}
    assert len(node.asked) == 1


def test_a_list_without_end_is_not_read(node: KubeletStandIn, token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubelet_module, "_LIST_MAX", 10)
    assert Kubelet(node.url, token).find(POD, CONTAINER) == {}


def test_a_missing_token_is_no_error(node: KubeletStandIn, tmp_path: Path) -> None:
    assert Kubelet(node.url, tmp_path / "none").find(POD, CONTAINER) == {}
    assert node.asked == []


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "2",
            ),
            *("-subj", "/CN=kubelet-stand-in", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-out", str(paths[0]), "-keyout", str(paths[1])),
        ],
        check=True,
        capture_output=True,
    )
    return paths


@pytest.mark.needs("openssl")
def test_a_kubelet_is_trusted_by_its_certificate(certificate: tuple[Path, Path], token: Path) -> None:
    node = KubeletStandIn(*certificate)
    node.pods.append(pod())
    try:
        assert Kubelet(node.url, token).find(POD, "") == {}
        assert Kubelet(node.url, token, verify=token).find(POD, "") == {}
        assert node.asked == []  # the token was shown to nobody
        assert Kubelet(node.url, token, verify=certificate[0]).find(POD, "") == SHOP
        assert Kubelet(node.url, token, verify=False).find(POD, "") == SHOP
    finally:
        node.stop()


def test_the_kubelet_of_this_node_is_named_by_the_downward_api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubelet_module, "_ACCOUNT", tmp_path)
    assert Kubelet.from_environ({"NODE_IP": "10.0.0.3"}) is None
    (tmp_path / "token").write_text("s3cret")
    assert Kubelet.from_environ({}) is None
    urls = {
        found._url
        for environ in (
            {"NODE_IP": "10.0.0.3", "NODE_NAME": "node-3"},
            {"K8S_NODE_NAME": "node-3"},
            {"HOST_IP": "fd00::3"},
        )
        if (found := Kubelet.from_environ(environ))
    }
    assert urls == {"https://10.0.0.3:10250", "https://node-3:10250", "https://[fd00::3]:10250"}


@pytest.mark.parametrize(
    ("kind", "name", "attributes"),
    [
        ("StatefulSet", "db", {"k8s.statefulset.name": "db"}),
        ("DaemonSet", "logs", {"k8s.daemonset.name": "logs"}),
        ("Job", "backup-1", {"k8s.job.name": "backup-1"}),
        ("ReplicaSet", "bare", {"k8s.replicaset.name": "bare"}),
        ("Node", "node-3", {}),
    ],
)
def test_owners_of_pods(kind: str, name: str, attributes: dict[str, str]) -> None:
    listed = pod(ownerReferences=[{"kind": kind, "name": name}])
    found = parse_pods({"items": [listed]}).by_uid[POD]
    owners = {"replicaset", "deployment", "statefulset", "daemonset", "job"}
    assert {key: value for key, value in found.items() if key.split(".")[1] in owners} == attributes


def test_a_static_pod_is_found_by_the_hash_of_its_manifest() -> None:
    hashed = "8f" * 16
    pods = parse_pods({"items": [pod(annotations={"kubernetes.io/config.hash": hashed})]})
    assert pods.by_uid[hashed] == pods.by_uid[POD] == SHOP


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["metadata", "uid", "items", "status", "spec", "name", "labels"]), inner, max_size=4
        )
    ),
    max_leaves=20,
)


@given(_json)
def test_any_document_is_some_list_of_pods(document: Any) -> None:
    for listed in (document, {"items": [document]}, {"items": [{"metadata": document, "status": document}]}):
        pods = parse_pods(listed)
        assert all(isinstance(value, str) for found in pods.by_uid.values() for value in found.values())


@given(_json, st.sampled_from(["metadata", "spec", "status"]))
def test_a_spoilt_pod_does_not_hide_the_others(spoilt: Any, part: str) -> None:
    pods = parse_pods({"items": [spoilt, {**pod(OTHER_POD, OTHER_CONTAINER), part: spoilt}, pod()]})
    assert pods.find(POD, CONTAINER) == {**SHOP, "k8s.container.name": "app"}
