"""The server's own database user: made, given its password, and given the database, before anything is migrated.

Who sets up may make users, as RDS's master user may, and does nothing else. The server's user owns its tables or has every
right to them, and none beyond its database: it makes no users and no databases, and sees no other one.

Everything here can be done again, and each `migrate` does it: after a restore the user has the password of then, and after
a release that signed in as the master user some tables are the master's.
"""

import os
import time

import rotation
import sqlalchemy as sa
import withheld
from botocore.exceptions import BotoCoreError, ClientError
from database import CONNECT_SECONDS, DatabaseError, codes, connect, engine_for, explain, migration_lock, say
from settings import Database
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

# Another owner takes a table's strongest lock, for a moment. Every request would wait behind one that waits, so it
# gives up soon and tries again.
LOCK_SECONDS = 5
LOCK_TRIES = 60

# What is not the user's yet: tables with their sequences, views, functions, types. An extension keeps what it made, and a
# sequence that belongs to a column goes with its table.
NOT_YET_OWN = """
SELECT kind, name FROM (
    SELECT 'TABLE' AS kind, oid, 'pg_class'::regclass AS catalog, oid::regclass::text AS name FROM pg_class
        WHERE relnamespace = current_schema()::regnamespace AND relowner = current_user::regrole
        AND relkind IN ('r', 'p', 'v', 'm', 'S')
    UNION ALL
    SELECT 'ROUTINE', oid, 'pg_proc'::regclass, oid::regprocedure::text FROM pg_proc
        WHERE pronamespace = current_schema()::regnamespace AND proowner = current_user::regrole
    UNION ALL
    SELECT 'TYPE', oid, 'pg_type'::regclass, oid::regtype::text FROM pg_type
        WHERE typnamespace = current_schema()::regnamespace AND typowner = current_user::regrole
        AND typtype IN ('e', 'd')
) AS found
WHERE NOT EXISTS (
    SELECT 1 FROM pg_depend WHERE classid = catalog AND objid = oid AND (
        deptype = 'e' OR deptype IN ('a', 'i') AND refclassid = 'pg_class'::regclass AND refobjsubid > 0
    )
)
ORDER BY kind, name
"""

# MySQL knows no owners. `migrate` tries migrations out in a database of its own, whose name ends in _plan.
MYSQL_RIGHTS = (
    "SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, DROP, INDEX, REFERENCES, TRIGGER, LOCK TABLES, "
    "CREATE TEMPORARY TABLES"
)


def ensure(setup: Database, own: Database) -> None:
    """Make `own.user` if it is missing, with the password of its secret, and give it the database.

    Raises DatabaseError when `setup.user` lacks the rights for that, or a table stays in use.
    """
    with connect(setup) as connection, migration_lock(connection):
        try:
            if connection.dialect.name == "mysql":
                _on_mysql(connection, own)
            else:
                _on_postgresql(connection, own)
        except DBAPIError as error:
            raise DatabaseError(
                f"The user {own.user} could not be set up by {setup.user} ({explain(error)}): DATABASE_SETUP_USER must be "
                "one that may make users and owns the database's tables, as RDS's master user does. The schema is as it was."
            ) from None


def _on_postgresql(connection: Connection, own: Database) -> None:
    quote = connection.dialect.identifier_preparer.quote_identifier
    user, name = quote(own.user), quote(own.name)
    with connection.begin():
        known = connection.execute(
            sa.text("SELECT 1 FROM pg_roles WHERE rolname = :user"), {"user": own.user}
        )
        missing = known.first() is None
    if missing:
        _run(connection, f"CREATE ROLE {user} LOGIN PASSWORD '{_verifier(connection, own)}'")
        say(f"Made the database user {own.user}.")
    for grant in (
        # A release from before this user existed signs in as who sets up, and must find its way back.
        f"GRANT {user} TO CURRENT_USER",
        f"GRANT CONNECT, CREATE, TEMPORARY ON DATABASE {name} TO {user}",
        f"GRANT USAGE, CREATE ON SCHEMA {_schema(connection)} TO {user}",
    ):
        _run(connection, grant)
    if not missing and not _signs_in(own):
        _run(connection, f"ALTER ROLE {user} LOGIN PASSWORD '{_verifier(connection, own)}'")
        say(f"Gave the database user {own.user} the password of its secret.")
    with connection.begin():
        handed_over = connection.exec_driver_sql(NOT_YET_OWN).all()
    for kind, thing in handed_over:
        _patiently(connection, f"ALTER {kind} {thing} OWNER TO {user}", thing)
    if handed_over:
        say(f"{len(handed_over)} tables, views and functions belong to {own.user} now.")


def _on_mysql(connection: Connection, own: Database) -> None:
    with connection.begin():
        known = connection.exec_driver_sql(
            "SELECT 1 FROM mysql.user WHERE User = %s AND Host = '%%'", (own.user,)
        )
        missing = known.first() is None
    if missing:
        _run(connection, "CREATE USER %s@'%%' IDENTIFIED BY %s", own.user, _own_password())
        say(f"Made the database user {own.user}.")
    for database in (own.name, f"{own.name}_plan"):
        # In a grant these two stand for any character, and for any number of them.
        exactly = database.replace("`", "``").replace("_", r"\_").replace("%", r"\%%")
        _run(connection, f"GRANT {MYSQL_RIGHTS} ON `{exactly}`.* TO %s@'%%'", own.user)
    if not missing and not _signs_in(own):
        _run(connection, "ALTER USER %s@'%%' IDENTIFIED BY %s", own.user, _own_password())
        say(f"Gave the database user {own.user} the password of its secret.")


def _own_password() -> str:
    """The secret's current one: this task may have been started with one that was rotated since."""
    if arn := os.environ.get("DATABASE_SECRET_ARN"):
        try:
            withheld.secrets["DATABASE_PASSWORD"] = rotation.Secret(arn).password()
        except (BotoCoreError, ClientError) as error:
            raise DatabaseError(
                f"The secret {arn} cannot be read ({error}): let the task's role call secretsmanager:GetSecretValue on "
                "it, and kms:Decrypt with its key."
            ) from None
    return withheld.secrets["DATABASE_PASSWORD"]


def _verifier(connection: Connection, own: Database) -> str:
    """What PostgreSQL stores of the password. It is made here, so that no log of the server's can show the password."""
    driver = connection.connection.dbapi_connection
    assert driver is not None
    made: bytes = driver.pgconn.encrypt_password(
        _own_password().encode(), own.user.encode(), b"scram-sha-256"
    )
    return made.decode()


def _signs_in(own: Database) -> bool:
    """Whether the password, or the one it was just rotated to, is the user's."""
    deadline = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            engine_for(own).connect().close()
            return True
        except DBAPIError as error:
            if rotation.is_refusal(error.orig):
                return False
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def _schema(connection: Connection) -> str:
    with connection.begin():
        found = connection.exec_driver_sql("SELECT current_schema()::regnamespace::text").scalar_one()
    return str(found)


def _run(connection: Connection, statement: str, *parameters: str) -> None:
    with connection.begin():
        connection.exec_driver_sql(statement, parameters or None)


def _patiently(connection: Connection, statement: str, what: str) -> None:
    for attempt in range(1, LOCK_TRIES + 1):
        try:
            with connection.begin():
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'")
                connection.exec_driver_sql(statement)
            return
        except DBAPIError as error:
            if "55P03" not in codes(error):  # not a lock that others hold
                raise
            say(f"Requests use {what}; they go first (try {attempt} of {LOCK_TRIES}).")
            time.sleep(min(attempt, LOCK_SECONDS))
    raise DatabaseError(
        f"{what} could not get its new owner in {LOCK_TRIES} tries, because a long query or an open transaction holds it: "
        "find it in pg_stat_activity, end it, and start again."
    )
