"""`entrypoint.py migrate`, and which schema a server accepts, with a real PostgreSQL and moto's RDS."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pytest

from . import test_image_entrypoint as image
from .test_image_entrypoint import IMAGE, Postgres, Start, Task, patched, wait_until

sys.path.insert(0, str(IMAGE))

import database

postgres, s3, start, template = image.postgres, image.s3, image.start, image.template  # fixtures

INSTANCE = "mlflow-database"
NEXT = "f00d00000001"  # the revision of a made-up next release
# The last revision from which everything up to the pinned version's own is known: 3.16.0's, and 3.10.0's.
OLDER, MUCH_OLDER = "b7e2c1a4d9f3", "1b5f0d9ad7c1"
WITHOUT = {"MIGRATE_WITHOUT_SNAPSHOT": "true"}
HEAD = database.image_revision()


@pytest.fixture(scope="module")
def older(postgres: Postgres) -> str:
    """A database that MLflow itself made at MUCH_OLDER, with an experiment, a run and a trace in it; to be copied."""
    name = postgres.create("older_template")
    program = f"""
from alembic import command
from mlflow.store.db.utils import _get_alembic_config, create_sqlalchemy_engine_with_retry
from mlflow.store.tracking.dbmodels.initial_models import Base
engine = create_sqlalchemy_engine_with_retry(
    "postgresql+psycopg://postgres@127.0.0.1:{postgres.port}/{name}")
Base.metadata.create_all(engine)
config = _get_alembic_config("")
with engine.begin() as connection:
    config.attributes["connection"] = connection
    command.upgrade(config, {MUCH_OLDER!r})
"""
    task = Task({"PGPASSWORD": image.PASSWORD}, [sys.executable, "-c", program])
    assert task.ends(120) == 0, task.output
    task.stop()
    with postgres.connect(name) as connection:
        connection.execute(
            "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage) "
            "VALUES (0, 'Default', 'mlflow-artifacts:/0', 'active')"
        )
        connection.execute(
            "INSERT INTO runs (run_uuid, name, experiment_id, status, start_time, lifecycle_stage, source_type, "
            "entry_point_name) SELECT 'run' || n, 'r', 0, 'FINISHED', 1000 + n, 'active', 'LOCAL', '' "
            "FROM generate_series(1, 5) n"
        )
        connection.execute("INSERT INTO params (key, value, run_uuid) VALUES ('p', '1', 'run1')")
    return name


@pytest.fixture
def instance(s3: dict[str, str]) -> dict[str, str]:
    """The variables that lead `migrate` to an RDS that knows INSTANCE."""
    rds = client(s3)
    if not rds.describe_db_instances()["DBInstances"]:
        rds.create_db_instance(
            DBInstanceIdentifier=INSTANCE, DBInstanceClass="db.t4g.small", Engine="postgres"
        )
    for snapshot in rds.describe_db_snapshots()["DBSnapshots"]:
        rds.delete_db_snapshot(DBSnapshotIdentifier=snapshot["DBSnapshotIdentifier"])
    return {"DATABASE_INSTANCE": INSTANCE}


def client(s3: dict[str, str]) -> Any:
    return boto3.client(
        "rds",
        endpoint_url=s3["AWS_ENDPOINT_URL"],
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
    )


def last(task: Task) -> dict[str, Any]:
    """The JSON object in which a migration's output ends."""
    assert "Traceback" not in task.output
    found: dict[str, Any] = json.loads(task.output.splitlines()[-1])
    return found


def revision(postgres: Postgres, name: str) -> str | None:
    with postgres.connect(name) as connection:
        if connection.execute("SELECT to_regclass('alembic_version')").fetchone() == (None,):
            return None
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        return row[0] if row else None


def scratch_is_gone(postgres: Postgres, name: str) -> bool:
    with postgres.connect(name) as connection:
        query = "SELECT count(*) FROM information_schema.schemata WHERE schema_name = 'mlflow_plan'"
        return connection.execute(query).fetchone() == (0,)


Release = Callable[[str], str]


@pytest.fixture
def release(tmp_path: Path) -> Release:
    """Makes the next release's migrations: MLflow's own, and one that runs the SQL. Returns what to patch."""

    def make(sql: str) -> str:
        folder = tmp_path / "db_migrations"
        shutil.copytree(database.migrations_folder(), folder)
        (folder / "versions" / f"{NEXT}_next.py").write_text(
            f'"""the next release"""\nfrom alembic import op\nrevision = {NEXT!r}\ndown_revision = {HEAD!r}\n'
            f"def upgrade():\n    for statement in {sql!r}.split(';'):\n        op.execute(statement)\n"
        )
        return f"database.migrations_folder = lambda _: __import__('pathlib').Path({str(folder)!r})"

    return make


def migrate_patched(assignments: str) -> list[str]:
    """`migrate` with something replaced before the modules that import it by name are loaded."""
    program = f"""
import sys
sys.path.insert(0, {str(IMAGE)!r})
import database
{assignments}
import entrypoint
sys.exit(entrypoint.main(["migrate"]))
"""
    return [sys.executable, "-c", program]


def test_two_migrations_at_once_on_an_empty_database(postgres: Postgres, start: Start) -> None:
    name = postgres.create("two_empty")
    tasks = [
        start(name, "migrate", RELEASE_COMMIT="abc123", RELEASE_IMAGE="mlflow@sha256:1") for _ in range(2)
    ]
    assert [task.ends(180) for task in tasks] == [0, 0], tasks[0].output + tasks[1].output
    kinds = sorted(last(task)["kind"] for task in tasks)
    assert kinds == ["created", "none"]
    with postgres.connect(name) as connection:
        rows = connection.execute(
            "SELECT count(*), min(commit_id), min(image), max(snapshot) FROM platform_migrations"
        ).fetchone()
        assert rows == (len(database.image_revisions()), "abc123", "mlflow@sha256:1", "")
        assert connection.execute("SELECT name FROM experiments").fetchall() == [("Default",)]
        held = connection.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchone()
        assert held == (0,)
    assert scratch_is_gone(postgres, name)


def test_an_upgrade_takes_a_snapshot_and_loses_nothing(
    postgres: Postgres, older: str, s3: dict[str, str], instance: dict[str, str], start: Start
) -> None:
    name = postgres.create("upgrade", older)
    refused = start(name, "migrate", **instance)
    assert refused.ends(60) == 3
    assert revision(postgres, name) == MUCH_OLDER
    assert f'allow_breaking_migration = "{HEAD}"' in last(refused)["error"]
    assert "75868b020152" in last(refused)["error"]
    assert client(s3).describe_db_snapshots()["DBSnapshots"] == []

    stale = start(name, "migrate", **instance, ALLOW_BREAKING_MIGRATION=OLDER)
    assert stale.ends(60) == 3
    assert "was for another release and does not count" in last(stale)["error"]

    both = [
        start(name, "migrate", **instance, ALLOW_BREAKING_MIGRATION=HEAD, RELEASE_COMMIT="abc123")
        for _ in range(2)
    ]
    assert [task.ends(120) for task in both] == [0, 0], both[0].output + both[1].output
    done, waited = sorted(both, key=lambda task: last(task)["kind"])
    assert (last(done)["before"], last(done)["after"], last(waited)["kind"]) == (MUCH_OLDER, HEAD, "none")
    kinds = {row["revision"]: row["kind"] for row in last(done)["applied"]}
    assert len(kinds) == 18
    assert [name for name, kind in kinds.items() if kind == "breaking"] == ["75868b020152", "dc11669786a5"]

    [snapshot] = client(s3).describe_db_snapshots()["DBSnapshots"]
    tags = {tag["Key"]: tag["Value"] for tag in snapshot["TagList"]}
    assert snapshot["DBSnapshotIdentifier"] == last(done)["snapshot"]
    assert snapshot["DBSnapshotIdentifier"].startswith(f"{INSTANCE}-{MUCH_OLDER}-20")
    assert tags["schema-revision"] == MUCH_OLDER
    assert tags["commit"] == "abc123"
    assert (tags["runs"], tags["params"], tags["newest-run"]) == ("5", "1", "1005")
    with postgres.connect(name) as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (5,)
        rows = connection.execute("SELECT DISTINCT snapshot FROM platform_migrations").fetchall()
        assert rows == [(last(done)["snapshot"],)]
    start(name).wait_healthy().start_run()


def test_without_an_instance_nothing_is_changed(postgres: Postgres, older: str, start: Start) -> None:
    name = postgres.create("no_instance", older)
    task = start(name, "migrate", ALLOW_BREAKING_MIGRATION=HEAD)
    assert task.ends(60) == 1
    assert "set DATABASE_INSTANCE" in last(task)["error"]
    assert revision(postgres, name) == MUCH_OLDER


def test_a_snapshot_that_rds_refuses_stops_the_migration(
    postgres: Postgres, older: str, instance: dict[str, str], start: Start
) -> None:
    name = postgres.create("no_snapshot", older)
    task = start(name, "migrate", ALLOW_BREAKING_MIGRATION=HEAD, DATABASE_INSTANCE="unknown")
    assert task.ends(60) == 1
    assert "rds:CreateDBSnapshot" in last(task)["error"]
    assert revision(postgres, name) == MUCH_OLDER


def test_a_restored_database_is_compared_with_its_snapshot_once(
    postgres: Postgres, template: str, s3: dict[str, str], instance: dict[str, str], start: Start
) -> None:
    for snapshot, runs in (("whole", "0"), ("more", "1")):
        client(s3).create_db_snapshot(
            DBSnapshotIdentifier=snapshot,
            DBInstanceIdentifier=INSTANCE,
            Tags=[{"Key": "runs", "Value": runs}, {"Key": "newest-run", "Value": "none"}],
        )
    name = postgres.create("restored", template)
    task = start(name, "migrate", DATABASE_RESTORED_FROM="more")
    assert task.ends(60) == 1
    assert "runs (0 instead of 1)" in last(task)["error"]
    missing = start(name, "migrate", DATABASE_RESTORED_FROM="nowhere")
    assert missing.ends(60) == 1
    assert "nowhere" in last(missing)["error"]
    task = start(name, "migrate", DATABASE_RESTORED_FROM="whole")
    assert task.ends(60) == 0
    assert "Snapshot whole had: runs 0" in task.output
    again = start(name, "migrate", DATABASE_RESTORED_FROM="whole")
    assert again.ends(60) == 0
    assert "Snapshot whole" not in again.output


ADDITIVE = "CREATE TABLE extra (id INTEGER PRIMARY KEY); ALTER TABLE runs ADD COLUMN extra VARCHAR(10)"


def test_an_older_image_serves_what_an_additive_migration_made(
    postgres: Postgres, template: str, start: Start, release: Release
) -> None:
    name = postgres.create("additive", template)
    newer = start(name, command=migrate_patched(release(ADDITIVE)), **WITHOUT)
    assert newer.ends(60) == 0, newer.output
    assert last(newer)["kind"] == "additive"

    rollback = start(name, "migrate")
    assert rollback.ends(60) == 0
    assert (last(rollback)["kind"], last(rollback)["after"]) == ("none", NEXT)
    server = start(name, WORKERS="2").wait_healthy()
    server.start_run()
    assert "WARNING: the schema of additive" in server.output
    schema = json.loads(server.get("/health/details")[1])["schema"]
    assert (schema["image"], schema["database"], schema["newer_by"]) == (HEAD, NEXT, 1)
    assert [row["revision"] for row in schema["migrations"]] == [NEXT]


def test_an_older_image_does_not_serve_what_a_breaking_migration_made(
    postgres: Postgres, template: str, instance: dict[str, str], start: Start, release: Release
) -> None:
    name = postgres.create("breaking", template)
    patch = release("ALTER TABLE tags RENAME COLUMN value TO worth")
    asks = start(name, command=migrate_patched(patch), **instance)
    assert asks.ends(60) == 3
    assert f'allow_breaking_migration = "{NEXT}"' in last(asks)["error"]
    goes_on = start(name, command=migrate_patched(patch), **instance, ALLOW_BREAKING_MIGRATION=NEXT)
    assert goes_on.ends(60) == 0, goes_on.output
    for command in ("migrate", "serve"):
        older = start(name, command)
        assert older.ends(60) == 3
        assert "Traceback" not in older.output
        assert f'restore_from = "{last(goes_on)["snapshot"]}"' in older.output
        assert f"everything written since {datetime.now(UTC):%Y-%m-%d}" in older.output
        assert "RENAME COLUMN value TO worth" in older.output


def test_a_newer_schema_without_history_is_refused(postgres: Postgres, template: str, start: Start) -> None:
    name = postgres.create("unknown", template)
    with postgres.connect(name) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0123456789ab'")
    for command in ("serve", "migrate"):
        task = start(name, command)
        assert task.ends(60) == 3
        assert "0123456789ab, which this image" in task.output
        assert "Traceback" not in task.output


def test_a_table_in_use_is_waited_for_without_blocking_requests(
    postgres: Postgres, template: str, start: Start, release: Release
) -> None:
    name = postgres.create("busy", template)
    command = migrate_patched(release(ADDITIVE) + "\nimport migration; migration.TABLE_LOCK_SECONDS = 1")
    with psycopg.connect(
        host="127.0.0.1", port=postgres.port, user="postgres", password=image.PASSWORD, dbname=name
    ) as reader:
        reader.execute("SELECT count(*) FROM runs")  # its transaction stays open, and holds the table
        task = start(name, command=command, **WITHOUT)
        wait_until(lambda: "requests go first (try 2" in task.output, 240, "giving up the wait twice")
        assert revision(postgres, name) == HEAD
        reader.rollback()
    assert task.ends(60) == 0, task.output
    assert revision(postgres, name) == NEXT


def test_a_table_that_stays_in_use_ends_in_a_sentence(
    postgres: Postgres, template: str, start: Start, release: Release
) -> None:
    name = postgres.create("held", template)
    short = "\nimport migration; migration.TABLE_LOCK_SECONDS = migration.TABLE_LOCK_TRIES = 1"
    with postgres.connect(name) as holder, holder.transaction():
        holder.execute("LOCK TABLE runs")
        task = start(name, command=migrate_patched(release(ADDITIVE) + short), **WITHOUT)
        assert task.ends(60) == 1
    assert "find it in pg_stat_activity" in last(task)["error"]
    assert revision(postgres, name) == HEAD


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_migration_leaves_nothing_half_done(
    how: signal.Signals, postgres: Postgres, template: str, start: Start, release: Release
) -> None:
    name = postgres.create(f"killed_{how}", template)
    slow = release(ADDITIVE + "; SELECT pg_sleep(3600)")
    command = migrate_patched(slow + "\n" + SLEEP_IN_EARNEST_ONLY)
    task = start(name, command=command, **WITHOUT, ALLOW_BREAKING_MIGRATION=NEXT)

    def sleeping() -> bool:
        with postgres.connect(name) as connection:
            query = (
                "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND query LIKE '%%pg_sleep(3600)'"
            )
            return connection.execute(query, (name,)).fetchone() == (1,)

    wait_until(sleeping, 240, "reaching the middle of the migration")
    task.process.send_signal(how)
    status = task.ends(20)
    assert status == (-signal.SIGKILL if how == signal.SIGKILL else 143)
    if how == signal.SIGTERM:
        assert "Stopped by SIGTERM" in last(task)["error"]
    with postgres.connect() as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,)
        )
    with postgres.connect(name) as connection:
        assert connection.execute("SELECT to_regclass('extra')").fetchone() == (None,)
    assert revision(postgres, name) == HEAD
    shutil.rmtree(Path(slow.split("'")[-2]))
    again = start(name, command=migrate_patched(release(ADDITIVE)), **WITHOUT)
    assert again.ends(60) == 0, again.output
    assert revision(postgres, name) == NEXT


SLEEP_IN_EARNEST_ONLY = """
import migration, sqlalchemy
recorded = migration._recorded
def awake(connection):
    @sqlalchemy.event.listens_for(connection, "before_cursor_execute", retval=True)
    def shorten(connection, cursor, statement, parameters, context, many):
        in_plan = connection.dialect.default_schema_name == migration.SCRATCH
        return statement.replace("3600", "0") if in_plan else statement, parameters
    return recorded(connection)
migration._recorded = awake
"""


def test_no_space_is_told(postgres: Postgres, template: str, start: Start, release: Release) -> None:
    """A tablespace on a file system of its own, one megabyte large, which one migration fills."""
    folder = Path("/tmp/image-tests-full")
    folder.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0777", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("no right to mount a file system of one megabyte")
    shutil.chown(folder, postgres.user)
    name = postgres.create("full", template)
    try:
        with postgres.connect() as connection:
            connection.execute(f"CREATE TABLESPACE tiny LOCATION '{folder}'".encode())
        sql = "CREATE TABLE wide TABLESPACE tiny AS SELECT repeat(md5(n::text), 9) FROM generate_series(1, {}) n"
        patch = release(sql.format(20000))
        # The plan runs it too; there it must fit.
        task = start(name, command=migrate_patched(patch), **WITHOUT, ALLOW_BREAKING_MIGRATION=NEXT)
        assert task.ends(60) == 1
        assert "the disk is full" in last(task)["error"]
        assert revision(postgres, name) == HEAD
        with postgres.connect() as connection:
            connection.execute("DROP TABLESPACE tiny")
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


def test_what_cannot_be_used_ends_in_a_sentence(postgres: Postgres, start: Start) -> None:
    name = postgres.create("unusable")
    short = "database.CONNECT_SECONDS = 1"
    wrong = start(name, command=patched(short, "migrate"), DATABASE_PASSWORD="tell nobody")
    assert wrong.ends() == 1
    assert "check DATABASE_PASSWORD" in last(wrong)["error"]
    assert "tell nobody" not in wrong.output
    absent = start("absent", command=patched(short, "migrate"))
    assert absent.ends() == 1
    assert "DATABASE_NAME" in last(absent)["error"]
    with postgres.connect(name) as connection:
        connection.execute("CREATE ROLE visitor LOGIN PASSWORD 'visitor'")
    guest = start(name, "migrate", DATABASE_USER="visitor", DATABASE_PASSWORD="visitor")
    assert guest.ends(60) == 1
    assert "grant it CREATE" in last(guest)["error"]
    settings = start(name, "migrate", DATABASE_PORT="many")
    assert settings.ends() == 2
    assert "DATABASE_PORT" in last(settings)["error"]


def test_a_half_created_database_is_finished(postgres: Postgres, start: Start) -> None:
    """What a first `mlflow server` leaves that is killed early: its first tables, and no revision."""
    name = postgres.create("half")
    program = (
        "import sqlalchemy; from mlflow.store.tracking.dbmodels.initial_models import Base; "
        f"Base.metadata.create_all(sqlalchemy.create_engine("
        f"'postgresql+psycopg://postgres@127.0.0.1:{postgres.port}/{name}'))"
    )
    half = Task({"PGPASSWORD": image.PASSWORD}, [sys.executable, "-c", program])
    assert half.ends(60) == 0, half.output
    half.stop()
    task = start(name, "migrate")
    assert task.ends(120) == 0, task.output
    assert last(task)["kind"] == "created"
    assert revision(postgres, name) == HEAD
