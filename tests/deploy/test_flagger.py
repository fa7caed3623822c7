"""The recipe for Flagger, played as Flagger plays it."""

from __future__ import annotations

import httpx
import pytest

from spandial.labels import labels_from_environ
from spandial_api.selectors import Selector
from spandial_api.tokens import Token, digest_of
from tests.agent_process import eventually
from tests.deploy.flagger import Flagger
from tests.deploy.nodes import SECRET, TOKEN, Cluster
from tests.deploy.recipes import environment, only

RELAY = "https://spandial-relay.spandial.svc:8443"
RAISED = [(100.0, "boost")] * 3
RESTORED = [None] * 3
TEN_MINUTES = 600.0


@pytest.fixture
def flagger(cluster: Cluster, controller: httpx.Client) -> Flagger:
    return Flagger(only("flagger/canary.yaml", "Canary"), controller, (RELAY, cluster.url), SECRET)


def canary(cluster: Cluster, app: str = "checkout") -> list[tuple[float, str] | None]:
    """The rates of the pods with this label, by the environment that the recipe gives them."""
    variables = environment(only("flagger/canary.yaml", "Deployment"), {"app": app})
    labels = labels_from_environ(variables)
    return cluster.rates(labels.service, **dict(labels.others))


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_release_raises_the_canary_alone_and_its_end_restores_it(
    cluster: Cluster, flagger: Flagger, phase: str
) -> None:
    assert canary(cluster) == RESTORED
    assert flagger.call("pre-rollout")
    assert canary(cluster) == RAISED
    assert canary(cluster, "checkout-primary") == RESTORED
    for _ in range(3):
        assert flagger.call("rollout")
    assert flagger.call("post-rollout", phase)
    assert canary(cluster) == RESTORED
    assert cluster.rules() == [0, 0, 0]


def test_each_check_of_the_analysis_prolongs_the_rule(cluster: Cluster, flagger: Flagger) -> None:
    assert flagger.call("pre-rollout")
    for _ in range(5):
        cluster.clock.now += 0.9 * TEN_MINUTES
        assert flagger.call("rollout")
        assert canary(cluster) == RAISED
    cluster.clock.now += TEN_MINUTES + 1
    eventually(lambda: canary(cluster) == RESTORED, "the rule has ended by itself")


def test_a_rule_that_has_ended_is_raised_again_by_the_next_check(cluster: Cluster, flagger: Flagger) -> None:
    assert flagger.call("pre-rollout")
    cluster.clock.now += TEN_MINUTES + 1
    eventually(lambda: canary(cluster) == RESTORED, "the rule has ended by itself")
    assert flagger.call("rollout")
    assert canary(cluster) == RAISED


def test_webhooks_may_come_twice_in_any_order_and_too_late(cluster: Cluster, flagger: Flagger) -> None:
    assert flagger.call("post-rollout", "Failed")
    assert flagger.call("rollout")
    assert flagger.call("pre-rollout")
    assert flagger.call("pre-rollout")
    assert cluster.rules() == [1, 1, 1]
    assert flagger.call("post-rollout", "Succeeded")
    assert flagger.call("post-rollout", "Succeeded")
    assert cluster.rules() == [0, 0, 0]
    assert flagger.call("pre-rollout")
    cluster.clock.now += TEN_MINUTES + 1
    assert flagger.call("post-rollout", "Succeeded")


def test_an_agent_that_restarts_during_the_release_has_the_rule_and_forgets_it_on_time(
    cluster: Cluster, flagger: Flagger
) -> None:
    assert flagger.call("pre-rollout")
    cluster.agents[1].stop()
    assert not flagger.call("rollout"), "Flagger is told that a node does not have it"
    cluster.agents[1].start()
    assert canary(cluster) == RAISED
    assert flagger.call("rollout")
    cluster.agents[1].stop()
    cluster.clock.now += TEN_MINUTES + 1
    cluster.agents[1].start()
    eventually(lambda: canary(cluster) == RESTORED, "the rule has ended, on the node that was down as well")


def test_an_agent_that_was_down_when_the_release_ended_does_not_bring_it_back_for_long(
    cluster: Cluster, flagger: Flagger
) -> None:
    assert flagger.call("pre-rollout")
    cluster.agents[2].stop()
    assert not flagger.call("post-rollout", "Succeeded")
    assert canary(cluster)[:2] == [None, None]
    cluster.clock.now += TEN_MINUTES + 1
    cluster.agents[2].start()
    assert canary(cluster) == RESTORED


def test_a_node_that_joins_during_the_release_is_raised_by_the_next_check(cluster: Cluster, flagger: Flagger) -> None:
    joining = cluster.agents.pop()
    assert flagger.call("pre-rollout")
    cluster.agents.append(joining)
    assert canary(cluster) == [*RAISED[:2], None]
    assert flagger.call("rollout")
    assert canary(cluster) == RAISED


def test_other_rules_are_left_alone(cluster: Cluster, flagger: Flagger, controller: httpx.Client) -> None:
    header = {"Authorization": f"Bearer {TOKEN}"}
    assert controller.post(f"{cluster.url}/sampling?rate=1", headers=header).is_success
    assert controller.post(f"{cluster.url}/sampling?rate=5&service=checkout", headers=header).is_success
    assert flagger.call("pre-rollout")
    assert canary(cluster, "checkout-primary") == [(5.0, "follow")] * 3
    assert flagger.call("post-rollout", "Succeeded")
    assert canary(cluster) == [(5.0, "follow")] * 3


def test_the_audit_log_says_that_it_was_flagger(cluster: Cluster, flagger: Flagger, controller: httpx.Client) -> None:
    assert flagger.call("pre-rollout")
    assert flagger.call("post-rollout", "Succeeded")
    entries = controller.get(f"{cluster.agents[0].url}/audit").json()["entries"]
    assert [entry["why"] for entry in entries] == ["flagger: post-rollout", "flagger: pre-rollout"]


def test_the_relays_token_need_not_do_more_than_the_release(
    cluster: Cluster, flagger: Flagger, controller: httpx.Client
) -> None:
    bound = Token("release", digest_of("bound"), "write", Selector(service="checkout"))
    cluster.tokens.change(lambda tokens: tokens.with_token(bound))
    cluster.token_file.write_text("bound")
    assert flagger.call("pre-rollout")
    assert flagger.call("rollout")
    assert canary(cluster) == RAISED
    for query in ("rate=100&service=cart", "rate=100"):
        assert controller.post(f"{cluster.url}/via/{SECRET}/sampling?{query}").status_code == 403
    assert flagger.call("post-rollout", "Succeeded")
    assert canary(cluster) == RESTORED


def test_who_does_not_know_the_relays_secret_is_not_lent_its_token(cluster: Cluster, controller: httpx.Client) -> None:
    canaries = only("flagger/canary.yaml", "Canary")
    for secret in ("guessed", "${SPANDIAL_RELAY_SECRET}"):
        assert not Flagger(canaries, controller, (RELAY, cluster.url), secret).call("pre-rollout")
    assert controller.post(f"{cluster.url}/sampling?rate=100&ttl=1m").status_code == 401
    assert canary(cluster) == RESTORED
