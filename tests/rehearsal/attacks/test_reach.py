"""Who may ask, and where the server may be sent: hosts, origins, jobs, webhooks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from ..test_image_entrypoint import RUNS
from .conftest import Attacked

WRITES = [
    f"{RUNS}/create",
    "/ajax-api/2.0/mlflow/runs/create",
    "/graphql",
    "/v1/traces",
    "/gateway/x/mlflow/invocations",
]
WEBHOOKS = "/api/2.0/mlflow/webhooks"
EVENTS = [{"entity": "REGISTERED_MODEL", "action": "CREATED"}]


@pytest.mark.parametrize(
    "host", ["attacker.test", "127.0.0.1.attacker.test", "localhost.attacker.test:80", "", "@127.0.0.1"]
)
@pytest.mark.parametrize("target", [*WRITES, "/", "/get-artifact", "/health/details"])
def test_a_foreign_host_is_refused(attacked: Attacked, host: str, target: str) -> None:
    """A page that rebound its own name to the server's address sends its own name."""
    for method in ("GET", "POST"):
        assert attacked.request(method, target, b"{}", Host=host)[0] in (400, 403)


@pytest.mark.parametrize(
    "origin", ["https://attacker.test", "null", "http://127.0.0.1.attacker.test", "file://"]
)
@pytest.mark.parametrize("target", WRITES)
def test_another_site_s_page_writes_nothing(attacked: Attacked, origin: str, target: str) -> None:
    for content in ("application/json", "text/plain"):
        headers = {"Origin": origin, "Content-Type": content, "x-mlflow-experiment-id": "0"}
        status, answer = attacked.request("POST", target, b"{}", **headers)
        assert (status, answer) == (403, b"Cross-origin request blocked"), target
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    status, _ = attacked.request("OPTIONS", target, None, **headers)
    assert status == 400


def test_nobody_starts_a_job(attacked: Attacked) -> None:
    """CVE-2026-0545: jobs run code that the request names. This image has no job runner, and takes none in."""
    for name in ("invoke_scorer", "run_online_trace_scorer", "os.system", "subprocess.run"):
        status, answer = attacked.post("/ajax-api/3.0/jobs/", {"job_name": name, "params": {"args": "id"}})
        assert status in (400, 404, 501), answer
    for path, body in (
        (
            "/ajax-api/3.0/mlflow/scorer/invoke",
            {"experiment_id": "0", "serialized_scorer": "{}", "trace_ids": ["a"]},
        ),
        ("/ajax-api/3.0/mlflow/issues/invoke", {"experiment_id": "0", "trace_ids": ["a"]}),
        ("/ajax-api/3.0/mlflow/genai/evaluate/invoke", {"experiment_id": "0"}),
        (
            "/api/3.0/mlflow/prompt-optimization/jobs",
            {"experiment_id": "0", "source_prompt_uri": "prompts:/a/1"},
        ),
    ):
        status, answer = attacked.post(path, body)
        assert status in (400, 404, 501), answer
    assert attacked.rows("SELECT count(*) FROM jobs") == [(0,)]


def test_the_assistant_does_not_listen_to_who_comes_through_the_balancer(attacked: Attacked) -> None:
    """It runs commands; on the server's own machine it would."""
    for method, path in (
        ("PUT", "config"),
        ("POST", "message"),
        ("POST", "skills/install"),
    ):
        target = f"/ajax-api/3.0/mlflow/assistant/{path}"
        status, answer = attacked.request(method, target, b"{}", **{"Content-Type": "application/json"})
        assert status == 403, (target, answer)


def test_spans_need_an_experiment_that_is_there(attacked: Attacked) -> None:
    """CVE-2026-2652: anybody could send spans. Today that is whoever reaches the server; sign-in will say who may."""
    spans = (
        b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "%s", "spanId": "%s", "name": "a"}]}]}]}'
    )
    body = spans % (b"ab" * 16, b"cd" * 8)
    before = attacked.rows("SELECT count(*) FROM spans")
    for experiment in ("77777777", "x", "", "-1"):
        headers = {"Content-Type": "application/json", "x-mlflow-experiment-id": experiment}
        assert 400 <= attacked.request("POST", "/v1/traces", body, **headers)[0] < 500
    assert attacked.request("POST", "/v1/traces", body, **{"Content-Type": "application/json"})[0] == 422
    assert attacked.rows("SELECT count(*) FROM spans") == before


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/",
        "https://169.254.169.254/latest/meta-data/",
        "https://169.254.170.2/v2/credentials",
        "https://[fd00:ec2::254]/latest/meta-data/",
        "https://[::ffff:169.254.169.254]/",
        "https://2852039166/",
        "https://0xa9fea9fe/",
        "https://127.0.0.1:5000/",
        "https://localhost/",
        "https://0.0.0.0/",
        "https://[::1]/",
        "https://10.0.2.15:5432/",
        "https://172.31.0.2/",
        "https://192.168.1.1/",
        "https://100.64.0.1/",
        "https://example.com@169.254.169.254/",
        "https://metadata.attack.test/latest/meta-data/",
        "https://task-metadata.attack.test/v2/credentials",
        "https://database.attack.test:5432/",
        "https://loopback.attack.test/",
        "file:///etc/passwd",
        "gopher://10.0.2.15:5432/_x",
    ],
)
def test_no_webhook_leads_into_the_network(attacked: Attacked, url: str) -> None:
    """CVE-2026-2393"""
    status, answer = attacked.post(WEBHOOKS, {"name": "attack", "url": url, "events": EVENTS})
    assert status == 400, answer


def test_a_webhook_that_is_in_the_database_already_is_not_called(attacked: Attacked) -> None:
    """The name may have led elsewhere when the webhook was made."""
    made = {"name": "rebound", "url": "https://1.1.1.1/hook", "events": EVENTS}
    webhook = attacked.create(WEBHOOKS, made)["webhook"]["webhook_id"]
    url = "https://metadata.attack.test/"
    attacked.rows("UPDATE webhooks SET url = %s WHERE webhook_id = %s RETURNING 1", url, webhook)
    status, answer = attacked.post(f"{WEBHOOKS}/{webhook}/test", {})
    attacked.request("DELETE", f"{WEBHOOKS}/{webhook}")
    assert status == 200
    assert answer["result"]["success"] is False
    assert "169.254.169.254" in answer["result"]["error_message"]


@pytest.fixture
def redirecting() -> Iterator[tuple[str, list[str]]]:
    """A server at 127.0.0.2 that redirects to one at 127.0.0.1, and what the second was asked."""
    asked: list[str] = []

    class Inside(BaseHTTPRequestHandler):
        def answer(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        do_GET = do_POST = answer  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Outside(Inside):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(int(self.path.strip("/")))
            self.send_header("Location", f"http://127.0.0.1:{inside.server_port}/reached")
            self.end_headers()

        do_GET = do_POST = answer  # noqa: N815

    inside, outside = HTTPServer(("127.0.0.1", 0), Inside), HTTPServer(("127.0.0.2", 0), Outside)
    for server in (inside, outside):
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.2:{outside.server_port}", asked
    for server in (inside, outside):
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_leads_into_the_network(
    redirecting: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """In this process, with MLflow's own client for webhooks: 127.0.0.2 counts as an address of the internet."""
    from mlflow.webhooks import delivery, ssrf

    public = ssrf._is_public_ip
    monkeypatch.setattr(ssrf, "_is_public_ip", lambda ip: str(ip) == "127.0.0.2" or public(ip))
    url, asked = redirecting
    session: Any = delivery._create_webhook_session()
    with pytest.raises(ssrf.SSRFProtectionError, match=r"127\.0\.0\.1"):
        session.post(f"{url}/{status}", data=b"{}", timeout=30)
    assert asked == []


def test_there_is_no_account_to_guess_a_password_of(attacked: Attacked) -> None:
    """CVE-2025-11200, weak passwords: this server has no accounts. MLflow, which will make them, wants 12 characters."""
    from mlflow.utils.validation import _validate_password

    for method, target in (("GET", "/signup"), ("POST", "/api/2.0/mlflow/users/create"), ("GET", "/login")):
        assert attacked.request(method, target, b"{}")[0] in (404, 405)
    for weak in ("", "a", "password", "password123"):
        with pytest.raises(Exception, match="assword"):
            _validate_password(weak)
