"""A platform's life through the rehearsed pipeline: upgrades, a rollback, a breaking release, a restore.

The releases differ in the MLflow that their image has: 3.10.0, 3.16.1, and the pinned version. From the first to the
second every migration is additive; on the way to the third some are breaking. Each step starts from what the one before
has left; a step that fails takes those after it along.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
import requests

from rehearsal.accounts import Accounts
from rehearsal.postgres import Postgres
from rehearsal.processes import ProcessRegistry
from rehearsal.snapshots import managed_secret
from stages.database_server import DATABASE_NAME
from stages.settings import load_settings

from . import census
from .census import Census
from .client import Client, PoliteClient
from .conftest import QUICK, a_workspace
from .figures import drill
from .old_versions import DRILLS, IMAGE
from .workspace import Edit, Release, Workspace, wait_until

pytestmark = pytest.mark.drill

SECONDS = 300
"""A bound that only something that hangs can reach."""

FIRST, SECOND = "3.10.0", "3.16.1"
ADDITIVE = 16
"""Migrations between these two releases of MLflow."""

DATABASE = "mlflow-dev-database"
STOPPED_BY_A_PERSON = ("Promote", "Approve")
PINNED_LOCK = (IMAGE / "requirements.lock").read_text(encoding="utf-8")

GATE = "smoke = step(SMOKE, environment)"
SHORT = (
    *QUICK,
    # One environment before the approval, which nobody gives. Its load is this drill's own clients: the load check's
    # mix and most smoke tests use what only the pinned version has.
    Edit(
        "pipeline_app.py",
        'deploy("dev")\n        deploy("staging")',
        'deploy("dev")',
    ),
    Edit("pipeline_app.py", "            load.add_step_dependency(smoke)\n", ""),
    Edit("pipeline_app.py", "post=[smoke, load]", "post=[smoke]"),
    Edit("pipeline_app.py", """f" ({exported(staging, LOAD, 'VERDICT')}). Its""", 'f"; its'),
    Edit("pipeline_app.py", 'f"{settings.name}-staging"', 'f"{settings.name}-dev"'),
    Edit(
        "pipeline_app.py",
        "smoke, load = step(SMOKE, environment), step(LOAD, environment)",
        "smoke = step(SMOKE, environment)",
    ),
    Edit("pipeline_app.py", "from stages.gates import LOAD, SMOKE", "from stages.gates import SMOKE"),
    Edit("pipeline_app.py", '("Dev", "Staging", "Prod")', '("Dev", "Prod")'),
    Edit("smoke_tests/buildspec.yml", "pytest smoke_tests ", "pytest smoke_tests/test_server.py "),
)


def _image(version: str) -> Edit:
    """The image has another MLflow than the pinned one."""
    lock = DRILLS / "locks" / f"mlflow-{version}.lock"
    return Edit("mlflow_image/requirements.lock", PINNED_LOCK, lock.read_text(encoding="utf-8"))


class Dev:
    """The environment that all happens in."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.clients: list[PoliteClient] = []
        """All that ever used it and whose writes must still be there."""

    @property
    def url(self) -> str:
        """Its load balancer."""
        url: str = self.workspace.stack("dev", "tracking")["outputs"]["Url"]
        return url

    @property
    def tasks(self) -> set[str]:
        """The ids of the tasks that serve."""
        return self.workspace.tasks("dev")

    @property
    def databases(self) -> set[str]:
        """The instances that it has."""
        return {file.parent.name for file in (self.workspace.account("dev") / "databases").glob("*/engine")}

    @property
    def snapshots(self) -> set[str]:
        """The snapshots that are there, whole."""
        found = map(
            json.loads,
            (
                file.read_text(encoding="utf-8")
                for file in self.workspace.account("dev").glob("snapshots/*/snapshot.json")
            ),
        )
        return {entry["DBSnapshotIdentifier"] for entry in found if entry["Status"] == "available"}

    def details(self) -> dict[str, Any]:
        """What a task says of the schema. It must be one answer, whichever task gives it."""
        answers = [requests.get(f"{self.url}/health/details", timeout=30) for _ in range(10)]
        assert {answer.status_code for answer in answers} == {200}
        [one] = {answer.text for answer in answers}
        told: dict[str, Any] = json.loads(one)
        return told

    def connect(self, instance: str = DATABASE) -> psycopg.Connection[Any]:
        """Connect to a database of it, with the password that RDS keeps."""
        own = load_settings(self.workspace.root / "platform.toml").environments.dev
        secrets = Accounts(self.workspace.state).client("secretsmanager", own.account, own.region)
        secret = json.loads(secrets.get_secret_value(SecretId=managed_secret(instance))["SecretString"])
        folder = self.workspace.account("dev") / "databases" / instance
        port = Postgres(folder, ProcessRegistry(self.workspace.state / "processes")).port
        return psycopg.connect(
            host="127.0.0.1",
            port=port,
            user=secret["username"],
            password=secret["password"],
            dbname=DATABASE_NAME,
            autocommit=True,
        )

    def revision(self, instance: str = DATABASE) -> str:
        """The schema's revision."""
        with self.connect(instance) as connection:
            [(revision,)] = connection.execute("SELECT version_num FROM alembic_version").fetchall()
        return str(revision)

    def census(self, instance: str = DATABASE) -> Census:
        """All that is in a database, and all that its servers answer."""
        with self.connect(instance) as connection:
            return census.take(connection, self.url)

    def rows(self, instance: str = DATABASE) -> dict[str, int]:
        """The rows of each table of data."""
        with self.connect(instance) as connection:
            return census.count_rows(connection)

    def lost(self) -> list[str]:
        """Everything that was acknowledged to any client and is not there."""
        return [sentence for client in self.clients for sentence in client.lost()]

    def operate(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`make` releases, rollback or restore of it, in the rehearsal."""
        done = self.workspace.make(*arguments, "ENV=dev", "ON=rehearsal")
        print(f"--- make {' '.join(arguments)}\n{done.stdout}{done.stderr}")
        return done


@dataclass(frozen=True)
class Step:
    """What dev was like after a release."""

    release: Release
    tasks: set[str]
    revision: str
    snapshots: set[str]


@pytest.fixture(scope="module")
def dev(request: pytest.FixtureRequest) -> Iterator[Dev]:
    with a_workspace(request, "One environment, short tests", *SHORT) as workspace:
        yield Dev(workspace)


@pytest.fixture(scope="module")
def first(dev: Dev) -> Step:
    """Release A: MLflow 3.10.0 on an empty database, with something written to it."""
    release = _release(dev, f"MLflow {FIRST}", _image(FIRST))
    assert dev.details()["schema"]["newer_by"] == 0
    with _load(dev) as client:
        _succeed(client, 30)
    assert not client.failures, client.failures[:5]
    return _step(dev, release)


@pytest.fixture(scope="module")
def second(dev: Dev, first: Step) -> Step:
    """Release B: MLflow 3.16.1, under load."""
    with drill(f"pipeline: upgrade {FIRST} to {SECOND} under load") as figures:
        before = dev.rows()
        with _load(dev) as client:
            release = _release(dev, f"MLflow {SECOND}", _image(SECOND))
            _succeed(client, 30)
        figures.count([client])
        figures.rows(before, dev.rows())
        assert not client.failures, f"{len(client.failures)} failed: {client.failures[:5]}"
        assert dev.lost() == []
        figures.result = "no request failed"
    return _step(dev, release)


@pytest.fixture(scope="module")
def rolled_back(dev: Dev, first: Step, second: Step) -> subprocess.CompletedProcess[str]:
    """Back to A, under load, and what is then in dev is all that was there before and during it."""
    with drill(f"pipeline: make rollback to {FIRST} under load") as figures:
        before = dev.census()
        with _load(dev) as client:
            done = dev.operate("rollback", "YES=yes")
            _succeed(client, 30)
        assert done.returncode == 0, f"{done.stdout}{done.stderr}"
        figures.count([client])
        after = dev.census()
        figures.rows(before.rows, after.rows)
        assert not client.failures, f"{len(client.failures)} failed: {client.failures[:5]}"
        assert before.missing_in(after) == []
        assert dev.lost() == []
        figures.result = "no request failed, all readable"
    return done


@pytest.fixture(scope="module")
def forward(dev: Dev, second: Step, rolled_back: subprocess.CompletedProcess[str]) -> Step:
    """To B again, by the same way. What an automatic rollback goes back to is B from here on."""
    done = dev.operate("rollback", f"TO={second.release.commit[:12]}", "YES=yes")
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    assert dev.details()["mlflow"] == SECOND
    assert dev.lost() == []
    return _step(dev, second.release)


@pytest.fixture(scope="module")
def asked(dev: Dev, forward: Step) -> Release:
    """Release C: the pinned version, whose migrations break something, without leave."""
    return dev.workspace.release("The pinned MLflow", _touch(), approve=False)


@pytest.fixture(scope="module")
def at_snapshot(dev: Dev, asked: Release) -> Census:
    """What dev has when the snapshot before the breaking migrations is taken."""
    return dev.census()


@pytest.fixture(scope="module")
def broken(dev: Dev, asked: Release, at_snapshot: Census) -> Step:
    """Release C with leave, and something that is written to it."""
    allow = Edit(
        "platform.toml", "\n[source]\n", f'allow_breaking_migration = "{_named(asked)}"\n\n[source]\n'
    )
    release = _release(dev, "The pinned MLflow, with leave", _touch(), allow)
    with _load(dev) as client:
        _succeed(client, 30)
    assert not client.failures, client.failures[:5]
    assert dev.lost() == []
    return _step(dev, release)


def test_an_additive_release_migrates_under_load(dev: Dev, first: Step, second: Step) -> None:
    """Migrate says so and takes a snapshot; not one request fails, nothing acknowledged is lost."""
    log = _migrate_log(dev)
    assert f"{ADDITIVE} migration(s) pending" in log
    [snapshot] = second.snapshots - first.snapshots
    assert f"Snapshot {snapshot} is available" in log
    said = f"from {first.revision} to {second.revision}, {ADDITIVE} migration(s), all additive, snapshot {snapshot} taken"
    assert f"Schema: {said} first" in log
    assert f"its schema: {said} first" in second.release.output, "the approval shows it"
    assert snapshot.startswith(f"{DATABASE}-{first.revision}-")
    assert first.tasks.isdisjoint(second.tasks)
    details = dev.details()
    assert details["mlflow"] == SECOND
    assert details["schema"] == {
        "image": second.revision,
        "database": second.revision,
        "newer_by": 0,
        "migrations": [],
    }


def test_a_rollback_keeps_what_the_newer_release_wrote(
    dev: Dev, first: Step, second: Step, rolled_back: subprocess.CompletedProcess[str]
) -> None:
    """A's image serves B's schema and says so. The reading and counting is the fixture's."""
    assert "stage rollback" in rolled_back.stdout
    details = dev.details()
    assert details["mlflow"] == FIRST
    schema = details["schema"]
    assert (schema["image"], schema["database"]) == (first.revision, second.revision)
    assert schema["newer_by"] == len(schema["migrations"]) == ADDITIVE
    assert dev.revision() == second.revision
    assert dev.snapshots == second.snapshots
    listed = dev.operate("releases").stdout.splitlines()
    assert f"{first.release.commit[:12]} serves since" in listed[0]
    for step in (first, second):
        lines = [line for line in listed[2:] if line.strip().startswith(step.release.commit[:12])]
        assert lines, f"{step.release.commit[:12]} is not listed"
        assert step.revision in lines[-1]
    assert "(additive)" in "\n".join(listed)


def test_a_breaking_release_stops_before_the_service(dev: Dev, forward: Step, asked: Release) -> None:
    """It stops at Migrate, whose log names the revision and the setting. The rollback that follows changes nothing."""
    assert asked.status != 0
    assert asked.stopped_at == ("Dev", "mlflow-dev-migration.Migrate")
    assert "Stopped before the service was touched" in asked.output
    assert _named(asked) != forward.revision
    assert asked.report["rollback"]["status"] == "Succeeded", asked.report["rollback"]
    assert "Dev failed and was rolled back to" in asked.output
    assert dev.tasks == forward.tasks
    assert dev.revision() == forward.revision
    assert dev.snapshots == forward.snapshots
    assert dev.details()["mlflow"] == SECOND


def test_leave_lets_it_through_with_a_snapshot(dev: Dev, forward: Step, asked: Release, broken: Step) -> None:
    """Allowed in the settings, for this revision: migrated, after a snapshot. A changed pipeline changes itself first."""
    assert broken.revision == _named(asked)
    [snapshot] = broken.snapshots - forward.snapshots
    assert snapshot.startswith(f"{DATABASE}-{forward.revision}-")
    assert f"BREAKING, snapshot {snapshot} taken first" in _migrate_log(dev)
    assert f"BREAKING, snapshot {snapshot} taken first" in broken.release.output, "the approval shows it"
    assert f"BREAKING migrations up to {broken.revision} are allowed" in broken.release.output
    assert dev.details()["schema"]["newer_by"] == 0


def test_a_rollback_over_a_breaking_release_is_refused(dev: Dev, forward: Step, broken: Step) -> None:
    """The refusal names the snapshot and the command, and nothing has changed."""
    [snapshot] = broken.snapshots - forward.snapshots
    rows = dev.rows()
    with drill("pipeline: make rollback over a breaking migration") as figures:
        done = dev.operate("rollback", "YES=yes")
        assert done.returncode == 2
        assert "Error 3" in done.stderr  # make's own status is 2 for whatever failed
        assert f"cannot go back to {forward.release.commit[:12]}" in done.stderr
        assert f"make restore ENV=dev SNAPSHOT={snapshot}" in done.stderr
        assert dev.tasks == broken.tasks
        assert dev.revision() == broken.revision
        assert dev.snapshots == broken.snapshots
        assert dev.rows() == rows
        figures.rows(rows, rows)
        figures.result = "refused with the mend"


def test_a_restore_has_exactly_what_the_snapshot_had(
    dev: Dev, forward: Step, at_snapshot: Census, broken: Step
) -> None:
    """Another database, made from the snapshot, serves B. The one with all that came later is kept as it is."""
    [snapshot] = broken.snapshots - forward.snapshots
    later, rows = dev.clients.pop(), dev.rows()
    assert at_snapshot.rows["runs"] < rows["runs"]
    with drill("pipeline: make restore") as figures:
        done = dev.operate("restore", f"SNAPSHOT={snapshot}", "YES=yes")
        assert done.returncode == 0, f"{done.stdout}{done.stderr}"
        committed = dev.workspace.git("rev-parse", "HEAD")
        _release(dev, f"MLflow {SECOND} again", _image(SECOND), on=committed)
        [restored] = dev.databases - {DATABASE}
        assert f"Snapshot {snapshot} had:" in _migrate_log(dev)
        assert dev.details()["mlflow"] == SECOND
        assert dev.tasks.isdisjoint(broken.tasks)
        after = dev.census(restored)
        figures.rows(at_snapshot.rows, after.rows)
        # Artifacts are in the bucket, which no restore takes back.
        assert [said for said in at_snapshot.differences(after) if not said.startswith("artifact ")] == []
        assert after.rows == at_snapshot.rows
        assert dev.revision(restored) == forward.revision
        assert dev.lost() == []
        gone = [sentence for sentence in later.lost() if sentence.endswith(": 404")]
        assert len(gone) == len(later.written)
        assert dev.rows() == rows
        assert dev.revision() == broken.revision
        figures.result = "equal to the snapshot; old database kept"


def _release(dev: Dev, title: str, *edits: Edit, on: str | None = None) -> Release:
    """Take a commit through dev, and no further."""
    release = dev.workspace.release(title, *edits, approve=False, on=on)
    assert release.stopped_at == STOPPED_BY_A_PERSON, release.output
    return release


def _touch() -> Edit:
    """The pinned image, in a commit of its own."""
    return Edit("mlflow_image/requirements.lock", PINNED_LOCK, f"{PINNED_LOCK}# Another release.\n")


def _step(dev: Dev, release: Release) -> Step:
    return Step(release, dev.tasks, dev.revision(), dev.snapshots)


def _load(dev: Dev) -> PoliteClient:
    client = PoliteClient(dev.url)
    dev.clients.append(client)
    return client


def _succeed(client: Client, count: int) -> None:
    """Wait until so many more requests went well."""
    enough = client.succeeded + count
    wait_until(lambda: client.succeeded >= enough, "requests", SECONDS)


def _migrate_log(dev: Dev) -> str:
    """The log of the newest Migrate action in dev."""
    logs = dev.workspace.state.glob("executions/*/logs/Dev-*.Migrate.log")
    return max(logs, key=lambda log: log.stat().st_mtime).read_text(encoding="utf-8")


def _named(asked: Release) -> str:
    """The revision that the refusal says to allow."""
    found = re.search(r'allow_breaking_migration = "([0-9a-f]{12})"', asked.output)
    assert found, asked.output
    return found[1]
