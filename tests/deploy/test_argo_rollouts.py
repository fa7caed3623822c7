"""The recipe for Argo Rollouts, played as Argo plays it."""

from __future__ import annotations

import httpx
import pytest

from spandial.labels import labels_from_environ
from tests.agent_process import eventually
from tests.deploy.argo_rollouts import ArgoRollouts
from tests.deploy.nodes import TOKEN, Cluster
from tests.deploy.recipes import environment, only

RELAY = "https://spandial-relay.spandial.svc:8443"
RAISED = [(100.0, "boost")] * 3
RESTORED = [None] * 3
TEN_MINUTES = 600.0
STABLE, CANARY = "5d9f7c6bd4", "7b8c9d6f55"


def rollouts(cluster: Cluster, controller: httpx.Client, token: str = TOKEN) -> ArgoRollouts:
    secrets = {
        ("spandial", "token"): token,
        ("argo-rollouts-notification-secret", "spandial-token"): token,
    }
    made = ArgoRollouts(
        only("argo-rollouts/rollout.yaml", "Rollout"),
        only("argo-rollouts/rollout.yaml", "AnalysisTemplate"),
        only("argo-rollouts/notifications.yaml", "ConfigMap"),
        secrets,
        controller,
        (RELAY, cluster.url),
    )
    made.release(CANARY)
    return made


@pytest.fixture
def argo(cluster: Cluster, controller: httpx.Client) -> ArgoRollouts:
    return rollouts(cluster, controller)


def rates(cluster: Cluster, pod_hash: str) -> list[tuple[float, str] | None]:
    """The rates of the pods of a version, by the environment that the recipe gives them."""
    rollout = only("argo-rollouts/rollout.yaml", "Rollout")
    labels = labels_from_environ(environment(rollout, {"rollouts-pod-template-hash": pod_hash}))
    return cluster.rates(labels.service, **dict(labels.others))


@pytest.mark.parametrize("end", ["on-rollout-completed", "on-rollout-aborted"])
def test_a_release_raises_the_canary_alone_and_its_end_restores_it(
    cluster: Cluster, argo: ArgoRollouts, end: str
) -> None:
    for _ in range(3):
        assert argo.measure() == ["Successful"]
        assert rates(cluster, CANARY) == RAISED
        assert rates(cluster, STABLE) == RESTORED
    assert argo.notify(end)
    assert rates(cluster, CANARY) == RESTORED
    assert cluster.rules() == [0, 0, 0]


def test_the_next_release_raises_its_own_pods_and_not_those_of_the_last(cluster: Cluster, argo: ArgoRollouts) -> None:
    assert argo.measure() == ["Successful"]
    assert argo.notify("on-rollout-completed")
    argo.release("6f6f6f6f6f")
    assert argo.measure() == ["Successful"]
    assert rates(cluster, CANARY) == RESTORED
    assert rates(cluster, "6f6f6f6f6f") == RAISED


def test_without_a_notification_the_rule_ends_by_itself(cluster: Cluster, argo: ArgoRollouts) -> None:
    assert argo.measure() == ["Successful"]
    cluster.clock.now += 0.9 * TEN_MINUTES
    assert argo.measure() == ["Successful"]
    cluster.clock.now += 0.9 * TEN_MINUTES
    assert rates(cluster, CANARY) == RAISED
    cluster.clock.now += 0.2 * TEN_MINUTES
    eventually(lambda: rates(cluster, CANARY) == RESTORED, "the rule has ended")
    assert argo.measure() == ["Successful"]
    assert rates(cluster, CANARY) == RAISED


def test_notifications_may_come_twice_too_early_and_too_late(cluster: Cluster, argo: ArgoRollouts) -> None:
    assert argo.notify("on-rollout-aborted")
    assert argo.measure() == ["Successful"]
    assert argo.notify("on-rollout-aborted")
    assert argo.notify("on-rollout-completed")
    assert cluster.rules() == [0, 0, 0]


def test_a_node_that_does_not_answer_is_an_error_of_the_measurement_and_the_others_are_raised(
    cluster: Cluster, argo: ArgoRollouts
) -> None:
    cluster.agents[1].stop()
    assert argo.measure() == ["Error"]
    cluster.agents[1].start()
    assert rates(cluster, CANARY) == [RAISED[0], None, RAISED[2]]
    assert argo.measure() == ["Successful"]
    assert rates(cluster, CANARY) == RAISED


def test_a_wrong_token_raises_nothing_and_is_seen(cluster: Cluster, controller: httpx.Client) -> None:
    argo = rollouts(cluster, controller, token="wrong")
    assert argo.measure() == ["Error"]
    assert not argo.notify("on-rollout-aborted")
    assert cluster.rules() == [0, 0, 0]


def test_an_agent_that_restarts_during_the_release_still_has_the_rule(cluster: Cluster, argo: ArgoRollouts) -> None:
    assert argo.measure() == ["Successful"]
    cluster.agents[0].stop()
    cluster.agents[0].start()
    assert rates(cluster, CANARY) == RAISED
    assert argo.notify("on-rollout-aborted")
    assert rates(cluster, CANARY) == RESTORED
