"""One sampling decision in two trees, each in processes that are hooked to an agent of their own tree."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

from opentelemetry.trace import get_current_span
from tests.agent_process import AgentProcess, eventually

from bench.calls import SPANS, TRACESTATES, Call, SpanStart, parented, roots
from bench.checkout import ROOT
from bench.comparison import NEW, OLD, Quad, Side, four, orders
from bench.setting import Setting
from bench.trees import NotATree, Tree

__all__ = ["PART", "compare_decisions"]

PART = "decision"
_SERVICE = "bench-compare"
_PROGRAM = "import runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
_NAME = "GET /orders/{id}"
_RATE = 10
_RULES = {**{f"GET /other/{number}*": 1 for number in range(9)}, "*": 50}  # by operation, in percent
_CALLS = 1000
_SEED = 17
_BATCH_NS = 25e6
_TURNS, _QUADS = 16, 3


class _Case(NamedTuple):
    name: str
    span: SpanStart
    calls: list[Call]
    by_operation: bool = False


def _cases() -> list[_Case]:
    bits = random.Random(_SEED)
    root = roots(None, _CALLS, bits)
    made = [_Case(f"root, {name}", SPANS[name], root) for name in ("HTTP", "internal", "gRPC", "DB")]
    parents = (("kept", "none"), ("dropped", "none"), ("kept", "ot=th;rv"), ("dropped", "ot=th;rv"))
    for parent, tracestate in parents:
        calls = parented(_CALLS, bits, remote=True, kept=parent == "kept", tracestate=TRACESTATES[tracestate])
        with_state = "" if tracestate == "none" else f", {tracestate}"
        made.append(_Case(f"remote parent {parent}{with_state}", SPANS["HTTP"], calls))
    for name in ("HTTP", "internal"):
        made.append(_Case(f"root, {name}, {len(_RULES)} rules by operation", SPANS[name], root, True))
    return made


def _described(case: _Case) -> dict[str, Any]:
    """For bench/decisions.py: both trees are given the same."""
    calls = [[trace_id, _parent(context)] for context, trace_id in case.calls]
    return {"name": _NAME, "kind": case.span.kind.name, "attributes": case.span.attributes, "calls": calls}


def _parent(context: Any) -> list[Any] | None:
    if context is None:
        return None
    span = get_current_span(context).get_span_context()
    return [span.span_id, span.is_remote, int(span.trace_flags), span.trace_state.to_header()]


class _Worker:
    """A process of bench/decisions.py that its agent knows. Raises NotATree where its sampler is another tree's."""

    def __init__(self, tree: Tree, agent: AgentProcess, core: int) -> None:
        file = str(ROOT / "bench" / "decisions.py")
        self._process = tree.start(["-c", _PROGRAM, file, str(agent.run_dir), _SERVICE], [core])
        self._agent, self._tree = agent, tree

    def begin(self, case: dict[str, Any]) -> None:
        """Wait until it obeys its agent, which keeps some of the case's calls, and not all of them."""
        where = Path(str(self._answer()))
        if not where.resolve().is_relative_to(self._tree.path.resolve()):
            raise NotATree(f"a process of {self._tree.path} decides by {where}, which is another tree's sampler")
        eventually(self._hooked, "a process is hooked to the agent of its tree")
        eventually(lambda: self.take(case) < len(case["calls"]), "a process obeys the agent of its tree")

    def take(self, case: dict[str, Any]) -> float:
        """How many of its calls are kept."""
        return self._ask(case)

    def batch(self, times: int) -> float:
        """Nanoseconds per decision of the case last taken."""
        return self._ask(times)

    def close(self) -> None:
        self._process.communicate()

    def _hooked(self) -> bool:
        target = self._agent.target(self._process.pid)
        return target is not None and target["kind"] == "hooked"

    def _ask(self, question: object) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return float(self._answer())

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a process of {self._tree.path} ended with exit code {self._process.wait()}")
        return json.loads(line)


class _Turn:
    """Two fresh processes of each tree, all on one core, of which one decides at a time."""

    def __init__(self, setting: Setting, agents: dict[Side, AgentProcess], stack: ExitStack) -> None:
        self._setting, self._agents = setting, agents
        self._workers: dict[Side, list[_Worker]] = {OLD: [], NEW: []}
        for side in (OLD, NEW, NEW, OLD):
            worker = _Worker(setting.trees[side], agents[side], setting.cores[-1])
            self._workers[side].append(stack.enter_context(closing(worker)))
        self._all = [worker for pair in self._workers.values() for worker in pair]

    def run(self, cases: Sequence[_Case]) -> None:
        for worker in self._all:
            worker.begin(_described(cases[0]))
        for case in (case for case in cases if not case.by_operation):
            self._compare(case)
        for agent in self._agents.values():
            for operation, rate in _RULES.items():
                agent.set(rate, service=_SERVICE, operation=operation)
        for case in (case for case in cases if case.by_operation):
            self._compare(case)
        for agent in self._agents.values():
            for operation in _RULES:
                agent.remove(service=_SERVICE, operation=operation)

    def _compare(self, case: _Case) -> None:
        described = _described(case)
        kept = {side: [worker.take(described) for worker in pair] for side, pair in self._workers.items()}
        if kept[OLD] != kept[NEW]:
            said = " and ".join(f"the {side} {pair[0]:g}" for side, pair in kept.items())
            self._setting.comparison.note(f"Decided differently, {case.name}: of {_CALLS} calls kept {said}.")
        slowest = max(worker.batch(3) for worker in self._all)  # and all are warm now
        times = max(1, round(_BATCH_NS / (slowest * _CALLS)))

        def measure(side: Side, index: int) -> dict[str, float]:
            return {case.name: self._workers[side][index].batch(times)}

        drawn = orders(1 if self._setting.quick else _QUADS)
        quads: list[Quad] = [four(order, measure)[case.name] for order in drawn]
        self._setting.comparison.add(PART, "ns", {case.name: quads})


def compare_decisions(setting: Setting) -> None:
    setting.stay_off_the_last_core()
    cases = _cases()
    with ExitStack() as stack:
        agents: dict[Side, AgentProcess] = {}
        for side, tree in setting.trees.items():
            agents[side] = tree.agent(setting.folder / f"{PART}-{side}")
            stack.callback(agents[side].stop)
            agents[side].start()
            agents[side].set(_RATE, service=_SERVICE)
        setting.look_at(agents)
        for _ in setting.rounds(PART, _TURNS):
            with ExitStack() as turn:
                _Turn(setting, agents, turn).run(cases)
