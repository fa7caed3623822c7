"""Processes that rules include and exclude."""

from __future__ import annotations

import os
import sys

import pytest

from spandial.labels import Labels
from spandial_agent.processes import proc as processes
from spandial_agent.processes.counter_page import CounterPage
from spandial_agent.processes.proc import read_process, read_traits
from spandial_agent.targets.target import Target
from spandial_agent.targets.targets import Targets
from tests.spandial_agent.conftest import DEFAULT
from tests.spandial_agent.running_discovery import (
    Start,
    becomes_target,
    by_events,
    discovering,
    go_on,
    parent_of,
    runs,
    within,
)

pytestmark = pytest.mark.anyio


async def test_a_rule_includes_a_process_by_its_executable(
    targets: Targets, scanning: None, start: Start, copy_of_sleep: str
) -> None:
    async with discovering(targets, "include exe=edge-*"):
        child, other = start(copy_of_sleep, "60"), start("sleep", "60")
        target = await becomes_target(targets, child.pid)
        assert (target.labels, target.why) == (Labels("edge-proxy"), "rule: include exe=edge-*")
        await runs(other.pid, "sleep")
        assert targets.get(other.pid) is None


async def test_events_tell_of_a_process_that_a_rule_labels(
    targets: Targets, monkeypatch: pytest.MonkeyPatch, start: Start, copy_of_sleep: str
) -> None:
    rules = f"include exe={copy_of_sleep} cmdline='* 60' environ=STAGE=gray* service=edge env=gray"
    async with by_events(targets, monkeypatch, rules):
        others = [start(copy_of_sleep, "60", STAGE="blue"), start(copy_of_sleep, "61", STAGE="gray")]
        child = start(copy_of_sleep, "60", STAGE="gray-2")
        target = await becomes_target(targets, child.pid)
        assert (target.labels, target.why) == (Labels("edge", "", "gray"), f"rule: {rules}")
        assert [targets.get(other.pid) for other in others] == [None, None]


async def test_a_rule_includes_a_process_by_its_cgroup(
    targets: Targets, scanning: None, start: Start, copy_of_sleep: str
) -> None:
    path = read_traits(os.getpid()).cgroups[-1]
    async with discovering(targets, f"include cgroup='{path}' exe=edge-proxy; include cgroup={path}/none exe=sleep"):
        child, other = start(copy_of_sleep, "60"), start("sleep", "60")
        await runs(other.pid, "sleep")
        await becomes_target(targets, child.pid)
        assert targets.get(other.pid) is None


async def test_an_excluded_process_is_no_target_whatever_its_environment_names(
    targets: Targets, scanning: None, start: Start, copy_of_sleep: str
) -> None:
    async with discovering(targets, "include exe=edge-proxy; exclude cmdline=*61") as discovery:
        excluded = start(copy_of_sleep, "61", OTEL_SERVICE_NAME="checkout")
        included = start(copy_of_sleep, "60", OTEL_SERVICE_NAME="checkout")
        target = await becomes_target(targets, included.pid)
        assert target.labels == Labels("checkout")
        await runs(excluded.pid, "edge-proxy")
        discovery.scan()
        assert targets.get(excluded.pid) is None


async def test_an_exec_of_an_excluded_program_ends_a_target(
    targets: Targets, monkeypatch: pytest.MonkeyPatch, start: Start
) -> None:
    async with by_events(targets, monkeypatch, "exclude exe=sleep"):
        child = start("sh", "-c", "read line; exec sleep 60", OTEL_SERVICE_NAME="checkout")
        await becomes_target(targets, child.pid)
        go_on(child)
        await within(lambda: targets.get(child.pid) is None, "the excluded process is no target")


async def test_who_registers_is_a_target_whatever_rules_exclude(targets: Targets, scanning: None, start: Start) -> None:
    child = start("sleep", "60")
    await runs(child.pid, "sleep")
    process = read_process(child.pid)
    assert process is not None
    page = CounterPage()
    target = targets.hook(process, Labels("checkout"), DEFAULT, page)
    async with discovering(targets, "exclude exe=*") as discovery:
        targets.unhook(target, page)
        discovery.scan()
        assert targets.get(child.pid) is target
        assert target.why == "registered by its hook"


async def test_a_process_that_a_rule_included_is_no_target_once_it_runs_another_program(
    targets: Targets, monkeypatch: pytest.MonkeyPatch, start: Start
) -> None:
    async with by_events(targets, monkeypatch, "include cmdline='sh -c *' service=shell"):
        child = start("sh", "-c", "read line; exec sleep 60")
        await becomes_target(targets, child.pid)
        go_on(child)
        await within(lambda: targets.get(child.pid) is None, "the other program is no target")


async def test_a_scan_tells_an_exec_as_well(targets: Targets, scanning: None, start: Start) -> None:
    async with discovering(targets, "include cmdline='sh -c *' service=shell"):
        child = start("sh", "-c", "read line; exec sleep 60")
        await becomes_target(targets, child.pid)
        go_on(child)
        await within(lambda: targets.get(child.pid) is None, "the other program is no target")


async def test_a_process_that_a_rule_included_may_overwrite_its_command_line(
    targets: Targets, scanning: None, start: Start
) -> None:
    # As nginx and others do, in place: from arg_start to arg_end (proc(5), stat).
    script = (
        "import time; input(); stat = open('/proc/self/stat').read().rpartition(')')[2].split(); "
        "memory = open('/proc/self/mem', 'r+b', 0); memory.seek(int(stat[45])); "
        "memory.write(b'titled'.ljust(int(stat[46]) - int(stat[45]), bytes(1))); time.sleep(60)"
    )
    async with discovering(targets, "include cmdline=*time.sleep* service=titled") as discovery:
        child = start(sys.executable, "-S", "-c", script)
        target = await becomes_target(targets, child.pid)
        go_on(child)
        await within(lambda: read_traits(child.pid).cmdline == "titled", "it is overwritten")
        discovery.scan()
        assert targets.get(child.pid) is target


async def test_the_children_of_an_included_process_are_targets_until_they_exec(
    targets: Targets, monkeypatch: pytest.MonkeyPatch, start: Start
) -> None:
    async with by_events(targets, monkeypatch, "include cmdline='sh -c *' service=shell"):
        parent = start("sh", "-c", "exec 3<&0; (read line <&3; exec cat <&3) & wait")
        await becomes_target(targets, parent.pid)

        def children() -> list[Target]:
            return [target for target in targets if parent_of(target.pid) == parent.pid]

        [child] = await within(children, "the child is a target")
        assert child.labels == Labels("shell")
        assert child.why in ("rule: include cmdline='sh -c *' service=shell", f"forked from {parent.pid}, a target")
        go_on(parent)
        await within(lambda: not children(), "the child runs another program and is no target")
        assert targets.get(parent.pid) is not None


async def test_the_agents_children_are_never_targets(
    targets: Targets, scanning: None, start: Start, copy_of_sleep: str
) -> None:
    async with discovering(targets, "include exe=edge-proxy", agent_pid=os.getpid()) as discovery:
        child = start("sh", "-c", f"{copy_of_sleep} 60 & wait", OTEL_SERVICE_NAME="checkout")
        await runs(child.pid, "sh")
        grandchild = await within(
            lambda: next((pid for pid in processes.all_pids() if parent_of(pid) == child.pid), 0), "it has a child"
        )
        try:
            await runs(grandchild, "edge-proxy")
            discovery.scan()
            for pid in (child.pid, grandchild):
                explanation = await discovery.explain(pid)
                assert (explanation.target, explanation.why) == (False, "is a child of the agent")
            explanation = await discovery.explain(os.getpid())
            assert (explanation.target, explanation.why) == (False, "is the agent itself")
            assert not {child.pid, grandchild, os.getpid()} & {target.pid for target in targets}
        finally:
            os.kill(grandchild, 9)
