"""Sessions that read without a transaction: what they still notice, and what must not be lost."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.dbmodels.models import SqlExperiment
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from psycopg.pq import TransactionStatus

from . import test_image_entrypoint as image
from .test_image_entrypoint import IMAGE, PASSWORD, Postgres

sys.path.insert(0, str(IMAGE))

import speed_database

postgres, s3, start, template = image.postgres, image.s3, image.start, image.template  # fixtures


@pytest.fixture
def store(postgres: Postgres, template: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[SqlAlchemyStore]:
    name = postgres.create("sessions", template)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    store = SqlAlchemyStore(
        f"postgresql+psycopg://postgres@127.0.0.1:{postgres.port}/{name}", "mlflow-artifacts:/"
    )
    yield store
    store.engine.dispose()
    with postgres.connect() as connection:
        connection.execute("DROP DATABASE sessions WITH (FORCE)")


def in_transaction(session: Any) -> bool:
    """Whether the server has the session's connection in a transaction, after a question."""
    session.query(SqlExperiment).all()
    status = session.connection().connection.dbapi_connection.info.transaction_status
    return bool(status != TransactionStatus.IDLE)


def test_reading_takes_no_transaction_and_writing_does(store: SqlAlchemyStore) -> None:
    with store.ManagedSessionMaker() as session:
        assert in_transaction(session), "MLflow has changed: the routing may not be needed any more"
    speed_database.read_without_transaction(store)
    for _ in range(2):  # the same connection for both, so that neither leaves anything behind
        with store.ManagedSessionMaker() as session:
            assert not in_transaction(session)
        with store.ManagedSessionMaker(read_only=False) as session:
            assert in_transaction(session)


def test_what_fails_is_still_undone(store: SqlAlchemyStore) -> None:
    speed_database.read_without_transaction(store)
    experiment = store.create_experiment("kept")

    def fail() -> None:
        with store.ManagedSessionMaker(read_only=False) as session:
            session.query(SqlExperiment).filter_by(experiment_id=int(experiment)).update({"name": "lost"})
            session.flush()
            raise ValueError("as a handler may")

    with pytest.raises(MlflowException, match="as a handler may"):
        fail()
    assert store.get_experiment(experiment).name == "kept"


def test_a_restarted_database_fails_no_request(store: SqlAlchemyStore, postgres: Postgres) -> None:
    speed_database.read_without_transaction(store)
    store.search_experiments()
    postgres.stop()
    postgres.start()
    assert store.search_experiments()
