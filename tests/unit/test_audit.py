"""The audit of the image's packages: pip-audit itself, against a service on this machine that speaks OSV's protocol."""

from __future__ import annotations

import datetime
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from operations.audit import (
    LOCK,
    POLICY,
    Accepted,
    AuditFailed,
    Finding,
    ask,
    judge,
    read_policy,
)

TODAY = datetime.date(2026, 11, 25)
ADVISORY: dict[str, Any] = {
    "id": "GHSA-aaaa-bbbb-cccc",
    "aliases": ["CVE-2026-99999"],
    "summary": "Made up",
    "affected": [
        {
            "package": {"name": "urllib3", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.1"}]}],
        }
    ],
}
FINDING = Finding("urllib3", "2.8.0", frozenset({"GHSA-aaaa-bbbb-cccc", "CVE-2026-99999"}), ("99.1",))


class Service(BaseHTTPRequestHandler):
    """OSV's /v1/query, which knows of one advisory."""

    asked: list[str]

    def do_POST(self) -> None:
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(query["package"]["name"])
        found = {"vulns": [ADVISORY]} if query["package"]["name"] == "urllib3" else {}
        body = json.dumps(found).encode()
        self.send_response(200 if self.path == "/v1/query" else 503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[str]:
    Service.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def accept(name: str, until: datetime.date) -> Accepted:
    return Accepted(id=name, reason="never imported", until=until)


def test_every_locked_package_is_asked_about(service: str) -> None:
    [finding] = ask(LOCK, f"{service}/v1/query")
    assert (finding.package, finding.names, finding.fixed_in) == ("urllib3", FINDING.names, ("99.1",))
    assert {"mlflow", "boto3", "psycopg-binary", "numpy"} <= set(Service.asked)
    assert len(set(Service.asked)) > 60


def test_a_service_that_fails_is_no_clean_bill(service: str) -> None:
    with pytest.raises(AuditFailed, match=r"could not be asked .*ADVISORIES"):
        ask(LOCK, f"{service}/away")


def test_an_unknown_finding_stops_it() -> None:
    assert judge([FINDING], [], TODAY) == [
        "urllib3 2.8.0: CVE-2026-99999, GHSA-aaaa-bbbb-cccc (fixed in 99.1): raise the pin and `make lock`, or accept it in"
        " accepted.toml"
    ]


@pytest.mark.parametrize("name", sorted(FINDING.names))
def test_an_accepted_finding_may_stay_until_its_day_is_over(name: str) -> None:
    assert judge([FINDING], [accept(name, TODAY)], TODAY) == []
    [over] = judge([FINDING], [accept(name, TODAY - datetime.timedelta(days=1))], TODAY)
    assert over == f"{name}: was accepted until 2026-11-24; mend it, or decide anew (never imported)"


def test_nothing_is_accepted_for_ever_or_in_advance() -> None:
    [long] = judge([FINDING], [accept("CVE-2026-99999", datetime.date(2028, 1, 1))], TODAY)
    assert long == "CVE-2026-99999: is accepted until 2028-01-01; give at most 180 days"
    [unknown] = judge([], [accept("CVE-2020-1", TODAY)], TODAY)
    assert unknown == "CVE-2020-1: is accepted, but was not found; remove it from accepted.toml"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[accepted]]\nid = 'CVE-1'\nreason = 'x'\n", "accepted.0.until: Field required; give each"),
        ("[[accepted]]\nid = 'CVE-1'\nreason = 'x'\nuntil = 'soon'\n", "accepted.0.until: Input should be"),
        ("[[acepted]]\nid = 'CVE-1'\n", "there is no key acepted"),
        ("[[accepted]\n", "cannot be read"),
    ],
)
def test_a_policy_that_cannot_be_used(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "accepted.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(AuditFailed) as refused:
        read_policy(file)
    assert words in str(refused.value)


def test_the_repository_s_own_policy_can_be_read() -> None:
    assert all(entry.reason for entry in read_policy(POLICY))
