"""What MySQL and MariaDB do differently: how to sign in, and how a migration that was cut off is carried on.

They commit at every statement that changes a table, so a migration cannot be undone by a rollback, and a process that
is killed leaves it half done; MLflow's migrations cannot be run again from there. So while a migration runs, each
statement that changes a table is written to a journal before and after, and so is what the migration was told about
the tables. When it is run again, everything up to the last such statement that was done is played back instead of
done: the migration takes the same way as before, and goes on in earnest from there.
"""

import json
import os
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from database import DatabaseError, before_connecting, value
from settings import RDS_CA, TLS_ONLY, VERIFYING
from sqlalchemy.dialects.mysql import LONGTEXT, MEDIUMTEXT
from sqlalchemy.engine import Connection
from sqlalchemy.pool import NullPool

# "It is there already" and "it is gone already", of the statement during which the process was killed.
DONE_BEFORE = {1005, 1050, 1051, 1054, 1060, 1061, 1068, 1091, 1146, 1359, 1826, 3822}

MARK = "platform_plan"  # the table by which a scratch database is told from anyone else's

JOURNAL = sa.Table(
    "platform_journal",
    sa.MetaData(),
    sa.Column("revision", sa.String(32), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("statement", sa.Text().with_variant(MEDIUMTEXT, "mysql"), nullable=False),
    # What the statement answered, as JSON, if it asked about tables; NULL if it changed one.
    sa.Column("answer", sa.Text().with_variant(LONGTEXT, "mysql")),
    sa.Column("done", sa.Boolean, nullable=False),
)


def sign_in() -> None:
    """Make every connection of this process sign in as DATABASE_SSLMODE and DATABASE_SSLROOTCERT say."""
    mode = os.environ.get("DATABASE_SSLMODE") or "prefer"
    context: ssl.SSLContext | None = None
    if mode in TLS_ONLY:
        # An SSLContext of one's own begins with no authority at all: not even the world's.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = mode == "verify-full"
        if mode in VERIFYING:
            context.load_verify_locations(os.environ.get("DATABASE_SSLROOTCERT") or RDS_CA)
        else:
            context.verify_mode = ssl.CERT_NONE

    def change(_dialect: Any, parameters: dict[str, Any]) -> None:
        parameters["connect_timeout"] = 5
        if context:
            parameters["ssl"] = context

    before_connecting(change)


def check_charset(connection: Connection) -> None:
    """Raise DatabaseError if the database is not utf8mb4: a late migration of MLflow's would fail half way."""
    charset = value(connection, "SELECT @@character_set_database")
    if charset != "utf8mb4":
        raise DatabaseError(
            f"The database's character set is {charset}, but MLflow needs utf8mb4; nothing was changed. Run ALTER "
            "DATABASE ... CHARACTER SET utf8mb4, and ALTER TABLE ... CONVERT TO CHARACTER SET utf8mb4 for tables that "
            "are there already, and start again."
        )


@contextmanager
def scratch(connection: Connection) -> Iterator[Connection]:
    """A connection, in a transaction, to an empty database that is dropped afterwards."""
    url = connection.engine.url
    name = f"{url.database}_plan"
    quoted = connection.dialect.identifier_preparer.quote_identifier(name)
    drop = f"DROP DATABASE IF EXISTS {quoted}"
    _only_ours(connection, name)
    value(connection, drop)
    value(connection, f"CREATE DATABASE {quoted} CHARACTER SET utf8mb4")
    engine = sa.create_engine(url.set(database=name), poolclass=NullPool)
    try:
        with engine.connect() as other, other.begin():
            other.exec_driver_sql(f"CREATE TABLE {MARK} (made INTEGER)")
            yield other
    finally:
        value(connection, drop)


def _only_ours(connection: Connection, name: str) -> None:
    """Raise DatabaseError if there is a database of that name that a plan did not leave."""
    with connection.begin():
        query = sa.text("SELECT table_name FROM information_schema.tables WHERE table_schema = :name")
        tables = set(connection.execute(query, {"name": name}).scalars())
    if tables and MARK not in tables:
        raise DatabaseError(
            f"Migrations are tried out in a database {name}, but there is one already, with tables in it that nobody "
            "may lose: rename it, and start again. Nothing was changed."
        )


@contextmanager
def journalled(connection: Connection, revision: str) -> Iterator[None]:
    """Write down what a migration does on this connection, or carry on with what was written down before."""
    with connection.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as book:
        journal = _Journal(connection, book, revision)
        for name in ("do_execute", "do_execute_no_params", "do_executemany"):
            sa.event.listen(connection.engine, name, getattr(journal, name))
        try:
            yield
        finally:
            for name in ("do_execute", "do_execute_no_params", "do_executemany"):
                sa.event.remove(connection.engine, name, getattr(journal, name))


def make_journal(connection: Connection) -> None:
    JOURNAL.create(connection, checkfirst=True)


def clear(connection: Connection) -> None:
    """Empty the journal, in the transaction that stamps the migration's revision."""
    connection.execute(JOURNAL.delete())


class _Journal:
    """Stands between a migration and the driver. Everything it needs itself goes over a connection of its own."""

    def __init__(self, connection: Connection, book: Connection, revision: str) -> None:
        self.watched = connection.connection.dbapi_connection
        self.book = book
        self.revision = revision
        rows = book.execute(
            sa.select(JOURNAL).where(JOURNAL.c.revision == revision).order_by(JOURNAL.c.position)
        ).all()
        changes = [number for number, row in enumerate(rows) if row.answer is None and row.done]
        self.played = rows[: changes[-1] + 1] if changes else []
        # The one that had begun is done or not: each of them is atomic, but nobody was there to see.
        self.doubtful = next((row.statement for row in rows[len(self.played) :] if row.answer is None), None)
        self.position = 0
        book.execute(
            JOURNAL.delete().where(JOURNAL.c.revision == revision, JOURNAL.c.position >= len(self.played))
        )

    # SQLAlchemy's events of the driver's three ways to execute. True means that it is done.

    def do_execute(self, cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
        return self._execute(cursor, statement, parameters, context)

    def do_execute_no_params(self, cursor: Any, statement: str, context: Any) -> bool:
        return self._execute(cursor, statement, None, context)

    def do_executemany(self, cursor: Any, statement: str, _parameters: Any, _context: Any) -> bool:
        return cursor.connection is self.watched and self.position < len(self.played)

    def _execute(self, cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
        if cursor.connection is not self.watched or "alembic_version" in statement:
            return False
        playing = self.position < len(self.played)
        if _CHANGES.match(statement):
            self._play(statement) if playing else self._change(cursor, statement, parameters)
            return True
        if _ASKS.match(statement):
            answer = self._play(statement) if playing else self._ask(cursor, statement, parameters)
            _answer(cursor, json.loads(answer))
            return True
        if playing and statement.lstrip().upper().startswith("SELECT"):
            # Whatever was done with these rows is done, and their columns may be gone.
            names = (
                [entry[0] for entry in context.compiled._result_columns] if context.compiled else ["nothing"]
            )
            nulls = ", ".join(f"NULL AS `{name}`" for name in names)
            cursor.execute(f"SELECT {nulls} FROM DUAL WHERE 1 = 0")  # noqa: S608  columns of the statement
        return playing

    def _play(self, statement: str) -> str:
        row = self.played[self.position]
        if row.statement != statement:
            raise DatabaseError(
                f"Migration {self.revision} was cut off, and cannot be carried on: it does something else now "
                f"({_short(statement)}) than then ({_short(row.statement)}). Start it with the image that began it, or "
                "restore the snapshot taken before it."
            )
        self.position += 1
        return row.answer or ""

    def _change(self, cursor: Any, statement: str, parameters: Any) -> None:
        number = self._write(statement, None, False)
        try:
            cursor.execute(statement, parameters)
        except Exception as error:
            if statement != self.doubtful or error.args[0] not in DONE_BEFORE:
                raise
        self.doubtful = None
        self.book.execute(JOURNAL.update().where(number).values(done=True))

    def _ask(self, cursor: Any, statement: str, parameters: Any) -> str:
        try:
            cursor.execute(statement, parameters)
            names = [column[0] for column in cursor.description]
            answer = json.dumps({"names": names, "rows": cursor.fetchall()}, default=_text)
        except Exception as error:
            if not error.args or not isinstance(error.args[0], int):
                raise
            answer = json.dumps({"error": error.args})
        self._write(statement, answer, True)
        return answer

    def _write(self, statement: str, answer: str | None, done: bool) -> Any:
        self.book.execute(
            JOURNAL.insert().values(
                revision=self.revision,
                position=self.position,
                statement=statement,
                answer=answer,
                done=done,
            )
        )
        self.position += 1
        return sa.and_(JOURNAL.c.revision == self.revision, JOURNAL.c.position == self.position - 1)


_CHANGES = re.compile(r"\s*(CREATE|ALTER|DROP|RENAME|TRUNCATE)\b", re.IGNORECASE)
_ASKS = re.compile(r"\s*(SHOW|DESCRIBE)\b|\s*SELECT\b.*\binformation_schema\b", re.IGNORECASE | re.DOTALL)


def _answer(cursor: Any, answer: dict[str, Any]) -> None:
    """Make the cursor hold the answer, as if the server had just given it."""
    if "error" in answer:
        raise cursor.connection.ProgrammingError(*answer["error"])
    names = ", ".join(f"%s AS `{name}`" for name in answer["names"])
    rows = answer["rows"]
    if not rows:
        nulls = ", ".join(f"NULL AS `{name}`" for name in answer["names"])
        cursor.execute(f"SELECT {nulls} FROM DUAL WHERE 1 = 0")  # noqa: S608  columns as the server named them
        return
    marks = ", ".join("%s" for _ in answer["names"])
    query = f"SELECT {names}" + f" UNION ALL SELECT {marks}" * (len(rows) - 1)
    cursor.execute(query, [told for row in rows for told in row])


def _text(told: object) -> object:
    return told.decode() if isinstance(told, bytes) else str(told)


def _short(statement: str) -> str:
    return " ".join(statement.split())[:100]
