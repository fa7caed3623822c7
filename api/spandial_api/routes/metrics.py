"""GET /metrics: the same counts for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from spandial_api.auth import Access
from spandial_api.guard import Guard
from spandial_api.node import Node
from spandial_api.node_states import BudgetUse, Health, NodeStats, TargetState, TenantUse
from spandial_api.remote import RemoteSampling
from spandial_api.shared_answer import SharedAnswer

router = APIRouter(tags=["node"])

_LABELS = ["service", "version", "env", "pid", "kind"]


class _Snapshot:
    """A collector of one scrape."""

    def __init__(
        self,
        stats: NodeStats,
        targets: list[TargetState],
        health: Health,
        refused: Mapping[str, int],
        budget: float | None,
        use: BudgetUse,
        tenants: list[TenantUse],
    ) -> None:
        self._stats = stats
        self._targets = targets
        self._health = health
        self._refused = refused
        self._budget = budget
        self._use = use
        self._tenants = tenants

    def collect(self) -> Iterator[Metric]:
        kernel = CounterMetricFamily(
            "spandial_kernel_entries", "Entries the kernel counted.", labels=[*_LABELS, "context", "outcome"]
        )
        hook = CounterMetricFamily(
            "spandial_hook_decisions", "Decisions of the hooks.", labels=[*_LABELS, "parent", "outcome"]
        )
        reverse = CounterMetricFamily(
            "spandial_kernel_reverse",
            "Requests that go the other way: HTTP and gRPC calls sent, statements received.",
            labels=_LABELS,
        )
        calls_kept = CounterMetricFamily(
            "spandial_kernel_reverse_kept", "Calls sent whose spans are exported.", labels=_LABELS
        )
        calls_traced = CounterMetricFamily(
            "spandial_kernel_reverse_traced", "Calls sent with a trace context.", labels=_LABELS
        )
        for target in self._stats.targets:
            for kind, counts in target.kinds.items():
                labels = [target.service, target.version, target.env, str(target.pid), kind]
                if counts.kernel:
                    c = counts.kernel
                    untraced = c.seen - c.seen_traced
                    untraced_kept = c.kept - c.kept_traced
                    kernel.add_metric([*labels, "traced", "kept"], c.kept_traced)
                    kernel.add_metric([*labels, "traced", "dropped"], c.seen_traced - c.kept_traced)
                    kernel.add_metric([*labels, "untraced", "kept"], untraced_kept)
                    kernel.add_metric([*labels, "untraced", "dropped"], untraced - untraced_kept)
                    reverse.add_metric(labels, c.reverse)
                    calls_kept.add_metric(labels, c.reverse_kept)
                    calls_traced.add_metric(labels, c.reverse_traced)
                if counts.hook:
                    for parent in ("root", "remote", "local"):
                        for outcome in ("kept", "dropped"):
                            hook.add_metric([*labels, parent, outcome], getattr(counts.hook, f"{parent}_{outcome}"))
        yield from (kernel, reverse, calls_kept, calls_traced, hook)

        losses = CounterMetricFamily("spandial_losses", "Entries or events lost.", labels=["reason"])
        for reason, count in self._stats.losses.items():
            losses.add_metric([reason], count)
        yield losses

        spans = GaugeMetricFamily("spandial_spans", "Spans since the agent's start.", labels=["outcome"])
        if self._stats.spans is not None:
            for outcome, count in self._stats.spans.model_dump(exclude={"lost"}).items():
                spans.add_metric([outcome], count)
        yield spans

        refused = CounterMetricFamily(
            "spandial_requests_refused", "Requests of somebody who may not, or not so often.", labels=["reason"]
        )
        for reason, count in self._refused.items():
            refused.add_metric([reason], count)
        yield refused

        contexts = CounterMetricFamily(
            "spandial_context_lost",
            "Requests that left one target with a trace context, and arrived at another without.",
            labels=["client", "client_pid", "server", "server_pid"],
        )
        for pair in self._stats.context_lost:
            client, server = pair.client, pair.server
            ends = [client.service, str(client.pid), server.service, str(server.pid)]
            contexts.add_metric(ends, pair.count)
        yield contexts

        rates = GaugeMetricFamily("spandial_rate_percent", "Rate in force.", labels=_LABELS)
        for state in self._targets:
            for kind, rate in state.rates.items():
                rates.add_metric([state.service, state.version, state.env, str(state.pid), kind], rate.rate)
        yield rates

        yield from self._limits()
        health = self._health
        yield GaugeMetricFamily("spandial_targets", "Targets.", value=health.targets)
        yield GaugeMetricFamily("spandial_free_rows", "Rows left in the rate table.", value=health.free_rows)
        yield CounterMetricFamily(
            "spandial_refused_rows", "Targets that found no row and use the node's default.", value=health.refused_rows
        )
        yield GaugeMetricFamily("spandial_revision", "Revision of the rules.", value=health.revision)
        capture = GaugeMetricFamily("spandial_capture", "1 for the capture path in use.", labels=["path"])
        for path in ("socket", "sys_exit", "off"):
            capture.add_metric([path], float(health.capture == path))
        yield capture

    def _limits(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "spandial_limited_targets", "Targets whose rates the budget holds down.", value=self._use.limited
        )
        if self._budget is not None:
            yield GaugeMetricFamily(
                "spandial_budget", "Kept entries a second that the node may have.", value=self._budget
            )
        if self._use.demand is not None:
            yield GaugeMetricFamily(
                "spandial_demand", "Kept entries a second that the rules ask for.", value=self._use.demand
            )
        quota = GaugeMetricFamily("spandial_tenant_quota", "Kept entries a second.", labels=["tenant"])
        demand = GaugeMetricFamily(
            "spandial_tenant_demand", "Kept entries a second that the rules ask for.", labels=["tenant"]
        )
        circuit = GaugeMetricFamily(
            "spandial_tenant_circuit", "1 for the state of a tenant's circuit.", labels=["tenant", "state"]
        )
        for use in self._tenants:
            quota.add_metric([use.tenant], use.quota)
            demand.add_metric([use.tenant], use.demand)
            for state in ("closed", "open", "half-open"):
                circuit.add_metric([use.tenant, state], float(use.circuit == state))
        yield from (quota, demand, circuit)


class _Remote:
    """What SDKs without the hook were told."""

    def __init__(self, remote: RemoteSampling) -> None:
        self._remote = remote

    def collect(self) -> Iterator[Metric]:
        answers = CounterMetricFamily(
            "spandial_remote_sampling_answers", "Answers to SDKs without the hook.", labels=["protocol"]
        )
        for protocol, count in self._remote.answers.items():
            answers.add_metric([protocol], count)
        yield answers
        yield CounterMetricFamily(
            "spandial_xray_clients_forgotten",
            "X-Ray clients that were too many to share a rule's reservoir.",
            value=self._remote.reservoirs.forgotten,
        )


def metrics_of(node: Node, access: Access, guard: Guard, remote: RemoteSampling) -> SharedAnswer[bytes]:
    """For all who ask."""

    async def make() -> bytes:
        registry = CollectorRegistry(auto_describe=False)
        snapshot = _Snapshot(
            await node.stats(),
            node.targets(),
            node.health(),
            access.refused,
            guard.limits.budget,
            node.budget_use(),
            node.tenant_uses(),
        )
        registry.register(snapshot)
        registry.register(_Remote(remote))
        return bytes(generate_latest(registry))

    return SharedAnswer(make)


@router.get("/metrics", response_class=Response)
async def get_metrics(request: Request) -> Response:
    """Counts, losses, rates and rows in Prometheus' text format."""
    shared: SharedAnswer[bytes] = request.app.state.metrics
    return Response(await shared.get(), media_type=CONTENT_TYPE_LATEST)
