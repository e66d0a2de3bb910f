"""Reads the metrics, parameters and tags of runs as plain rows, on PostgreSQL all of them at once.

MLflow has SQLAlchemy make a tracked object of each of them, 2500 for a hundred runs, reads it once and throws it away.
The conditions stay the same, and so does the order of what they find. MLflow then asks for the runs' datasets and
models, which most have none of: whether there are any, the one statement tells too.
"""

from typing import Any

import sqlalchemy as sa
from mlflow.entities import Metric, Param, RunTag
from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlParam, SqlRun, SqlTag
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy.orm import Session, object_session

CHILDREN = ("latest_metrics", "params", "tags")
AT_ONCE = 500  # runs in one statement, as SQLAlchemy's own loader has it
KEPT = "platform_rows"  # in a session's `info`
LINKS = "platform_links"  # there too: of each run that was read, the kinds of links to datasets and models
DATASET, MODEL_INPUT, MODEL_OUTPUT = "RUN", "RUN_INPUT", "RUN_OUTPUT"  # as MLflow's table `inputs` has them

ALL_AT_ONCE = """
SELECT 'latest_metrics', run_uuid, key, value, is_nan, timestamp, step, NULL
FROM latest_metrics WHERE run_uuid = ANY(%(runs)s)
UNION ALL SELECT 'params', run_uuid, key, NULL, NULL, NULL, NULL, value FROM params WHERE run_uuid = ANY(%(runs)s)
UNION ALL SELECT 'tags', run_uuid, key, NULL, NULL, NULL, NULL, value FROM tags WHERE run_uuid = ANY(%(runs)s)
UNION ALL SELECT destination_type, destination_id, NULL, NULL, NULL, NULL, NULL, NULL
FROM inputs WHERE destination_type = 'RUN' AND destination_id = ANY(%(runs)s)
UNION ALL SELECT source_type, source_id, NULL, NULL, NULL, NULL, NULL, NULL
FROM inputs WHERE source_type IN ('RUN_INPUT', 'RUN_OUTPUT') AND source_id = ANY(%(runs)s)
"""


class _Rows:
    """What belongs to one run, under the names that MLflow's conversion reads."""

    def __init__(self, run: SqlRun, children: dict[str, list[Any]]) -> None:
        self._run = run
        self.latest_metrics, self.params, self.tags = (children[name] for name in CHILDREN)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)


class _Made:
    """A finished entity where MLflow's conversion expects a row's object."""

    __slots__ = ("entity",)

    def __init__(self, entity: Any) -> None:
        self.entity = entity

    def to_mlflow_entity(self) -> Any:
        return self.entity


def apply() -> None:
    convert = SqlRun.to_mlflow_entity

    def to_mlflow_entity(run: SqlRun) -> Any:
        session = object_session(run)
        # What was changed and not written yet is in the objects only.
        if session is None or session.new or session.dirty or session.deleted or not _unread(run):
            return convert(run)
        return convert(_Rows(run, _children(session, run)))

    SqlRun.to_mlflow_entity = to_mlflow_entity
    # Nothing of a run is to be loaded along with it.
    SqlAlchemyStore._get_eager_run_query_options = staticmethod(lambda: [])

    datasets, inputs, outputs, all_outputs = (
        getattr(SqlAlchemyStore, name)
        for name in ("_get_run_inputs", "_get_model_inputs", "_get_model_outputs", "_get_model_outputs_bulk")
    )

    def get_run_inputs(store: Any, session: Session, run_uuids: list[str]) -> Any:
        if _known_without(session, run_uuids, DATASET):
            return [[] for _ in run_uuids]
        return datasets(store, session, run_uuids)

    def get_model_inputs(store: Any, run_id: str, session: Session) -> Any:
        return [] if _known_without(session, [run_id], MODEL_INPUT) else inputs(store, run_id, session)

    def get_model_outputs(store: Any, run_id: str, session: Session) -> Any:
        return [] if _known_without(session, [run_id], MODEL_OUTPUT) else outputs(store, run_id, session)

    def get_model_outputs_bulk(store: Any, run_ids: list[str], session: Session) -> Any:
        if _known_without(session, run_ids, MODEL_OUTPUT):
            return {run_id: [] for run_id in run_ids}
        return all_outputs(store, run_ids, session)

    SqlAlchemyStore._get_run_inputs = get_run_inputs
    SqlAlchemyStore._get_model_inputs = get_model_inputs
    SqlAlchemyStore._get_model_outputs = get_model_outputs
    SqlAlchemyStore._get_model_outputs_bulk = get_model_outputs_bulk


def _known_without(session: Session, runs: list[str], kind: str) -> bool:
    links: dict[str, set[str]] = session.info.get(LINKS, {})
    return all(run in links and kind not in links[run] for run in runs)


def _unread(run: SqlRun) -> bool:
    return all(name not in run.__dict__ for name in CHILDREN)


def _children(session: Session, run: SqlRun) -> dict[str, list[Any]]:
    """What belongs to the run, read for all runs of the session when the first of them asks, and given out once."""
    kept = session.info.setdefault(KEPT, {})
    if run.run_uuid not in kept:
        runs = [other for other in session.identity_map.values() if isinstance(other, SqlRun)]
        identifiers = [other.run_uuid for other in runs if _unread(other)]
        for first in range(0, len(identifiers), AT_ONCE):
            kept.update(_read(session, identifiers[first : first + AT_ONCE]))
    found: dict[str, list[Any]] = kept.pop(run.run_uuid)
    return found


def _read(session: Session, identifiers: list[str]) -> dict[str, dict[str, list[Any]]]:
    found: dict[str, dict[str, list[Any]]] = {
        identifier: {name: [] for name in CHILDREN} for identifier in identifiers
    }
    if session.connection().dialect.name == "postgresql":
        _read_at_once(session, found)
        return found
    nan = float("nan")
    metric, param, tag = SqlLatestMetric.__table__.c, SqlParam.__table__.c, SqlTag.__table__.c
    metrics = sa.select(
        metric.run_uuid, metric.key, metric.value, metric.is_nan, metric.timestamp, metric.step
    ).where(metric.run_uuid.in_(identifiers))
    for run, key, value, is_nan, timestamp, step in session.execute(metrics).all():
        entity = Metric(key=key, value=nan if is_nan else value, timestamp=timestamp, step=step)
        found[run]["latest_metrics"].append(_Made(entity))
    for name, columns, make in (("params", param, Param), ("tags", tag, RunTag)):
        rows = sa.select(columns.run_uuid, columns.key, columns.value)
        for run, key, value in session.execute(rows.where(columns.run_uuid.in_(identifiers))).all():
            found[run][name].append(_Made(make(key=key, value=value)))
    return found


def _read_at_once(session: Session, found: dict[str, dict[str, list[Any]]]) -> None:
    links = session.info.setdefault(LINKS, {})
    links.update((identifier, set()) for identifier in found)
    nan = float("nan")
    rows = session.connection().exec_driver_sql(ALL_AT_ONCE, {"runs": list(found)}).all()
    for kind, run, key, number, is_nan, timestamp, step, value in rows:
        if kind == "latest_metrics":
            entity = Metric(key=key, value=nan if is_nan else number, timestamp=timestamp, step=step)
            found[run][kind].append(_Made(entity))
        elif kind == "params":
            found[run][kind].append(_Made(Param(key=key, value=value)))
        elif kind == "tags":
            found[run][kind].append(_Made(RunTag(key=key, value=value)))
        else:
            links[run].add(kind)
