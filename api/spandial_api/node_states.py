"""What a node says of itself."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from spandial_api.breaker import CircuitState
from spandial_api.selectors import KindName

__all__ = [
    "ProtocolName",
    "HookState",
    "RateState",
    "OperationState",
    "TargetState",
    "RuleFinding",
    "Connections",
    "TargetExplanation",
    "KernelCounts",
    "HookCounts",
    "KindStats",
    "TargetStats",
    "TargetName",
    "LostExample",
    "LostContext",
    "SpanStats",
    "NodeStats",
    "BudgetUse",
    "TenantUse",
    "Health",
    "EntryEvent",
]

ProtocolName = Literal["http/1", "http/2", "postgresql", "mysql", "redis"]


class RateState(BaseModel):
    """The rate that one kind of entry has, and where it comes from."""

    rate: float = Field(description="percentage 0-100")
    mode: Literal["follow", "boost", "strict"]
    rule: str = Field(description="selector of the rule that set it; 'default' where no rule does")
    target: float | None = Field(
        default=None, description="kept entries per second and service, to which the rule steers the rate"
    )
    limited: str = Field(
        default="",
        description="what holds it below the rule's rate",
        examples=["budget", "tenant quota", "budget and tenant quota"],
    )


class OperationState(RateState):
    """The rate that some operations have, before that of their kind."""

    operation: str = Field(examples=["GET /pay*"])
    kinds: list[KindName]
    kernel: bool = Field(description="whether the kernel knows these operations too, or hooks alone do")


class HookState(BaseModel):
    """A hook in a process, as it says itself."""

    abi: int = Field(description="the version of what agent and hook share")
    spandial: str = Field(description="its version of spandial; empty where it does not say", examples=["0.1.0"])


class TargetState(BaseModel):
    """A process that the agent controls."""

    pid: int
    uid: int = Field(default=0, description="the user whose process it is, and whose share of rows it has one of")
    name: str = Field(description="the process's command name")
    service: str
    version: str
    env: str
    tenant: str = ""
    labels: dict[str, str] = Field(default={}, description="its other resource attributes")
    kind: Literal["hooked", "discovered"]
    row: int
    rates: dict[KindName, RateState]
    operations: list[OperationState] = Field(
        default=[], description="operations with rates of their own; the first that matches wins"
    )
    why: str = Field(
        default="",
        description="why it is a target",
        examples=["environment names a service", "rule: include exe=nginx", "registered by its hook"],
    )
    tls: str = Field(
        default="",
        description="whether the kernel sees what the process sends and receives by TLS",
        examples=["OpenSSL (libssl.so.3)", "not seen: statically linked (Go crypto/tls)", "none found"],
    )
    hooks: list[HookState] = Field(default=[], description="its hooks that are registered now")


class RuleFinding(BaseModel):
    """What one rule of discovery says of a process. Values of variables and command lines are never shown."""

    rule: str = Field(examples=["include exe=nginx service=edge", "environment names a service"])
    matched: bool
    why: str = Field(examples=["executable is /usr/sbin/nginx", "listens on no TCP port"])


class Connections(BaseModel):
    """Open TCP connections of a process with one server, or of one host's clients with it."""

    incoming: bool = Field(description="they came to a port that the process listens on")
    address: str = Field(description="the other side's", examples=["10.0.0.7", "::1"])
    port: int = Field(description="the server's")
    count: int


class TargetExplanation(BaseModel):
    """Why a process is a target, or why it is none, and what it is connected to."""

    pid: int
    name: str = Field(description="the process's command name; empty where there is none")
    target: bool
    why: str = Field(examples=["rule: include exe=nginx", "is a kernel thread", "no such process"])
    rules: list[RuleFinding] = Field(description="every rule, in the order written; empty where none is asked")
    listens: list[int] = Field(default=[], description="the TCP ports that it listens on")
    connections: list[Connections] = Field(default=[], description="the 100 groups with the most connections, at most")


class KernelCounts(BaseModel):
    """What the kernel counted of one kind of entry."""

    seen: int = 0
    kept: int = 0
    seen_traced: int = Field(default=0, description="seen with a trace context")
    kept_traced: int = Field(default=0, description="kept with a trace context")
    reverse: int = Field(
        default=0,
        description="requests that go the other way, never entries: HTTP and gRPC calls sent, statements received",
    )
    reverse_kept: int = Field(default=0, description="of the calls sent: kept, because their spans are exported")
    reverse_traced: int = Field(default=0, description="HTTP and gRPC calls sent with a trace context")


class HookCounts(BaseModel):
    """What the hook counted of one kind of span, by parent."""

    root_kept: int = 0
    root_dropped: int = 0
    remote_kept: int = 0
    remote_dropped: int = 0
    local_kept: int = 0
    local_dropped: int = 0

    @property
    def decisions(self) -> int:
        """All of them, spans with a local parent included."""
        return self.entries + self.local_kept + self.local_dropped

    @property
    def entries(self) -> int:
        """Decisions for spans that entered the process: without a parent, or with a remote one."""
        return self.root_kept + self.root_dropped + self.remote_kept + self.remote_dropped


class KindStats(BaseModel):
    """Kernel and hook side by side. The differences are null where only one of them counts."""

    kernel: KernelCounts | None
    hook: HookCounts | None
    difference_seen: int | None = Field(description="entries the kernel saw less those the hook decided")
    difference_kept: int | None = Field(description="the same for kept entries with a trace context; not for databases")
    in_flight_at_turns: int = Field(
        default=0,
        description="entries that were between kernel and hook when their rate turned, at most: "
        "each was decided by two rates, and may make difference_kept one more or one less",
    )


class TargetStats(BaseModel):
    """One target's counts since it became one; kinds without any are left out."""

    pid: int
    service: str
    version: str
    env: str
    kinds: dict[KindName, KindStats]


class TargetName(BaseModel):
    """One target, by all its names."""

    pid: int
    service: str
    version: str
    env: str


class LostExample(BaseModel):
    """A request that left with a trace context, and arrived without."""

    time: float = Field(description="Unix time in seconds")
    method: str
    path: str = Field(description="as the client sent it, without the query")
    trace_id: str


class LostContext(BaseModel):
    """Two targets between which trace contexts are lost: the one sends `traceparent`, the other receives none."""

    client: TargetName
    server: TargetName
    count: int = Field(description="requests that the client sent with it and the server received without, at most")
    since: float = Field(description="Unix time in seconds")
    example: LostExample


class SpanStats(BaseModel):
    """What became of the kept entries and calls of processes without a hook, all in spans.

    `kept = exported + queued + the sum of lost`, but for what moves while the numbers are read.
    """

    kept: int = Field(description="that the kernel handed over")
    exported: int = Field(description="that the collector took")
    queued: int = Field(description="that wait for their answers or for the collector")
    lost: dict[str, int] = Field(description="by reason, as in `losses`")


class NodeStats(BaseModel):
    """All counts of the node."""

    targets: list[TargetStats]
    losses: dict[str, int] = Field(description="entries or events lost, by reason")
    spans: SpanStats | None = Field(default=None, description="null where no spans are exported")
    context_lost: list[LostContext] = Field(
        default=[], description="pairs of targets between which trace contexts are lost"
    )


class BudgetUse(BaseModel):
    """What the node's budget is used for."""

    demand: float | None = Field(
        description="kept entries a second that the rules ask for, all targets together; null where nothing is limited"
    )
    limited: int = Field(description="targets whose rates the budget holds below those of the rules")


class TenantUse(BaseModel):
    """A tenant with a quota, and its circuit breaker."""

    tenant: str
    quota: float = Field(description="kept entries a second on this node")
    demand: float = Field(description="kept entries a second that the rules ask for, whatever the breaker does")
    circuit: CircuitState = Field(description="open: no rate of the tenant is above SPANDIAL_BREAKER_RATE")
    lasted: float | None = Field(
        description="seconds for which the demand has been too great (closed), or small enough again (half-open)"
    )
    open_for: list[int] = Field(
        default=[],
        description="users (uid) whose processes alone are held at SPANDIAL_BREAKER_RATE: what they ask for is more "
        "than their share of the quota, and the tenant's other processes go on",
    )


class Health(BaseModel):
    """Whether the node does what it is asked, and one sentence for everything that is missing."""

    status: Literal["ok", "degraded"]
    version: str
    table: Literal["bpf", "memfd"]
    capture: Literal["socket", "sys_exit", "off"]
    discovery: Literal["events", "scan", "off"]
    missing: list[str]
    targets: int
    free_rows: int
    refused_rows: int
    lease_seconds: float
    revision: int


class EntryEvent(BaseModel):
    """One kept entry."""

    time: float = Field(description="Unix time in seconds")
    pid: int
    service: str
    version: str
    env: str
    kind: KindName
    protocol: ProtocolName
    method: str = Field(description="HTTP and gRPC; empty where it is not known")
    path: str = Field(description="HTTP and gRPC, without the query; empty where it is not known")
    operation: str = Field(default="", description="databases: SELECT, GET")
    statement: str = Field(default="", description="databases: the statement with ? for literals and arguments, always")
    trace_id: str = Field(description="32 hexadecimal digits; empty without a trace context")
    parent_span_id: str
    kept_by: Literal["rate", "parent"]
    lost: int = Field(default=0, description="entries that this reader was too slow for, just before this one")
