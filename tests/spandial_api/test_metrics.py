"""GET /metrics."""

from __future__ import annotations

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from spandial.labels import Labels
from spandial_api.node_states import (
    HookCounts,
    KernelCounts,
    KindStats,
    LostContext,
    LostExample,
    NodeStats,
    SpanStats,
    TargetName,
    TargetStats,
)
from tests.spandial_api.fake_node import FakeNode

pytestmark = pytest.mark.anyio

Sample = dict[tuple[tuple[str, str], ...], float]


async def scrape(client: httpx.AsyncClient) -> dict[str, Sample]:
    """Every metric's samples by their labels."""
    answer = await client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    found: dict[str, Sample] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            key = tuple(sorted(sample.labels.items()))
            samples = found.setdefault(sample.name, {})
            assert key not in samples, "a series is exposed twice"
            samples[key] = sample.value
    return found


def at(samples: Sample, **labels: str) -> float:
    return sum(value for key, value in samples.items() if labels.items() <= dict(key).items())


@pytest.fixture
def busy(node: FakeNode) -> FakeNode:
    kernel = KernelCounts(seen=10, kept=4, seen_traced=7, kept_traced=3, reverse=5, reverse_traced=2)
    hook = HookCounts(root_kept=1, root_dropped=2, remote_kept=3, remote_dropped=4, local_kept=8, local_dropped=9)
    both = KindStats(kernel=kernel, hook=hook, difference_seen=0, difference_kept=0)
    alone = KindStats(kernel=None, hook=HookCounts(root_kept=6), difference_seen=None, difference_kept=None)
    node.counts = NodeStats(
        targets=[
            TargetStats(pid=1000, service="checkout", version="v1", env="gray", kinds={"http": both, "db": alone}),
            TargetStats(pid=1001, service="checkout", version="v1", env="gray", kinds={"http": both}),
        ],
        losses={"ring_full": 3, "agent_slow": 0},
        spans=SpanStats(kept=9, exported=5, queued=3, lost={"spans_rejected": 1}),
    )
    node.processes = [Labels("checkout", "v1", "gray"), Labels("checkout", "v1", "gray")]
    return node


async def test_the_kernels_counts_are_parted_by_context_and_outcome(remote: httpx.AsyncClient, busy: FakeNode) -> None:
    samples = (await scrape(remote))["spandial_kernel_entries_total"]
    assert at(samples, pid="1000") == 10
    assert at(samples, pid="1000", outcome="kept") == 4
    assert at(samples, pid="1000", context="traced") == 7
    assert at(samples, pid="1000", context="traced", outcome="kept") == 3
    assert at(samples, kind="db") == 0
    assert at((await scrape(remote))["spandial_kernel_reverse_total"], pid="1000", kind="http") == 5
    assert at((await scrape(remote))["spandial_kernel_reverse_traced_total"], pid="1000", kind="http") == 2


async def test_the_hooks_decisions_are_parted_by_parent_and_outcome(remote: httpx.AsyncClient, busy: FakeNode) -> None:
    samples = (await scrape(remote))["spandial_hook_decisions_total"]
    http = {"pid": "1000", "kind": "http"}
    by_parent = [
        at(samples, **http, parent=parent, outcome=outcome)
        for parent in ("root", "remote", "local")
        for outcome in ("kept", "dropped")
    ]
    assert by_parent == [1, 2, 3, 4, 8, 9]
    assert at(samples, kind="db", outcome="kept") == 6


async def test_losses_and_the_nodes_state_are_exposed(remote: httpx.AsyncClient, busy: FakeNode) -> None:
    found = await scrape(remote)
    assert at(found["spandial_losses_total"], reason="ring_full") == 3
    assert [at(found["spandial_spans"], outcome=outcome) for outcome in ("kept", "exported", "queued")] == [9, 5, 3]
    assert at(found["spandial_losses_total"], reason="agent_slow") == 0
    assert at(found["spandial_targets"]) == 2
    assert at(found["spandial_free_rows"]) == 4094
    assert at(found["spandial_refused_rows_total"]) == 0
    capture = found["spandial_capture"]
    assert {path: at(capture, path=path) for path in ("socket", "sys_exit", "off")} == {
        "socket": 0,
        "sys_exit": 0,
        "off": 1,
    }


async def test_lost_trace_contexts_are_exposed(remote: httpx.AsyncClient, node: FakeNode) -> None:
    pair = LostContext(
        client=TargetName(pid=7, service="shop", version="v1", env="gray"),
        server=TargetName(pid=9, service="front", version="", env=""),
        count=1234,
        since=0,
        example=LostExample(time=0, method="GET", path="/pay", trace_id="0af7651916cd43dd8448eb211c80319c"),
    )
    node.counts = NodeStats(targets=[], losses={}, context_lost=[pair])
    samples = (await scrape(remote))["spandial_context_lost_total"]
    assert at(samples, client="shop", client_pid="7", server="front", server_pid="9") == 1234


async def test_the_rate_in_force_and_the_revision_follow_the_dial(
    remote: httpx.AsyncClient, local: httpx.AsyncClient, busy: FakeNode
) -> None:
    await local.put("/sampling", params={"rate": "12.5", "env": "gray", "protocol": "http"})
    found = await scrape(remote)
    assert at(found["spandial_rate_percent"], pid="1000", kind="http", env="gray") == 12.5
    assert at(found["spandial_rate_percent"], pid="1000", kind="db") == 100
    assert at(found["spandial_revision"]) == 1


async def test_a_name_with_anything_in_it_does_not_break_the_format(remote: httpx.AsyncClient, node: FakeNode) -> None:
    name = 'a"b\\c\nspandial_targets 9\n{}, ü'
    node.processes = [Labels(service=name)]
    found = await scrape(remote)
    assert at(found["spandial_targets"]) == 1
    assert at(found["spandial_rate_percent"], service=name, kind="http") == 100


async def test_an_idle_node_can_be_scraped(remote: httpx.AsyncClient) -> None:
    assert at((await scrape(remote))["spandial_targets"]) == 0


async def test_answers_to_other_sdks_are_counted(remote: httpx.AsyncClient) -> None:
    for _ in range(2):
        assert (await remote.get("/sampling", params={"service": "shop"})).is_success
    assert (await remote.post("/GetSamplingRules")).is_success
    found = await scrape(remote)
    assert found["spandial_remote_sampling_answers_total"] == {(("protocol", "jaeger"),): 2, (("protocol", "xray"),): 1}
    assert found["spandial_xray_clients_forgotten_total"] == {(): 0}
