"""Flagger, as far as it calls webhooks: pkg/controller/webhook.go and scheduler_hooks.go of fluxcd/flagger.

A webhook is one POST to its URL with the canary's name, namespace, phase and checksum and the webhook's metadata in
JSON, without a header of its own; a status above 202, or none within the timeout, is a failure. Nothing is tried again.
"""

from __future__ import annotations

from typing import Any

import httpx

from tests.agent_process import PATIENCE_S

__all__ = ["Flagger"]

_SUCCESS_MAX = 202


class Flagger:
    """Calls the webhooks of a Canary.

    Args:
        urls: what the recipe's URLs begin with, and what they begin with here.
        secret: what whoever applies the recipe puts in for ${SPANDIAL_RELAY_SECRET}.
    """

    def __init__(self, canary: dict[str, Any], http: httpx.Client, urls: tuple[str, str], secret: str) -> None:
        self._canary = canary
        self._http = http
        self._urls = urls
        self._secret = secret

    def call(self, kind: str, phase: str = "Progressing") -> bool:
        """Call all webhooks of a type, as long as they succeed; whether all did."""
        hooks = [hook for hook in self._canary["spec"]["analysis"]["webhooks"] if hook.get("type", "rollout") == kind]
        assert hooks, f"the recipe has no webhook {kind}"
        return all(self._call(hook, phase) for hook in hooks)

    def _call(self, hook: dict[str, Any], phase: str) -> bool:
        metadata = self._canary["metadata"]
        body: dict[str, Any] = {"name": metadata["name"], "namespace": metadata["namespace"]}
        body |= {"phase": phase, "checksum": "6cb5c9c5d7"}
        if "metadata" in hook:
            body["metadata"] = hook["metadata"]
        timeout = max(float(hook.get("timeout", "10s").removesuffix("s")), PATIENCE_S)  # this host may be a busy one
        url = hook["url"].replace(*self._urls)
        assert url != hook["url"]
        assert "${SPANDIAL_RELAY_SECRET}" in url
        url = url.replace("${SPANDIAL_RELAY_SECRET}", self._secret)
        try:
            answer = self._http.post(url, json=body, timeout=timeout)
        except httpx.TransportError:
            return False
        return answer.status_code <= _SUCCESS_MAX
