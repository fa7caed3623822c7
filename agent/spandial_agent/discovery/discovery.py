"""Which processes come and go: a look at /proc at the start, then the kernel's process events."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import structlog

from spandial_agent.discovery.rules import DiscoveryRule, Verdict, judge, wanted_traits
from spandial_agent.processes.proc import (
    NAMED,
    Process,
    Traits,
    all_pids,
    ancestors,
    read_process,
    read_traits,
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
        how: "events", or "scan" where the kernel hands out none (that takes CAP_NET_ADMIN in the first namespaces).
        lost: how often the kernel dropped events because they were not read in time; a scan follows.
    """

    def __init__(self, targets: Targets, rules: Sequence[DiscoveryRule] = (), agent_pid: int | None = None) -> None:
        self.how: Literal["events", "scan"] = "scan"
        self.reason = ""
        self.lost = 0
        self._targets = targets
        self._pidfds: dict[int, int] = {}
        self._rules = rules
        self._wanted = wanted_traits(rules)
        self._ranges = [condition.ports for rule in rules for condition in rule.conditions if condition.ports]
        self._lost_by = ""
        self._making_good: asyncio.TimerHandle | None = None
        self._ports: dict[int, _Ports] = {}  # stays empty unless a rule names a port
        self._agent_pid = os.getpid() if agent_pid is None else agent_pid
        self._closed = False
        self.supervised = (
            Supervised("spandial-processes", "reading of process events", self._read),
            Supervised("spandial-scan", "scanning for processes"),
            Supervised("spandial-ports", "looking for listening ports"),
        )

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._targets.on_added = self._watch
        self._targets.on_removed = self._unwatch
        self._listen()
        self.scan()
        self._tasks = [self._loop.create_task(self.supervised[1].run_task(self._rescan))]
        if self._ranges:
            self._tasks.append(self._loop.create_task(self.supervised[2].run_task(self._wait_for_ports)))

    def scan(self) -> None:
        """Look at every process there is."""
        present = set()
        for pid in all_pids():
            present.add(pid)
            if pid in self._ports:  # a listener that it was looked at for may have been sent to it since
                self._ports[pid].looked_for = frozenset()
            self._look_at(pid)
        self._ports = {pid: ports for pid, ports in self._ports.items() if pid in present}
        for target in self._targets:
            if target.pid not in present:
                self._targets.remove(target.pid)

    def close(self) -> None:
        """Watch nothing any more. The targets keep their rows: whoever reads them does so until the lease ends."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        if self._making_good is not None:
            self._making_good.cancel()
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
        traits = read_traits(pid)._replace(ports=ports)
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
        except ProcessLookupError:  # it has ended meanwhile
            self._loop.call_soon(self._targets.remove, target.pid)
        except OSError:  # there are too many: the next scan finds it gone
            pass

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
        process = read_process(pid)
        if process is None:
            self._ports.pop(pid, None)
            return None
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
        traits = read_traits(process.pid, self._wanted) if self._wanted else Traits()
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
            try:
                self.scan()
            except OSError as error:  # out of descriptors: the next scan may find some
                _log.warning("processes could not be scanned", error=str(error))

    def _listen(self) -> None:
        """Start the reader, and wait until it knows whether there are events."""
        self._ready = threading.Event()
        self.supervised[0].start()
        self._ready.wait(5)
        if self.reason:
            _log.warning(self.reason)

    def _read(self) -> None:
        # pyroute2 runs an event loop of its own in the thread that makes the socket.
        try:
            from pyroute2 import ProcEventSocket

            events = ProcEventSocket()
            events.bind()
            events.control(listen=True)
            self.how = "events"
        except Exception as error:  # pyroute2 has exceptions of its own for what the kernel refuses
            self.reason = f"the kernel hands out no process events ({error}): new processes are found by scanning."
            return
        finally:
            self._ready.set()
        while not self._closed:
            try:
                came = [(pid, parent) for message in events.get() for pid, parent in _new_processes(message)]
            except Exception as error:  # ENOBUFS: the kernel dropped events
                came, self._lost_by = None, str(error)
                time.sleep(0.1)
            try:
                if came is None or came:
                    self._loop.call_soon_threadsafe(self._handle, came)
            except RuntimeError:  # the loop is closed
                return

    def _handle(self, came: list[tuple[int, int]] | None) -> None:
        if self._closed:  # what the reader had told by then
            return
        if came is None:
            self.lost += 1
            # Where the processor is short, a scan takes longer than events take to be lost again: scanning for each
            # loss, the loop would do nothing else.
            if self._making_good is None:
                self._making_good = self._loop.call_later(_LOST_S, self._make_good)
            return
        for pid, parent in came:
            # A fork matters if it is a target's: its labels go on to the child. An exec shows new ones. The child of a
            # process that waits for a port may be the one to listen on it.
            if not parent or self._targets.get(parent) is not None or self._waits(parent):
                self._look_at(pid, parent)

    def _make_good(self) -> None:
        self._making_good = None
        _log.warning("process events were lost", error=self._lost_by, losses=self.lost)
        try:
            self.scan()
        except OSError as error:  # out of descriptors
            _log.warning("processes could not be scanned", error=str(error))

    def _waits(self, pid: int) -> bool:
        return pid in self._ports and self._ports[pid].waits


def _no_target(pid: int, why: str, name: str = "") -> TargetExplanation:
    return TargetExplanation(pid=pid, name=name, target=False, why=why, rules=[])


def _new_processes(message: dict[str, Any]) -> Iterator[tuple[int, int]]:
    """The process of an exec or a fork, with its parent in case of a fork; new threads are none."""
    if message["event"] == "PROC_EVENT_EXEC":
        yield message["process_tgid"], 0
    elif message["event"] == "PROC_EVENT_FORK" and message["child_pid"] == message["child_tgid"]:
        yield message["child_tgid"], message["parent_tgid"]
