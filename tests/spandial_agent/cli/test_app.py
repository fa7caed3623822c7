"""The command line against an agent whose node the tests play."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spandial.labels import Labels
from spandial_api.node_states import (
    BudgetUse,
    Connections,
    HookCounts,
    KernelCounts,
    KindStats,
    LostContext,
    LostExample,
    NodeStats,
    RuleFinding,
    SpanStats,
    TargetExplanation,
    TargetName,
    TargetStats,
    TenantUse,
)
from tests.agent_process import PATIENCE_S, eventually
from tests.spandial_agent.command import run, run_all, start
from tests.spandial_agent.fake_agent import FakeAgent
from tests.spandial_api.fake_node import entry

COMMANDS = [
    "agent",
    "set",
    "renew",
    "get",
    "rm",
    "explain",
    "targets",
    "watch",
    "stats",
    "doctor",
    "budget",
    "quota",
    "off",
    "on",
]
LONG = "a-service-whose-name-is-" + "very-" * 20 + "long"


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[FakeAgent]:
    agent = FakeAgent(tmp_path)
    yield agent
    agent.stop()


def printed(agent: FakeAgent, *arguments: str) -> str:
    return run(agent.settings, *arguments)[0]


def parsed(agent: FakeAgent, *arguments: str) -> Any:
    return json.loads(printed(agent, *arguments, "--json"))


def test_every_commands_help_shows_an_example() -> None:
    for command, (out, _) in zip(COMMANDS, run_all(None, [[command, "--help"] for command in COMMANDS])):
        assert re.search(rf"Example: (sudo )?spandial {command}\b", out)


def test_the_help_names_every_command_and_the_exit_codes() -> None:
    out, _ = run(None, "--help")
    assert all(f"\n  {command} " in out for command in COMMANDS)
    assert "Exit codes: 0 done, 1 refused or degraded, 2 wrong usage, 3 no agent." in out


def test_wrong_usage_is_two() -> None:
    complaints = {
        "set": "a RATE, such as 30",
        "set 10 --floor 1": "--floor needs --target",
        "set 30 --tennant acme": "--tennant",
        "set 30 --env": "--env",
        "set 30 40": "40",
        "turn 30": "turn",
        "get --yaml": "--yaml",
    }
    printed = run_all(None, [arguments.split() for arguments in complaints], code=2)
    for complaint, (_, err) in zip(complaints.values(), printed):
        assert complaint in err


def test_no_agent_is_three_with_what_to_do(tmp_path: Path) -> None:
    commands = [["set", "30"], ["get"], ["rm"], ["targets"], ["stats"], ["watch"]]
    for out, err in run_all({"SPANDIAL_RUN_DIR": str(tmp_path)}, commands, code=3):
        assert out == ""
        assert str(tmp_path / "api.sock") in err
        assert "spandial agent" in err
        assert len(err.splitlines()) == 1


def test_set_says_what_holds_now_and_for_whom(agent: FakeAgent) -> None:
    agent.node.processes = [Labels("checkout", "", "gray")]
    assert printed(agent, "set", "30%", "--env", "gray") == "env=gray: 30 %, follow, obeyed by 1 target (revision 1)\n"
    out = printed(agent, "set", "0.1", "--service", "c*", "--version", "v2", "--protocol", "db", "--mode", "strict")
    assert out == "service=c* version=v2 protocol=db: 0.1 %, strict, obeyed by 0 targets (revision 2)\n"
    assert printed(agent, "set", "1").startswith("default: 1 %")


def test_a_selector_is_printed_as_it_is(agent: FakeAgent) -> None:
    names = ["[ab]*", "[/b]", "[red]x[/red]", ":smile:", LONG]
    for name, (out, _) in zip(names, run_all(agent.settings, [["set", "30", "--service", name] for name in names])):
        assert out.startswith(f"service={name}: 30 %")
        assert len(out.splitlines()) == 1
    listed = {line.split()[0] for line in printed(agent, "get").splitlines()[1:]}
    assert listed == {f"service={name}" for name in names}
    assert printed(agent, "rm", "--service", "[/b]") == "removed service=[/b] (revision 6)\n"


def test_what_the_agent_refuses_is_one_with_its_reason(agent: FakeAgent) -> None:
    refused = {
        ("set", "101"): "rate: rate must be a percentage from 0 to 100, such as 30, 0.1 or 30%; received '101'",
        ("set", "30", "--mode", "loud"): "mode: Input should be 'follow', 'boost' or 'strict'",
        ("set", "30", "--protocol", "tcp"): "protocol: Input should be 'internal', 'http', 'grpc' or 'db'",
        ("set", "many", "--env", ""): "env: String should have at least 1 character; rate: rate must be",
        ("rm", "--env", "gray"): "there is no rule for env=gray",
    }
    answers = run_all(agent.settings, [list(arguments) for arguments in refused], code=1)
    for complaint, (out, err) in zip(refused.values(), answers):
        assert out == ""
        assert err.startswith("spandial: ")
        assert complaint in err


def test_get_lists_the_rules_that_win_first(agent: FakeAgent) -> None:
    assert printed(agent, "get") == "no rules: every target keeps its own default\n"
    printed(agent, "set", "1")
    printed(agent, "set", "30", "--env", "gray", "--mode", "boost")
    lines = [line.split() for line in printed(agent, "get").splitlines()]
    assert lines[0] == ["rule", "rate", "mode", "targets", "revision", "ends", "in"]
    assert lines[1:] == [
        ["env=gray", "30", "%", "boost", "0", "2", "-"],
        ["default", "1", "%", "follow", "0", "1", "-"],
    ]


def test_a_rule_with_a_ttl_is_shown_with_its_end_and_can_be_renewed(agent: FakeAgent) -> None:
    assert ", until 2" in printed(agent, "set", "100", "--env", "gray", "--ttl", "10m")
    assert printed(agent, "get").splitlines()[1].split()[-1].startswith(("9m5", "10m"))
    assert "env=gray: 100 %, follow, until 2" in printed(agent, "renew", "1h30m", "--env", "gray")
    assert printed(agent, "get").splitlines()[1].split()[-1].startswith(("1h29m", "1h30m"))
    _, err = run(agent.settings, "renew", "1h", "--env", "blue", code=1)
    assert "there is no rule for env=blue" in err
    _, err = run(agent.settings, "set", "100", "--ttl", "soon", code=1)
    assert "ttl: a time from 1s to 366d" in err


def test_explain_says_which_rule_wins_and_why_the_others_lose(agent: FakeAgent) -> None:
    assert (
        printed(agent, "explain", "--env", "gray") == "the process's own default holds for internal, http, grpc, db\n"
    )
    printed(agent, "set", "1")
    printed(agent, "set", "30", "--env", "gray")
    _, gray, default = printed(agent, "explain", "--env", "gray").splitlines()
    assert gray.split() == ["env=gray", "30", "%", "follow", "internal,", "http,", "grpc,", "db", "-"]
    assert default.endswith("more specific: env=gray")
    assert parsed(agent, "explain")["rules"][0]["why"] == "env is '', which 'gray' does not match"


def test_targets_lists_processes_with_their_rates(agent: FakeAgent) -> None:
    assert "OTEL_SERVICE_NAME" in printed(agent, "targets")
    agent.node.processes = [Labels("checkout", "v1", "gray"), Labels("[b]cart[/b]")]
    printed(agent, "set", "30", "--env", "gray")
    printed(agent, "set", "1", "--env", "gray", "--protocol", "db")
    _, checkout, cart = printed(agent, "targets").splitlines()
    assert checkout.split()[:6] == ["1000", "python", "checkout", "v1", "gray", "hooked"]
    assert "internal=30 http=30 grpc=30 db=1" in checkout
    assert "env=gray; env=gray protocol=db" in checkout
    assert cart.split() == ["1001", "python", "[b]cart[/b]", "-", "-", "hooked", "100", "default", "-", "-"]


def test_a_limited_rate_says_so(agent: FakeAgent) -> None:
    agent.node.processes = [Labels("checkout", "v1", "gray")]
    agent.node.limited = "budget"
    assert "100 (limited by budget)" in printed(agent, "targets")


def test_the_budget_is_shown_set_and_removed(agent: FakeAgent) -> None:
    assert printed(agent, "budget") == "no budget\n"
    agent.node.budget = BudgetUse(demand=7000, limited=1)
    said = "budget 5000 kept entries/s; the rules ask for 7000/s; 1 target limited\n"
    assert printed(agent, "budget", "5000", "--why", "a small collector") == said
    assert parsed(agent, "budget")["why"] == "a small collector"
    assert printed(agent, "budget", "--remove").startswith("no budget")


def test_quotas_are_shown_with_their_circuits_set_and_removed(agent: FakeAgent) -> None:
    assert printed(agent, "quota") == "all other tenants: no quota\n"
    agent.node.tenants = [TenantUse(tenant="acme", quota=100, demand=130, circuit="half-open", lasted=90)]
    _, acme, _ = printed(agent, "quota", "acme", "100").splitlines()
    assert acme.split()[:5] == ["acme", "100", "130", "half-open", "1m30s"]
    agent.node.tenants = []
    assert parsed(agent, "quota", "acme", "--remove")["quotas"] == []


def test_targets_explains_a_process(agent: FakeAgent) -> None:
    assert printed(agent, "targets", "--explain", "7") == "7 is no target: no such process\n"
    agent.node.explained[7] = TargetExplanation(
        pid=7,
        name="nginx",
        target=True,
        why="rule: include exe=nginx",
        rules=[RuleFinding(rule="include exe=nginx", matched=True, why="executable is nginx")],
        listens=[80, 443],
        connections=[
            Connections(incoming=False, address="::1", port=8080, count=3),
            Connections(incoming=True, address="10.0.0.7", port=443, count=1),
        ],
    )
    first, _, finding, listens, heading, *connections = printed(agent, "targets", "--explain", "7").splitlines()
    assert first == "7 nginx is a target: rule: include exe=nginx"
    assert finding.split()[:3] == ["include", "exe=nginx", "yes"]
    assert listens == "listens on 80, 443"
    assert heading.split() == ["connected", "server's", "port", "connections"]
    assert [line.split() for line in connections] == [["to", "::1", "8080", "3"], ["from", "10.0.0.7", "443", "1"]]
    assert parsed(agent, "targets", "--explain", "7")["listens"] == [80, 443]


def test_nothing_is_cut_off_where_nobody_looks_at_a_terminal(agent: FakeAgent) -> None:
    agent.node.processes = [Labels(LONG, LONG, LONG)]
    assert printed(agent, "targets").count(LONG) == 3


def test_a_name_cannot_steer_the_terminal(agent: FakeAgent) -> None:
    agent.node.processes = [Labels("a\x1b]0;title\x07b", "v\r1", "gr\nay")]
    out = printed(agent, "targets")
    assert out.splitlines()[1].split()[2:5] == ["a\\x1b]0;title\\x07b", "v\\r1", "gr\\nay"]
    assert printed(agent, "set", "30", "--env", "a\x1bb").startswith('env="a\\u001bb": 30 %')


def test_stats_sets_kernel_and_hook_side_by_side(agent: FakeAgent) -> None:
    both = KindStats(
        kernel=KernelCounts(seen=10, kept=4, kept_traced=3),
        hook=HookCounts(root_kept=1, remote_kept=2, remote_dropped=6, local_kept=99),
        difference_seen=1,
        difference_kept=-2,
        in_flight_at_turns=2,
    )
    alone = KindStats(kernel=None, hook=HookCounts(root_kept=5), difference_seen=None, difference_kept=None)
    target = TargetStats(pid=7, service="checkout", version="v1", env="gray", kinds={"http": both, "db": alone})
    agent.node.counts = NodeStats(targets=[target], losses={"ring_full": 3, "agent_slow": 0})
    _, http, db, losses = printed(agent, "stats").splitlines()
    assert http.split() == ["7", "checkout", "v1", "gray", "http", "10", "4", "3", "9", "3", "+1/-2", "2"]
    assert db.split() == ["7", "checkout", "v1", "gray", "db", "-", "-", "-", "5", "5", "-", "-"]
    assert losses == "losses: ring_full 3"
    spans = SpanStats(kept=9, exported=5, queued=3, lost={"spans_rejected": 1})
    agent.node.counts = NodeStats(targets=[], losses={"ring_full": 0}, spans=spans)
    said = ["spans: 9 kept, 5 exported, 3 waiting, 1 lost", "losses: none"]
    assert printed(agent, "stats").splitlines()[-2:] == said


def test_every_answer_can_be_had_as_json(agent: FakeAgent) -> None:
    agent.node.processes = [Labels("checkout", "v1", "gray")]
    assert parsed(agent, "set", "30", "--env", "gray")["reached"] == 1
    assert [rule["rate"] for rule in parsed(agent, "get")["rules"]] == [30.0]
    assert parsed(agent, "targets")[0]["rates"]["http"]["rule"] == "env=gray"
    assert parsed(agent, "stats") == {"targets": [], "losses": {}, "spans": None, "context_lost": []}
    assert parsed(agent, "rm", "--env", "gray") == {"removed": "env=gray", "revision": 2}
    assert parsed(agent, "doctor")["settings"]["run_dir"] == agent.settings["SPANDIAL_RUN_DIR"]


@pytest.mark.parametrize("as_json", [False, True])
def test_watch_prints_entries_until_it_is_interrupted(agent: FakeAgent, as_json: bool) -> None:
    agent.node.entries = [entry(path="/a[red]b\x1b[2J"), entry(path="/" + "x" * 200).model_copy(update={"lost": 5})]
    agent.node.endless = True
    watching = start(agent.settings, "watch", "--env", "gr*", *["--json"] * as_json)
    assert watching.stdout is not None
    lines = [watching.stdout.readline() for _ in range(2)]
    watching.send_signal(signal.SIGINT)
    rest, err = watching.communicate(timeout=PATIENCE_S)
    assert (watching.returncode, rest) == (0, "")
    assert agent.node.watched == ("*", "gr*")
    if as_json:
        assert [json.loads(line)["lost"] for line in lines] == [0, 5]
    else:
        assert " checkout/v1/gray http/1 GET /a[red]b\\x1b[2J 0af7651916cd43dd8448eb211c80319c by rate" in lines[0]
        assert "/" + "x" * 200 in lines[1]
        assert "5 entries came faster than they could be shown" in err
    eventually(lambda: agent.node.watchers == 0, "nobody watches")


def test_stats_can_be_followed_until_interrupted(agent: FakeAgent) -> None:
    following = start(agent.settings, "stats", "--watch")
    assert following.stdout is not None
    while "losses" not in following.stdout.readline():
        pass
    following.send_signal(signal.SIGINT)
    _, err = following.communicate(timeout=PATIENCE_S)
    assert following.returncode == 0
    assert err == ""


def test_doctor_is_zero_where_nothing_is_missing(agent: FakeAgent) -> None:
    assert "missing  nothing\n" in printed(agent, "doctor")


def test_doctor_is_one_where_something_is_missing(agent: FakeAgent) -> None:
    agent.node.missing = ["capture is off: [SPANDIAL_CAPTURE]=off."]
    out, _ = run(agent.settings, "doctor", code=1)
    assert "missing  capture is off: [SPANDIAL_CAPTURE]=off.\n" in out
    out, _ = run(agent.settings, "doctor", "--json", code=1)
    assert json.loads(out)["missing"] == agent.node.missing


def test_where_trace_contexts_are_lost_is_told(agent: FakeAgent) -> None:
    agent.node.counts = NodeStats(
        targets=[],
        losses={},
        context_lost=[
            LostContext(
                client=TargetName(pid=7, service="shop", version="v1", env="gray"),
                server=TargetName(pid=9, service="fr\x1bont", version="", env=""),
                count=1234,
                since=0,
                example=LostExample(time=0, method="GET", path="/pay", trace_id="0af7651916cd43dd8448eb211c80319c"),
            )
        ],
    )
    for command in ("doctor", "stats"):
        [line] = [line for line in printed(agent, command).splitlines() if "context lost" in line]
        assert "shop (pid 7) leave with traceparent and come to fr\\x1bont (pid 9) without: 1234 since" in line
        assert "GET /pay" in line
        assert line.endswith("of trace 0af7651916cd43dd8448eb211c80319c")
    assert parsed(agent, "doctor")["context_lost"][0]["count"] == 1234


def test_doctor_needs_no_agent(tmp_path: Path) -> None:
    doctor = start({"SPANDIAL_RUN_DIR": str(tmp_path), "SPANDIAL_STATE_DIR": str(tmp_path)}, "doctor", "--json")
    out, err = doctor.communicate(timeout=PATIENCE_S)
    said = json.loads(out)
    assert doctor.returncode == (1 if said["missing"] else 3)
    assert str(tmp_path / "api.sock") in said["agent"]
    assert said["settings"]["state_dir"] == str(tmp_path)
    assert err == ""


def test_a_wrong_setting_is_named_in_one_line() -> None:
    settings = {"SPANDIAL_PORT": "http", "SPANDIAL_TABLE": "disk"}
    for _, err in run_all(settings, [["agent"], ["get"], ["doctor"]], code=1):
        assert len(err.splitlines()) == 1
        assert "SPANDIAL_PORT=http: " in err
        assert "SPANDIAL_TABLE=disk: " in err
