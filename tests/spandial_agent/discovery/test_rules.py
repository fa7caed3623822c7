"""Rules of discovery: their text, and what they make of a process."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spandial.labels import Labels
from spandial_agent.discovery.rules import Condition, DiscoveryRule, RuleError, judge, parse_rules, wanted_traits
from spandial_agent.processes.proc import NAMED, Process, Traits

NGINX = Traits(
    exe="/usr/sbin/nginx",
    cmdline="nginx -g daemon off;",
    cgroups=("/", "/system.slice/nginx.service"),
    environ={"STAGE": "gray-1", "EMPTY": "", "API_KEY": "hunter2"},
    ports=frozenset({80, 8443}),
)

_texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)
_names = st.text(string.ascii_letters + "_ '", min_size=1, max_size=8)
_ports = st.tuples(st.integers(1, 65535), st.integers(1, 65535)).map(
    lambda ends: f"{min(ends)}-{max(ends)}" if ends[0] != ends[1] else str(ends[0])
)
_conditions = st.one_of(
    st.builds(Condition, st.sampled_from(["exe", "cgroup", "cmdline"]), _texts),
    st.builds(Condition, st.just("port"), _ports),
    st.builds(Condition, st.just("environ"), st.builds("{}={}".format, _names, st.just("") | _texts)),
)
_some = st.lists(_conditions, min_size=1, max_size=4).map(tuple)
_labels = st.just("") | _texts.filter(str.isprintable)
_rules = st.builds(DiscoveryRule, st.just("exclude"), _some) | st.builds(
    DiscoveryRule, st.just("include"), _some, st.builds(Labels, _labels, _labels, _labels, _labels, st.just(()))
)


def process(labels: Labels = Labels(), name: str = "nginx") -> Process:
    return Process(4711, 1, name, labels)


def rule(text: str) -> DiscoveryRule:
    [rule] = parse_rules(text)
    return rule


@given(_rules)
def test_a_rule_that_is_written_and_parsed_is_the_same_rule(rule: DiscoveryRule) -> None:
    assert parse_rules(str(rule)) == (rule,)


@given(st.lists(_rules), st.sampled_from([";", "\n", " ; ", ";;", "\n\n", ";\n "]))
def test_rules_are_separated_by_semicolons_or_lines(rules: list[DiscoveryRule], separator: str) -> None:
    assert parse_rules(separator.join(map(str, rules))) == tuple(rules)


@given(st.text() | st.text("inclued xport=cmv'\"\\;-*19", max_size=60))
def test_no_text_makes_the_parser_raise_anything_else(text: str) -> None:
    try:
        rules = parse_rules(text)
    except RuleError:
        return
    assert parse_rules("; ".join(map(str, rules))) == rules


@given(_rules, st.sets(st.integers(1, 65535)).map(frozenset))
def test_only_a_port_is_waited_for(rule: DiscoveryRule, ports: frozenset[int]) -> None:
    holds = rule.holds(NGINX._replace(ports=ports))
    if not any(condition.kind == "port" for condition in rule.conditions):
        assert holds is not None
    every = NGINX._replace(ports=frozenset(range(1, 65536)))
    assert rule.holds(every) is (holds is not False)


def test_a_rule_is_read_as_a_shell_reads_words() -> None:
    text = """
        include exe=nginx service=edge env=gray   version='v 1'
        exclude cmdline="*--self test;*" environ=A=b=c*; exclude exe=a#b
    """
    assert parse_rules(text) == (
        DiscoveryRule("include", (Condition("exe", "nginx"),), Labels("edge", "v 1", "gray")),
        DiscoveryRule("exclude", (Condition("cmdline", "*--self test;*"), Condition("environ", "A=b=c*"))),
        DiscoveryRule("exclude", (Condition("exe", "a#b"),)),
    )
    assert str(parse_rules(text)[0]) == "include exe=nginx service=edge env=gray version='v 1'"
    assert parse_rules(" ;\n; ") == ()


@pytest.mark.parametrize(
    ("text", "wrong", "received", "allowed"),
    [
        ("inlcude exe=a", "begins with", "'inlcude exe=a'", "include or exclude"),
        ("include", "no condition", "'include'", "exe, port, cgroup, environ, cmdline"),
        ("include service=a", "no condition", "'include service=a'", "exe, port, cgroup, environ, cmdline"),
        ("include exec=a", "no such condition", "'exec=a'", "exe=, port=, cgroup=, environ=, cmdline="),
        ("include exe", "no such condition", "'exe'", "service=, env=, version="),
        ("include exe=", "exe is a glob", "nothing in 'include exe='", "exe=*nginx*"),
        ("include port=http", "port is", "'http'", "1-65535, or a range such as 8000-8099"),
        ("include port=0", "port is", "'0'", "1-65535"),
        ("include port=65536", "port is", "'65536'", "1-65535"),
        ("include port=9-8", "port is", "'9-8'", "a range"),
        ("include port=1-", "port is", "'1-'", "a range"),
        ("include port=\N{SUPERSCRIPT TWO}", "port is", "'\N{SUPERSCRIPT TWO}'", "1-65535"),
        ("include environ=STAGE", "environ is", "'STAGE'", "NAME=GLOB"),
        ("include environ==a", "environ is", "'=a'", "NAME=GLOB"),
        ("exclude exe=a env=gray", "gives no labels", "'env=gray'", "environ=NAME=GLOB"),
        ("include exe=a service=b service=c", "named twice", "service=b service=c", "one value"),
        ("include exe=a service=", "service is", "''", "1 to 255"),
        ("include exe=a env='\x1b'", "env is", "'\\x1b'", "printable"),
        ("include exe=a env=" + "x" * 256, "env is", "xxx", "255"),
        ("include exe='a", "no closing quotation", "exe='a", "quotes come in pairs"),
        ("include exe=a; exclude", "no condition", "'exclude'", "one at least"),
    ],
)
def test_what_is_no_rule_is_refused_with_what_is_allowed(text: str, wrong: str, received: str, allowed: str) -> None:
    with pytest.raises(RuleError) as refusal:
        parse_rules(text)
    said = str(refusal.value)
    assert wrong in said
    assert received in said
    assert allowed in said


@pytest.mark.parametrize(
    "condition",
    [
        "exe=nginx",
        "exe=ng*",
        "exe=/usr/sbin/nginx",
        "exe=/usr/*",
        "port=80",
        "port=8000-9000",
        "cgroup=/system.slice/*",
        "cgroup=*/nginx.service",
        "environ=STAGE=gray*",
        "environ=EMPTY=",
        "cmdline=*daemon*",
        "exe=nginx port=80 port=8443 environ=STAGE=gray-1",
    ],
)
def test_a_rule_holds_if_all_its_conditions_do(condition: str) -> None:
    assert rule(f"exclude {condition}").holds(NGINX) is True


@pytest.mark.parametrize(
    "condition",
    [
        "exe=sbin",
        "exe=NGINX",
        "exe=/usr/sbin",
        "cgroup=/system.slice",
        "environ=STAGE=gray",
        "environ=OTHER=*",
        "cmdline=daemon",
        "exe=nginx cmdline=daemon",
        "exe=httpd port=1",
    ],
)
def test_a_rule_does_not_hold_if_one_condition_does_not(condition: str) -> None:
    assert rule(f"exclude {condition}").holds(NGINX) is False


@pytest.mark.parametrize("condition", ["exe=*", "exe=*/*", "cgroup=*", "environ=A=*"])
def test_what_may_not_be_read_matches_nothing(condition: str) -> None:
    assert rule(f"include {condition}").holds(Traits()) is False


def test_a_port_that_nobody_listens_on_may_still_be_opened() -> None:
    assert rule("include port=81 exe=nginx").holds(NGINX) is None


def test_the_environment_includes_who_names_a_service_without_any_rule() -> None:
    verdict = judge((), process(Labels("shop", "v1")), Traits())
    assert (verdict.included, verdict.labels, verdict.why) == (True, Labels("shop", "v1"), NAMED)
    assert not verdict.by_rule
    verdict = judge((), process(Labels(env="gray")), Traits())
    assert not verdict.included
    assert not verdict.excluded
    assert verdict.why == "environment names no service, and no rule includes it"


@pytest.mark.parametrize("text", ["exclude exe=nginx; include exe=nginx", "include exe=nginx\nexclude exe=nginx"])
def test_exclude_wins_in_whatever_order(text: str) -> None:
    verdict = judge(parse_rules(text), process(Labels("shop")), NGINX)
    assert (verdict.included, verdict.excluded, verdict.why) == (False, True, "rule: exclude exe=nginx")


def test_the_first_rule_that_includes_gives_the_labels() -> None:
    rules = parse_rules("include exe=httpd service=a; include port=80 service=b; include exe=nginx service=c")
    verdict = judge(rules, process(), NGINX)
    assert (verdict.labels.service, verdict.why) == ("b", "rule: include port=80 service=b")


@pytest.mark.parametrize(
    ("text", "said", "labels"),
    [
        ("include exe=nginx", Labels(), Labels("nginx")),
        ("include exe=nginx", Labels("shop", "v1", "blue"), Labels("shop", "v1", "blue")),
        ("include exe=nginx env=gray", Labels("shop", "v1", "blue"), Labels("shop", "v1", "gray")),
        ("include exe=nginx env=gray", Labels(), Labels("nginx", "", "gray")),
        ("include exe=nginx service=edge version=v2", Labels("shop", env="blue"), Labels("edge", "v2", "blue")),
    ],
)
def test_labels_are_the_rules_then_the_environments_then_the_executables_name(
    text: str, said: Labels, labels: Labels
) -> None:
    verdict = judge(parse_rules(text), process(said), NGINX)
    assert (verdict.labels, verdict.by_rule) == (labels, True)


def test_where_the_executable_may_not_be_read_the_command_gives_its_name() -> None:
    verdict = judge(parse_rules("include cmdline=*"), process(name="worker"), Traits())
    assert verdict.labels == Labels("worker")


@pytest.mark.parametrize(
    ("text", "waits"),
    [
        ("include exe=nginx", False),
        ("include port=81", True),
        ("exclude port=81", True),
        ("include port=80", False),
        ("include port=81 exe=httpd", False),
        ("exclude exe=nginx; exclude port=81", False),
        ("exclude port=81; include exe=nginx", True),
        ("include exe=nginx; include port=81 service=b", False),
        ("include port=81 service=b; include exe=nginx", True),
    ],
)
def test_it_waits_for_a_port_that_could_change_the_verdict_and_for_no_other(text: str, waits: bool) -> None:
    assert judge(parse_rules(text), process(Labels("shop")), NGINX).waits is waits


def test_only_what_rules_look_at_is_wanted_of_a_process() -> None:
    assert wanted_traits(()) == frozenset()
    assert wanted_traits(parse_rules("include port=80")) == {"exe"}
    assert wanted_traits(parse_rules("exclude cgroup=a; include environ=A=b cmdline=c")) == {
        "exe",
        "cgroups",
        "environ",
        "cmdline",
    }
    assert wanted_traits(parse_rules("include cgroup=a")) <= set(Traits._fields)


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("include exe=nginx port=80", "executable is /usr/sbin/nginx; listens on 80, 8443"),
        ("include exe=httpd port=80", "executable is /usr/sbin/nginx"),
        ("include exe=httpd port=81", "executable is /usr/sbin/nginx; listens on 80, 8443"),
        ("include cgroup=x", "cgroup is / or /system.slice/nginx.service"),
        ("include cmdline=*nginx*", "command line matches *nginx*"),
        ("include cmdline=x", "command line is another"),
        ("include environ=STAGE=gray*", "variable STAGE matches"),
        ("include environ=STAGE=blue", "variable STAGE has another value"),
        ("include environ=OTHER=*", "variable OTHER is not set"),
    ],
)
def test_a_rule_says_why_it_holds_or_what_does_not(text: str, finding: str) -> None:
    assert rule(text).finding(NGINX) == finding


def test_a_rule_says_what_could_not_be_read() -> None:
    text = "include exe=a cgroup=b environ=A=c port=1"
    unreadable = "executable unreadable; cgroup unreadable; environment unreadable; listens on no TCP port"
    assert rule(text).finding(Traits()) == unreadable


@given(_rules)
def test_no_finding_shows_a_value_of_the_environment(rule: DiscoveryRule) -> None:
    key = Condition("environ", "API_KEY=?*")
    shown = DiscoveryRule("include", (*rule.conditions, key)).finding(NGINX)
    patterns = " ".join(condition.pattern for condition in rule.conditions)
    assert "hunter2" not in shown or "hunter2" in patterns
