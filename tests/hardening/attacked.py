"""An agent under attack, and the honest application beside it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import httpx
from bench import attacks
from bench.attacker import Attacker
from bench.obedience import RATES, SERVICE, Honest
from bench.servers import megabytes

from tests.agent_process import PATIENCE_S, AgentProcess, eventually

__all__ = ["MEMORY_MB", "Attacked", "attacked"]

MEMORY_MB = 250


class Attacked:
    """The agent as the operator and honest applications find it.

    Attributes:
        folder: everybody can get to it, as to /run.
    """

    def __init__(self, folder: Path, stack: ExitStack, **settings: str) -> None:
        self.folder = folder
        self.agent = AgentProcess(folder / "agent", **settings)
        stack.callback(self.agent.http.close)
        stack.callback(self.agent.stop)
        self.agent.start()
        self.agent.set(RATES[0], service=SERVICE, mode="boost")
        self.agent.set(100, service=attacks.SERVICE)
        self.honest = stack.enter_context(closing(Honest(self.agent.run_dir)))
        assert self.honest.obeyed_after(PATIENCE_S) is not None
        token = (self.agent.state_dir / "token").read_text().strip()
        operator = {"Authorization": f"Bearer {token}"}
        self.tcp = stack.enter_context(httpx.Client(base_url=self.agent.url, headers=operator, timeout=PATIENCE_S))
        self.descriptors_at_rest = self.descriptors()

    @contextmanager
    def by(self, name: str) -> Iterator[Attacker]:
        """While this attack stands; afterwards nothing of it is left."""
        Path(f"/proc/{self.agent.pid}/clear_refs").write_text("5")  # the peak begins anew (proc_pid_clear_refs(5))
        with closing(Attacker(name, self.folder, self.agent.run_dir, int(self.tcp.base_url.port or 0))) as attacker:
            assert attacker.stands(PATIENCE_S)
            yield attacker
            assert not attacker.failure()
        eventually(self.only_the_living, "the attacker's processes are forgotten")
        eventually(lambda: self.descriptors() < self.descriptors_at_rest + 20, "what the attacker held is closed")

    def attackers(self) -> list[dict[str, object]]:
        """His processes that the agent lists."""
        return [target for target in self.agent.get("/targets") if target["uid"] == attacks.USER]

    def only_the_living(self) -> bool:
        """Attackers of other runs may be at work on this host."""
        return all(Path(f"/proc/{target['pid']}").exists() for target in self.attackers())

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.agent.pid}/fd"))

    def memory_mb(self) -> float:
        """The peak since the attack began."""
        return megabytes(self.agent.pid, "status", "VmHWM")

    def newcomer_obeys(self) -> None:
        """Another honest application registers now."""
        with closing(Honest(self.agent.run_dir)) as newcomer:
            assert newcomer.obeyed_after(PATIENCE_S) is not None

    def put(self, rate: float) -> None:
        """As the operator, over both ways, with a connection each."""
        selector = {"service": SERVICE, "mode": "boost"}
        self.agent.set(rate, **selector)
        answer = self.tcp.put("/sampling", params={"rate": str(rate), **selector}, headers={"Connection": "close"})
        assert answer.status_code == 200, answer.text


@contextmanager
def attacked(**settings: str) -> Iterator[Attacked]:
    with tempfile.TemporaryDirectory(prefix="spandial-hardening-") as folder, ExitStack() as stack:
        os.chmod(folder, 0o755)
        yield Attacked(Path(folder), stack, **settings)
