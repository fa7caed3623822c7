"""The sampler within the SDK: providers, spans, environment variables, the entry point."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased
from opentelemetry.trace import Span, SpanKind, Tracer, TraceState

import spandial.sampler
from spandial import Sampler
from spandial.abi import RANDOMNESS_MASK, ROW_WORDS, Mode, Parent, encode_word, threshold_of
from spandial.decider import Decider
from spandial.decision import decide
from spandial.labels import Labels
from spandial.sampler import parse_default
from tests.agent_process import PATIENCE_S
from tests.spandial.deciders import SPANS, parent_context

HTTP = {"http.request.method": "GET"}


class NoLink:
    """Stands in for the link: reaches nobody."""

    def __init__(self, labels: Labels, decider: Decider, run_dir: str) -> None:
        self.labels, self.decider, self.run_dir = labels, decider, run_dir

    def start(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _no_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spandial.sampler, "AgentLink", NoLink)


def link_of(sampler: Sampler) -> NoLink:
    link: Any = sampler._link
    assert isinstance(link, NoLink)
    return link


class Application:
    """A tracer provider with a sampler, and the spans it has exported."""

    def __init__(self, default: str | float | None = None) -> None:
        self.sampler = Sampler(default)
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(sampler=self.sampler)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer: Tracer = provider.get_tracer("test")

    def obey(self, word: int) -> None:
        self.sampler.obey([word] * ROW_WORDS)

    def exported(self) -> list[str]:
        return [span.name for span in self.exporter.get_finished_spans()]


def span(tracer: Tracer, name: str, parent: Parent = Parent.NONE, ot: Sequence[tuple[str, str]] = ()) -> Span:
    context = parent_context(parent, RANDOMNESS_MASK, ot)
    started = tracer.start_span(name, context, kind=SpanKind.SERVER, attributes=HTTP)
    started.end()
    return started


def test_exactly_the_kept_spans_are_exported() -> None:
    application = Application()
    application.obey(encode_word(50))
    kept = []
    for number in range(400):
        context = span(application.tracer, str(number)).get_span_context()
        assert context.trace_flags.sampled == decide(encode_word(50), context.trace_id & RANDOMNESS_MASK, Parent.NONE)
        if context.trace_flags.sampled:
            kept.append(str(number))
    assert application.exported() == kept
    assert 0 < len(kept) < 400


def test_a_tracer_that_was_made_before_obeys_the_rate_set_after() -> None:
    application = Application(0)
    for rate, name in ((0, "dropped"), (100, "kept"), (0, "dropped again")):
        application.obey(encode_word(rate))
        span(application.tracer, name)
    assert application.exported() == ["kept"]


def test_children_follow_their_parent_through_the_current_context() -> None:
    application = Application()
    for rate, name in ((100, "kept"), (0, "dropped")):
        application.obey(encode_word(rate))
        with application.tracer.start_as_current_span(name, Context(), kind=SpanKind.SERVER, attributes=HTTP):
            application.obey(encode_word(100 - rate))
            with application.tracer.start_as_current_span(f"child of {name}"):
                pass
    assert application.exported() == ["child of kept", "kept"]


def test_the_attributes_reach_the_span_and_leave_the_callers_alone() -> None:
    application = Application()
    attributes = dict(HTTP)
    started = application.tracer.start_span("request", Context(), kind=SpanKind.SERVER, attributes=attributes)
    started.set_attribute("later", 1)
    started.end()
    bare = application.tracer.start_span("bare", Context())
    bare.end()
    exported = application.exporter.get_finished_spans()
    assert [dict(span.attributes or {}) for span in exported] == [{**HTTP, "later": 1}, {}]
    assert attributes == HTTP


@pytest.mark.parametrize("parent", Parent)
def test_the_span_context_carries_the_trace_state(parent: Parent) -> None:
    application = Application()
    application.obey(encode_word(50, Mode.STRICT))
    came = [("vendor", "v"), ("ot", "p:1")]
    carried = span(application.tracer, "request", parent, came).get_span_context().trace_state
    assert isinstance(carried, TraceState)
    if parent is Parent.NONE:
        assert carried.to_header() in ("ot=th:8", "")
    elif parent in (Parent.REMOTE_KEPT, Parent.REMOTE_DROPPED):
        assert carried.to_header() == "ot=th:8;p:1,vendor=v"
    else:
        assert carried.to_header() == "vendor=v,ot=p:1"


def test_the_trace_state_of_one_span_is_not_changed_through_another() -> None:
    application = Application()
    first = span(application.tracer, "first").get_span_context().trace_state
    assert first.add("vendor", "v").to_header() == "vendor=v,ot=th:0"
    assert span(application.tracer, "second").get_span_context().trace_state.to_header() == "ot=th:0"


def test_a_dropped_span_has_a_context_all_the_same() -> None:
    application = Application(0)
    context = span(application.tracer, "dropped").get_span_context()
    assert context.is_valid
    assert not context.trace_flags.sampled
    assert context.trace_state == TraceState()


def test_it_serves_as_the_root_of_a_parent_based_sampler() -> None:
    sampler = ParentBased(root=Sampler("0%"))
    assert not TracerProvider(sampler=sampler).get_tracer("test").start_span("root", Context()).is_recording()


RATIOS = [("0", 0), (0, 0), ("0.1", 10), (0.1, 10), ("1e-3", 0.1), ("1", 100), ("1.0", 100)]
PERCENTAGES = [("0%", 0), ("0.5%", 0.5), ("10%", 10), (" 10 % ", 10), ("100%", 100)]


@pytest.mark.parametrize(("text", "rate"), [(None, 100), ("", 100), *RATIOS, *PERCENTAGES])
def test_the_default_is_a_ratio_or_a_percentage(text: str | float | None, rate: float) -> None:
    assert parse_default(text) == pytest.approx(rate)


@pytest.mark.parametrize("text", ["1.1", "-0.1", "101%", "-1%", "abc", "%", "nan", "nan%", "inf", "10%%", 30, " "])
def test_a_default_that_is_none_is_refused_with_what_was_received(text: str | float) -> None:
    with pytest.raises(ValueError, match=r"ratio from 0 to 1, .* received " + re.escape(repr(text))):
        parse_default(text)


@pytest.mark.parametrize("garbage", ["abc", "2", "nan", "-5%", [], object()])
def test_a_garbled_default_warns_and_keeps_everything(garbage: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="spandial"):
        sampler = Sampler(garbage)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert repr(garbage) in caplog.text
    assert sampler.get_description() == "Spandial{default=100%}"


@pytest.mark.parametrize(("default", "description"), [("10%", "10%"), (0.001, "0.1%"), (None, "100%")])
def test_the_description_says_the_default(default: str | float | None, description: str) -> None:
    assert Sampler(default).get_description() == f"Spandial{{default={description}}}"


def test_the_link_is_given_the_default_as_a_rate_word() -> None:
    word = Sampler("25%").default
    assert (threshold_of(word), word) == (0xC0000000000000, encode_word(25))


def test_labels_come_from_the_environment_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.version=1,deployment.environment.name=prod")
    assert link_of(Sampler()).labels == Labels("shop", "1", "prod")
    assert link_of(Sampler(service="cart", env="")).labels == Labels("cart", "1", "")


def test_the_run_directory_comes_from_the_environment_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPANDIAL_RUN_DIR", raising=False)
    assert link_of(Sampler()).run_dir == "/run/spandial"
    monkeypatch.setenv("SPANDIAL_RUN_DIR", "/elsewhere")
    assert link_of(Sampler()).run_dir == "/elsewhere"
    assert link_of(Sampler(run_dir="/given")).run_dir == "/given"


@pytest.mark.parametrize(
    ("argument", "description", "warned"),
    [(None, "100%", False), ("0.1", "10%", False), ("10%", "10%", False), ("often", "100%", True)],
)
def test_the_sdk_finds_it_by_its_entry_point(
    argument: str | None, description: str, warned: bool, tmp_path: Path
) -> None:
    script = """
import json
from opentelemetry import trace
sampler = trace.get_tracer_provider().sampler
print(json.dumps([type(sampler).__module__, sampler.get_description()]))
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    environment |= {f"OTEL_{signal}_EXPORTER": "none" for signal in ("TRACES", "METRICS", "LOGS")}
    environment |= {"OTEL_TRACES_SAMPLER": "spandial", "SPANDIAL_RUN_DIR": str(tmp_path)}
    if argument is not None:
        environment["OTEL_TRACES_SAMPLER_ARG"] = argument
    done = subprocess.run(
        [Path(sys.executable).with_name("opentelemetry-instrument"), "python", "-c", script],
        env={**environment, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["spandial.sampler", f"Spandial{{default={description}}}"]
    assert ("OTEL_TRACES_SAMPLER_ARG" in done.stderr) is warned
    assert (repr(argument) in done.stderr) is warned


def test_every_kind_of_span_can_be_started_through_the_api() -> None:
    application = Application()
    for kind, attributes in SPANS.values():
        application.tracer.start_span(kind.name, Context(), kind=kind, attributes=attributes).end()
    assert application.exported() == [kind.name for kind, _ in SPANS.values()]
    assert trace.get_current_span() is trace.INVALID_SPAN
