"""Settings from the environment."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from spandial_agent.discovery.rules import parse_rules
from spandial_agent.settings import Settings, misspelt
from spandial_api.breaker import Thresholds


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"SPANDIAL_{name.upper()}", raising=False)


def test_every_setting_has_a_default() -> None:
    settings = Settings()
    assert settings.run_dir == Path("/run/spandial")
    assert settings.state_dir == Path("/var/lib/spandial")
    assert settings.compiled_dir == Path("/var/lib/spandial/compiled")
    assert (settings.host, settings.port) == ("127.0.0.1", 5778)
    assert (settings.table, settings.capture, settings.require_kernel) == ("auto", "auto", False)
    assert settings.default_rate == 100.0
    assert settings.discover == ""
    assert not settings.raw_statements


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPANDIAL_RUN_DIR", "/tmp/run")
    monkeypatch.setenv("SPANDIAL_PORT", "0")
    monkeypatch.setenv("SPANDIAL_REQUIRE_KERNEL", "true")
    monkeypatch.setenv("SPANDIAL_LEASE_SECONDS", "2.5")
    settings = Settings()
    assert (settings.run_dir, settings.port) == (Path("/tmp/run"), 0)
    assert settings.require_kernel
    assert settings.lease_seconds == 2.5


@pytest.mark.parametrize(("text", "rate"), [("10", 10.0), ("0.1%", 0.1), ("0", 0.0)])
def test_the_default_rate_is_a_percentage_as_people_write_it(
    monkeypatch: pytest.MonkeyPatch, text: str, rate: float
) -> None:
    monkeypatch.setenv("SPANDIAL_DEFAULT_RATE", text)
    assert Settings().default_rate == rate


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("DEFAULT_RATE", "101"),
        ("DEFAULT_RATE", "many"),
        ("PORT", "65536"),
        ("PORT", "http"),
        ("TABLE", "disk"),
        ("CAPTURE", "kprobe"),
        ("LEASE_SECONDS", "0"),
        ("LEASE_SECONDS", "nan"),
        ("LEASE_SECONDS", "1e9"),
        ("LOG", "xml"),
        ("DISCOVER", "exe=nginx"),
        ("DISCOVER", "include exe=nginx; exclude"),
    ],
)
def test_a_setting_that_cannot_be_obeyed_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    monkeypatch.setenv(f"SPANDIAL_{name}", text)
    with pytest.raises(ValidationError) as refusal:
        Settings()
    [problem] = refusal.value.errors()
    assert problem["loc"] == (name.lower(),)
    assert problem["input"] == text


@pytest.mark.parametrize(("text", "folder"), [("kept", "/tmp/state/kept"), ("/var/cache/bpf", "/var/cache/bpf")])
def test_a_folder_of_compiled_programs_is_taken_from_the_state_dir(
    monkeypatch: pytest.MonkeyPatch, text: str, folder: str
) -> None:
    monkeypatch.setenv("SPANDIAL_STATE_DIR", "/tmp/state")
    monkeypatch.setenv("SPANDIAL_COMPILED_DIR", text)
    assert Settings().compiled_dir == Path(folder)


@pytest.mark.parametrize(
    ("text", "path"), [("auto", None), ("off", None), ("socket", "socket"), ("sys_exit", "sys_exit")]
)
def test_only_a_path_that_is_named_is_forced(monkeypatch: pytest.MonkeyPatch, text: str, path: str | None) -> None:
    monkeypatch.setenv("SPANDIAL_CAPTURE", text)
    assert Settings().forced_path == path


def test_every_setting_is_documented_with_its_default() -> None:
    table = (Path(__file__).parents[2] / "docs" / "settings.md").read_text()
    for name, field in Settings.model_fields.items():
        row = next((line for line in table.splitlines() if f"`SPANDIAL_{name.upper()}`" in line), "")
        default = f"{field.default:g}" if isinstance(field.default, float) else field.default
        shown = {False: "off", "": "none", None: "none"}.get(default, default)
        assert row.startswith("|"), name
        assert re.search(rf"\b{re.escape(str(shown).strip('/'))}\b", row.split("|")[2]), name


def test_variables_of_others_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPANDIAL_SOMETHING_ELSE", "x")
    monkeypatch.setenv("PORT", "nonsense")
    assert Settings().port == 5778


def test_rules_of_discovery_are_kept_as_they_were_written(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "include exe=nginx service=edge\n exclude port=9000-9099;"
    monkeypatch.setenv("SPANDIAL_DISCOVER", text)
    assert Settings().discover == text
    assert len(parse_rules(Settings().discover)) == 2


def test_a_rule_of_discovery_that_is_none_is_refused_with_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPANDIAL_DISCOVER", "include port=http")
    with pytest.raises(ValidationError, match=r"port is 1-65535, or a range such as 8000-8099; received 'http'"):
        Settings()


def test_a_circuit_opens_above_what_closes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPANDIAL_BREAKER_UNDER", "130")
    with pytest.raises(ValidationError, match="is above SPANDIAL_BREAKER_OVER"):
        Settings()
    monkeypatch.setenv("SPANDIAL_BREAKER_OVER", "150")
    monkeypatch.setenv("SPANDIAL_BREAKER_RATE", "0.1%")
    assert Settings().thresholds == Thresholds(150, 180, 130, 300, 0.1)


@pytest.mark.parametrize(("text", "port"), [("", None), ("0", 0), ("14250", 14250)])
def test_jaegers_grpc_is_served_where_a_port_is_set(
    monkeypatch: pytest.MonkeyPatch, text: str, port: int | None
) -> None:
    assert Settings().jaeger_grpc_port is None
    monkeypatch.setenv("SPANDIAL_JAEGER_GRPC_PORT", text)
    assert Settings().jaeger_grpc_port == port


def test_a_forgotten_hundred_percent_is_refused_unless_somebody_allows_it() -> None:
    assert Settings().max_rate_without_ttl < 100


def test_owners_of_libraries_are_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().trusted_owners == frozenset()
    monkeypatch.setenv("SPANDIAL_TLS_TRUST_OWNERS", "1000 1001")
    assert Settings().trusted_owners == {1000, 1001}
    monkeypatch.setenv("SPANDIAL_TLS_TRUST_OWNERS", "1000 deploy")
    with pytest.raises(ValidationError, match="'deploy' is no user's number"):
        Settings()


def test_variables_that_look_like_settings_and_are_none_are_named_with_the_nearest_one() -> None:
    links = ["SPANDIAL_SERVICE_HOST", "SPANDIAL_SERVICE_PORT_HTTP", "SPANDIAL_RELAY_PORT_5779_TCP_ADDR"]  # Kubernetes'
    given = ["PATH", *links, "SPANDIAL_RUN_DIR", "SPANDIAL_CAPTURE_CPU_LIMT", "SPANDIAL_XYZZY_PLUGH"]
    first, second = misspelt(given)
    assert first == ("SPANDIAL_CAPTURE_CPU_LIMT is no setting of the agent's: is SPANDIAL_CAPTURE_CPU_LIMIT meant?")
    assert second.startswith("SPANDIAL_XYZZY_PLUGH is no setting of the agent's")
