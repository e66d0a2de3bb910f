"""Writes a batch of metrics, parameters and tags in one statement, and so a single metric.

MLflow opens four sessions for a batch, one within the other, each of which reads the run again, and has SQLAlchemy track
an object for each row: some twenty exchanges with the database. Here PostgreSQL gets all of it at once, in a transaction
of its own. Where anything is in the way (no such run, a deleted one, a parameter with another value, a metric that is
there already, a value that the database refuses) that transaction is undone, and MLflow's own code does the batch
from the start, with its own answer.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mlflow.entities import Metric, Param, RunTag
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.utils import validation
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME
from sqlalchemy.exc import OperationalError, SQLAlchemyError

ACTIVE = """active AS MATERIALIZED (
    SELECT run_uuid FROM runs WHERE run_uuid = %(run)s AND lifecycle_stage = 'active'
)"""
PARAMS = """new_params AS (
    INSERT INTO params (run_uuid, key, value) SELECT run_uuid, name, given
    FROM active, unnest(%(param_keys)s::text[], %(param_values)s::text[]) AS param (name, given) ORDER BY name
    ON CONFLICT DO NOTHING RETURNING 1
), same_params AS (
    SELECT 1 FROM unnest(%(param_keys)s::text[], %(param_values)s::text[]) AS param (name, given)
    JOIN params ON run_uuid = %(run)s AND key = name AND value = given
)"""
METRICS = """new_metrics AS (
    INSERT INTO metrics (run_uuid, key, value, is_nan, timestamp, step) SELECT run_uuid, metric.*
    FROM active, unnest(
        %(metric_keys)s::text[], %(metric_values)s::float8[], %(metric_nans)s::bool[], %(metric_times)s::int8[],
        %(metric_steps)s::int8[]
    ) AS metric
    ON CONFLICT DO NOTHING RETURNING 1
)"""
# In MLflow's order: by step, then time, then value; the first of equal ones stays.
LATEST = """new_latest AS (
    INSERT INTO latest_metrics AS latest (run_uuid, key, value, is_nan, timestamp, step) SELECT run_uuid, metric.*
    FROM active, unnest(
        %(latest_keys)s::text[], %(latest_values)s::float8[], %(latest_nans)s::bool[], %(latest_times)s::int8[],
        %(latest_steps)s::int8[]
    ) AS metric (name) ORDER BY name
    ON CONFLICT (key, run_uuid) DO UPDATE
    SET value = excluded.value, is_nan = excluded.is_nan, timestamp = excluded.timestamp, step = excluded.step
    WHERE (excluded.step, excluded.timestamp, excluded.value) > (latest.step, latest.timestamp, latest.value)
)"""
TAGS = """new_tags AS (
    INSERT INTO tags (run_uuid, key, value) SELECT run_uuid, name, given
    FROM active, unnest(%(tag_keys)s::text[], %(tag_values)s::text[]) AS tag (name, given) ORDER BY name
    ON CONFLICT (key, run_uuid) DO UPDATE SET value = excluded.value WHERE tags.value IS DISTINCT FROM excluded.value
)"""


def apply() -> None:
    log_batch, log_metrics = SqlAlchemyStore.log_batch, SqlAlchemyStore._log_metrics_once

    def log_batch_at_once(
        store: Any, run_id: str, metrics: list[Metric], params: list[Param], tags: list[RunTag]
    ) -> None:
        validation._validate_run_id(run_id)
        _, valid_params, valid_tags = validation._validate_batch_log_data(metrics, params, tags)
        validation._validate_batch_log_limits(metrics, params, tags)
        validation._validate_param_keys_unique(valid_params)
        # That tag also renames the run, and a model's metric has a table of its own.
        plain = all(tag.key != MLFLOW_RUN_NAME for tag in tags) and all(not m.model_id for m in metrics)
        if not (
            plain
            and fits(store)
            and store._run_with_deadlock_retry(write, store, run_id, metrics, valid_params, valid_tags)
        ):
            log_batch(store, run_id, metrics, params, tags)

    def log_metrics_at_once(store: Any, run_id: str, metrics: list[Metric]) -> None:
        single = len(metrics) == 1
        for number, metric in enumerate(metrics):
            path = "" if single else f"metrics[{number}]"
            validation._validate_metric(metric.key, metric.value, metric.timestamp, metric.step, path=path)
        if not (fits(store) and write(store, run_id, metrics, [], [])):
            log_metrics(store, run_id, metrics)

    SqlAlchemyStore.log_batch = log_batch_at_once
    SqlAlchemyStore._log_metrics_once = log_metrics_at_once


def fits(store: Any) -> bool:
    """Whether the store is one of PostgreSQL that sees every run: a workspace's sees its own."""
    return bool(store.db_type == "postgresql" and type(store)._get_query is SqlAlchemyStore._get_query)


Ask = Callable[[str, dict[str, Any]], Sequence[Any] | None]


@contextmanager
def at_once(store: Any) -> Iterator[Ask]:
    """Asks statements that are each whole by themselves, so that none needs the transaction of a session that writes.

    The answer is the rows; None if the database refuses the statement: it has done nothing then, and is asked no more.
    """
    with store.ManagedSessionMaker() as session:
        connection = session.connection()

        def ask(statement: str, values: dict[str, Any]) -> Sequence[Any] | None:
            try:
                result = connection.exec_driver_sql(statement, values)
                return result.all() if result.returns_rows else ()
            except OperationalError:
                raise
            except (SQLAlchemyError, ValueError):
                session.rollback()
                return None

        yield ask


def write(
    store: Any, run_id: str, metrics: Iterable[Metric], params: list[Param], tags: Iterable[RunTag]
) -> bool:
    """Write all of it and return true, or nothing and return false."""
    rows: dict[tuple[Any, ...], None] = {}
    latest: dict[str, tuple[Any, ...]] = {}
    for metric in metrics:
        is_nan, value = store.sanitize_metric_value(metric.value)
        row = (metric.key, float(value), is_nan, metric.timestamp, metric.step)
        rows[row] = None
        if metric.key not in latest or _order(row) > _order(latest[metric.key]):
            latest[metric.key] = row
    last_tags = {tag.key: tag.value for tag in tags}
    if not (rows or params or last_tags):
        return False
    values: dict[str, Any] = {
        "run": run_id,
        "param_keys": [param.key for param in params],
        "param_values": [param.value for param in params],
        "tag_keys": list(last_tags),
        "tag_values": list(last_tags.values()),
    }
    for kind, some in (("metric", rows), ("latest", latest.values())):
        for number, name in enumerate(("keys", "values", "nans", "times", "steps")):
            values[f"{kind}_{name}"] = [row[number] for row in some]
    statement = _statement(bool(params), bool(rows), bool(last_tags))
    with store.ManagedSessionMaker(read_only=False) as session:
        try:
            active, known_params, new_metrics = session.connection().exec_driver_sql(statement, values).one()
        except OperationalError:
            raise
        except (SQLAlchemyError, ValueError):
            session.rollback()
            return False
        if (active, known_params, new_metrics) != (1, len(params), len(rows)):
            session.rollback()
            return False
    return True


def _order(row: tuple[Any, ...]) -> tuple[Any, ...]:
    _, value, _, timestamp, step = row
    return step, timestamp, value


@functools.cache
def _statement(params: bool, metrics: bool, tags: bool) -> str:
    """One statement that writes what is asked for, and counts: active runs, params that are there now, new metrics."""
    parts = [ACTIVE, *([PARAMS] * params), *([METRICS, LATEST] * metrics), *([TAGS] * tags)]
    known = "(SELECT count(*) FROM new_params) + (SELECT count(*) FROM same_params)" if params else "0"
    new = "(SELECT count(*) FROM new_metrics)" if metrics else "0"
    # Of the constants above only.
    return f"WITH {', '.join(parts)} SELECT (SELECT count(*) FROM active), {known}, {new}"  # noqa: S608
