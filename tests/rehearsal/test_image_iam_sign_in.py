"""IAM database authentication of the image: tokens checked for real in front of a real PostgreSQL."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pytest

from rehearsal.iam_postgres import Signer

from . import test_image_entrypoint as image
from .iam_postgres import REGION, RdsPostgres
from .impostors import IMPOSTORS, assert_refused
from .test_image_database_user import MASTER, MASTER_PASSWORD, SETUP, create, owners
from .test_image_entrypoint import RUNS, Start, Task, patched
from .test_image_migration import last

s3, start = image.s3, image.start  # fixtures

OWNER, USER = "mlflow_server", "mlflow_server_iam"
PASSWORD = "the password of before"
# A role's keys as ECS hands them out: the token carries the session, which makes it some 1100 bytes long.
KEY_ID = "ASIAOFTHETASKSROLE00"
ROLE = {
    "AWS_ACCESS_KEY_ID": KEY_ID,
    "AWS_SECRET_ACCESS_KEY": "k/+" * 12,
    "AWS_SESSION_TOKEN": (SESSION := "s/+=" * 180),
}
BY_TOKEN = {"DATABASE_SIGN_IN": "iam", "DATABASE_USER": USER, **ROLE}
BY_PASSWORD = {"DATABASE_USER": OWNER, "DATABASE_PASSWORD": PASSWORD}


@pytest.fixture(scope="module")
def postgres() -> Iterator[RdsPostgres]:
    folder = Path(tempfile.mkdtemp(prefix="image-postgres-"))
    folder.chmod(0o755)
    postgres = RdsPostgres(folder)
    with postgres.connect() as connection:
        password = psycopg.sql.Literal(MASTER_PASSWORD)
        make = psycopg.sql.SQL("CREATE ROLE master LOGIN CREATEROLE CREATEDB PASSWORD {}")
        connection.execute(make.format(password))
        connection.execute("GRANT rds_iam TO master WITH ADMIN TRUE, INHERIT FALSE, SET FALSE")
        connection.execute("ALTER ROLE master SET log_statement = 'all'")
    postgres.roles[KEY_ID, SESSION] = signer(USER)
    yield postgres
    postgres.close()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def name(postgres: RdsPostgres, request: pytest.FixtureRequest) -> Iterator[str]:
    """A database, on a server that knows none of the two users."""
    made = create(postgres, request.node.originalname, MASTER)
    yield made
    with postgres.connect() as connection:
        connection.execute(f'DROP DATABASE "{made}" WITH (FORCE)'.encode())
        connection.execute(f"DROP ROLE IF EXISTS {USER}, {OWNER}".encode())


def signer(user: str) -> Signer:
    """Who has that secret key, and may be that user."""
    return Signer(ROLE["AWS_SECRET_ACCESS_KEY"], lambda asked: asked == user)


def migrate(start: Start, name: str, **variables: str) -> Task:
    if "DATABASE_SIGN_IN" in variables:
        variables["DATABASE_OWNER"] = OWNER
    task = start(name, "migrate", **SETUP, **variables)
    assert task.ends(180) == 0, task.output
    return task


def role(postgres: RdsPostgres, user: str) -> Any:
    """Whether it may sign in, and whether it has a password; None if there is no such user."""
    with postgres.connect() as connection:
        query = "SELECT rolcanlogin, rolpassword IS NOT NULL FROM pg_authid WHERE rolname = %s"
        return connection.execute(query, [user]).fetchone()


def cut(postgres: RdsPostgres, name: str) -> None:
    """End every session, so that each server has to sign in again."""
    with postgres.connect() as connection:
        query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
        connection.execute(query, [name])


def answers(task: Task, run: str, count: int = 40) -> set[int]:
    with ThreadPoolExecutor(8) as pool:
        return set(pool.map(lambda _: task.get(f"{RUNS}/get?run_id={run}")[0], range(count)))


def test_there_is_no_password_at_all_and_each_connection_has_a_token_of_its_own(
    postgres: RdsPostgres, name: str, s3: dict[str, str], start: Start
) -> None:
    made = migrate(start, name, **BY_TOKEN)
    assert last(made)["kind"] == "created"
    assert (role(postgres, OWNER), role(postgres, USER)) == ((False, False), (True, False))
    assert owners(postgres, name) == {OWNER}
    served = start(name, WORKERS="2", **BY_TOKEN).wait_healthy()
    run = served.start_run()
    with postgres.connect() as connection:
        query = "SELECT DISTINCT usename FROM pg_stat_activity WHERE datname = %s"
        assert connection.execute(query, [name]).fetchall() == [(USER,)]
    assert last(migrate(start, name, **BY_TOKEN))["kind"] == "none"

    # Every token that was made so far expires; each says in which second it was signed.
    postgres.not_before = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=1)
    image.wait_until(lambda: datetime.now(UTC) > postgres.not_before, 30, "the next second")
    before = len(postgres.taken)
    cut(postgres, name)
    assert answers(served, run) == {200}, served.output
    assert len(postgres.taken) > before

    # Back to a password that there never was.
    back = migrate(start, name, **BY_PASSWORD)
    assert "the password of its secret" in back.output
    assert role(postgres, OWNER) == (True, True)
    assert answers(served, run) == {200}
    told = [made.output, served.output, (postgres.data / "log").read_text()]
    assert postgres.taken
    for secret in (*postgres.taken, ROLE["AWS_SECRET_ACCESS_KEY"], ROLE["AWS_SESSION_TOKEN"]):
        assert not [text for text in told if secret in text]


def test_releases_with_a_password_and_without_serve_at_once_there_and_back(
    postgres: RdsPostgres, name: str, s3: dict[str, str], start: Start
) -> None:
    """Each opens new connections while the other's release is migrated to, rolls out, and is gone back from."""
    migrate(start, name, **BY_PASSWORD)
    old = start(name, **BY_PASSWORD).wait_healthy()
    run = old.start_run()

    migrate(start, name, **BY_TOKEN)
    new = start(name, **BY_TOKEN).wait_healthy()
    serve_at_once(postgres, name, run, old, new)
    back = migrate(start, name, **BY_PASSWORD)
    assert "Gave" not in back.output, "its password is as it was"
    serve_at_once(postgres, name, run, old, new)
    assert owners(postgres, name) == {OWNER}


def serve_at_once(postgres: RdsPostgres, name: str, run: str, *servers: Task) -> None:
    cut(postgres, name)
    for server in servers:
        assert answers(server, run) == {200}, server.output
        server.start_run()


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("another role", {"AWS_ACCESS_KEY_ID": "ASIAOFANOTHERROLE000"}),
        ("a forged signature", {"AWS_SECRET_ACCESS_KEY": "forged"}),
        ("another user", {"DATABASE_USER": "someone"}),
        ("an expired token", {}),
    ],
)
def test_a_token_that_is_not_right_is_refused_in_a_sentence(
    what: str,
    changes: dict[str, str],
    postgres: RdsPostgres,
    name: str,
    s3: dict[str, str],
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with postgres.connect() as connection:
        for user in (USER, "someone"):
            connection.execute(f"DROP ROLE IF EXISTS {user}".encode())
            connection.execute(f"CREATE ROLE {user} LOGIN IN ROLE rds_iam".encode())
    monkeypatch.setitem(postgres.roles, ("ASIAOFANOTHERROLE000", SESSION), signer("someone"))
    if what == "an expired token":
        monkeypatch.setattr(postgres, "not_before", datetime.now(UTC) + timedelta(hours=1))
    taken = len(postgres.taken)
    short = patched("database.CONNECT_SECONDS = 1")
    task = start(name, command=short, **{**BY_TOKEN, **changes})
    assert task.ends(120) == 1, task.output
    assert "PAM authentication failed" in task.output
    assert "may rds-db:connect as DATABASE_USER" in task.output
    assert "Traceback" not in task.output
    assert "X-Amz-" not in task.output
    assert len(postgres.taken) == taken


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"address": "127.0.0.1:1"}, "it is for another host or port"),
        ({"region": "eu-west-1"}, "it is for another region"),
        ({"user": "someone"}, "it is for another user"),
    ],
)
def test_a_token_for_another_server_is_none_for_this_one(
    postgres: RdsPostgres, changed: dict[str, str], told: str
) -> None:
    session = boto3.Session(KEY_ID, ROLE["AWS_SECRET_ACCESS_KEY"], SESSION, region_name=REGION)
    token = session.client("rds").generate_db_auth_token("127.0.0.1", postgres.proxy_port, USER)
    assert not postgres.problem(token, USER)
    assert postgres.problem(token, **{"user": USER, **changed}) == told
    for broken in ("", "a password", token.replace("Signature=", "Signature=0"), token.partition("&")[0]):
        assert postgres.problem(broken, USER)


def test_a_task_without_a_role_is_told_so(
    postgres: RdsPostgres, name: str, s3: dict[str, str], start: Start
) -> None:
    nobody = {
        "AWS_ACCESS_KEY_ID": "",
        "AWS_SECRET_ACCESS_KEY": "",
        "AWS_SESSION_TOKEN": "",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    task = start(name, command=patched("database.CONNECT_SECONDS = 1"), **{**BY_TOKEN, **nobody})
    assert task.ends(120) == 1
    assert "no token could be signed" in task.output
    assert "the task needs a role" in task.output
    assert "Traceback" not in task.output


def test_the_master_is_never_locked_out(
    postgres: RdsPostgres, name: str, s3: dict[str, str], start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a server where whoever makes a member of rds_iam is one, too, the user that would do it goes again."""
    monkeypatch.setattr(postgres.proxy, "administering_counts", True)
    task = start(name, "migrate", **SETUP, **BY_TOKEN, DATABASE_OWNER=OWNER)
    assert task.ends(180) == 1, task.output
    assert "the server began to refuse the password of master" in last(task)["error"]
    assert role(postgres, USER) is None
    psycopg.connect(
        host="127.0.0.1",
        port=postgres.proxy_port,
        dbname=name,
        user=MASTER,
        password=MASTER_PASSWORD,
        sslmode="require",
    ).close()


def test_a_server_that_knows_no_tokens_is_named(
    postgres: RdsPostgres, name: str, s3: dict[str, str], start: Start
) -> None:
    with postgres.connect() as connection:
        connection.execute("ALTER ROLE rds_iam RENAME TO something")
    try:
        task = start(name, "migrate", **SETUP, **BY_TOKEN, DATABASE_OWNER=OWNER)
        assert task.ends(180) == 1
    finally:
        with postgres.connect() as connection:
            connection.execute("ALTER ROLE something RENAME TO rds_iam")
    assert "The server has no role rds_iam" in last(task)["error"]


@pytest.mark.parametrize("wrong", IMPOSTORS.values(), ids=IMPOSTORS)
def test_a_server_that_is_not_it_is_told_nothing(
    postgres: RdsPostgres, name: str, s3: dict[str, str], start: Start, wrong: dict[str, str]
) -> None:
    """No token goes there, from the migration's task or a server, nor from one that follows a rotation."""
    before = len(postgres.proxy.asked)
    rotated = {"DATABASE_SECRET_ARN": "arn:aws:secretsmanager:eu-west-1:222222222222:secret:database-AbCdEf"}
    assert_refused(
        start(name, "migrate", **SETUP, **BY_TOKEN, DATABASE_OWNER=OWNER, **wrong), MASTER_PASSWORD
    )
    assert_refused(start(name, **BY_TOKEN, **wrong), ROLE["AWS_SECRET_ACCESS_KEY"])
    assert_refused(start(name, **BY_PASSWORD, **rotated, **wrong), PASSWORD)
    assert len(postgres.proxy.asked) == before
