"""Batches that are written in one statement leave what MLflow's own code leaves, and fail as it does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import ModuleType
from typing import Any

import pytest
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy import event, text

from . import test_image_entrypoint as image
from .test_image_entrypoint import IMAGE, PASSWORD, Postgres

sys.path.insert(0, str(IMAGE))

import speed_writes

postgres, s3, start, template = image.postgres, image.s3, image.start, image.template  # fixtures

TABLES = ("runs", "metrics", "latest_metrics", "params", "tags")
NAN, INF = float("nan"), float("inf")
FULL = (
    [Metric("loss", 1.5, 10, 1), Metric("loss", 0.5, 10, 2), Metric("ü/acc", 0.25, 10, 0)],
    [Param("rate", "0.1"), Param("name", "ü" * 300)],
    [RunTag("a", "1"), RunTag("a", "2"), RunTag("b", "")],
)


def metrics(*rows: tuple[float, int, int]) -> tuple[list[Metric], list[Param], list[RunTag]]:
    return [Metric("loss", *row) for row in rows], [], []


# What is logged to one run, batch after batch.
CASES: dict[str, list[tuple[list[Metric], list[Param], list[RunTag]]]] = {
    "a bit of all": [FULL],
    "the same again": [FULL, FULL],
    "nothing": [([], [], [])],
    "only params": [([], [Param("a", "1")], []), ([], [Param("b", "2"), Param("a", "1")], [])],
    "another param": [FULL, ([Metric("more", 1, 1, 1)], [Param("c", "1"), Param("rate", "2")], [RunTag("c", "1")])],
    "the same param twice": [([], [Param("a", "1"), Param("a", "1")], [])],
    "other tags": [FULL, ([], [], [RunTag("b", "3"), RunTag("c", "4")])],
    "a run's name": [([Metric("m", 1, 1, 1)], [], [RunTag("mlflow.runName", "new"), RunTag("c", "4")])],
    "odd numbers": [metrics((NAN, 1, 1), (INF, 1, 2), (-INF, 1, 3), (-0.0, 1, 4), (0.0, 1, 4), (1e-320, 1, 5))],
    "nan and zero": [metrics((NAN, 1, 1)), metrics((0.0, 1, 1)), metrics((NAN, 1, 2), (0, 1, 2), (NAN, 1, 2))],
    "zero after nan": [metrics((NAN, 1, 1)), metrics((0.0, 1, 1))],
    "infinity is the largest": [metrics((INF, 1, 1), (1.7976931348623157e308, 1, 1))],
    "twice in a batch": [metrics((1, 1, 1), (1, 1, 1), (2, 1, 1))],
    "older after newer": [metrics((1, 5, 5)), metrics((9, 9, 4)), metrics((9, 4, 5)), metrics((0, 5, 5))],
    "newer after older": [metrics((1, 5, 5)), metrics((1, 5, 6), (3, 6, 6), (2, 6, 6))],
    "partly there": [metrics((1, 1, 1), (2, 2, 2)), metrics((1, 1, 1), (3, 3, 3), (0, 0, 0))],
    "negative steps": [metrics((1, 1, -5)), metrics((1, 1, -6))],
    "a key that is too long": [([Metric("k" * 300, 1, 1, 1)], [Param("a", "1")], [])],
    "a null character": [([Metric("m", 1, 1, 1)], [Param("a", "x\0y")], [RunTag("t", "1")])],
    "half a character": [([Metric("m", 1, 1, 1)], [Param("a", "\ud800")], [RunTag("t", "1")])],
    "a step too far": [([Metric("m", 1, 1, 2**63)], [Param("a", "1")], [RunTag("t", "1")])],
    "no number": [([Metric("m", "1", 1, 1)], [Param("a", "1")], [])],
    "a time before all": [([Metric("m", 1, -1, 1)], [], [])],
    "no value": [([], [], [RunTag("t", None)])],
    "too many": [([], [Param(str(number), "") for number in range(101)], [])],
    "a thousand": [([Metric(f"m{number % 700}", number, 1, number) for number in range(1000)], [], [])],
    "a model's": [([Metric("m", 1, 1, 1, model_id="m-none"), Metric("n", 1, 1, 1)], [Param("a", "1")], [])],
}  # fmt: skip


@pytest.fixture(scope="module")
def store(postgres: Postgres, template: str) -> Iterator[SqlAlchemyStore]:
    name = postgres.create("writes", template)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGPASSWORD", PASSWORD)
        store = SqlAlchemyStore(
            f"postgresql+psycopg://postgres@127.0.0.1:{postgres.port}/{name}", "mlflow-artifacts:/"
        )
        yield store
        store.engine.dispose()


def until_the_end(monkeypatch: pytest.MonkeyPatch, change: ModuleType, *methods: str) -> Callable[[], None]:
    """What puts a change of these methods of the store in place, until the test ends."""
    stock = {name: getattr(SqlAlchemyStore, name) for name in methods}

    def apply() -> None:
        for name, method in stock.items():  # so that they are put back
            monkeypatch.setattr(SqlAlchemyStore, name, method)
        change.apply()

    return apply


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return until_the_end(monkeypatch, speed_writes, "log_batch", "_log_metrics_once")


@pytest.fixture
def statements(store: SqlAlchemyStore) -> Iterator[list[str]]:
    """Every statement that is sent."""
    sent: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    event.listen(store.engine, "before_cursor_execute", note)
    yield sent
    event.remove(store.engine, "before_cursor_execute", note)


def create(store: SqlAlchemyStore) -> str:
    return str(store.create_run("0", "somebody", 1, [], "a run").info.run_id)


def outcome(store: SqlAlchemyStore, run: str, write: Callable[[], None]) -> tuple[str, ...]:
    """What a client is told, without the run's name."""
    try:
        write()
    except MlflowException as error:
        # SQLAlchemy's own text, which the image withholds, shows the statement.
        told = str(error).replace(run, "RUN").partition("[SQL")[0]
        return error.error_code, told.partition("DETAIL")[0].partition("CONTEXT")[0]
    return ("written",)


def rows(store: SqlAlchemyStore, run: str) -> dict[str, list[Any]]:
    with store.engine.connect() as connection:
        found = {}
        for table in TABLES:
            query = f"SELECT to_jsonb(t) - 'run_uuid' - 'artifact_uri' FROM {table} t WHERE run_uuid = :run"
            found[table] = sorted(map(str, connection.execute(text(query), {"run": run}).scalars()))
    return found


@pytest.mark.parametrize("case", CASES)
def test_a_batch_leaves_what_mlflow_leaves(
    store: SqlAlchemyStore, fast: Callable[[], None], case: str
) -> None:
    results = []
    for run in (create(store), create(store)):
        told = [outcome(store, run, partial(store.log_batch, run, *batch)) for batch in CASES[case]]
        results.append((told, rows(store, run)))
        fast()
    assert results[1] == results[0]


@pytest.mark.parametrize(
    "metric", [Metric("m", 1, 1, 1), Metric("m", NAN, 1, 2), Metric("m", 1, -1, 1)], ids=str
)
def test_a_metric_leaves_what_mlflow_leaves(
    store: SqlAlchemyStore, fast: Callable[[], None], metric: Metric
) -> None:
    results = []
    for run in (create(store), create(store)):
        told = [outcome(store, run, partial(store.log_metric, run, metric)) for _ in range(2)]
        results.append((told, rows(store, run)))
        fast()
    assert results[1] == results[0]


def test_no_run_and_a_deleted_one_are_refused_alike(store: SqlAlchemyStore, fast: Callable[[], None]) -> None:
    deleted = create(store)
    store.delete_run(deleted)
    results = []
    for _ in range(2):
        for run in (deleted, "0" * 32, "", "no id!"):
            results.append(outcome(store, run, partial(store.log_batch, run, *FULL)))
            results.append(outcome(store, run, partial(store.log_metric, run, FULL[0][0])))
        results.append(tuple(map(str, rows(store, deleted).items())))
        fast()
    half = len(results) // 2
    assert results[:half] == results[half:]
    assert "written" not in str(results)


def test_one_statement_does_it(
    store: SqlAlchemyStore, fast: Callable[[], None], statements: list[str]
) -> None:
    run = create(store)
    statements.clear()
    store.log_batch(run, *FULL)
    assert len(statements) > 8, "MLflow has changed: its own way may do by now"
    fast()
    run = create(store)
    statements.clear()
    store.log_batch(run, *FULL)
    store.log_metric(run, Metric("loss", 3, 3, 3))
    assert len(statements) == 2


def test_many_at_once_lose_nothing(store: SqlAlchemyStore, fast: Callable[[], None]) -> None:
    fast()
    run = create(store)

    def log(number: int) -> None:
        names = [f"m{key}" for key in range(8)]
        some = [Metric(name, number, number, number) for name in (names if number % 2 else reversed(names))]
        store.log_batch(run, some, [Param("same", "1"), Param(f"p{number}", "")], [RunTag("t", str(number))])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(log, range(80)))
    found = store.get_run(run).data
    assert found.metrics == {f"m{key}": 79.0 for key in range(8)}
    assert len(found.params) == 81
    assert len(store.get_metric_history(run, "m3")) == 80


def test_a_store_that_is_not_meant_is_left_to_mlflow() -> None:
    class Other:
        db_type = "mysql"
        _get_query = SqlAlchemyStore._get_query

    class Workspace:
        db_type = "postgresql"

        def _get_query(self) -> None: ...

    assert not speed_writes.fits(Other())
    assert not speed_writes.fits(Workspace())
