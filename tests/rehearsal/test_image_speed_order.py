"""Pages of runs that are found without sorting all of them are MLflow's own, page by page."""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from mlflow.entities import Dataset, DatasetInput, InputTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.dbmodels.models import SqlExperiment, SqlLatestMetric, SqlParam, SqlRun, SqlTag
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.utils.search_utils import SearchUtils
from sqlalchemy import event

from . import mariadb
from . import test_image_entrypoint as image
from .test_image_entrypoint import IMAGE, PASSWORD, Postgres

sys.path.insert(0, str(IMAGE))

import speed_order

postgres, s3, start, template = image.postgres, image.s3, image.start, image.template  # fixtures

RUNS = 600
LARGEST = 1.7976931348623157e308  # as MLflow keeps infinity
NAN, MISSING = float("nan"), float("inf")  # it keeps the one as 0 and a mark, and nothing of the other
VALUES = (0.0, 1.0, 1.0, 1.0, -1.5, 0.25, 1e-300, LARGEST, -LARGEST, NAN, MISSING)
ORDERS: tuple[list[str], ...] = (
    [],
    ["metrics.m DESC"],
    ["metrics.m"],
    ["metrics.m DESC", "metrics.o"],
    ["metrics.m ASC", "attributes.start_time ASC"],
    ["metrics.m DESC", "params.p", "tags.t DESC"],
    ["metrics.rare DESC"],
    ["metrics.none"],
    ["metrics.created DESC"],
    ["attributes.start_time"],
    ["tags.t", "metrics.m DESC"],
)
FILTERS = (
    "",
    "metrics.m > 0",
    "metrics.m != 1",
    "metrics.m = 1 and tags.t = 'a'",
    "metrics.m >= -1.5 and metrics.m < 1",
    "metrics.o > 0.5",
    "params.p IS NULL",
    "attributes.run_name LIKE '%1'",
    "dataset.name LIKE 'set%'",
)
ASKED = tuple(
    itertools.product(
        ORDERS, FILTERS, (["1"], ["1", "2"], ["3"]), (5, 40), (ViewType.ACTIVE_ONLY, ViewType.ALL)
    )
)

# Twenty thousand runs in the first experiment, in no order of their metric.
MANY = (
    "INSERT INTO runs (run_uuid, name, experiment_id, status, start_time, lifecycle_stage, source_type, source_name, "
    "entry_point_name, user_id, source_version) SELECT md5(n::text), 'r', 0, 'FINISHED', n, 'active', 'LOCAL', '', '', "
    "'', '' FROM generate_series(1, 20000) n",
    "INSERT INTO latest_metrics (run_uuid, key, value, is_nan, timestamp, step) "
    "SELECT md5(n::text), 'many', mod(n * 7919, 20011), false, 0, 0 FROM generate_series(1, 20000) n",
    "ANALYZE runs, latest_metrics",
)

Found = tuple[list[tuple[str, int]], bytes | None]


def opened(url: sa.URL) -> SqlAlchemyStore:
    store = SqlAlchemyStore(url.render_as_string(hide_password=False), "mlflow-artifacts:/")
    fill(store)
    return store


@pytest.fixture(scope="module")
def on_postgres(postgres: Postgres, template: str) -> Iterator[SqlAlchemyStore]:
    name = postgres.create("order", template)
    store = opened(
        sa.URL.create("postgresql+psycopg", "postgres", PASSWORD, "127.0.0.1", postgres.port, name)
    )
    yield store
    store.engine.dispose()


@pytest.fixture(scope="module")
def on_mariadb() -> Iterator[SqlAlchemyStore]:
    server = mariadb.MariaDB()
    try:
        with server.connect() as connection, connection.cursor() as cursor:
            cursor.execute("CREATE USER searcher@'%' IDENTIFIED BY 'plain'")
            cursor.execute("GRANT ALL ON *.* TO searcher@'%'")
        url = sa.URL.create(
            "mysql+pymysql", "searcher", "plain", "127.0.0.1", server.port, server.create("searched")
        )
        store = opened(url.update_query_dict({"charset": "utf8mb4", "ssl_check_hostname": "false"}))
        yield store
        store.engine.dispose()
    finally:
        server.stop()


@pytest.fixture(
    params=["on_postgres", pytest.param("on_mariadb", marks=[pytest.mark.mariadb, mariadb.NEEDS_MARIADB])]
)
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(
        SqlAlchemyStore, "_search_runs", SqlAlchemyStore._search_runs
    )  # so that it is put back
    return request.getfixturevalue(request.param)


def fill(store: SqlAlchemyStore) -> None:
    """Two experiments with runs of every kind, many of them equal in what they are ordered by, and one with few."""
    dice = random.Random(4)
    runs, metrics, params, tags = [], [], [], []
    for number in range(RUNS):
        run = f"{dice.getrandbits(128):032x}"
        runs.append(
            {
                "run_uuid": run,
                "name": f"run {number}",
                "experiment_id": 3 if number % 100 == 0 else 1 if number % 3 else 2,
                "status": "FINISHED",
                "source_type": "LOCAL",
                "start_time": dice.randrange(20),
                "lifecycle_stage": "deleted" if number % 9 == 0 else "active",
                **dict.fromkeys(("source_name", "entry_point_name", "user_id", "source_version"), ""),
                "artifact_uri": "",
            }
        )
        # The last one is called as MLflow calls a run's own time, which it takes "created" for.
        kept = {"m": dice.choice(VALUES), "o": dice.random(), "start_time": dice.randrange(5)}
        if number % 30 == 0:
            kept["rare"] = dice.choice([1.0, 2.0, NAN])
        metrics += [
            {
                "run_uuid": run,
                "key": key,
                "value": 0 if value is NAN else value,
                "is_nan": value is NAN,
                "timestamp": 0,
                "step": 0,
            }
            for key, value in kept.items()
            if value is not MISSING
        ]
        params += [{"run_uuid": run, "key": "p", "value": dice.choice("xyz")}] if number % 4 else []
        tags += [{"run_uuid": run, "key": "t", "value": dice.choice("abc")}] if number % 5 else []
        tags.append({"run_uuid": run, "key": "mlflow.runName", "value": f"run {number}"})
    with store.engine.begin() as connection:
        experiments = [
            {
                "experiment_id": number,
                "name": f"e{number}",
                "lifecycle_stage": "active",
                "artifact_location": "",
            }
            for number in (1, 2, 3)
        ]
        for table, rows in (
            (SqlExperiment, experiments),
            (SqlRun, runs),
            (SqlLatestMetric, metrics),
            (SqlParam, params),
            (SqlTag, tags),
        ):
            connection.execute(sa.insert(table.__table__), rows)
    for one in runs[1:40]:
        if one["lifecycle_stage"] == "active":  # two datasets that one filter finds
            sets = [
                DatasetInput(Dataset(f"set {n}", f"digest {n}", "local", "{}"), [InputTag("a", "b")])
                for n in (1, 2)
            ]
            store.log_inputs(one["run_uuid"], sets)


def pages(store: SqlAlchemyStore, asked: Any) -> list[Found]:
    """The first pages, and those from the middle and from after the end."""
    order, where, experiments, most, view = asked
    found: list[Found] = []
    tokens: list[Any] = [None]
    while tokens and len(found) < 3:
        runs, token = store._search_runs(experiments, where, view, most, order, tokens.pop())
        found.append(([(run.info.run_id, len(run.inputs.dataset_inputs)) for run in runs], token))
        tokens += [token] if token else []
    for offset in (200, 1000):
        runs, token = store._search_runs(
            experiments, where, view, most, order, SearchUtils.create_page_token(offset)
        )
        found.append(([(run.info.run_id, len(run.inputs.dataset_inputs)) for run in runs], token))
    return found


@pytest.mark.parametrize("walk", [speed_order.WALK, -20, 100])
def test_the_pages_are_mlflows(store: SqlAlchemyStore, walk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the index's end does, where it is too short, and where that is known."""
    chosen = random.Random(walk).sample(ASKED, 40)
    expected = [pages(store, asked) for asked in chosen]
    speed_order.apply()
    monkeypatch.setattr(speed_order, "WALK", walk)
    speed_order._in_vain_until.clear()
    again = zip(chosen[:10], expected[:10], strict=True)
    for asked, own in itertools.chain(zip(chosen, expected, strict=True), again):
        assert pages(store, asked) == own, asked
    assert sum(len(runs) for own in expected for runs, _ in own) > 500


def test_what_mlflow_refuses_is_refused_alike(store: SqlAlchemyStore) -> None:
    by, view = ["metrics.m DESC"], ViewType.ACTIVE_ONLY
    wrong = (
        (["1"], "metrics.m > 0", view, -1, by, None),
        (["1"], "metrics.m > 0", view, 10**9, by, None),
        (["1"], "metrics.m LIKE 'a'", view, 5, by, None),
        (["1"], "metrics.m", view, 5, by, None),
        (["1"], "", view, 5, ["metrics.m", "metrics.m DESC"], None),
        (["1"], "", view, 5, ["nothing.m"], None),
        (["1"], "", view, 5, by, "?"),
        (["one"], "", view, 5, by, None),
    )

    def answers() -> list[str]:
        found = []
        for asked in wrong:
            with pytest.raises(MlflowException) as refused:
                store._search_runs(*asked)
            found.append(f"{refused.value.error_code} {refused.value}")
        return found

    expected = answers()
    speed_order.apply()
    assert answers() == expected


def test_the_best_of_many_runs_are_taken_from_the_index(
    on_postgres: SqlAlchemyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SqlAlchemyStore, "_search_runs", SqlAlchemyStore._search_runs)
    sent: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "ORDER BY" in statement and "LIMIT" in statement:
            sent.append((statement, parameters))

    def search() -> list[str]:
        sent.clear()
        speed_order._in_vain_until.clear()
        asked = (["0"], "metrics.many > 5", ViewType.ACTIVE_ONLY, 20, ["metrics.many DESC"], None)
        return [run.info.run_id for run in on_postgres._search_runs(*asked)[0]]

    with on_postgres.engine.begin() as connection:
        for statement in MANY:
            connection.exec_driver_sql(statement)
    event.listen(on_postgres.engine, "before_cursor_execute", note)
    try:
        expected = search()
        assert "DISTINCT" in sent[0][0], "MLflow has changed: its own statement may do by now"
        speed_order.apply()
        assert search() == expected
        [(statement, parameters)] = sent
        # Of a metric that few runs have, the first search tells that the index is of no use.
        for statements in (2, 1):
            sent.clear()
            on_postgres._search_runs(["0"], "", ViewType.ACTIVE_ONLY, 20, ["metrics.none"], None)
            assert len(sent) == statements
    finally:
        event.remove(on_postgres.engine, "before_cursor_execute", note)
    with on_postgres.engine.connect() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN {statement}", parameters).scalars().all()
    assert any("using platform_metrics_by_value" in line for line in plan), "\n".join(plan)
    # Of links there are a few dozen in all.
    assert not any("Seq Scan" in line and "inputs" not in line for line in plan), "\n".join(plan)


def test_a_question_is_parsed_once_and_asked_in_one_statement(
    on_postgres: SqlAlchemyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SqlAlchemyStore, "_search_runs", SqlAlchemyStore._search_runs)
    parsed: list[str] = []
    sent: list[str] = []
    parse = SearchUtils.parse_search_filter

    def note_parsing(words: str) -> Any:
        parsed.append(words)
        return parse(words)

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    monkeypatch.setattr(SearchUtils, "parse_search_filter", note_parsing)
    speed_order.apply()
    event.listen(on_postgres.engine, "before_cursor_execute", note)
    try:
        found = [
            on_postgres._search_runs([experiment], "params.p = 'x' and tags.t = 'c'", view, most, None, None)
            for experiment, view, most in (
                ("1", ViewType.ACTIVE_ONLY, 3),
                ("2", ViewType.ALL, 4),
                ("1", ViewType.ALL, 5),
            )
        ]
    finally:
        event.remove(on_postgres.engine, "before_cursor_execute", note)
    assert [len(runs) for runs, _ in found] == [3, 4, 5]
    linked = sum("input_tags" in statement for statement in sent)
    assert len(sent) - linked <= 3 + linked
    assert len(parsed) == 1
    long = f"params.p = '{'x' * speed_order.LONG}'"
    for _ in range(2):
        on_postgres._search_runs(["1"], long, ViewType.ACTIVE_ONLY, 3, None, None)
    assert parsed[1:] == [long, long], "what is long is not kept"
