"""GET /targets and GET /stats: what the node says, unchanged."""

from __future__ import annotations

import httpx
import pytest

from spandial.labels import Labels
from spandial_api.node_states import HookCounts, KernelCounts, KindStats, NodeStats, TargetStats
from tests.spandial_api.fake_node import FakeNode

pytestmark = pytest.mark.anyio


async def test_targets_show_each_kinds_rate_and_the_rule_that_set_it(
    remote: httpx.AsyncClient, local: httpx.AsyncClient, node: FakeNode
) -> None:
    node.processes = [Labels("checkout", "v1", "gray")]
    await local.put("/sampling", params={"rate": "5", "env": "gray"})
    await local.put("/sampling", params={"rate": "80", "env": "gray", "protocol": "db", "mode": "strict"})
    [target] = (await remote.get("/targets")).json()
    assert (target["service"], target["version"], target["env"]) == ("checkout", "v1", "gray")
    free = {"target": None, "limited": ""}
    assert target["rates"]["http"] == {"rate": 5.0, "mode": "follow", "rule": "env=gray", **free}
    assert target["rates"]["db"] == {"rate": 80.0, "mode": "strict", "rule": "env=gray protocol=db", **free}


async def test_stats_show_kernel_and_hook_side_by_side(remote: httpx.AsyncClient, node: FakeNode) -> None:
    counts = KindStats(kernel=KernelCounts(seen=2), hook=None, difference_seen=None, difference_kept=None)
    target = TargetStats(pid=1, service="checkout", version="", env="", kinds={"http": counts})
    node.counts = NodeStats(targets=[target], losses={"ring_full": 1})
    answer = (await remote.get("/stats")).json()
    assert answer["losses"] == {"ring_full": 1}
    assert answer["targets"][0]["kinds"]["http"]["kernel"]["seen"] == 2
    assert answer["targets"][0]["kinds"]["http"]["hook"] is None


def test_local_children_are_no_entries() -> None:
    counts = HookCounts(root_kept=1, root_dropped=2, remote_kept=4, remote_dropped=8, local_kept=16, local_dropped=32)
    assert counts.entries == 15
