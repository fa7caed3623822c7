"""The agent's settings, from SPANDIAL_* environment variables."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from spandial.decision import parse_rate
from spandial_agent.discovery.rules import parse_rules
from spandial_agent.records.redaction import PathRedaction
from spandial_api.breaker import Thresholds
from spandial_api.host_names import parse_host_names

__all__ = ["Settings", "misspelt"]


# Of this project's tests, and those that Kubernetes gives each pod for a Service of this name.
_OTHERS = re.compile(r"SPANDIAL_(OTLP_RECEIVER|(\w+_)?SERVICE_(HOST|PORT(_\w+)?)|(\w+_)?PORT_\d+_(TCP|UDP)(_\w+)?)")


def misspelt(names: Iterable[str]) -> list[str]:
    """A sentence for each of these variables that looks like a setting and is none."""
    known = {f"SPANDIAL_{name.upper()}" for name in Settings.model_fields}
    sentences = []
    for name in sorted(names):
        if name.startswith("SPANDIAL_") and name not in known and not _OTHERS.fullmatch(name):
            alike = difflib.get_close_matches(name, known, 1)
            meant = f": is {alike[0]} meant?" if alike else "."
            sentences.append(f"{name} is no setting of the agent's{meant}")
    return sentences


class Settings(BaseSettings):
    """Every setting has a default that serves a node."""

    model_config = SettingsConfigDict(env_prefix="SPANDIAL_", extra="ignore")

    run_dir: Path = Field(default=Path("/run/spandial"), description="where app.sock and api.sock are")
    state_dir: Path = Field(default=Path("/var/lib/spandial"), description="where the rules and the tokens are")
    compiled_dir: Path = Field(
        default=Path("compiled"), description="where compiled BPF programs are kept; taken from the state dir"
    )
    host: str = "127.0.0.1"
    port: int = Field(default=5778, ge=0, le=65535)
    host_names: str = Field(
        default="",
        description="names, beside SPANDIAL_HOST, by which the interface is asked over TCP; addresses always are",
        examples=["node-7.example,spandial-agents.spandial.svc"],
    )
    jaeger_grpc_port: int | None = Field(
        default=None, ge=0, le=65535, description="where Jaeger's remote sampling is served over gRPC; unset: nowhere"
    )
    xray_interval_seconds: int = Field(
        default=10, ge=1, le=300, description="how often SDKs with AWS X-Ray's sampler are told to ask"
    )
    tls_cert: Path | None = Field(
        default=None, description="certificate of the TCP listener, PEM; without TLS it is for this host alone"
    )
    tls_key: Path | None = Field(default=None, description="its key; without one, in the certificate's file")
    tls_client_ca: Path | None = Field(
        default=None, description="whoever connects over TCP must show a certificate of these"
    )
    read_without_token: Literal["auto", "on", "off"] = Field(
        default="auto", description="who may read over TCP without a token; auto: this host alone"
    )
    writes_per_second: float = Field(
        default=100.0, ge=0, le=1e6, description="changes by one writer, twice as many at once; 0: no limit"
    )
    group: str = Field(default="spandial", description="group that may write over api.sock, if it exists")
    table: Literal["auto", "bpf", "memfd"] = Field(default="auto", description="memfd: no kernel side at all")
    capture: Literal["auto", "socket", "sys_exit", "off"] = "auto"
    capture_tls: Literal["auto", "off"] = Field(default="auto", description="off: what TLS carries is not seen")
    capture_cpu_limit: float | None = Field(
        default=None,
        gt=0,
        le=4096,
        description="processors that capture may take together, 0.5 is half of one: beyond, it is off for a while; "
        "none: no limit",
    )
    tls_trust_owners: str = Field(
        default="",
        description="users whose files get probes in every process, beside root and the process's own",
        examples=["1000 1001"],
    )
    lease_seconds: float = Field(default=10.0, gt=0, le=3600, description="rates outlive a dead agent for so long")
    default_rate: float = Field(default=100.0, description="rate of discovered processes without a rule")
    max_rate_without_ttl: float = Field(
        default=50.0, description="a rule of a greater rate is refused unless it says when it ends"
    )
    discover: str = Field(
        default="",
        description="rules that include processes as targets or exclude them, beside those that name a service",
        examples=["include exe=nginx service=edge env=gray; exclude port=9000-9099"],
    )
    raw_statements: bool = Field(
        default=False,
        description="export statements and Redis commands as received, with literals, arguments and passwords",
    )
    redact_paths: PathRedaction = Field(
        default="off", description="ids: paths are exported and shown without what may be an id; all: without anything"
    )
    propagation_seconds: float = Field(
        default=30.0,
        ge=0,
        le=86400,
        description="how often to look where trace contexts are lost; 0: never",
    )
    memory_limit_mib: float = Field(
        default=250.0,
        ge=64,
        le=1 << 20,
        description="memory that the agent may hold (RSS), MiB: above it, it gives up what is least needed first",
    )
    budget: float | None = Field(
        default=None, gt=0, le=1e9, description="kept entries a second, all targets together; none: no budget"
    )
    quota: float | None = Field(
        default=None, gt=0, le=1e9, description="kept entries a second of a tenant that has no quota of its own"
    )
    breaker_over: float = Field(default=120.0, gt=0, description="percentage of the quota that opens a circuit")
    breaker_over_seconds: float = Field(default=180.0, ge=0, description="for so long")
    breaker_under: float = Field(default=80.0, gt=0, description="percentage of the quota that closes a circuit")
    breaker_under_seconds: float = Field(default=300.0, ge=0, description="for so long")
    breaker_rate: float = Field(default=1.0, description="no rate of an open circuit is above this one")
    require_kernel: bool = Field(default=False, description="refuse to start without the kernel side")
    log: Literal["console", "json"] = "console"

    @model_validator(mode="after")
    def _below_state(self) -> Settings:
        self.compiled_dir = self.state_dir / self.compiled_dir
        return self

    @property
    def forced_path(self) -> Literal["socket", "sys_exit"] | None:
        """The capture path to use without trying the others, if one is set."""
        return self.capture if self.capture in ("socket", "sys_exit") else None

    @model_validator(mode="after")
    def _opens_above_what_closes(self) -> Settings:
        if self.breaker_under > self.breaker_over:
            raise ValueError(
                f"SPANDIAL_BREAKER_UNDER ({self.breaker_under:g}) is above SPANDIAL_BREAKER_OVER "
                f"({self.breaker_over:g}): it must not be, or a circuit would close and open at the same demand"
            )
        return self

    @property
    def trusted_owners(self) -> frozenset[int]:
        return frozenset(int(number) for number in self.tls_trust_owners.split())

    @property
    def thresholds(self) -> Thresholds:
        """Of the tenants' circuits."""
        return Thresholds(
            self.breaker_over,
            self.breaker_over_seconds,
            self.breaker_under,
            self.breaker_under_seconds,
            self.breaker_rate,
        )

    @field_validator("default_rate", "max_rate_without_ttl", "breaker_rate", mode="before")
    @classmethod
    def _rate(cls, value: object) -> float:
        return parse_rate(str(value))

    @field_validator("tls_cert", "tls_key", "tls_client_ca", "jaeger_grpc_port", mode="before")
    @classmethod
    def _unset(cls, value: object) -> object:
        return None if value == "" else value  # an empty variable is none

    @field_validator("tls_trust_owners")
    @classmethod
    def _check_numbers(cls, text: str) -> str:
        wrong = next((number for number in text.split() if not (number.isascii() and number.isdigit())), None)
        if wrong is not None:
            raise ValueError(f"SPANDIAL_TLS_TRUST_OWNERS: {wrong!r} is no user's number: write 1000 1001")
        return text

    @property
    def own_names(self) -> frozenset[str]:
        """Of the interface over TCP."""
        return parse_host_names(self.host_names) | {self.host.lower()}

    @field_validator("host_names")
    @classmethod
    def _check_names(cls, text: str) -> str:
        parse_host_names(text)
        return text

    @field_validator("discover")
    @classmethod
    def _check_rules(cls, text: str) -> str:
        parse_rules(text)
        return text
