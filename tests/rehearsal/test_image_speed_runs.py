"""Runs that are read in one statement or two hold what MLflow's own code finds, their datasets and models too."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelInput,
    LoggedModelOutput,
    Metric,
    Param,
    RunTag,
    ViewType,
)
from mlflow.protos.service_pb2 import SearchRuns
from mlflow.store.tracking.dbmodels.models import SqlRun
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.utils.proto_json_utils import message_to_json
from sqlalchemy import event

from . import test_image_entrypoint as image
from .test_image_entrypoint import IMAGE, PASSWORD, Postgres

sys.path.insert(0, str(IMAGE))

import speed_order
import speed_runs
import speed_search

postgres, s3, start, template = image.postgres, image.s3, image.start, image.template  # fixtures


@pytest.fixture
def store(postgres: Postgres, template: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[SqlAlchemyStore]:
    name = postgres.create("runs", template)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    store = SqlAlchemyStore(
        f"postgresql+psycopg://postgres@127.0.0.1:{postgres.port}/{name}", "mlflow-artifacts:/"
    )
    # So that they are put back.
    monkeypatch.setattr(SqlRun, "to_mlflow_entity", SqlRun.to_mlflow_entity)
    for method in ("inputs", "model_inputs", "model_outputs", "model_outputs_bulk"):
        whole = f"_get_{'run_' if method == 'inputs' else ''}{method}"
        monkeypatch.setattr(SqlAlchemyStore, whole, getattr(SqlAlchemyStore, whole))
    monkeypatch.setattr(SqlAlchemyStore, "_search_runs", SqlAlchemyStore._search_runs)
    options = SqlAlchemyStore.__dict__["_get_eager_run_query_options"]
    monkeypatch.setattr(SqlAlchemyStore, "_get_eager_run_query_options", options)
    yield store
    store.engine.dispose()
    with postgres.connect() as connection:
        connection.execute("DROP DATABASE runs WITH (FORCE)")


def fill(store: SqlAlchemyStore) -> list[str]:
    """Runs with nothing, with a bit of all, and with one kind of link each."""
    runs = [str(store.create_run("0", "u", number, [], f"run {number}").info.run_id) for number in range(5)]
    for run in runs[1:]:
        metrics = [Metric(f"m{key}", value, 1, 1) for key, value in enumerate((1.5, float("nan"), -1e300))]
        store.log_batch(run, metrics, [Param("p", "ü"), Param("q", "")], [RunTag("t", "1")])
    model = store.create_logged_model("0").model_id
    dataset = DatasetInput(Dataset("set", "digest", "local", "{}"), [InputTag("a", "b")])
    store.log_inputs(runs[1], [dataset], [LoggedModelInput(model)])
    store.log_outputs(runs[1], [LoggedModelOutput(model, 3)])
    store.log_inputs(runs[2], [dataset])
    store.log_inputs(runs[3], [], [LoggedModelInput(model)])
    store.log_outputs(runs[4], [LoggedModelOutput(model, 0)])
    return runs


def read(store: SqlAlchemyStore, runs: list[str]) -> list[Any]:
    alone = [store.get_run(run).to_proto() for run in runs]
    pages = []
    for where in ("", "tags.t = '1'", "attributes.run_name = 'run 0'", "tags.t = 'none'"):
        page = store.search_runs(["0"], where, ViewType.ALL, 4, ["attributes.start_time"])
        pages.append(([run.to_proto() for run in page], page.token))
    return [alone, pages]


def test_runs_are_what_mlflow_finds(store: SqlAlchemyStore) -> None:
    runs = fill(store)
    expected = read(store, runs)
    for change in (speed_runs, speed_order):
        change.apply()
        assert str(read(store, runs)) == str(expected), change
    linked = [run.inputs.ByteSize() + run.outputs.ByteSize() > 0 for run in expected[0]]
    assert linked == [False, True, True, True, True]


def test_a_page_is_written_as_mlflow_writes_it(store: SqlAlchemyStore) -> None:
    """From rows, where nothing is linked and nobody has touched the entities, else from messages; to the byte."""
    runs = fill(store)
    bare = [
        str(store.create_run("0", "u", number, [], f"run {number}").info.run_id) for number in range(5, 8)
    ]
    store.log_batch(
        bare[0], [Metric("k: 1/2", float("-inf"), 0, -3)], [Param("p", 'ü\u2028"\\\n')], [RunTag("empty", "")]
    )
    with store.ManagedSessionMaker(read_only=False) as session:
        session.execute(sa.text("UPDATE runs SET name = '' WHERE run_uuid = :run"), {"run": bare[0]})
        session.execute(
            sa.text("INSERT INTO tags (run_uuid, key, value) VALUES (:run, 'no value', NULL)"),
            {"run": bare[0]},
        )
        session.execute(
            sa.text("UPDATE tags SET value = 'told' WHERE run_uuid = :run AND key = 'mlflow.runName'"),
            {"run": bare[1]},
        )
        session.execute(
            sa.text("UPDATE runs SET name = '', end_time = 9 WHERE run_uuid = :run"), {"run": bare[1]}
        )
    store.delete_run(bare[2])

    def pages() -> list[Any]:
        return [
            store.search_runs(["0"], where, ViewType.ALL, most, ["attributes.start_time"])
            for where, most in (("", 4), ("", 100), ("attributes.start_time >= 5", 2), ("tags.t = 'none'", 4))
        ]

    def stock(page: Any) -> str:
        told = SearchRuns.Response(runs=[run.to_proto() for run in page], next_page_token=page.token or None)
        return str(message_to_json(told))

    expected = [stock(page) for page in pages()]
    assert sum(run in text for run in runs + bare for text in expected) > 10
    for change in (speed_runs, speed_order):
        change.apply()
        found = pages()
        assert [speed_search.answer(page, page.token) for page in found] == expected, change
    for page in found:
        for run in page:
            run.data._add_tag(RunTag("later", "added"))
    changed = [speed_search.answer(page, page.token) for page in found]
    assert changed == [stock(page) for page in found] != expected


def test_no_message_is_made_of_a_metric(store: SqlAlchemyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Metric] = []
    own = Metric.to_proto

    def note(metric: Metric) -> Any:
        made.append(metric)
        return own(metric)

    monkeypatch.setattr(Metric, "to_proto", note)
    run = store.create_run("0", "u", 0, [], "run").info.run_id
    store.log_metric(run, Metric("m", 1.5, 1, 1))
    store.search_runs(["0"], "", ViewType.ALL, 4)[0].to_proto()
    assert made, "MLflow has changed: its own way may do by now"
    speed_runs.apply()
    made.clear()
    assert '"value": 1.5' in speed_search.answer(store.search_runs(["0"], "", ViewType.ALL, 4), None)
    assert not made


def test_two_statements_do_it(store: SqlAlchemyStore) -> None:
    sent: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    runs = fill(store)
    event.listen(store.engine, "before_cursor_execute", note)
    store.get_run(runs[0])
    assert len(sent) > 4, "MLflow has changed: its own way may do by now"
    speed_runs.apply()
    sent.clear()
    store.get_run(runs[0])
    assert len(sent) == 2
    sent.clear()
    store.search_runs(["0"], "attributes.run_name = 'run 0'", ViewType.ALL, 4)
    assert len(sent) == 2
