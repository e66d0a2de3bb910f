"""The database that holds MLflow's schema: the connection to it, the lock, the revision, and what went wrong.

MLflow creates and changes its schema when a server starts, but guards that with nothing that reaches beyond one
machine: of two tasks that start at once on an empty database, one crashes. Here only `migrate` changes the schema,
one at a time, under a lock in the database itself. A server that starts only looks.
"""

import ast
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import iam_sign_in
import rotation
import sqlalchemy as sa
import withheld
from settings import Database
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.pool import NullPool

CONNECT_SECONDS = 60.0  # a database that restarts or fails over is back within a minute
LOCK_SECONDS = 5400.0  # its holder may wait an hour for a snapshot (snapshots.py), and then migrate
LOCK_KEY = int.from_bytes(b"mlflow", "big")  # advisory locks are numbers; this one is ours in every release
# How to take the lock, how to give it back, and how a person finds out who has it.
LOCKS = {
    "postgresql": (
        f"SELECT pg_try_advisory_lock({LOCK_KEY})",
        f"SELECT pg_advisory_unlock({LOCK_KEY})",
        f"advisory lock {LOCK_KEY} (pg_locks names it, pg_terminate_backend ends it)",
    ),
    # Named locks are the server's, so the name tells the database.
    "mysql": (
        "SELECT GET_LOCK(CONCAT('mlflow-migration-', MD5(DATABASE())), 0)",
        "SELECT RELEASE_LOCK(CONCAT('mlflow-migration-', MD5(DATABASE())))",
        "it (SELECT IS_USED_LOCK(CONCAT('mlflow-migration-', MD5(DATABASE()))) names it, KILL ends it)",
    ),
}


@dataclass(frozen=True)
class Line:
    """One line of MLflow's migrations, and the table in which a database says how far along it is."""

    name: str
    folder: str
    version_table: str


SCHEMA = Line("schema", "store/db_migrations", "alembic_version")
# Of its basic auth, in the same database. Nobody reads these tables unless SIGN_IN is basic.
USERS = Line("user schema", "server/auth/db/migrations", "alembic_version_auth")

ARTIFACT_ROOT = "mlflow-artifacts:/"  # runs name their artifacts by this; the server knows the bucket

# By SQLSTATE (PostgreSQL) or error number (MySQL): what is the matter, and what to do.
CAUSES: dict[object, str] = {
    "28P01": "the password is wrong: check DATABASE_PASSWORD",
    "28000": "the sign-in is refused: check DATABASE_USER, DATABASE_PASSWORD and DATABASE_SSLMODE",
    "3D000": "there is no such database: check DATABASE_NAME",
    "42501": "DATABASE_USER lacks a right: make it the owner of the database, or grant it CREATE on it",
    "53100": "the disk is full: give the instance more storage; nothing of the last step was kept",
    "53300": "too many connections are open: end some, or raise max_connections",
    1045: "the sign-in is refused: check DATABASE_USER and DATABASE_PASSWORD, or, with DATABASE_SIGN_IN=iam, that the "
    "task's role may rds-db:connect as DATABASE_USER",
    "PAM": "the token is refused: check that the database has IAM authentication, that DATABASE_USER is in rds_iam, and "
    "that the task's role may rds-db:connect as DATABASE_USER to this database's resource id",
    "TLS": "the server's certificate is not the one it should have: check that DATABASE_HOST is the server's own name, and "
    "that DATABASE_SSLROOTCERT holds the authority that signed it",
    1524: "the server knows no such plugin: DATABASE_SIGN_IN=iam needs RDS or Aurora",
    1049: "there is no such database: check DATABASE_NAME",
    1044: "DATABASE_USER lacks a right: grant it ALL on this database and on the one of this name with _plan",
    1142: "DATABASE_USER lacks a right: grant it ALL on this database and on the one of this name with _plan",
    1021: "the disk is full: give the instance more storage, and start again",
    1114: "the disk is full: give the instance more storage, and start again",
    "57P01": "an administrator ended the session: start again",
}


# In the words of libpq (the second is about the name), and of Python's ssl.
DISTRUSTED = ("certificate verify failed", "does not match host name")

_changes: list[Callable[[Any, dict[str, Any]], None]] = []


class DatabaseError(Exception):
    """The database cannot be used as it is. The message is a sentence that says why and what to do."""


class RefusedError(DatabaseError):
    """A person has to decide first, because going on would lose something. The message says between what."""


def explain(error: DBAPIError) -> str:
    """The driver's error as one sentence, without SQL and parameters, with the mend where it is known."""
    said = " ".join(str(error.orig).split())
    for code in codes(error) & CAUSES.keys():
        return f"{said}: {CAUSES[code]}"
    # libpq tells of a refused sign-in in words only, and both drivers of a certificate that does not fit.
    for words, key in (
        ("password authentication failed", "28P01"),
        ("PAM authentication failed", "PAM"),
        *((words, "TLS") for words in DISTRUSTED),
        ("does not exist", "3D000"),
    ):
        if words in said and isinstance(error, OperationalError):
            return f"{said}: {CAUSES[key]}"
    return said


def codes(error: DBAPIError) -> set[object]:
    """The SQLSTATE, and MySQL's own number."""
    return {getattr(error.orig, "sqlstate", None), *(error.orig.args[:1] if error.orig else ())}


def before_connecting(change: Callable[[Any, dict[str, Any]], None]) -> None:
    """Have `change` see each connection's dialect and parameters before it is opened, once `sign_in` was called.

    SQLAlchemy asks listeners in the order in which they came, and the one that follows a rotation opens the connection
    itself: nobody is asked after it.
    """
    _changes.append(change)


def sign_in() -> None:
    """Give every connection that this process opens the password or token of that moment, and MySQL's its limits."""
    if sa.event.contains(Engine, "do_connect", _prepare):
        return
    sa.event.listen(Engine, "do_connect", _prepare)
    if os.environ.get("DATABASE_ENGINE") == "mysql":
        import mysql  # with PostgreSQL, its driver need not even be there

        mysql.sign_in()
    if secret_arn := os.environ.get("DATABASE_SECRET_ARN"):
        rotation.follow(secret_arn)


def _prepare(dialect: Any, _record: Any, _arguments: Any, parameters: dict[str, Any]) -> None:
    for change in _changes:
        change(dialect, parameters)
    user = parameters["user"]
    if os.environ.get("DATABASE_SIGN_IN") == "iam" and user == os.environ["DATABASE_USER"]:
        given = iam_sign_in.token(dialect, parameters["host"], parameters["port"], user)
    else:
        given = withheld.password(dialect, user)
    parameters["password"] = given


def engine_for(database: Database) -> Engine:
    """An engine that opens a connection when one is asked for, and closes it with it."""
    return sa.create_engine(database.uri(), poolclass=NullPool)


def connect(database: Database) -> Connection:
    """Connect. Raises DatabaseError when that failed for CONNECT_SECONDS."""
    deadline = time.monotonic() + CONNECT_SECONDS
    engine = engine_for(database)
    while True:
        try:
            return engine.connect()
        except DBAPIError as error:
            reason = explain(error)
            if any(words in reason for words in DISTRUSTED):  # waiting does not mend that
                raise DatabaseError(f"The database {database} is not believed to be it ({reason}).") from None
            left = deadline - time.monotonic()
            if left <= 0:
                raise DatabaseError(
                    f"The database {database} did not answer for {CONNECT_SECONDS:.0f} s ({reason}): "
                    "check that it runs, that its security group lets this task in, and that DATABASE_HOST, "
                    "DATABASE_PORT, DATABASE_NAME, DATABASE_USER and DATABASE_PASSWORD are right."
                ) from None
            say(f"The database {database} does not answer yet ({reason}); trying for {left:.0f} s more.")
            time.sleep(min(2.0, left))


@contextmanager
def migration_lock(connection: Connection) -> Iterator[None]:
    """Hold the lock that lets one task at a time change the schema.

    The lock belongs to the connection, so it is free again when its holder dies. Raises DatabaseError when another
    task held it for longer than LOCK_SECONDS.
    """
    deadline = time.monotonic() + LOCK_SECONDS
    tries = 0
    take, give, mend = LOCKS[connection.dialect.name]
    while not value(connection, take):
        if time.monotonic() > deadline:
            raise DatabaseError(
                f"Another task has been changing the schema for {LOCK_SECONDS:.0f} s: if none is, end the session that "
                f"holds {mend} and start again."
            )
        if tries % 10 == 0:
            say("Another task is changing the schema; waiting for it.")
        tries += 1
        time.sleep(1)
    try:
        yield
    finally:
        if not connection.invalidated:
            connection.rollback()
            value(connection, give)


def current_revision(connection: Connection, line: Line = SCHEMA) -> str | None:
    """The database's revision. None if it has no such tables, or their creation did not get to its end."""
    with connection.begin():
        if not sa.inspect(connection).has_table(line.version_table):
            return None
        query = f"SELECT max(version_num) FROM {line.version_table}"  # noqa: S608  one of the two above
        found: str | None = connection.exec_driver_sql(query).scalar()
        return found


def image_revision(line: Line = SCHEMA) -> str:
    """The revision this image's MLflow works with: the only migration that no other one builds on.

    Read from the migration files, because importing MLflow takes seconds and a hundred megabytes.
    """
    revisions = image_revisions(line)
    heads = revisions.keys() - revisions.values()
    if len(heads) != 1:
        raise DatabaseError(
            f"MLflow's migrations have {len(heads)} ends, not one: reinstall from requirements.lock."
        )
    return heads.pop()


def image_revisions(line: Line = SCHEMA) -> dict[str, str | None]:
    """Each migration of this image's MLflow, and the one it builds on."""
    revisions = {}
    for file in Path(migrations_folder(line), "versions").glob("*.py"):
        names = {
            target.id: ast.literal_eval(node.value)
            for node in ast.parse(file.read_bytes()).body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name) and target.id in ("revision", "down_revision")
        }
        if "revision" in names:
            revisions[names["revision"]] = names["down_revision"]
    return revisions


def image_tables() -> set[str]:
    """The tables of this image's MLflow, read from its models for the same reason."""
    return {
        ast.literal_eval(node.value)
        for file in _mlflow().glob("store/**/dbmodels/*.py")
        for model in ast.parse(file.read_bytes()).body
        if isinstance(model, ast.ClassDef)
        for node in model.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id == "__tablename__"
    }


def migrations_folder(line: Line = SCHEMA) -> Path:
    """Where MLflow's migrations are."""
    return _mlflow() / line.folder


def _mlflow() -> Path:
    """Where MLflow is, found without importing it."""
    spec = find_spec("mlflow")
    if spec is None or not spec.submodule_search_locations:
        raise DatabaseError("MLflow is not installed: install requirements.lock.")
    return Path(spec.submodule_search_locations[0])


def value(connection: Connection, query: str) -> object:
    """The first column of the query's first row, read in a transaction of its own."""
    with connection.begin():
        result = connection.exec_driver_sql(query)
        return result.scalar() if result.returns_rows else None


def say(sentence: str) -> None:
    print(sentence, flush=True)
