"""`entrypoint.py migrate` on a real MariaDB, which cannot undo a migration that was cut off."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pymysql
import pytest

from rehearsal.mariadb import connect

from .impostors import IMPOSTORS, assert_refused
from .mariadb import MASTER, NEEDS_MARIADB, PASSWORD, MariaDB
from .test_image_entrypoint import ENTRYPOINT, IMAGE, Task

sys.path.insert(0, str(IMAGE))

import database

pytestmark = [pytest.mark.mariadb, NEEDS_MARIADB]
HEAD = database.image_revision()
WORKSPACES, ANALYTICS = "1b5f0d9ad7c1", "75868b020152"  # MLflow's two migrations with the most statements
BEFORE = "c8d9e0f1a2b3"  # the one before both
GO = {"MIGRATE_WITHOUT_SNAPSHOT": "true", "ALLOW_BREAKING_MIGRATION": HEAD}

Run = Callable[..., Task]


@pytest.fixture(scope="module")
def mariadb() -> Iterator[MariaDB]:
    server = MariaDB()
    yield server
    server.stop()


@pytest.fixture
def run(mariadb: MariaDB) -> Iterator[Run]:
    tasks: list[Task] = []

    def run(name: str, command: list[str], **variables: str) -> Task:
        tasks.append(
            Task({**mariadb.variables(name), "ARTIFACTS_DESTINATION": "s3://bucket", **variables}, command)
        )
        return tasks[-1]

    yield run
    for task in tasks:
        task.stop()


def old_schema(mariadb: MariaDB, name: str, run: Run) -> None:
    """A database that MLflow itself made at BEFORE, with a traced experiment in it."""
    mariadb.create(name)
    program = f"""
import sqlalchemy
from alembic import command
from mlflow.store.db.utils import _get_alembic_config
from mlflow.store.tracking.dbmodels.initial_models import Base
engine = sqlalchemy.create_engine(
    "mysql+pymysql://mlflow@127.0.0.1:{mariadb.port}/{name}?charset=utf8mb4",
    connect_args={{"password": {PASSWORD!r}.encode(), "ssl": {{"check_hostname": False}}}})
Base.metadata.create_all(engine)
config = _get_alembic_config("")
with engine.begin() as connection:
    config.attributes["connection"] = connection
    command.upgrade(config, {BEFORE!r})
"""
    task = run(name, [sys.executable, "-c", program])
    assert task.ends(300) == 0, task.output
    with mariadb.connect(name) as connection, connection.cursor() as cursor:
        for statement in (
            "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage) "
            "VALUES (1, 'Default', 'mlflow-artifacts:/0', 'active')",
            "UPDATE experiments SET experiment_id = 0",  # inserted as 0, it would be given a number
            "INSERT INTO trace_info (request_id, experiment_id, timestamp_ms, status) VALUES ('t', 0, 5, 'OK')",
            "INSERT INTO trace_tags (request_id, `key`, value) VALUES ('t', 'mlflow.traceName', 'called'), "
            "('t', 'mine', 'kept')",
            "INSERT INTO spans (trace_id, span_id, experiment_id, status, start_time_unix_nano, content, "
            "dimension_attributes) VALUES ('t', 's', 0, 'OK', 7, '{}', '{\"mlflow.llm.model\": \"large\"}')",
            "INSERT INTO span_metrics (trace_id, span_id, `key`, value) VALUES ('t', 's', 'total_cost', 0.5)",
            "INSERT INTO registered_models (name) VALUES ('model')",
            "INSERT INTO model_versions (name, version) VALUES ('model', 1)",
        ):
            cursor.execute(statement)


def contents(mariadb: MariaDB, name: str) -> dict[str, Any]:
    """Every table's definition and rows, but for what tells the time."""
    found: dict[str, Any] = {}
    with mariadb.connect(name) as connection, connection.cursor() as cursor:
        cursor.execute("SHOW TABLES")
        for (table,) in cursor.fetchall():
            cursor.execute(f"SHOW CREATE TABLE `{table}`")
            # MLflow makes the keys of a new table in no fixed order.
            definition = sorted(line.rstrip(",") for line in cursor.fetchone()[1].splitlines())
            cursor.execute(f"SELECT * FROM `{table}`")
            rows = sorted(cursor.fetchall(), key=repr)
            found[table] = (definition, len(rows) if table == "platform_migrations" else rows)
    return found


def killed_at(revision: str, change: int, when: str) -> list[str]:
    """`migrate` that is killed at the n-th statement that changes a table: before or after it, or once written down."""
    program = f"""
import os, signal, sys
sys.path.insert(0, {str(IMAGE)!r})
import entrypoint, mysql
changes = []
real = mysql._Journal._change
class Cursor:
    def __init__(self, cursor): self.cursor = cursor
    def execute(self, *arguments):
        die("before"); self.cursor.execute(*arguments); die("after")
def die(when):
    if (when, len(changes)) == ({when!r}, {change}): os.kill(os.getpid(), signal.SIGKILL)
def change(self, cursor, statement, parameters):
    if self.revision != {revision!r}: return real(self, cursor, statement, parameters)
    changes.append(statement)
    real(self, Cursor(cursor), statement, parameters)
    die("done")
mysql._Journal._change = change
sys.exit(entrypoint.main(["migrate"]))
"""
    return [sys.executable, "-c", program]


def test_a_migration_that_is_killed_at_many_points_completes(mariadb: MariaDB, run: Run) -> None:
    old_schema(mariadb, "whole", run)
    old_schema(mariadb, "killed", run)
    whole = run("whole", [*ENTRYPOINT, "migrate"], **GO)
    kills = [
        (WORKSPACES, 1, "after"),
        (WORKSPACES, 9, "done"),
        (WORKSPACES, 11, "before"),
        (ANALYTICS, 3, "after"),
        (ANALYTICS, 22, "done"),
    ]
    for revision, change, when in kills:
        task = run("killed", killed_at(revision, change, when), **GO)
        assert task.ends(300) == -9, task.output
        with mariadb.connect("killed") as connection, connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM platform_journal WHERE revision = %s", (revision,))
            assert cursor.fetchone() != (0,)
    last = run("killed", [*ENTRYPOINT, "migrate"], **GO)
    assert last.ends(300) == 0, last.output
    assert whole.ends(300) == 0, whole.output
    assert json.loads(last.output.splitlines()[-1])["after"] == HEAD
    expected, found = contents(mariadb, "whole"), contents(mariadb, "killed")
    assert found.keys() == expected.keys()
    assert [table for table in found if found[table] != expected[table]] == []
    assert found["platform_journal"][1] == []
    with mariadb.connect("killed") as connection, connection.cursor() as cursor:
        cursor.execute("SELECT trace_name FROM trace_info")
        assert cursor.fetchall() == (("called",),)
        cursor.execute("SELECT model_name, total_cost FROM spans")
        assert cursor.fetchall() == (("large", 0.5),)
        cursor.execute("SELECT `key` FROM trace_tags")
        assert cursor.fetchall() == (("mine",),)
        cursor.execute("SHOW DATABASES LIKE '%_plan'")
        assert cursor.fetchall() == ()

    server = run("killed", [*ENTRYPOINT, "serve"]).wait_healthy()
    experiment = {"experiment_id": "0", "start_time": 1}
    status, answer = server.post("/api/2.0/mlflow/runs/create", experiment)
    assert status == 200, answer
    assert PASSWORD not in server.output


def test_what_cannot_be_used_ends_in_a_sentence(mariadb: MariaDB, run: Run) -> None:
    with mariadb.connect() as connection, connection.cursor() as cursor:
        cursor.execute("CREATE DATABASE narrow CHARACTER SET latin1")
        cursor.execute("CREATE DATABASE taken CHARACTER SET utf8mb4")
        cursor.execute("CREATE DATABASE taken_plan CHARACTER SET utf8mb4")
        cursor.execute("CREATE TABLE taken_plan.precious (id INTEGER)")
    for name, words in (("narrow", "MLflow needs utf8mb4"), ("taken", "nobody may lose")):
        task = run(name, [*ENTRYPOINT, "migrate"], **GO)
        assert task.ends(60) == 1
        assert "Traceback" not in task.output
        assert words in json.loads(task.output.splitlines()[-1])["error"]
    with mariadb.connect("taken_plan") as connection, connection.cursor() as cursor:
        cursor.execute("SHOW TABLES")
        assert cursor.fetchall() == (("precious",),)


@pytest.mark.parametrize("wrong", IMPOSTORS.values(), ids=IMPOSTORS)
def test_a_server_that_is_not_it_is_refused(mariadb: MariaDB, run: Run, wrong: dict[str, str]) -> None:
    """By a server that follows a rotation, too, and so opens its connections itself."""
    rotated = {"DATABASE_SECRET_ARN": "arn:aws:secretsmanager:eu-west-1:222222222222:secret:database-AbCdEf"}
    assert_refused(run("unused", [*ENTRYPOINT, "migrate"], **GO, **wrong), PASSWORD)
    assert_refused(run("unused", [*ENTRYPOINT], **rotated, **wrong), PASSWORD)


def test_the_servers_own_user(mariadb: MariaDB, run: Run) -> None:
    """Made by one that has the rights of RDS's master user, given this database and no other, and its secret's password."""
    name, other = "own_user", "ownXuser"  # in a grant _ stands for any character
    for made in (name, other):
        mariadb.create(made)
    setup = {"DATABASE_SETUP_USER": MASTER, "DATABASE_SETUP_PASSWORD": PASSWORD}
    for password in ("first ü'\\\"%", "that of today"):
        own = {"DATABASE_USER": "own_user", "DATABASE_PASSWORD": password}
        task = run(name, [*ENTRYPOINT, "migrate"], **own, **setup, **GO)
        assert task.ends(300) == 0, task.output
        assert password not in task.output
        with (
            connect(mariadb.port, "own_user", password, name) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute("SELECT count(*) FROM experiments")
            assert cursor.fetchone() == (1,)
            for forbidden in (
                "CREATE USER another",
                "CREATE DATABASE another",
                f"CREATE TABLE `{other}`.taken (id INTEGER)",
                "SELECT User FROM mysql.user",
            ):
                with pytest.raises(pymysql.err.OperationalError) as error:
                    cursor.execute(forbidden)
                assert error.value.args[0] in (1044, 1142, 1227), error.value
    with pytest.raises(pymysql.err.OperationalError):
        connect(mariadb.port, "own_user", "first ü'\\\"%")
