"""Argo Rollouts, as far as it calls others: metricproviders/webmetric of argoproj/argo-rollouts, and
pkg/services/webhook.go of argoproj/notifications-engine."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import httpx
import yaml

from tests.agent_process import PATIENCE_S

__all__ = ["ArgoRollouts"]

_ARGUMENT = re.compile(r"\{\{\s*args\.([\w-]+)\s*\}\}")
_TEMPLATE = re.compile(r"\{\{\s*\.([\w.]+)\s*\}\}")
_SECRET = re.compile(r"\$([\w-]+)")
_CONDITION = re.compile(r"result (>|>=|==) (\d+)")
_RETRIES = 3  # of what fails with 5xx, or not at all


class ArgoRollouts:
    """Runs one Rollout's background analysis, and sends its notifications.

    Args:
        secrets: by name and key.
        urls: what the recipe's URLs begin with, and what they begin with here.
    """

    def __init__(
        self,
        rollout: dict[str, Any],
        analysis: dict[str, Any],
        notifications: dict[str, Any],
        secrets: Mapping[tuple[str, str], str],
        http: httpx.Client,
        urls: tuple[str, str],
    ) -> None:
        self.rollout = rollout
        self._analysis = analysis
        self._config = notifications["data"]
        self._secrets = secrets
        self._http = http
        self._urls = urls

    def release(self, pod_hash: str) -> None:
        """A new version: its pods have this hash."""
        self.rollout["status"] = {"currentPodHash": pod_hash}

    def measure(self) -> list[str]:
        """Take each metric of the analysis once; its phases."""
        arguments = self._arguments()
        return [self._measure(metric, arguments) for metric in self._analysis["spec"]["metrics"]]

    def _arguments(self) -> dict[str, str]:
        [template] = self.rollout["spec"]["strategy"]["canary"]["analysis"]["templates"]
        assert template == {"templateName": self._analysis["metadata"]["name"]}
        given = {}
        for argument in self.rollout["spec"]["strategy"]["canary"]["analysis"]["args"]:
            if "valueFrom" in argument:
                assert argument["valueFrom"] == {"podTemplateHashValue": "Latest"}
                given[argument["name"]] = self.rollout["status"]["currentPodHash"]
            else:
                given[argument["name"]] = argument["value"]
        for argument in self._analysis["spec"]["args"]:
            if "valueFrom" in argument:
                reference = argument["valueFrom"]["secretKeyRef"]
                given[argument["name"]] = self._secrets[reference["name"], reference["key"]]
        assert set(given) == {argument["name"] for argument in self._analysis["spec"]["args"]}
        return given

    def _measure(self, metric: dict[str, Any], arguments: Mapping[str, str]) -> str:
        def filled(text: str) -> str:
            return _ARGUMENT.sub(lambda match: arguments[match[1]], text)

        web = metric["provider"]["web"]
        try:
            answer = self._http.request(
                web.get("method", "GET"),
                filled(web["url"]).replace(*self._urls),
                headers={header["key"]: filled(header["value"]) for header in web.get("headers", [])},
                content=filled(web.get("body", "")),
                timeout=max(web.get("timeoutSeconds", 10), PATIENCE_S),  # this host may be a busy one
            )
        except httpx.TransportError:
            return "Error"
        if not answer.is_success:
            return "Error"
        result = answer.json()
        for name in web.get("jsonPath", "{$}")[2:-1].strip(".").split("."):
            result = result[name] if name else result
        condition = _CONDITION.fullmatch(metric["successCondition"])
        assert condition, metric["successCondition"]
        bound = int(condition[2])
        met = {">": result > bound, ">=": result >= bound, "==": result == bound}[condition[1]]
        return "Successful" if met else "Failed"

    def notify(self, trigger: str) -> bool:
        """Send what the Rollout's subscribers of a trigger are to be told; whether they could be told."""
        annotations = self.rollout["metadata"]["annotations"]
        prefix = f"notifications.argoproj.io/subscribe.{trigger}."
        services = [name.removeprefix(prefix) for name in annotations if name.startswith(prefix)]
        assert services, f"nobody subscribes to {trigger}"
        templates = [name for rule in yaml.safe_load(self._config[f"trigger.{trigger}"]) for name in rule["send"]]
        sent = [self._send(service, template) for service in services for template in templates]
        return all(sent)

    def _send(self, service: str, template: str) -> bool:
        options = yaml.safe_load(_SECRET.sub(self._secret, self._config[f"service.webhook.{service}"]))
        webhook = yaml.safe_load(self._config[f"template.{template}"])["webhook"][service]
        url = options["url"].replace(*self._urls).rstrip("/") + "/" + self._rendered(webhook["path"]).lstrip("/")
        headers = {header["name"]: header["value"] for header in options["headers"]}
        for _ in range(1 + _RETRIES):
            try:
                body = self._rendered(webhook.get("body", ""))
                answer = self._http.request(webhook.get("method", "GET"), url, headers=headers, content=body)
            except httpx.TransportError:
                continue
            if answer.status_code < 500:
                return answer.is_success
        return False

    def _secret(self, match: re.Match[str]) -> str:
        return json.dumps(self._secrets["argo-rollouts-notification-secret", match[1]])[1:-1]

    def _rendered(self, text: str) -> str:
        def value(match: re.Match[str]) -> str:
            found: Any = {"rollout": self.rollout}
            for name in match[1].split("."):
                found = found[name]
            return str(found)

        return _TEMPLATE.sub(value, text)
