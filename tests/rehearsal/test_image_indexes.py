"""The indexes that `migrate` adds to MLflow's schema, on a real PostgreSQL."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
import sqlalchemy as sa
from mlflow.entities import ViewType
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from . import test_image_entrypoint as image
from .test_image_entrypoint import IMAGE, PASSWORD, Postgres, Start, patched

sys.path.insert(0, str(IMAGE))

import indexes

postgres, s3, start, template = image.postgres, image.s3, image.start, image.template  # fixtures

MADE, THERE = dict.fromkeys(indexes.INDEXES, "made"), dict.fromkeys(indexes.INDEXES, "there")
VALID = (
    "SELECT relname, indisvalid FROM pg_index JOIN pg_class ON oid = indexrelid "
    "WHERE relname ~ '^platform_(runs|metrics)_'"
)


def migrate(start: Start, name: str, assignments: str = "") -> Any:
    task = start(name, "migrate", command=patched(assignments, "migrate"))
    assert task.ends(180) == 0, task.output
    return json.loads(task.output.splitlines()[-1])["indexes"]


def drop(postgres: Postgres, name: str) -> None:
    with postgres.connect(name) as connection:
        for index in indexes.INDEXES:
            connection.execute(f"DROP INDEX {index}".encode())


def found(postgres: Postgres, name: str) -> dict[str, bool]:
    with postgres.connect(name) as connection:
        return dict(connection.execute(VALID.encode()).fetchall())


def test_a_schema_that_is_up_to_date_gets_what_it_lacks(
    postgres: Postgres, template: str, start: Start
) -> None:
    name = postgres.create("indexes_old", template)
    drop(postgres, name)
    assert migrate(start, name) == MADE
    assert migrate(start, name) == THERE
    assert found(postgres, name) == dict.fromkeys(indexes.INDEXES, True)


def test_one_whose_making_was_cut_off_is_made_anew(postgres: Postgres, template: str, start: Start) -> None:
    name = postgres.create("indexes_invalid", template)
    first, *others = indexes.INDEXES
    with postgres.connect(name) as connection:
        connection.execute(
            f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{first}'::regclass".encode()
        )
    assert found(postgres, name) == {first: False, **dict.fromkeys(others, True)}
    assert migrate(start, name) == {first: "made", **dict.fromkeys(others, "there")}
    assert found(postgres, name) == dict.fromkeys(indexes.INDEXES, True)


def test_a_long_transaction_does_not_stop_the_release(
    postgres: Postgres, template: str, start: Start
) -> None:
    name = postgres.create("indexes_busy", template)
    drop(postgres, name)
    with postgres.connect(name) as busy, busy.transaction():
        busy.execute("LOCK TABLE runs, latest_metrics IN ROW EXCLUSIVE MODE")
        told = migrate(start, name, "import indexes; indexes.WAIT_SECONDS = 1")
    assert all(state.startswith("not made: ") and "lock timeout" in state for state in told.values()), told
    assert migrate(start, name) == MADE
    assert found(postgres, name) == dict.fromkeys(indexes.INDEXES, True)


@pytest.mark.parametrize(
    ("order", "index"),
    [([], "platform_runs_newest_first"), (["attributes.start_time DESC"], "platform_runs_by_start_time")],
)
def test_mlflows_own_searches_use_them(
    order: list[str], index: str, postgres: Postgres, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this fails after an update of MLflow, its statement has changed, and the index has to follow it."""
    name = postgres.create(f"indexes_used_{len(order)}", template)
    with postgres.connect(name) as connection:
        connection.execute(
            "INSERT INTO runs (run_uuid, name, experiment_id, status, start_time, lifecycle_stage, source_type, "
            "source_name, entry_point_name, user_id, source_version) SELECT md5(n::text), 'r', 0, 'FINISHED', "
            "n * 7919 % 30000, 'active', 'LOCAL', '', '', '', '' FROM generate_series(1, 30000) n"
        )
        connection.execute("ANALYZE")
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    store = SqlAlchemyStore(
        f"postgresql+psycopg://postgres@127.0.0.1:{postgres.port}/{name}", "mlflow-artifacts:/"
    )
    statements: list[tuple[str, Any]] = []

    @sa.event.listens_for(store.engine, "before_cursor_execute")
    def hear(_connection: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        statements.append((statement, parameters))

    try:
        runs = store.search_runs(["0"], "", ViewType.ACTIVE_ONLY, 100, order)
        assert [run.info.start_time for run in runs] == list(range(29_999, 29_899, -1))
        [(statement, parameters)] = [
            each for each in statements if "FROM runs" in each[0] and "ORDER BY" in each[0]
        ]
        with store.engine.connect() as connection:
            plan = connection.exec_driver_sql(f"EXPLAIN {statement}", parameters).scalars().all()
    finally:
        store.engine.dispose()
    assert any(f"using {index}" in line for line in plan), "\n".join(plan)
