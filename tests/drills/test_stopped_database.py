"""The database goes away under a client and comes back."""

from __future__ import annotations

import subprocess

import pytest
import requests

from .client import REQUEST_SECONDS, Client
from .workspace import Release, Workspace, wait_until

pytestmark = pytest.mark.drill

RECOVERY_SECONDS = 300
"""A bound that only a service that does not recover by itself can reach."""

SERVER = """
import sys
from pathlib import Path
from rehearsal.postgres import Postgres
from rehearsal.processes import ProcessRegistry
getattr(Postgres(Path(sys.argv[1]), ProcessRegistry(Path(".rehearsal/processes"))), sys.argv[2])()
"""


def test_the_service_recovers_from_a_stopped_database(workspace: Workspace, base: Release) -> None:
    """While PostgreSQL is down, requests fail and do not hang; when it is back, the same tasks serve again, and every
    run that was acknowledged to a client is there."""
    url = base.environments["dev"]["url"]
    tasks = workspace.tasks("dev")
    with Client(url) as client:
        wait_until(lambda: client.succeeded > 50, "50 requests to a healthy service", RECOVERY_SECONDS)
        _database(workspace, "stop")
        wait_until(lambda: len(client.failures) > 10, "10 failures without a database", RECOVERY_SECONDS)
        assert requests.get(f"{url}/health", timeout=30).status_code == 200  # it never asks the database
        _database(workspace, "start")
        # One success may have been on its way already; fifty in a row of what is counted cannot.
        back = client.succeeded + 50
        wait_until(
            lambda: client.succeeded > back, "50 requests after the database was back", RECOVERY_SECONDS
        )
    slowest = max(failure.seconds for failure in client.failures)
    print(
        f"dev: {client.requests} requests, {len(client.failures)} failed, the slowest after {slowest:.1f} s"
    )
    assert slowest < REQUEST_SECONDS, f"a request hung: {client.failures}"
    assert all("503" in failure.why or "500" in failure.why for failure in client.failures), client.failures
    assert len(client.written) > 20
    assert client.lost() == []
    assert workspace.tasks("dev") == tasks


def _database(workspace: Workspace, action: str) -> None:
    """Stop or start dev's PostgreSQL, as an operator or a failover would."""
    servers = [file.parent for file in (workspace.account("dev") / "databases").glob("*/engine")]
    assert len(servers) == 1, servers
    subprocess.run(
        [str(workspace.root / ".venv" / "bin" / "python"), "-c", SERVER, str(servers[0]), action],
        cwd=workspace.root,
        env=workspace.environment(),
        check=True,
    )
