"""The pods of this node, from its kubelet."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import structlog

__all__ = ["Kubelet", "Pods", "parse_pods"]

_log = structlog.get_logger("spandial.kubelet")

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_PORT = 10250
_TIMEOUT_S = 2.0
_REFRESH_S = 10.0  # a pod that is not in the list is not asked for more often
_RETRY_S = 60.0  # nor a kubelet that does not answer
_LIST_MAX = 64 << 20  # bytes

_HASH_OF_STATIC = "kubernetes.io/config.hash"
_OWNERS = {
    "ReplicaSet": "k8s.replicaset.name",
    "StatefulSet": "k8s.statefulset.name",
    "DaemonSet": "k8s.daemonset.name",
    "Job": "k8s.job.name",
}


class Pods(NamedTuple):
    """Resource attributes of pods by their uids, and the (uid, name) of each container by its id."""

    by_uid: Mapping[str, dict[str, str]]
    containers: Mapping[str, tuple[str, str]]

    def knows(self, uid: str, container_id: str) -> bool:
        return container_id in self.containers if container_id else uid in self.by_uid

    def find(self, uid: str, container_id: str) -> dict[str, str]:
        """What is known of a pod, and of its container; either may be empty."""
        pod, container = self.containers.get(container_id, (uid, ""))
        attributes = self.by_uid.get(uid or pod, {})
        return {**attributes, "k8s.container.name": container} if container else attributes


_NONE = Pods({}, {})


def parse_pods(document: object) -> Pods:
    """A v1.PodList of Kubernetes' API, as JSON gives it. Whatever is not of that form is left out."""
    by_uid: dict[str, dict[str, str]] = {}
    containers: dict[str, tuple[str, str]] = {}
    for pod in _list(document, "items"):
        uid = _text(pod, "metadata", "uid")
        if not uid:
            continue
        # A static pod's cgroup is named by the hash of its manifest, which is not always its uid.
        for each in {uid, _text(pod, "metadata", "annotations", _HASH_OF_STATIC)} - {""}:
            by_uid[each] = _attributes(pod, uid)
        for kind in ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"):
            for status in _list(pod, "status", kind):
                # "containerd://0123..."
                container_id = _text(status, "containerID").rpartition("/")[2]
                if container_id:
                    containers[container_id] = uid, _text(status, "name")
    return Pods(by_uid, containers)


def _attributes(pod: object, uid: str) -> dict[str, str]:
    attributes = {
        "k8s.pod.uid": uid,
        "k8s.pod.name": _text(pod, "metadata", "name"),
        "k8s.namespace.name": _text(pod, "metadata", "namespace"),
        "k8s.node.name": _text(pod, "spec", "nodeName"),
    }
    for owner in _list(pod, "metadata", "ownerReferences"):
        kind, name = _text(owner, "kind"), _text(owner, "name")
        if kind in _OWNERS:
            attributes[_OWNERS[kind]] = name
        # The Deployment's controller names its ReplicaSets after itself and this hash.
        suffix = "-" + _text(pod, "metadata", "labels", "pod-template-hash")
        if kind == "ReplicaSet" and len(suffix) > 1 and name.endswith(suffix):
            attributes["k8s.deployment.name"] = name.removesuffix(suffix)
    return {name: value for name, value in attributes.items() if value}


def _at(document: object, *keys: str) -> object:
    for key in keys:
        document = document.get(key) if isinstance(document, dict) else None
    return document


def _text(document: object, *keys: str) -> str:
    found = _at(document, *keys)
    return found if isinstance(found, str) else ""


def _list(document: object, *keys: str) -> list[object]:
    found = _at(document, *keys)
    return found if isinstance(found, list) else []


class Kubelet:
    """Asks for the list of pods when one is missing from it. Blocks, for seconds at most: ask from a worker thread.

    Args:
        url: "https://10.0.0.1:10250".
        token: holds the service account's token, which Kubernetes renews: read for each request.
        verify: the CA's certificate; False: trust whoever answers (many kubelets sign their own).
        now: seconds of a steady clock.
    """

    def __init__(
        self,
        url: str,
        token: Path = _ACCOUNT / "token",
        verify: Path | bool = True,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url
        self._token = token
        self._verify = verify
        self._now = now
        self._lock = threading.Lock()
        self._client: Any = None
        self._pods = _NONE
        self._ask_again = -float("inf")
        self._answers = True

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], insecure: bool = False) -> Kubelet | None:
        """This node's kubelet, if a pod's manifest names the node by the downward API; else None.

        Variables: NODE_IP, K8S_NODE_IP or HOST_IP, else NODE_NAME or K8S_NODE_NAME.
        """
        names = ("NODE_IP", "K8S_NODE_IP", "HOST_IP", "NODE_NAME", "K8S_NODE_NAME")
        host = next((environ[name] for name in names if environ.get(name)), "")
        if not host or not (_ACCOUNT / "token").exists():
            return None
        return cls(
            f"https://{f'[{host}]' if ':' in host else host}:{_PORT}",
            verify=not insecure and _ACCOUNT / "ca.crt",
        )

    def find(self, uid: str, container_id: str) -> dict[str, str]:
        """Attributes of a pod and its container: empty if the kubelet does not know it, or does not answer."""
        with self._lock:
            if not self._pods.knows(uid, container_id) and self._now() >= self._ask_again:
                self._refresh()
            return self._pods.find(uid, container_id)

    def _refresh(self) -> None:
        try:
            self._pods = parse_pods(json.loads(self._get()))
            answers, reason = True, ""
        except Exception as error:  # httpx, ssl and json have each their own; a node without a kubelet is no error
            answers, reason = False, f"{type(error).__name__}: {error}"
        self._ask_again = self._now() + (_REFRESH_S if answers else _RETRY_S)
        if answers != self._answers:
            _log.info("kubelet answers" if answers else "kubelet does not answer", url=self._url, reason=reason)
        self._answers = answers

    def _get(self) -> bytes:
        import httpx  # 15 MB, for those nodes only that have a kubelet

        if self._client is None:
            verify: ssl.SSLContext | bool = bool(self._verify)
            if isinstance(self._verify, Path):
                verify = ssl.create_default_context(cafile=str(self._verify))
            self._client = httpx.Client(verify=verify, timeout=_TIMEOUT_S, trust_env=False)
        headers = {"Authorization": f"Bearer {self._token.read_text().strip()}"}
        deadline, body = self._now() + 2 * _TIMEOUT_S, bytearray()
        with self._client.stream("GET", f"{self._url}/pods", headers=headers) as answer:
            answer.raise_for_status()
            for chunk in answer.iter_bytes():
                body += chunk
                if len(body) > _LIST_MAX or self._now() > deadline:
                    raise ValueError(f"the list of pods is too long, or comes too slowly: {len(body)} bytes")
        return bytes(body)
