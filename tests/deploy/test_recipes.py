"""The recipes name what the tools and spandial have, and fit together."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import yaml

from spandial_api.durations import parse_duration
from tests.agent_process import eventually
from tests.certificates import Certificate
from tests.deploy.nodes import SECRET
from tests.deploy.recipes import FOLDER, documents, only
from tests.live_app import free_port

# Fields by the custom resources' definitions: flagger.app/v1beta1, argoproj.io/v1alpha1.
FLAGGER_WEBHOOK = {"type", "name", "url", "timeout", "metadata", "muteAlert"}
FLAGGER_TYPES = {
    *("confirm-rollout", "pre-rollout", "rollout", "confirm-traffic-increase", "confirm-promotion"),
    *("post-rollout", "rollback", "event"),
}
FLAGGER_ANALYSIS = {
    *("interval", "threshold", "maxWeight", "stepWeight", "stepWeights", "stepWeightPromotion", "iterations"),
    *("primaryReadyThreshold", "canaryReadyThreshold", "match", "metrics", "alerts", "webhooks", "sessionAffinity"),
    "mirror",
    "mirrorWeight",
}
ARGO_TEMPLATE = {"args", "metrics", "dryRun", "measurementRetention", "templates"}
ARGO_METRIC = {
    *("name", "interval", "initialDelay", "count", "successCondition", "failureCondition", "failureLimit"),
    *("inconclusiveLimit", "consecutiveErrorLimit", "consecutiveSuccessLimit", "provider"),
}
ARGO_WEB = {
    *("method", "url", "headers", "body", "jsonBody", "timeoutSeconds", "jsonPath", "insecure", "authentication"),
}
ARGO_ANALYSIS = {
    *("templates", "args", "startingStep", "dryRun", "measurementRetention", "analysisRunMetadata"),
}
ARGO_WEBHOOK = {
    *("url", "headers", "basicAuth", "insecureSkipVerify", "retryWaitMin", "retryWaitMax", "retryMax"),
    *("maxIdleConns", "maxIdleConnsPerHost", "maxConnsPerHost", "idleConnTimeout"),
}
RECIPES = sorted(str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.yaml"))


def urls() -> list[str]:
    hooks = [hook["url"] for hook in only("flagger/canary.yaml", "Canary")["spec"]["analysis"]["webhooks"]]
    [metric] = only("argo-rollouts/rollout.yaml", "AnalysisTemplate")["spec"]["metrics"]
    config = only("argo-rollouts/notifications.yaml", "ConfigMap")["data"]
    service = yaml.safe_load(config["service.webhook.spandial"])
    webhook = yaml.safe_load(config["template.spandial-restore"])["webhook"]["spandial"]
    return [*hooks, metric["provider"]["web"]["url"], service["url"] + webhook["path"]]


@pytest.mark.parametrize("path", RECIPES)
def test_a_recipe_is_yaml_that_says_what_it_is_for(path: str) -> None:
    assert (FOLDER / path).read_text().startswith("# ")
    for document in documents(path):
        assert "spec" in document or {"apiVersion", "kind", "metadata"} <= set(document)


def test_flagger_has_the_fields_that_its_recipe_names() -> None:
    canary = only("flagger/canary.yaml", "Canary")
    assert canary["apiVersion"] == "flagger.app/v1beta1"
    assert set(canary["spec"]) <= {"targetRef", "service", "analysis", "provider", "progressDeadlineSeconds"}
    assert set(canary["spec"]["analysis"]) <= FLAGGER_ANALYSIS
    for hook in canary["spec"]["analysis"]["webhooks"]:
        assert set(hook) <= FLAGGER_WEBHOOK
        assert hook["type"] in FLAGGER_TYPES - {"rollback"}, "a rollback hook that answers 200 rolls back"


def test_argo_has_the_fields_that_its_recipe_names() -> None:
    template = only("argo-rollouts/rollout.yaml", "AnalysisTemplate")
    rollout = only("argo-rollouts/rollout.yaml", "Rollout")
    assert template["apiVersion"] == rollout["apiVersion"] == "argoproj.io/v1alpha1"
    assert set(template["spec"]) <= ARGO_TEMPLATE
    [metric] = template["spec"]["metrics"]
    assert set(metric) <= ARGO_METRIC
    assert set(metric["provider"]["web"]) <= ARGO_WEB
    assert metric["provider"]["web"]["method"] in {"GET", "POST", "PUT"}
    assert [run["metricName"] for run in template["spec"]["dryRun"]] == [metric["name"]]
    assert set(rollout["spec"]["strategy"]["canary"]["analysis"]) <= ARGO_ANALYSIS


def test_argo_has_the_settings_that_its_notifications_name() -> None:
    config = only("argo-rollouts/notifications.yaml", "ConfigMap")
    assert config["metadata"]["name"] == "argo-rollouts-notification-configmap"
    kinds = {name.split(".")[0] for name in config["data"]}
    assert kinds == {"service", "template", "trigger"}
    assert set(yaml.safe_load(config["data"]["service.webhook.spandial"])) <= ARGO_WEBHOOK
    for name, text in config["data"].items():
        if name.startswith("trigger."):
            sent = {template for rule in yaml.safe_load(text) for template in rule["send"]}
            assert {f"template.{template}" for template in sent} <= set(config["data"])


@pytest.mark.parametrize("url", urls())
def test_every_url_leads_to_the_relay_and_says_why(url: str) -> None:
    parts = urlsplit(url)
    service = only("relay.yaml", "Service", "spandial-relay")
    [port] = service["spec"]["ports"]
    assert f"{parts.scheme}://{parts.netloc}" == f"https://spandial-relay.spandial.svc:{port['port']}"
    assert parts.path.removeprefix("/via/${SPANDIAL_RELAY_SECRET}") in ("/sampling", "/sampling/restore")
    parameters = parse_qs(parts.query)
    assert parameters["why"]
    assert any(name.startswith("label.") for name in parameters), "the canary alone, and not the whole service"
    if parts.path.endswith("/sampling"):
        assert parameters["mode"] == ["boost"]
        assert parse_duration(parameters["ttl"][0]) == 600


def test_a_rule_outlives_some_missed_renewals() -> None:
    canary = only("flagger/canary.yaml", "Canary")["spec"]["analysis"]
    [metric] = only("argo-rollouts/rollout.yaml", "AnalysisTemplate")["spec"]["metrics"]
    for interval in (canary["interval"], metric["interval"]):
        assert parse_duration(interval) <= 600 / 5


def test_every_request_of_the_recipes_shows_a_credential() -> None:
    hooks = [hook["url"] for hook in only("flagger/canary.yaml", "Canary")["spec"]["analysis"]["webhooks"]]
    assert all("/via/${SPANDIAL_RELAY_SECRET}/" in url for url in hooks)
    [metric] = only("argo-rollouts/rollout.yaml", "AnalysisTemplate")["spec"]["metrics"]
    assert {header["key"] for header in metric["provider"]["web"]["headers"]} == {"Authorization"}
    service = yaml.safe_load(only("argo-rollouts/notifications.yaml", "ConfigMap")["data"]["service.webhook.spandial"])
    assert {header["name"] for header in service["headers"]} == {"Authorization"}


def test_network_policies_let_the_tools_reach_the_relay_and_the_relay_the_agents() -> None:
    for name, port in (("spandial-relay", 8443), ("spandial-agent", 5778)):
        policy = only("relay.yaml", "NetworkPolicy", name)["spec"]
        assert policy["policyTypes"] == ["Ingress"]
        assert policy["podSelector"]["matchLabels"] == {"app": name}
        [rule] = policy["ingress"]
        assert rule["from"]
        assert rule["ports"] == [{"port": port}]


def arguments() -> list[str]:
    [container] = only("relay.yaml", "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["spandial", "relay"]
    return [str(argument) for argument in container["args"]]


def test_the_relay_gives_up_before_the_tools_do() -> None:
    [timeout] = [float(text.partition("=")[2]) for text in arguments() if text.startswith("--timeout=")]
    hooks = only("flagger/canary.yaml", "Canary")["spec"]["analysis"]["webhooks"]
    [metric] = only("argo-rollouts/rollout.yaml", "AnalysisTemplate")["spec"]["metrics"]
    waits = [float(hook["timeout"].removesuffix("s")) for hook in hooks] + [metric["provider"]["web"]["timeoutSeconds"]]
    assert timeout < min(waits)


def test_the_relay_that_the_recipe_starts_serves(tmp_path: Path, tls: Certificate) -> None:
    pod = only("relay.yaml", "Deployment")["spec"]["template"]["spec"]
    files = {"tls.crt": tls.certificate.read_text(), "tls.key": tls.key.read_text()}
    files |= {"token": "token", "secret": SECRET, "ca.pem": tls.certificate.read_text()}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    port, agents = free_port(), free_port()
    started: list[str] = []
    for argument in arguments():
        for mount in pod["containers"][0]["volumeMounts"]:
            argument = argument.replace(f"={mount['mountPath']}/", f"={tmp_path}/")
        argument = argument.replace("spandial-agents.spandial.svc:5778", f"localhost:{agents}")
        started.append(argument.replace("--port=8443", f"--port={port}"))
    process = subprocess.Popen([sys.executable, "-m", "spandial_agent", "relay", *started], env=dict(os.environ))
    trusted = ssl.create_default_context(cafile=str(tls.certificate))
    try:
        with httpx.Client(verify=trusted, base_url=f"https://localhost:{port}", trust_env=False) as client:
            probe = pod["containers"][0]["readinessProbe"]["httpGet"]
            eventually(lambda: client.get(probe["path"]).is_success, "the relay serves")
            name = urlsplit(urls()[0]).netloc
            assert client.post("/sampling?rate=30").status_code == 401
            answer: Any = client.post(f"/via/{SECRET}/sampling?rate=30", headers={"Host": name})
            assert answer.status_code == 502
            assert [failure["address"] for failure in answer.json()["failed"]] == ["127.0.0.1"]
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) in (0, -signal.SIGTERM)
