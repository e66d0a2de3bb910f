"""Asks PostgreSQL what has to be asked, and nothing around it.

MLflow has each session begin with a question that only shows that the connection lives, then BEGIN, and end with COMMIT:
three exchanges around the one that finds a run, and five sessions for one batch of metrics.

A connection that was used a moment ago is looked at instead: one that the server has closed can be read from. And a session
that MLflow itself marks as reading has no transaction. In PostgreSQL's READ COMMITTED, which MLflow uses, each statement
sees what was committed before it, in a transaction or not.
"""

import select
import time
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.orm import sessionmaker

MOMENT_SECONDS = 1.0
"""A database that vanished without closing its connections is noticed by the question, so an idle one is still asked."""
RETURNED = "platform_returned_at"


def apply() -> None:
    from mlflow.server.handlers import _get_model_registry_store, _get_tracking_store

    for store in (_get_tracking_store(), _get_model_registry_store()):
        if store.db_type == "postgresql":
            look_first(store.engine)
            read_without_transaction(store)


def look_first(engine: Engine) -> None:
    """Let the engine's pool ask only a connection that was idle for MOMENT_SECONDS, or has something to say."""
    dialect: Any = engine.dialect
    ask = dialect.do_ping

    def do_ping(connection: Any) -> bool:
        idle = time.monotonic() - getattr(connection, RETURNED, 0.0)
        return (idle < MOMENT_SECONDS and not _says_something(connection)) or ask(connection)

    def returned(connection: Any, _record: Any) -> None:
        if connection is not None:  # it broke
            setattr(connection, RETURNED, time.monotonic())

    dialect.do_ping = do_ping
    event.listen(engine, "checkin", returned)


def read_without_transaction(store: Any) -> None:
    """Give the store the two kinds of sessions that it has where reads go to a replica; here both go to the one database."""
    from mlflow.store.db import utils

    reading = store.engine.execution_options(isolation_level="AUTOCOMMIT")
    store.ManagedSessionMaker = utils._get_routing_session_maker(
        sessionmaker(bind=store.engine), sessionmaker(bind=reading), store.db_type
    )


def _says_something(connection: Any) -> bool:
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))
