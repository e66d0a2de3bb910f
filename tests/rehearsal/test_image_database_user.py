"""The server's own database user, made by `entrypoint.py migrate`, on a real PostgreSQL whose master is no superuser."""

from __future__ import annotations

import json
from typing import Any

import boto3
import psycopg
import psycopg.sql
import pytest

from . import test_image_entrypoint as image
from .test_image_entrypoint import Postgres, Start, Task
from .test_image_migration import last, migrate_patched

postgres, s3, start = image.postgres, image.s3, image.start  # fixtures

MASTER, MASTER_PASSWORD = "master", "the master's p@ss'word"
PASSWORD = "first p@:/%w'\" ü#?&$;="
WITHOUT = {"MIGRATE_WITHOUT_SNAPSHOT": "true"}
AS_MASTER = {"DATABASE_USER": MASTER, "DATABASE_PASSWORD": MASTER_PASSWORD}
SETUP = {"DATABASE_SETUP_USER": MASTER, "DATABASE_SETUP_PASSWORD": MASTER_PASSWORD, **WITHOUT}


@pytest.fixture(scope="module")
def master(postgres: Postgres) -> str:
    """Its name. It may what RDS's may, and all that it says is in the server's log."""
    with postgres.connect() as connection:
        connection.execute(f"CREATE ROLE {MASTER} LOGIN CREATEROLE CREATEDB".encode())
        password = psycopg.sql.Literal(MASTER_PASSWORD)
        connection.execute(psycopg.sql.SQL("ALTER ROLE master PASSWORD {}").format(password))
        connection.execute("ALTER ROLE master SET log_statement = 'all'")
    return MASTER


@pytest.fixture
def user(request: pytest.FixtureRequest) -> str:
    """Users are the whole server's: each test has its own, with a name that must be quoted."""
    return f"Own-{request.node.name}"[:60]


@pytest.fixture(scope="module")
def before(postgres: Postgres, master: str, s3: dict[str, str]) -> str:
    """A database as a release left it that signs in as the master; to be copied."""
    name = create(postgres, "users_before", master)
    task = Task({**postgres.variables(name), **AS_MASTER, **WITHOUT}, [*image.ENTRYPOINT, "migrate"])
    assert task.ends(180) == 0, task.output
    task.stop()
    return name


def create(postgres: Postgres, name: str, owner: str, template: str = "template1") -> str:
    with postgres.connect() as connection:
        connection.execute(f'CREATE DATABASE "{name}" OWNER {owner} TEMPLATE "{template}"'.encode())
    return name


def make(postgres: Postgres, user: str, password: str) -> None:
    """The user as an earlier release made it."""
    statement = psycopg.sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(
        psycopg.sql.Identifier(user), psycopg.sql.Literal(password)
    )
    with connect(postgres, "postgres", MASTER, MASTER_PASSWORD) as connection:
        connection.execute(statement)


def connect(postgres: Postgres, name: str, user: str, password: str = PASSWORD) -> Any:
    return psycopg.connect(
        host="127.0.0.1", port=postgres.port, user=user, password=password, dbname=name, autocommit=True
    )


def owners(postgres: Postgres, name: str) -> set[str]:
    """Who owns something there."""
    with postgres.connect(name) as connection:
        rows = connection.execute("""
            SELECT relowner::regrole::text FROM pg_class WHERE relnamespace = 'public'::regnamespace
            UNION SELECT proowner::regrole::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace
            UNION SELECT typowner::regrole::text FROM pg_type WHERE typnamespace = 'public'::regnamespace
        """).fetchall()
    return {row[0].strip('"') for row in rows}


def migrate(start: Start, name: str, user: str, password: str = PASSWORD, **variables: str) -> Task:
    given = {"DATABASE_USER": user, "DATABASE_PASSWORD": password, **SETUP, **variables}
    task = start(name, "migrate", **given)
    assert task.ends(180) == 0, task.output
    return task


def secret_of(s3: dict[str, str], name: str, **stages: str) -> str:
    """The ARN of a secret with a password at each stage."""
    vault = boto3.client(
        "secretsmanager",
        endpoint_url=s3["AWS_ENDPOINT_URL"],
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
    )
    current = json.dumps({"password": stages["AWSCURRENT"]})
    arn = str(vault.create_secret(Name=name, SecretString=current)["ARN"])
    if pending := stages.get("AWSPENDING"):
        vault.put_secret_value(
            SecretId=arn, SecretString=json.dumps({"password": pending}), VersionStages=["AWSPENDING"]
        )
    return arn


def test_the_user_is_made_with_its_rights_and_no_more(
    postgres: Postgres, master: str, user: str, s3: dict[str, str], start: Start
) -> None:
    name = create(postgres, "users_a/b%c", master)
    task = migrate(start, name, user)
    assert last(task)["kind"] == "created"
    assert owners(postgres, name) == {user}
    with connect(postgres, name, user) as connection:
        attributes = "rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls"
        found = connection.execute(f"SELECT {attributes} FROM pg_roles WHERE rolname = current_user")
        assert found.fetchone() == (False,) * 5
        roles = connection.execute("SELECT rolname FROM pg_roles WHERE pg_has_role(oid, 'MEMBER')")
        assert roles.fetchall() == [(user,)]
        for forbidden in ("CREATE ROLE other", "CREATE DATABASE other", "ALTER ROLE master PASSWORD 'x'"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(forbidden)
    served = start(name, DATABASE_USER=user, DATABASE_PASSWORD=PASSWORD).wait_healthy()
    served.start_run()
    with postgres.connect() as connection:
        query = "SELECT DISTINCT usename FROM pg_stat_activity WHERE datname = %s"
        assert connection.execute(query, [name]).fetchall() == [(user,)]

    again = migrate(start, name, user)
    assert last(again)["kind"] == "none"
    assert "password" not in again.output
    log = (postgres.data / "log").read_text()
    assert "CREATE ROLE" in log
    for secret in (PASSWORD, PASSWORD.replace("'", "''")):
        assert secret not in log + task.output + again.output


def test_what_the_master_made_is_handed_over_while_it_is_served_and_back_again(
    postgres: Postgres, master: str, before: str, user: str, s3: dict[str, str], start: Start
) -> None:
    """A release that signs in as the master, then this one, then that one again, then this one."""
    name = create(postgres, "users_handed", master, before)
    with connect(postgres, name, master, MASTER_PASSWORD) as connection:
        connection.execute("CREATE VIEW seen AS SELECT name FROM experiments")
        connection.execute("CREATE SEQUENCE counted")
        connection.execute("CREATE TYPE mood AS ENUM ('well')")
        connection.execute("CREATE FUNCTION one() RETURNS integer LANGUAGE sql AS 'SELECT 1'")
    old = start(name, **AS_MASTER).wait_healthy()
    run = old.start_run()
    assert owners(postgres, name) == {master}

    migrate(start, name, user)
    assert owners(postgres, name) == {user}
    new = start(name, DATABASE_USER=user, DATABASE_PASSWORD=PASSWORD).wait_healthy()
    for server in (old, new):
        assert server.get(f"{image.RUNS}/get?run_id={run}")[0] == 200
        server.start_run()

    back = start(name, "migrate", **AS_MASTER, **WITHOUT)
    assert back.ends(180) == 0, back.output
    with connect(postgres, name, master, MASTER_PASSWORD) as connection:
        connection.execute("ALTER TABLE runs ADD COLUMN by_the_old VARCHAR(10)")
        connection.execute("CREATE TABLE by_the_old (id SERIAL PRIMARY KEY)")
    assert owners(postgres, name) == {user, master}
    migrate(start, name, user)
    assert owners(postgres, name) == {user}
    new.start_run()


def test_a_restored_user_gets_the_password_of_its_secret(
    postgres: Postgres, master: str, before: str, user: str, s3: dict[str, str], start: Start
) -> None:
    name = create(postgres, "users_restored", master, before)
    make(postgres, user, PASSWORD)
    arn = secret_of(s3, "restored", AWSCURRENT="of today")
    task = migrate(start, name, user, password="of today", DATABASE_SECRET_ARN=arn)
    assert "the password of its secret" in task.output
    assert "of today" not in task.output
    connect(postgres, name, user, "of today").close()
    with pytest.raises(psycopg.OperationalError):
        connect(postgres, name, user, PASSWORD)


@pytest.mark.parametrize("stage", ["AWSCURRENT", "AWSPENDING"])
def test_a_rotation_meanwhile_is_not_undone(
    stage: str, postgres: Postgres, master: str, before: str, user: str, s3: dict[str, str], start: Start
) -> None:
    """The task was started with the password of before, or in the midst of it; so was a server."""
    name = create(postgres, f"users_rotated_{stage}", master, before)
    make(postgres, user, "rotated")
    stages = {"AWSCURRENT": PASSWORD, stage: "rotated"}
    arn = secret_of(s3, f"meanwhile-{stage}", **stages)
    task = migrate(start, name, user, DATABASE_SECRET_ARN=arn)
    assert "the password of its secret" not in task.output
    connect(postgres, name, user, "rotated").close()
    server = start(name, DATABASE_USER=user, DATABASE_PASSWORD=PASSWORD, DATABASE_SECRET_ARN=arn)
    server.wait_healthy().start_run()


def test_who_may_not_set_up_is_named(
    postgres: Postgres, master: str, user: str, s3: dict[str, str], start: Start
) -> None:
    name = create(postgres, "users_refused", master)
    with postgres.connect() as connection:
        connection.execute("CREATE ROLE weak LOGIN PASSWORD 'weak'")
    weak = {"DATABASE_SETUP_USER": "weak", "DATABASE_SETUP_PASSWORD": "weak", **WITHOUT}
    task = start(name, "migrate", DATABASE_USER=user, DATABASE_PASSWORD=PASSWORD, **weak)
    assert task.ends(180) == 1
    assert f"The user {user} could not be set up by weak" in last(task)["error"]
    same = start(name, "migrate", DATABASE_USER=MASTER, DATABASE_PASSWORD=PASSWORD, **SETUP)
    assert same.ends(180) == 2
    assert "DATABASE_SETUP_USER is DATABASE_USER" in last(same)["error"]


def test_a_table_in_use_is_waited_for_and_requests_go_first(
    postgres: Postgres, master: str, before: str, user: str, s3: dict[str, str], start: Start
) -> None:
    name = create(postgres, "users_busy", master, before)
    given = {"DATABASE_USER": user, "DATABASE_PASSWORD": PASSWORD, **SETUP}
    short = "import database_user as it; it.LOCK_SECONDS = it.LOCK_TRIES = 1"
    with postgres.connect(name) as connection, connection.transaction():
        connection.execute("SELECT * FROM runs")
        task = start(name, command=migrate_patched(short), **given)
        assert task.ends(180) == 1
        assert "runs could not get its new owner in 1 tries" in last(task)["error"]
