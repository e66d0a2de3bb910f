"""Sessions without what surrounds them: what they still notice, and what they must not lose."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.dbmodels.models import SqlExperiment
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from psycopg.pq import TransactionStatus

from . import test_image_entrypoint as image
from .test_image_entrypoint import IMAGE, PASSWORD, Postgres, wait_until

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


def test_a_connection_is_asked_when_it_was_idle_or_closed(
    store: SqlAlchemyStore, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    dialect: Any = store.engine.dialect
    ask = dialect.do_ping

    def do_ping(connection: Any) -> bool:
        asked.append(True)
        return bool(ask(connection))

    def search() -> int:
        asked.clear()
        store.search_experiments(ViewType.ALL)
        return len(asked)

    dialect.do_ping = do_ping
    search()
    assert search() == 1, "MLflow asks no more, or not each time"
    speed_database.look_first(store.engine)
    search()
    assert search() == 0
    theirs = "FROM pg_stat_activity WHERE datname = 'sessions'"
    with postgres.connect() as other:
        other.execute(f"SELECT pg_terminate_backend(pid) {theirs}")
        wait_until(
            lambda: other.execute(f"SELECT 1 {theirs}").fetchone() is None, 30, "ending the connections"
        )
    assert search() > 0, "a connection that the server had closed was used"
    assert search() == 0
    monkeypatch.setattr(speed_database, "MOMENT_SECONDS", 0.0)
    assert search() > 0


def test_a_restarted_database_fails_no_request(store: SqlAlchemyStore, postgres: Postgres) -> None:
    speed_database.read_without_transaction(store)
    speed_database.look_first(store.engine)
    store.search_experiments(ViewType.ALL)
    postgres.stop()
    postgres.start()
    assert store.search_experiments(ViewType.ALL)
    with sa.orm.Session(store.engine) as session:
        assert session.execute(sa.text("SELECT 1")).scalar() == 1
