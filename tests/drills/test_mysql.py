"""An environment on MySQL, for which MariaDB stands in: released, its password rotated under load, restored.

What the drills of PostgreSQL say of rolling updates and bad releases does not depend on the engine; this does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from rehearsal import mariadb
from rehearsal.accounts import Accounts
from stages.settings import load_settings

from .client import Client
from .conftest import CLIENT_PAUSE_SECONDS, QUICK, a_workspace, alone
from .figures import drill
from .workspace import Edit, Release, Workspace, wait_until

MISSING = mariadb.missing()
pytestmark = [
    pytest.mark.drill,
    pytest.mark.mariadb,
    pytest.mark.skipif(bool(MISSING), reason=f"{MISSING} is missing: {mariadb.INSTALL}"),
]

ON_MYSQL = Edit(
    "platform.toml",
    'database = { instance_class = "t4g.small", storage_gib = 20, multi_az = false, backup_days = 1,',
    'database = { engine = "mysql", instance_class = "t4g.medium", storage_gib = 20, multi_az = false, backup_days = 1,',
)
SECONDS = 120
"""A bound that only something that hangs can reach."""


@pytest.fixture(scope="module")
def workspace(request: pytest.FixtureRequest) -> Iterator[Workspace]:
    with a_workspace(request, "dev alone, on MySQL", *QUICK, *alone("dev"), ON_MYSQL) as workspace:
        yield workspace


@pytest.fixture(scope="module")
def release(workspace: Workspace) -> Release:
    return workspace.rehearse("The first release", approve=True)


@pytest.fixture(scope="module")
def url(release: Release) -> str:
    assert release.status == 0, release.output
    return str(release.environments["dev"]["url"])


def client(workspace: Workspace, service: str) -> Any:
    """AWS's API as it is in dev's account."""
    own = load_settings(workspace.root / "platform.toml").environments.dev
    return Accounts(workspace.state).client(service, own.account, own.region)


def databases(workspace: Workspace) -> dict[str, str]:
    """The engine of each database server that dev has."""
    return {
        engine.parent.name: engine.read_text(encoding="utf-8")
        for engine in (workspace.account("dev") / "databases").glob("*/engine")
    }


def test_it_goes_through_the_gates(workspace: Workspace, url: str) -> None:
    assert set(databases(workspace).values()) == {"mysql"}
    assert requests.get(f"{url}/health/details", timeout=30).json()["schema"]["newer_by"] == 0


def test_no_request_notices_a_rotation(workspace: Workspace, url: str) -> None:
    """Bursts ask for more connections than are open, all the while, and the new ones need the new password."""
    vault = client(workspace, "secretsmanager")
    arn = workspace.resource("dev", "data", "AWS::SecretsManager::SecretTargetAttachment")
    before = json.loads(vault.get_secret_value(SecretId=arn)["SecretString"])

    def search(_: int) -> int:
        body: dict[str, Any] = {"experiment_ids": ["0"], "max_results": 100}
        return requests.post(f"{url}/api/2.0/mlflow/runs/search", json=body, timeout=30).status_code

    def burst() -> None:
        with ThreadPoolExecutor(24) as pool:
            assert set(pool.map(search, range(48))) == {200}

    def rotated() -> bool:
        burst()
        return bool(vault.get_secret_value(SecretId=arn)["VersionId"] == version)

    with drill("MySQL: password rotated under load") as figures, Client(url) as load:
        version = vault.rotate_secret(SecretId=arn)["VersionId"]
        wait_until(rotated, "the new password", SECONDS)
        burst()
        enough = load.succeeded + 20
        wait_until(lambda: load.succeeded >= enough, "20 more good requests", SECONDS)
    figures.count([load])
    assert not load.failures, load.failures[:5]
    assert load.lost() == []
    with pytest.raises(Exception, match="Access denied"):
        mariadb.connect(before["port"], before["username"], before["password"])


def test_a_restore_has_what_the_snapshot_had(workspace: Workspace, url: str) -> None:
    """In another server, made from a copy of the first one's files; that one stays as it is."""
    [instance] = databases(workspace)
    with drill("MySQL: make restore") as figures:
        with Client(url, pause=CLIENT_PAUSE_SECONDS) as before:
            wait_until(lambda: before.succeeded >= 20, "20 good requests", SECONDS)
        rds = client(workspace, "rds")
        rds.create_db_snapshot(DBSnapshotIdentifier="drilled", DBInstanceIdentifier=instance)
        wait_until(lambda: _status(rds) == "available", "the snapshot", SECONDS)
        with Client(url, pause=CLIENT_PAUSE_SECONDS) as later:
            wait_until(lambda: later.succeeded >= 20, "20 good requests", SECONDS)
        done = workspace.make("restore", "SNAPSHOT=drilled", "YES=yes", "ENV=dev", "ON=rehearsal")
        assert done.returncode == 0, f"{done.stdout}{done.stderr}"
        committed = workspace.git("rev-parse", "HEAD")
        release = workspace.release("On the restored database", approve=True, on=committed)
        assert release.status == 0, release.output
        assert set(databases(workspace).values()) == {"mysql"}
        assert len(databases(workspace)) == 2
        assert before.lost() == []
        gone = [sentence for sentence in later.lost() if sentence.endswith(": 404")]
        assert len(gone) == len(later.written)
        figures.result = "equal to the snapshot; old database kept"


def _status(rds: Any) -> str:
    [found] = rds.describe_db_snapshots(DBSnapshotIdentifier="drilled")["DBSnapshots"]
    return str(found["Status"])
