"""Which processes come and go: a look at /proc at the start, then the kernel's process events."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import structlog

from spandial.labels import Labels
from spandial_agent.discovery.events import ProcessEvents
from spandial_agent.discovery.rules import DiscoveryRule, Verdict, judge, wanted_traits, wanted_variables
from spandial_agent.processes.proc import (
    NAMED,
    Process,
    Traits,
    all_pids,
    ancestors,
    read_process,
    read_traits,
    same_process,
    thread_group,
)
from spandial_agent.processes.sockets import began_to_listen, connected, listening_ports, open_connections
from spandial_agent.supervised import Supervised
from spandial_agent.targets.target import Target
from spandial_agent.targets.targets import Targets
from spandial_api.node_states import Connections, RuleFinding, TargetExplanation

__all__ = ["Discovery"]

_log = structlog.get_logger("spandial.discovery")

_RESCAN_S = 30.0  # in case an event was lost
_LOST_S = 0.5  # from a loss of events to the scan that makes it good
_SCAN_ONLY_S = 2.0  # where there are no events
_SHOWN_MAX = 100  # groups of connections
_PORTS_S = 2.0  # the kernel tells nobody that a process begins to listen
_SLICE_S = 0.005  # of looking in one turn of the event loop; afterwards the loop has as long for everything else
_COMING_MAX = 1 << 16  # processes of which an event told, and that are to be looked at; beyond, a scan finds them
_SEEN_MAX = 1 << 14  # processes that are remembered
_NO_LABELS = Labels()


@dataclass
class _Ports:
    """What is known of a process's ports while it runs one program.

    Attributes:
        program: start time and image.
        ports: those that it has been seen to listen on.
        looked_for: the inodes of the listeners that it has been looked at for.
        waits: another port can change the verdict.
    """

    program: tuple[int, int]
    ports: frozenset[int] = frozenset()
    looked_for: frozenset[int] = frozenset()
    waits: bool = True


class Discovery:
    """Adds the processes that name a service or that a rule includes; removes those that end or that a rule excludes.

    Args:
        rules: which processes to include and to exclude, beside what their environments say.
        agent_pid: this process and its descendants are never added; the own one unless told otherwise.

    Attributes:
        lost: how often the kernel dropped events because they were not read in time; a scan follows.
        cut: how often an environment was longer than what is read of it.
    """

    def __init__(self, targets: Targets, rules: Sequence[DiscoveryRule] = (), agent_pid: int | None = None) -> None:
        self.lost = 0
        self.cut = 0
        self._targets = targets
        self._events = ProcessEvents()
        self._pidfds: dict[int, int] = {}
        self._rules = rules
        self._wanted = wanted_traits(rules)
        self._variables = wanted_variables(rules)
        self._ranges = [condition.ports for rule in rules for condition in rule.conditions if condition.ports]
        self._making_good: asyncio.TimerHandle | None = None
        self._seen: dict[int, Process] = {}
        self._coming: dict[int, int] = {}  # pids to look at, with that of the parent, or 0
        self._looking: asyncio.TimerHandle | None = None
        self._ports: dict[int, _Ports] = {}  # stays empty unless a rule names a port
        self._agent_pid = os.getpid() if agent_pid is None else agent_pid
        self._closed = False
        self.supervised = (
            self._events.reader,
            Supervised("spandial-scan", "scanning for processes"),
            Supervised("spandial-ports", "looking for listening ports"),
        )

    @property
    def how(self) -> Literal["events", "scan"]:
        """ "events", or "scan" where the kernel hands out none."""
        return "scan" if self._events.reason else "events"

    @property
    def reason(self) -> str:
        """Why there are no events; empty where there are."""
        return self._events.reason

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._targets.on_added = self._watch
        self._targets.on_removed = self._unwatch
        self._events.listen(lambda came: self._loop.call_soon_threadsafe(self._handle, came))
        if self._events.reason:
            _log.warning(self._events.reason)
        self.scan()
        self._tasks = [self._loop.create_task(self.supervised[1].run_task(self._rescan))]
        if self._ranges:
            self._tasks.append(self._loop.create_task(self.supervised[2].run_task(self._wait_for_ports)))

    def scan(self) -> None:
        """Look at every process there is, at once: before the agent serves."""
        for _ in self._scanning():
            pass

    async def scan_in_slices(self) -> None:
        """The same, with as much time for everything else on the event loop in between."""
        begun = time.monotonic()
        for _ in self._scanning():
            if (worked := time.monotonic() - begun) > _SLICE_S:
                await asyncio.sleep(worked)
                begun = time.monotonic()

    def _scanning(self) -> Iterator[int]:
        """The pids looked at, one after the other. Raises OSError."""
        present = set()
        for pid in all_pids():
            present.add(pid)
            if pid in self._ports:  # a listener that it was looked at for may have been sent to it since
                self._ports[pid].looked_for = frozenset()
            self._look_at(pid)
            yield pid
        # In slices, who has come meanwhile was not listed.
        gone = {pid for pid in {*self._ports, *self._seen} - present if thread_group(pid) is None}
        for pid in gone:
            self._ports.pop(pid, None)
            self._seen.pop(pid, None)
        for target in self._targets:
            if target.pid not in present and not same_process(target.process):
                self._targets.remove(target.pid)

    def close(self) -> None:
        """Watch nothing any more. The targets keep their rows: whoever reads them does so until the lease ends."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        for timer in (self._making_good, self._looking):
            if timer is not None:
                timer.cancel()
        for target in self._targets:
            self._unwatch(target)

    async def explain(self, pid: int) -> TargetExplanation:
        """Look at a process now, as every scan does, and say why it is a target or none."""
        leader = thread_group(pid)
        if leader not in (None, pid):
            return _no_target(pid, f"is a thread of process {leader}")
        ports = listening = await asyncio.to_thread(listening_ports, pid)
        process = self._look_at(pid, ports=ports)
        if process is None:
            return _no_target(pid, "no such process" if leader is None else "has ended, and nobody has waited for it")
        if process.kernel_thread:
            return _no_target(pid, "is a kernel thread", process.name)
        if pid in self._ports:
            ports = self._ports[pid].ports
        traits = read_traits(pid, start_time=process.start_time, variables=self._variables)._replace(ports=ports)
        findings = [
            RuleFinding(rule=str(rule), matched=rule.holds(traits) is True, why=rule.finding(traits))
            for rule in self._rules
        ]
        named = process.labels.service
        finding = f"environment names {named or 'none'}" if traits.environ is not None else "environment unreadable"
        findings.append(RuleFinding(rule=NAMED, matched=bool(named), why=finding))
        target = self._targets.get(pid)
        why = target.why if target is not None else self._why_not(process, traits)
        connections = connected(await asyncio.to_thread(open_connections, pid), listening)[:_SHOWN_MAX]
        return TargetExplanation(
            pid=pid,
            name=process.name,
            target=target is not None,
            why=why,
            rules=findings,
            listens=sorted(listening),
            connections=[
                Connections(incoming=incoming, address=address, port=port, count=count)
                for incoming, address, port, count in connections
            ],
        )

    def _why_not(self, process: Process, traits: Traits) -> str:
        if process.pid == self._agent_pid:
            return "is the agent itself"
        if self._is_own(process.pid):
            return "is a child of the agent"
        verdict = self._judge(process)
        if traits.environ is None and not verdict.excluded:
            return "environment unreadable, and no rule includes it"
        return verdict.why

    def _watch(self, target: Target) -> None:
        """Learn of a target's end from its pidfd, which cannot be lost as an event can."""
        try:
            pidfd = self._pidfds[target.pid] = os.pidfd_open(target.pid)
            self._loop.add_reader(pidfd, self._targets.remove, target.pid)
            if not same_process(target.process):  # somebody else had taken the pid by then
                self._loop.call_soon(self._remove, target)
        except ProcessLookupError:  # it has ended meanwhile
            self._loop.call_soon(self._remove, target)
        except OSError:  # there are too many: the next scan finds it gone
            pass

    def _remove(self, target: Target) -> None:
        if self._targets.get(target.pid) is target:
            self._targets.remove(target.pid)

    def _unwatch(self, target: Target) -> None:
        pidfd = self._pidfds.pop(target.pid, None)
        if pidfd is not None:
            self._loop.remove_reader(pidfd)
            os.close(pidfd)

    def _look_at(self, pid: int, parent_pid: int = 0, ports: frozenset[int] = frozenset()) -> Process | None:
        """As `_act_on`. What one process is made of hides no other from the agent. Raises OSError."""
        try:
            return self._act_on(pid, parent_pid, ports)
        except OSError:
            raise
        except Exception as error:
            _log.warning("a process could not be looked at", pid=pid, exc_info=error)
            return None

    def _act_on(self, pid: int, parent_pid: int, ports: frozenset[int]) -> Process | None:
        """Judge a process and act on it. None if it is gone.

        Args:
            parent_pid: what it was forked from, if that is known.
            ports: what it has been seen to listen on.
        """
        known = self._seen.get(pid)
        process = read_process(pid, known)
        if process is None:
            self._ports.pop(pid, None)
            self._seen.pop(pid, None)
            return None
        if process.cut and (known is None or known.start_time != process.start_time or not known.cut):
            self.cut += 1
        if known is not None or len(self._seen) < _SEEN_MAX:
            self._seen[pid] = process if process.memorable else process._replace(labels=_NO_LABELS, image=0)
        if process.kernel_thread:
            return process
        verdict, parent = self._judge(process, ports), self._targets.get(parent_pid)
        may_be_new = (verdict.included or parent is not None) and self._targets.get(pid) is None
        if verdict.excluded:
            self._targets.exclude(process)
        elif not (may_be_new and self._is_own(pid)):
            self._targets.discover(process._replace(labels=verdict.labels), parent, verdict.why, verdict.by_rule)
        return process

    def _judge(self, process: Process, ports: frozenset[int] = frozenset()) -> Verdict:
        traits = Traits()
        if self._wanted:
            traits = read_traits(process.pid, self._wanted, process.start_time, self._variables)
        if not self._ranges:
            return judge(self._rules, process, traits)
        program = process.start_time, process.image
        known = self._ports.get(process.pid)
        if known is None or known.program != program:
            known = self._ports[process.pid] = _Ports(program)
        known.ports |= ports
        verdict = judge(self._rules, process, traits._replace(ports=known.ports))
        known.waits = verdict.waits
        return verdict

    def _is_own(self, pid: int) -> bool:
        return pid == self._agent_pid or self._agent_pid in ancestors(pid)

    async def _wait_for_ports(self) -> None:
        """Look again at processes that have begun to listen on ports that rules name."""
        while True:
            waiting = {pid: known for pid, known in self._ports.items() if known.waits}
            looked_for = {pid: known.looked_for for pid, known in waiting.items()}
            for pid, listening in (await asyncio.to_thread(began_to_listen, looked_for, self._is_wanted)).items():
                if self._ports.get(pid) is not waiting[pid]:  # it runs another program by now
                    continue
                if listening is None:
                    del self._ports[pid]
                    continue
                waiting[pid].looked_for = listening.looked_for
                if listening.ports:
                    self._look_at(pid, ports=listening.ports)
            await asyncio.sleep(_PORTS_S)

    def _is_wanted(self, port: int) -> bool:
        return any(port in ports for ports in self._ranges)

    async def _rescan(self) -> None:
        while True:
            await asyncio.sleep(_RESCAN_S if self.how == "events" else _SCAN_ONLY_S)
            await self._try_to_scan()

    async def _try_to_scan(self) -> None:
        try:
            await self.scan_in_slices()
        except OSError as error:  # out of descriptors: the next scan may find some
            _log.warning("processes could not be scanned", error=str(error))

    def _handle(self, came: list[tuple[int, int]] | None) -> None:
        if self._closed:  # what the reader had told by then
            return
        if came is None:
            self._lose()
            return
        for pid, parent in came:
            # A fork matters if it is a target's: its labels go on to the child. An exec shows new ones. The child of a
            # process that waits for a port may be the one to listen on it.
            if not parent or self._targets.get(parent) is not None or parent in self._coming or self._waits(parent):
                self._coming[pid] = parent or self._coming.get(pid, 0)
        if len(self._coming) > _COMING_MAX:
            self._coming.clear()
            self._events.lost_by = "more processes came than could be looked at"
            self._lose()
        elif self._looking is None:
            self._look_at_coming()

    def _look_at_coming(self) -> None:
        """Look at those of which events told, the first first, for no longer than a slice."""
        begun, worked = time.monotonic(), 0.0
        while self._coming and worked <= _SLICE_S:
            pid = next(iter(self._coming))
            parent = self._coming.pop(pid)
            try:
                self._look_at(pid, parent)
            except OSError as error:  # the next scan looks at it again
                _log.warning("a process could not be looked at", pid=pid, error=str(error))
            worked = time.monotonic() - begun
        self._looking = self._loop.call_later(worked, self._look_at_coming) if self._coming else None

    def _lose(self) -> None:
        """Events are lost: a scan makes it good."""
        self.lost += 1
        # Where the processor is short, a scan takes longer than events take to be lost again: scanning for each loss,
        # the loop would do nothing else.
        if self._making_good is None:
            self._making_good = self._loop.call_later(_LOST_S, self._make_good)

    def _make_good(self) -> None:
        self._making_good = None
        _log.warning("process events were lost", error=self._events.lost_by, losses=self.lost)
        self._tasks.append(self._loop.create_task(self._try_to_scan()))
        self._tasks = [task for task in self._tasks if not task.done()]

    def _waits(self, pid: int) -> bool:
        return pid in self._ports and self._ports[pid].waits


def _no_target(pid: int, why: str, name: str = "") -> TargetExplanation:
    return TargetExplanation(pid=pid, name=name, target=False, why=why, rules=[])
