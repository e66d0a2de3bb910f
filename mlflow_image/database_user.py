"""The server's own database user: made, given its password, and given the database, before anything is migrated.

Who sets up may make users, as RDS's master user may, and does nothing else. The server's user owns its tables or has every
right to them, and none beyond its database: it makes no users and no databases, and sees no other one.

Where it signs in by IAM, it is a second user, who acts as the first: on PostgreSQL, RDS refuses the password of everybody
who may use a token, and tasks of the release before still sign in with theirs, as do those of a release that goes back.

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

TOKENS = "rds_iam"
"""RDS's role whose members sign in with a token, and with nothing else."""

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


def ensure(setup: Database, own: Database, owner: str) -> None:
    """Make `own.user` if it is missing, with the password of its secret or none, and give it, or `owner`, the database.

    Raises DatabaseError when `setup.user` lacks the rights for that, or a table stays in use.
    """
    with connect(setup) as connection, migration_lock(connection):
        try:
            if connection.dialect.name == "mysql":
                _on_mysql(connection, own)
            else:
                _on_postgresql(connection, own, owner)
                if own.by_token:
                    _let_in_by_token(connection, setup, own, owner)
        except DBAPIError as error:
            raise DatabaseError(
                f"The user {own.user} could not be set up by {setup.user} ({explain(error)}): DATABASE_SETUP_USER must be "
                "one that may make users and owns the database's tables, as RDS's master user does. The schema is as it was."
            ) from None


def _on_postgresql(connection: Connection, own: Database, owner: str) -> None:
    quote = connection.dialect.identifier_preparer.quote_identifier
    user, name = quote(owner), quote(own.name)
    missing = not _is_known(connection, owner)
    if missing:
        allowed = "NOLOGIN" if own.by_token else f"LOGIN PASSWORD '{_verifier(connection, own)}'"
        _run(connection, f"CREATE ROLE {user} {allowed}")
        say(f"Made the database user {owner}.")
    for grant in (
        # A release from before this user existed signs in as who sets up, and must find its way back.
        f"GRANT {user} TO CURRENT_USER",
        f"GRANT CONNECT, CREATE, TEMPORARY ON DATABASE {name} TO {user}",
        f"GRANT USAGE, CREATE ON SCHEMA {_schema(connection)} TO {user}",
    ):
        _run(connection, grant)
    if not missing and not own.by_token and not _signs_in(own):
        _run(connection, f"ALTER ROLE {user} LOGIN PASSWORD '{_verifier(connection, own)}'")
        say(f"Gave the database user {own.user} the password of its secret.")
    with connection.begin():
        handed_over = connection.exec_driver_sql(NOT_YET_OWN).all()
    for kind, thing in handed_over:
        _patiently(connection, f"ALTER {kind} {thing} OWNER TO {user}", thing)
    if handed_over:
        say(f"{len(handed_over)} tables, views and functions belong to {owner} now.")


def _let_in_by_token(connection: Connection, setup: Database, own: Database, owner: str) -> None:
    """Make `own.user`, who is `owner` as soon as it has signed in."""
    quote = connection.dialect.identifier_preparer.quote_identifier
    user = quote(own.user)
    if not _is_known(connection, TOKENS):
        raise DatabaseError(
            f"The server has no role {TOKENS}, which lets users sign in by IAM: give DATABASE_HOST of RDS or Aurora, or "
            "DATABASE_SIGN_IN=password."
        )
    missing = not _is_known(connection, own.user)
    with connection.begin():
        if missing:
            connection.exec_driver_sql(f"CREATE ROLE {user} LOGIN")
        connection.exec_driver_sql(f"GRANT {quote(owner)} TO {user}")
        connection.exec_driver_sql(f"ALTER ROLE {user} SET role TO {quote(owner)}")
        connection.exec_driver_sql(f"GRANT {TOKENS} TO {user}")
    if not missing:
        return
    # Whoever makes a role is a member of it from PostgreSQL 16 on, if only to administer it. RDS must not count that, or
    # nobody could follow its manual; were the master refused from now on, no migration could ever mend it.
    if not _signs_in(setup):
        _run(connection, f"DROP ROLE {user}")
        raise DatabaseError(
            f"When {own.user} was let in by IAM, the server began to refuse the password of {setup.user}, who made it, so "
            f"{own.user} was dropped again: give DATABASE_SIGN_IN=password, and report this with the server's version."
        )
    say(f"Made the database user {own.user}, who signs in by IAM.")


def _is_known(connection: Connection, role: str) -> bool:
    with connection.begin():
        found = connection.execute(sa.text("SELECT 1 FROM pg_roles WHERE rolname = :role"), {"role": role})
        return found.first() is not None


def _on_mysql(connection: Connection, own: Database) -> None:
    with connection.begin():
        known = connection.exec_driver_sql(
            "SELECT 1 FROM mysql.user WHERE User = %s AND Host = '%%'", (own.user,)
        )
        missing = known.first() is None
    if missing:
        if own.by_token:
            _run(connection, "CREATE USER %s@'%%' IDENTIFIED WITH AWSAuthenticationPlugin AS 'RDS'", own.user)
        else:
            _run(connection, "CREATE USER %s@'%%' IDENTIFIED BY %s", own.user, _own_password())
        say(f"Made the database user {own.user}.")
    for database in (own.name, f"{own.name}_plan"):
        # In a grant these two stand for any character, and for any number of them.
        exactly = database.replace("`", "``").replace("_", r"\_").replace("%", r"\%%")
        _run(connection, f"GRANT {MYSQL_RIGHTS} ON `{exactly}`.* TO %s@'%%'", own.user)
    if not missing and not own.by_token and not _signs_in(own):
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


def _signs_in(user: Database) -> bool:
    """Whether the password, or the one it was just rotated to, is the user's."""
    deadline = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            engine_for(user).connect().close()
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
