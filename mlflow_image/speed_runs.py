"""Reads the metrics, parameters and tags of runs as plain rows.

MLflow has SQLAlchemy make a tracked object of each of them, 2500 for a hundred runs, reads it once and throws it away.
The statements stay the same, and so does the order of what they find.
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
    metric, param, tag = SqlLatestMetric.__table__.c, SqlParam.__table__.c, SqlTag.__table__.c
    metrics = sa.select(
        metric.run_uuid, metric.key, metric.value, metric.is_nan, metric.timestamp, metric.step
    ).where(metric.run_uuid.in_(identifiers))
    nan = float("nan")
    for run, key, value, is_nan, timestamp, step in session.execute(metrics).all():
        entity = Metric(key=key, value=nan if is_nan else value, timestamp=timestamp, step=step)
        found[run]["latest_metrics"].append(_Made(entity))
    for name, columns, make in (("params", param, Param), ("tags", tag, RunTag)):
        rows = sa.select(columns.run_uuid, columns.key, columns.value)
        for run, key, value in session.execute(rows.where(columns.run_uuid.in_(identifiers))).all():
            found[run][name].append(_Made(make(key=key, value=value)))
    return found
