"""Who is let in by an agent that runs as a process: tokens, TLS, limits."""

from __future__ import annotations

import os
import ssl
import stat
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.agent_process import AgentProcess
from tests.certificates import Certificate, self_signed
from tests.spandial_agent.command import run

MakeAgent = Callable[..., AgentProcess]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Certificate]:
    return {name: self_signed(tmp_path_factory.mktemp(name)) for name in ("server", "client")}


def url_of(agent: AgentProcess) -> str:
    """Where it serves over TCP, as its log says."""
    line = next(line for line in reversed(agent.log.read_text().splitlines()) if "url=" in line)
    return line.partition("url=")[2].split()[0]


def operators(agent: AgentProcess) -> dict[str, str]:
    return bearer((agent.state_dir / "token").read_text().strip())


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def add(agent: AgentProcess, *arguments: str) -> dict[str, str]:
    """The header of the new token's holder."""
    return bearer(run(agent.settings, "token", "add", *arguments)[0].strip())


def trusting(server: Certificate, own: Certificate | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(server.certificate))
    if own is not None:
        context.load_cert_chain(own.certificate, own.key)
    return context


def test_tokens_are_made_bound_and_removed_while_it_runs(memfd_agent: AgentProcess) -> None:
    checkout = {"service": "checkout", "rate": "30"}
    with httpx.Client(base_url=url_of(memfd_agent), params={"rate": "30"}) as client:
        ci = add(memfd_agent, "ci", "--service", "checkout")
        assert client.put("/sampling", params=checkout, headers=ci).status_code == 200
        refused = client.put("/sampling", params={"rate": "30"}, headers=ci)
        assert (refused.status_code, "inside of service=checkout" in refused.json()["detail"]) == (403, True)
        run(memfd_agent.settings, "token", "rm", "ci")
        assert client.put("/sampling", params=checkout, headers=ci).status_code == 401
        assert client.put("/sampling", params={"rate": "1"}, headers=operators(memfd_agent)).status_code == 200
        run(memfd_agent.settings, "token", "rm", "operator")
        metrics = client.get("/metrics", params={}).text
    assert 'spandial_requests_refused_total{reason="binding"} 1.0' in metrics
    memfd_agent.stop()
    memfd_agent.start()
    assert not (memfd_agent.state_dir / "token").exists()
    assert [entry["who"] for entry in memfd_agent.get("/audit")["entries"]] == ["token operator", "token ci"]
    assert [rule["selector"] for rule in memfd_agent.get("/sampling")["rules"]] == ["service=checkout", "default"]


def test_the_token_of_an_older_version_still_lets_its_holder_in(tmp_path: Path, make_agent: MakeAgent) -> None:
    state = tmp_path / "agent0" / "state"
    state.mkdir(parents=True)
    (state / "token").write_text("made-by-an-older-version\n")
    agent = make_agent(SPANDIAL_TABLE="memfd")
    url = url_of(agent)
    answer = httpx.put(f"{url}/sampling", params={"rate": "30"}, headers=bearer("made-by-an-older-version"))
    assert answer.status_code == 200
    assert stat.S_IMODE((state / "tokens.json").stat().st_mode) == 0o600
    assert "made-by" not in (state / "tokens.json").read_text()


def test_a_broken_file_of_tokens_is_told_in_the_log_and_by_doctor(memfd_agent: AgentProcess) -> None:
    path = memfd_agent.state_dir / "tokens.json"
    whole = path.read_text()
    path.write_text("{")
    out, _ = run(memfd_agent.settings, "doctor", code=1)
    assert "the tokens cannot be read" in out
    url = url_of(memfd_agent)
    for _ in range(3):
        answer = httpx.put(f"{url}/sampling", params={"rate": "30"}, headers=operators(memfd_agent))
        assert answer.status_code == 200
    assert memfd_agent.log.read_text().count("the tokens cannot be read") == 1
    path.write_text(whole)
    assert "the tokens cannot be read" not in run(memfd_agent.settings, "doctor", code=1)[0]


def test_without_tls_it_does_not_start_where_others_reach_it(tmp_path: Path) -> None:
    settings = {
        "SPANDIAL_RUN_DIR": str(tmp_path / "run"),
        "SPANDIAL_STATE_DIR": str(tmp_path / "state"),
        "SPANDIAL_PORT": "0",
        "SPANDIAL_TABLE": "memfd",
        "SPANDIAL_HOST": "0.0.0.0",
    }
    _, err = run(settings, "agent", code=1)
    assert "SPANDIAL_HOST=0.0.0.0 is an address that other hosts reach" in err
    assert "set SPANDIAL_TLS_CERT and SPANDIAL_TLS_KEY" in err
    for name in ("KEY", "CLIENT_CA"):
        _, err = run({**settings, f"SPANDIAL_TLS_{name}": "/x.pem"}, "agent", code=1)
        assert "SPANDIAL_TLS_KEY and SPANDIAL_TLS_CLIENT_CA need SPANDIAL_TLS_CERT" in err
    _, err = run({**settings, "SPANDIAL_TLS_CERT": "/x.pem"}, "agent", code=1)
    assert "SPANDIAL_TLS_CERT=/x.pem cannot be read: No such file" in err
    assert [path for path in (tmp_path / "run").iterdir() if path.is_socket()] == []


def test_where_others_reach_it_there_is_tls_and_readers_need_a_token(
    make_agent: MakeAgent, certificates: dict[str, Certificate]
) -> None:
    server = certificates["server"]
    agent = make_agent(
        SPANDIAL_TABLE="memfd",
        SPANDIAL_HOST="0.0.0.0",
        SPANDIAL_TLS_CERT=str(server.certificate),
        SPANDIAL_TLS_KEY=str(server.key),
    )
    url = url_of(agent)
    assert url.startswith("https://0.0.0.0:")
    url = url.replace("0.0.0.0", "127.0.0.1")
    with httpx.Client(base_url=url, verify=trusting(server)) as client:
        assert client.get("/healthz").status_code == 200
        for path in ("/sampling", "/targets", "/stats", "/entries", "/metrics", "/sampling/explain"):
            assert client.get(path).status_code == 401, path
        assert client.put("/sampling", params={"rate": "30"}).status_code == 401
        prometheus = add(agent, "prometheus", "--scope", "read")
        assert client.get("/metrics", headers=prometheus).status_code == 200
        assert client.put("/sampling", params={"rate": "30"}, headers=prometheus).status_code == 403
        assert client.put("/sampling", params={"rate": "30"}, headers=operators(agent)).status_code == 200
    assert agent.get("/sampling")["revision"] == 1
    assert agent.stop() == 0
    assert "Traceback" not in agent.log.read_text()


def test_mtls_and_free_reading(make_agent: MakeAgent, certificates: dict[str, Certificate]) -> None:
    server, own = certificates["server"], certificates["client"]
    agent = make_agent(
        SPANDIAL_TABLE="memfd",
        SPANDIAL_HOST="0.0.0.0",
        SPANDIAL_TLS_CERT=str(server.certificate),
        SPANDIAL_TLS_KEY=str(server.key),
        SPANDIAL_TLS_CLIENT_CA=str(own.certificate),
        SPANDIAL_READ_WITHOUT_TOKEN="on",
    )
    url = url_of(agent).replace("0.0.0.0", "127.0.0.1")
    with httpx.Client(base_url=url, verify=trusting(server)) as client, pytest.raises(httpx.TransportError):
        client.get("/healthz")
    with httpx.Client(base_url=url, verify=trusting(server, own)) as client:
        assert client.get("/sampling").status_code == 200
        assert client.put("/sampling", params={"rate": "30"}).status_code == 401
        assert client.put("/sampling", params={"rate": "30"}, headers=operators(agent)).status_code == 200


@pytest.mark.skipif(not Path("/proc/sys/net/ipv6").exists(), reason="this kernel has no IPv6")
def test_on_ipv6_its_url_is_one(make_agent: MakeAgent) -> None:
    url = url_of(make_agent(SPANDIAL_TABLE="memfd", SPANDIAL_HOST="::1"))
    assert url.startswith("http://[::1]:")
    assert httpx.get(f"{url}/sampling").status_code == 200


def test_reading_can_need_a_token_on_this_host_too(make_agent: MakeAgent) -> None:
    agent = make_agent(SPANDIAL_TABLE="memfd", SPANDIAL_READ_WITHOUT_TOKEN="off")
    assert httpx.get(f"{url_of(agent)}/sampling").status_code == 401
    assert httpx.get(f"{url_of(agent)}/healthz").status_code == 200
    assert httpx.get(f"{url_of(agent)}/sampling", headers=operators(agent)).status_code == 200


def test_who_writes_too_often_over_the_socket_is_told_so(make_agent: MakeAgent) -> None:
    agent = make_agent(SPANDIAL_TABLE="memfd", SPANDIAL_WRITES_PER_SECOND="0.01")
    agent.set(30)
    answer = agent.http.put("/sampling", params={"rate": "40"})
    assert (answer.status_code, int(answer.headers["Retry-After"]) > 10) == (429, True)
    _, err = run(agent.settings, "set", "40", code=1)
    assert err.startswith(f"spandial: uid {os.geteuid()} writes more often than SPANDIAL_WRITES_PER_SECOND allows")
    rules = agent.get("/sampling")
    assert (rules["revision"], rules["rules"][0]["rate"]) == (1, 30.0)
