"""SDKs that ask are told the rates of their own user, whoever else calls himself by the same name."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from spandial_agent.node import LocalNode
from spandial_agent.processes.proc import Process
from spandial_agent.serving.binding import bind_tcp, bind_unix
from spandial_agent.serving.listeners import serve
from spandial_agent.targets.limit import Limit
from spandial_agent.targets.targets import Targets
from spandial_api.app import build_app
from spandial_api.auth import Access
from spandial_api.control import Author, Control
from spandial_api.rules import Rule
from spandial_api.selectors import Selector
from spandial_api.store import Store
from spandial_api.token_file import TokenFile
from tests.agent_process import PATIENCE_S
from tests.spandial_agent.running_node import CHECKOUT

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can be anybody"),
]

HONEST, FORKS, HAS_NONE = 1000, 64321, 4321
_PYTHON = os.path.realpath(sys.executable)  # others may not reach the virtual environment
_ASK = """import sys, urllib.request
sys.stdout.write(urllib.request.urlopen(sys.argv[1]).read().decode())
"""


@pytest.fixture
async def url(node: LocalNode, targets: Targets, tmp_path: Path) -> AsyncIterator[str]:
    """Where an agent is asked for `checkout`. One user has one such process; another has fifty, and his are limited."""
    targets.discover(Process(1, 1, "python", CHECKOUT, uid=HONEST))
    for pid in range(2, 52):
        targets.discover(Process(pid, 1, "python", CHECKOUT, uid=FORKS))
    store, stop = Store(tmp_path / "rules.sqlite"), asyncio.Event()
    control = Control(store, node)
    app = build_app(control, node, access=Access(TokenFile(tmp_path)), version="0")
    await control.put(Rule(Selector(env="gray"), 100.0), Author("uid 0"))
    targets.set_limits({pid: Limit(0.001) for pid in range(2, 52)})
    with bind_tcp("127.0.0.1", 0) as tcp, bind_unix(tmp_path / "api.sock", "no-group-of-this-name") as unix:
        running = asyncio.create_task(serve(app, tcp, unix, stop))
        yield f"http://127.0.0.1:{tcp.getsockname()[1]}/sampling?service=checkout"
        stop.set()
        await asyncio.wait_for(running, PATIENCE_S)
    store.close()


async def share_of(uid: int, url: str) -> float:
    asking = await asyncio.create_subprocess_exec(
        *(_PYTHON, "-I", "-c", _ASK, url), user=uid, cwd="/", stdout=subprocess.PIPE, env={}
    )
    said, _ = await asyncio.wait_for(asking.communicate(), PATIENCE_S)
    return float(json.loads(said)["probabilisticSampling"]["samplingRate"])


async def test_who_forks_most_is_the_only_one_who_is_told_his_rate(url: str) -> None:
    assert await share_of(HONEST, url) == 1.0
    assert await share_of(FORKS, url) == 0.001


async def test_a_user_without_processes_is_told_what_the_rules_say(url: str) -> None:
    assert await share_of(HAS_NONE, url) == 1.0
