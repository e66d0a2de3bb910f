"""The database's schema: is it there, is it this image's, and if nobody has made it yet, make it, once.

MLflow creates its schema when a server starts, but guards that with nothing that reaches beyond one
machine: of two tasks that start at once on an empty database, one crashes. So a task takes a PostgreSQL
advisory lock first. A schema at another revision is never changed by a server that starts; that is what
`migrate` is for.
"""

import ast
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import psycopg
from settings import Database

CONNECT_SECONDS = 60.0  # a database that restarts or fails over is back within a minute
LOCK_SECONDS = 600.0  # creating the schema takes about 15 s; a migration of a large database can take minutes
LOCK_KEY = int.from_bytes(b"mlflow", "big")  # advisory locks are numbers; this one is ours in every release
ARTIFACT_ROOT = "mlflow-artifacts:/"  # runs name their artifacts by this; the server knows the bucket


class DatabaseError(Exception):
    """The database cannot be used as it is. The message is a sentence that says why and what to do."""


def ensure_schema(database: Database) -> None:
    """Return once the schema is there at this image's revision, creating it if the database has none.

    Raises DatabaseError when the database does not answer within CONNECT_SECONDS, or its schema is at another
    revision.
    """
    head = image_revision()
    with connect(database) as connection:
        if current_revision(connection) is None:
            with migration_lock(connection):
                if current_revision(connection) is None:
                    _say(f"Creating MLflow's schema in {database}.")
                    _create(database)
        found = current_revision(connection)
    if found != head:
        raise DatabaseError(_other_revision(database, found, head))


def migrate(database: Database) -> tuple[str | None, str]:
    """Bring the schema to this image's revision, and return the revisions before (None: no schema) and after.

    Raises DatabaseError like `ensure_schema`, and when the schema is a newer release's.
    """
    head = image_revision()
    with connect(database) as connection, migration_lock(connection):
        before = current_revision(connection)
        if before is None:
            _create(database)
        elif before not in _revisions():
            raise DatabaseError(_other_revision(database, before, head))
        elif before != head:
            _upgrade(database)
        after = current_revision(connection)
    if after != head:
        raise DatabaseError(
            f"The migration of {database} ended at revision {after} instead of {head}: "
            "restore the snapshot taken before it, and read the log above for the cause."
        )
    return before, head


def connect(database: Database) -> psycopg.Connection:
    """Connect in autocommit mode. Raises DatabaseError when that failed for CONNECT_SECONDS."""
    deadline = time.monotonic() + CONNECT_SECONDS
    uri = database.uri().replace("postgresql+psycopg://", "postgresql://")
    while True:
        try:
            return psycopg.connect(uri, password=database.password, autocommit=True)
        except psycopg.OperationalError as error:
            reason = " ".join(str(error).split())
            left = deadline - time.monotonic()
            if left <= 0:
                raise DatabaseError(
                    f"The database {database} did not answer for {CONNECT_SECONDS:.0f} s ({reason}): "
                    "check that it runs, that its security group lets this task in, and that DATABASE_HOST, "
                    "DATABASE_PORT, DATABASE_NAME, DATABASE_USER and DATABASE_PASSWORD are right."
                ) from None
            _say(f"The database {database} does not answer yet ({reason}); trying for {left:.0f} s more.")
            time.sleep(min(2.0, left))


@contextmanager
def migration_lock(connection: psycopg.Connection) -> Iterator[None]:
    """Hold the lock that lets one task at a time change the schema.

    The lock belongs to the connection, so it is free again when its holder dies. Raises DatabaseError when
    another task held it for longer than LOCK_SECONDS.
    """
    deadline = time.monotonic() + LOCK_SECONDS
    tries = 0
    while not _value(connection, "SELECT pg_try_advisory_lock(%s)", LOCK_KEY):
        if time.monotonic() > deadline:
            raise DatabaseError(
                f"Another task has been changing the schema for {LOCK_SECONDS:.0f} s: if none is, end the "
                f"session that holds advisory lock {LOCK_KEY} (pg_locks names it, pg_terminate_backend ends "
                "it) and start again."
            )
        if tries % 10 == 0:
            _say("Another task is changing the schema; waiting for it.")
        tries += 1
        time.sleep(1)
    try:
        yield
    finally:
        if not connection.closed:
            connection.execute("SELECT pg_advisory_unlock(%s)", (LOCK_KEY,))


def current_revision(connection: psycopg.Connection) -> str | None:
    """The schema's revision. None if there is no schema, or one whose creation did not get to its end."""
    if _value(connection, "SELECT to_regclass('alembic_version')") is None:
        return None
    return _value(connection, "SELECT max(version_num) FROM alembic_version")


def image_revision() -> str:
    """The revision this image's MLflow works with: the only migration that no other one builds on.

    Read from the migration files, because importing MLflow takes seconds and a hundred megabytes.
    """
    revisions = _revisions()
    heads = revisions.keys() - revisions.values()
    if len(heads) != 1:
        raise DatabaseError(
            f"MLflow's migrations have {len(heads)} ends, not one: reinstall from requirements.lock."
        )
    return heads.pop()


def _revisions() -> dict[str, str | None]:
    """Each migration of this image's MLflow, and the one it builds on."""
    spec = find_spec("mlflow")
    if spec is None or not spec.submodule_search_locations:
        raise DatabaseError("MLflow is not installed: install requirements.lock.")
    revisions = {}
    for file in Path(spec.submodule_search_locations[0], "store/db_migrations/versions").glob("*.py"):
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


def _create(database: Database) -> None:
    """Make all tables, and the default experiment, as the first `mlflow server` would."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(database.uri(), ARTIFACT_ROOT)


def _upgrade(database: Database) -> None:
    from mlflow.store.db.utils import _upgrade_db, create_sqlalchemy_engine_with_retry

    engine = create_sqlalchemy_engine_with_retry(database.uri())
    _upgrade_db(engine)


def _other_revision(database: Database, found: str | None, head: str) -> str:
    if found in _revisions():
        return (
            f"The schema of {database} is at revision {found}, but this image needs {head}: "
            "run `entrypoint.py migrate` with this image first."
        )
    return (
        f"The schema of {database} is at revision {found}, which this image (revision {head}) does not know: "
        "a newer release migrated it. Deploy that release or a later one, or restore an earlier snapshot."
    )


def _value(connection: psycopg.Connection, query: str, *parameters: object) -> str | None:
    row = connection.execute(query.encode(), parameters).fetchone()
    return row[0] if row else None


def _say(sentence: str) -> None:
    print(sentence, flush=True)
