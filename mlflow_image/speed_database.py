"""Reads from PostgreSQL without a transaction around it.

MLflow has each session begin with BEGIN and end with COMMIT: two exchanges around the one that finds a run. A session that
MLflow itself marks as reading needs neither. In PostgreSQL's READ COMMITTED, which MLflow uses, each statement sees what was
committed before it, in a transaction or not.
"""

from typing import Any

from sqlalchemy.orm import sessionmaker


def apply() -> None:
    from mlflow.server.handlers import _get_model_registry_store, _get_tracking_store

    for store in (_get_tracking_store(), _get_model_registry_store()):
        if store.db_type == "postgresql":
            read_without_transaction(store)


def read_without_transaction(store: Any) -> None:
    """Give the store the two kinds of sessions that it has where reads go to a replica; here both go to the one database."""
    from mlflow.store.db import utils

    reading = store.engine.execution_options(isolation_level="AUTOCOMMIT")
    store.ManagedSessionMaker = utils._get_routing_session_maker(
        sessionmaker(bind=store.engine), sessionmaker(bind=reading), store.db_type
    )
