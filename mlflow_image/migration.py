"""Brings the schema to this image's revision, so that nothing is lost and every step can be gone back on.

Lock; look; plan, by running the pending migrations on empty tables that nobody ever sees; ask about what breaks the
release before; take a snapshot; change; write down; verify. Each step that fails leaves what was before it.
"""

import functools
import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import database_user
import history
import indexes
import mysql
import snapshots
import sqlalchemy as sa
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import Script, ScriptDirectory
from classification import Column, Table, classify, foreign_key
from database import (
    ARTIFACT_ROOT,
    SCHEMA,
    USERS,
    DatabaseError,
    Line,
    RefusedError,
    codes,
    connect,
    current_revision,
    image_revision,
    image_tables,
    migration_lock,
    migrations_folder,
    say,
)
from settings import Database, Migration
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

SCRATCH = "mlflow_plan"
# A change that waits for a table makes every request for it wait behind, so it gives up soon and tries again.
TABLE_LOCK_SECONDS = 5
TABLE_LOCK_TRIES = 60
LOCK_LIMIT = {
    "postgresql": "SET LOCAL lock_timeout = '{}s'",
    "mysql": "SET SESSION lock_wait_timeout = {}",
}
TRY_AGAIN = {"55P03", "40P01", 1205, 1213}  # a lock not available in time, a deadlock


@dataclass
class Outcome:
    """What `migrate` did. `kind` is none, created, additive or breaking."""

    before: str | None
    after: str
    kind: str = "none"
    applied: list[tuple[history.Entry, str]] = field(default_factory=list)
    snapshot: snapshots.Snapshot = snapshots.NONE
    indexes: dict[str, str] = field(default_factory=dict)

    def add(self, other: "Outcome") -> None:
        """Take in what was done to the user schema, unless it was made new. The revisions told are those of the schema."""
        if other.kind not in ("additive", "breaking"):
            return
        self.applied += other.applied
        self.kind = "breaking" if "breaking" in (self.kind, other.kind) else "additive"
        self.snapshot = other.snapshot


def migrate(database: Database, how: Migration) -> Outcome:
    """Bring the schema to this image's revision. A schema that is newer, and fit for this image, is left alone.

    Raises DatabaseError when something fails, and RefusedError when a person has to decide first. Either way the
    schema is what it was, or, where only later migrations failed, at a revision between.
    """
    if how.setup:
        database_user.ensure(how.setup, database, how.owner)
    with connect(database) as connection, migration_lock(connection):
        if database.engine == "mysql":
            mysql.check_charset(connection)
        if how.restored_from and not history.restore_checked(connection, how.restored_from):
            snapshots.check_restored(connection, _kind(how), how.restored_from)
            history.record_restore(connection, how.restored_from)
        outcome = _bring(connection, database, how, SCHEMA)
        if not history.is_newer(outcome.before):
            _verify(connection, database, outcome.after)
            _ensure_default_experiment(connection, database)
            outcome.indexes = indexes.ensure(database)
        if how.users:
            outcome.add(_bring(connection, database, how, USERS))
    return outcome


def _bring(connection: Connection, database: Database, how: Migration, line: Line) -> Outcome:
    """Bring one line of migrations to this image's revision."""
    head, before = image_revision(line), current_revision(connection, line)
    if history.is_newer(before, line):
        assert before is not None
        between = history.check_servable(connection, database, head, before, line)
        say(
            f"The {line.name} of {database} is at revision {before}, {len(between)} additive migration(s) newer than "
            f"this image ({head}): nothing to do, this image can serve it."
        )
        return Outcome(before, before)
    outcome = Outcome(before, head)
    if before != head:
        _upgrade(connection, how, outcome, line)
    return outcome


def _upgrade(connection: Connection, how: Migration, outcome: Outcome, line: Line) -> None:
    before, head = outcome.before, outcome.after
    judged = history.kinds(plan(connection, before, head, line))
    if _is_new(connection, before, line):
        outcome.kind = "created"
        say(f"Creating MLflow's {line.name}: {len(judged)} migrations, up to revision {head}.")
    else:
        outcome.kind = "breaking" if any(kind == "breaking" for _, kind in judged) else "additive"
        _print(judged, line)
        _ask(judged, how, head)
        outcome.snapshot = _snapshot(connection, how, before)
    with connection.begin():
        history.TABLE.create(connection, checkfirst=True)
        if connection.dialect.name == "mysql":
            mysql.make_journal(connection)
    for entry, kind in judged:
        begin = time.monotonic()
        _apply(connection, line, entry, how, outcome.snapshot)
        outcome.applied.append((entry, kind))
        if outcome.kind != "created":
            say(f"Migrated to {entry.revision} in {time.monotonic() - begin:.1f} s.")


def plan(connection: Connection, before: str | None, head: str, line: Line = SCHEMA) -> list[history.Entry]:
    """Judge the migrations after `before`, up to `head`, oldest first.

    They run on empty tables in a schema of their own, in a transaction that is rolled back: no live table is so much
    as looked at. A few old migrations commit a session of their own, but one that is bound to a connection which is
    in a transaction already cannot end that.
    """
    script = _script(line)
    done = _path(script, before, "base") if before else []
    pending = _path(script, head, before or "base")
    with _scratch(connection) as scratch:
        _initial_tables(scratch, line)
        for revision in done:
            _run(scratch, script, revision, line)
        entries = []
        tables = _tables(scratch)
        for revision in pending:
            functions = _functions(scratch)
            with _recorded(scratch) as statements:
                _run(scratch, script, revision, line)
            verdict = classify(statements, tables, functions)
            # Looking at all tables each time would take a minute.
            touched = set(re.findall(r"\w+", " ".join(statements)))
            tables = {name: table for name, table in tables.items() if name not in touched}
            tables |= _tables(scratch, touched)
            down = revision.down_revision
            assert down is None or isinstance(down, str)
            entries.append(history.entry(revision.revision, down, verdict))
    return entries


@contextmanager
def _scratch(connection: Connection) -> Iterator[Connection]:
    """A connection with a transaction that sees no table yet, and leaves none."""
    if connection.dialect.name == "mysql":
        with mysql.scratch(connection) as scratch:
            yield scratch
        return
    dialect = connection.dialect
    usual = dialect.default_schema_name
    transaction = connection.begin()
    try:
        connection.exec_driver_sql(f"CREATE SCHEMA {SCRATCH}")
        connection.exec_driver_sql(f"SET LOCAL search_path TO {SCRATCH}")
        dialect.default_schema_name = SCRATCH
        yield connection
    finally:
        dialect.default_schema_name = usual
        transaction.rollback()


@contextmanager
def _recorded(connection: Connection) -> Iterator[list[str]]:
    """Record the statements that change something, or read rows.

    Left out is what only looks at the catalogue, and alembic's own bookkeeping.
    """
    statements: list[str] = []

    def hear(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        looks = re.match(r"\s*(SELECT|SHOW|WITH)\b", statement, re.I) and re.search(
            r"pg_catalog|information_schema|alembic_version", statement, re.I
        )
        if not looks and not re.match(
            r"\s*(CREATE TABLE|INSERT INTO|UPDATE|DELETE FROM)\s+alembic_version(_auth)?\b", statement, re.I
        ):
            statements.append(statement)

    sa.event.listen(connection, "before_cursor_execute", hear)
    try:
        yield statements
    finally:
        sa.event.remove(connection, "before_cursor_execute", hear)


def _tables(connection: Connection, among: set[str] | None = None) -> dict[str, Table]:
    """MLflow's tables as they are, all or those among the names; without the bookkeeping of alembic and our own."""
    inspector = sa.inspect(connection)
    names = [
        name
        for name in inspector.get_table_names()
        if not name.startswith(("alembic_", "platform_")) and (among is None or name in among)
    ]
    if not names:
        return {}
    columns = inspector.get_multi_columns(filter_names=names)
    indexes = inspector.get_multi_indexes(filter_names=names)
    constraints = inspector.get_multi_unique_constraints(filter_names=names)
    keys = inspector.get_multi_foreign_keys(filter_names=names)
    tables = {}
    for key, found in columns.items():
        unique = [index["name"] for index in indexes[key] if index["unique"]]
        unique += [constraint["name"] for constraint in constraints[key]]
        tables[key[1]] = Table(
            columns={
                column["name"]: Column(
                    column["type"].compile(connection.dialect),
                    column["nullable"],
                    column["default"] is not None,
                )
                for column in found
            },
            unique=frozenset(name for name in unique if name),
            indexes=frozenset(
                index["name"] for index in indexes[key] if index["name"] and not index["unique"]
            ),
            foreign_keys={
                key["name"]: foreign_key(
                    key["constrained_columns"], key["referred_table"], key["referred_columns"]
                )
                for key in keys[key]
                if key["name"]
            },
        )
    return tables


def _functions(connection: Connection) -> frozenset[str]:
    if connection.dialect.name == "mysql":
        return frozenset()  # its triggers carry their statements themselves
    query = "SELECT proname FROM pg_proc WHERE pronamespace = current_schema()::regnamespace"
    return frozenset(connection.exec_driver_sql(query).scalars())


def _print(judged: list[tuple[history.Entry, str]], line: Line) -> None:
    script = _script(line)
    say(f"{len(judged)} migration(s) pending:")
    for entry, kind in judged:
        say(f"  {entry.revision}  {kind:8}  {script.get_revision(entry.revision).doc}")
        for reason in entry.reasons:
            say(f"      {reason}")


def _ask(judged: list[tuple[history.Entry, str]], how: Migration, head: str) -> None:
    """Raise RefusedError if something breaking is pending that nobody allowed for this very release."""
    breaking = [entry for entry, kind in judged if kind == "breaking"]
    if not breaking or how.allowed_up_to == head:
        return
    told = "; ".join(f"{entry.revision} ({entry.reasons[0]})" for entry in breaking)
    other = (
        f" It is {how.allowed_up_to!r} now, which was for another release and does not count."
        if how.allowed_up_to
        else ""
    )
    raise RefusedError(
        f"Breaking migrations are pending, and nothing was changed: {told}. From the migration on, tasks of the "
        "release before may fail, and it cannot be rolled back to without a restore. To go on, set "
        f'allow_breaking_migration = "{head}" in platform.toml, which allows them for this release only.{other}'
    )


def _snapshot(connection: Connection, how: Migration, before: str | None) -> snapshots.Snapshot:
    if source := how.cluster or how.instance:
        return snapshots.take(connection, _kind(how), source, before, how.commit)
    if how.without_snapshot:
        say("Migrating without a snapshot, as MIGRATE_WITHOUT_SNAPSHOT says.")
        return snapshots.NONE
    raise DatabaseError(
        "A migration is pending, but there is nothing to take a snapshot of: set DATABASE_INSTANCE to the RDS instance "
        "or DATABASE_CLUSTER to the Aurora cluster, or MIGRATE_WITHOUT_SNAPSHOT=true if you made a copy yourself. "
        "Nothing was changed."
    )


def _kind(how: Migration) -> snapshots.Kind:
    return snapshots.CLUSTER if how.cluster else snapshots.INSTANCE


def _apply(
    connection: Connection,
    line: Line,
    entry: history.Entry,
    how: Migration,
    snapshot: snapshots.Snapshot,
) -> None:
    """Run one migration and write it down, both or neither; on MySQL, resume it where it was cut off."""
    script = _script(line)
    for attempt in range(1, TABLE_LOCK_TRIES + 1):
        try:
            with connection.begin():
                connection.exec_driver_sql(LOCK_LIMIT[connection.dialect.name].format(TABLE_LOCK_SECONDS))
                with _resumable(connection, entry.revision):
                    if entry.down_revision is None:
                        _initial_tables(connection, line)
                    _run(connection, script, script.get_revision(entry.revision), line)
                history.record(
                    connection,
                    entry,
                    image=how.image,
                    commit=how.commit,
                    snapshot=snapshot.name,
                    snapshot_at=snapshot.started,
                )
                if connection.dialect.name == "mysql":
                    mysql.clear(connection)
            return
        except DBAPIError as error:
            if not TRY_AGAIN & codes(error):
                raise
            say(
                f"Migration {entry.revision} waited {TABLE_LOCK_SECONDS} s for a table that others use; requests "
                f"go first (try {attempt} of {TABLE_LOCK_TRIES})."
            )
            time.sleep(min(attempt, TABLE_LOCK_SECONDS))
    raise DatabaseError(
        f"Migration {entry.revision} did not get its tables in {TABLE_LOCK_TRIES} tries, because a long query or an "
        "open transaction holds them: find it in pg_stat_activity, end it, and start again. What was migrated before "
        "it stays, and a new start goes on from there."
    )


def _resumable(connection: Connection, revision: str) -> AbstractContextManager[None]:
    """What makes a migration that is killed half way one that can be started again: a transaction, or a journal."""
    return mysql.journalled(connection, revision) if connection.dialect.name == "mysql" else nullcontext()


def _verify(connection: Connection, database: Database, head: str) -> None:
    after = current_revision(connection)
    with connection.begin():
        missing = image_tables() - set(sa.inspect(connection).get_table_names())
    if after != head or missing:
        lacks = f" without its tables {', '.join(sorted(missing))}" if missing else ""
        raise DatabaseError(
            f"The schema of {database} is at revision {after}{lacks}, not whole at {head}: someone else changed it. "
            "Restore the newest snapshot that `migrate` took, and start again."
        )


def _ensure_default_experiment(connection: Connection, database: Database) -> None:
    """Make it here, because two servers that start at once would both make it, and one would crash."""
    if not _has_experiments(connection):
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        SqlAlchemyStore(database.uri(), ARTIFACT_ROOT).engine.dispose()


def _has_experiments(connection: Connection) -> bool:
    with connection.begin():
        if not sa.inspect(connection).has_table("experiments"):
            return False
        return connection.exec_driver_sql("SELECT 1 FROM experiments LIMIT 1").first() is not None


def _is_new(connection: Connection, before: str | None, line: Line) -> bool:
    """Whether nothing of anybody's is in these tables yet, so that there is nothing to ask about or to copy."""
    # Every MLflow server that ever started made an experiment. A creation that was cut short has none yet.
    if line == SCHEMA:
        return not _has_experiments(connection)
    with connection.begin():
        if not sa.inspect(connection).has_table("users"):
            return True
        return (
            before is not None and connection.exec_driver_sql("SELECT 1 FROM users LIMIT 1").first() is None
        )


def _initial_tables(connection: Connection, line: Line) -> None:
    """The tables that MLflow's first migration builds on; that of its users builds on none."""
    if line != SCHEMA:
        return
    from mlflow.store.tracking.dbmodels.initial_models import Base

    Base.metadata.create_all(connection)


@functools.cache
def _script(line: Line) -> ScriptDirectory:
    """Kept, because one that is new compiles every migration that there is before it finds the first."""
    config = Config()
    config.set_main_option("script_location", str(migrations_folder(line)).replace("%", "%%"))
    return ScriptDirectory.from_config(config)


def _path(script: ScriptDirectory, upper: str, lower: str) -> list[Script]:
    """The migrations after `lower` up to `upper`, oldest first."""
    return list(script.iterate_revisions(upper, lower))[::-1]


def _run(connection: Connection, script: ScriptDirectory, revision: Script, line: Line) -> None:
    """Run one migration in the transaction that the connection is in, configured as MLflow's env.py does."""
    from mlflow.store.db.base_sql_model import Base

    def step(heads: Any, _context: object) -> Any:
        return script._upgrade_revs(revision.revision, heads)

    with EnvironmentContext(Config(), script, fn=step) as environment:
        environment.configure(
            connection=connection,
            target_metadata=Base.metadata if line == SCHEMA else None,
            version_table=line.version_table,
            render_as_batch=True,
        )
        environment.run_migrations()
