"""Reads the metrics, parameters and tags of runs as plain rows, on PostgreSQL all of them at once.

MLflow has SQLAlchemy make a tracked object of each of them, 2500 for a hundred runs, reads it once and throws it away.
The conditions stay the same, and so does the order of what they find. MLflow then asks for the runs' datasets and
models, which most have none of: whether there are any, the one statement tells too.
"""

from typing import Any

import sqlalchemy as sa
from mlflow.entities import Metric, Param, Run, RunData, RunTag
from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlParam, SqlRun, SqlTag
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy.orm import Session, object_session

# What belongs to a run, by the names below: metrics as (key, value, timestamp, step), the others as (key, value).
Rows = dict[str, list[Any]]
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


class RowData(RunData):  # type: ignore[misc]  # MLflow has no types here
    """A run's data as rows. Entities are made of them when somebody asks for one."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    @classmethod
    def _properties(cls) -> list[str]:
        properties: list[str] = RunData._properties()  # by which it is shown and iterated
        return properties

    def rows(self) -> Rows | None:
        """What it was made of, unless entities have taken their place, which may have been changed since."""
        return None if "_tags" in self.__dict__ else self._rows

    def __getattr__(self, name: str) -> Any:
        if name not in ("_metric_objs", "_metrics", "_params", "_tags"):
            raise AttributeError(name)
        metrics = [
            Metric(key=key, value=value, timestamp=timestamp, step=step)
            for key, value, timestamp, step in self._rows["latest_metrics"]
        ]
        params = [Param(key=key, value=value) for key, value in self._rows["params"]]
        super().__init__(metrics, params, [RunTag(key=key, value=value) for key, value in self._rows["tags"]])
        return self.__dict__[name]


class _Named:
    """A run as MLflow's conversion wants it, but with no more of what belongs to it than a name may come from."""

    latest_metrics = params = ()

    def __init__(self, run: SqlRun, rows: Rows) -> None:
        self._run = run
        self.tags = [] if run.name else [SqlTag(key=key, value=value) for key, value in rows["tags"]]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)


def apply() -> None:
    convert = SqlRun.to_mlflow_entity

    def to_mlflow_entity(run: SqlRun) -> Any:
        session = object_session(run)
        # What was changed and not written yet is in the objects only.
        if session is None or session.new or session.dirty or session.deleted or not _unread(run):
            return convert(run)
        rows = _children(session, run)
        return Run(convert(_Named(run, rows)).info, RowData(rows))

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


def _children(session: Session, run: SqlRun) -> Rows:
    """What belongs to the run, read for all runs of the session when the first of them asks, and given out once."""
    kept = session.info.setdefault(KEPT, {})
    if run.run_uuid not in kept:
        runs = [other for other in session.identity_map.values() if isinstance(other, SqlRun)]
        identifiers = [other.run_uuid for other in runs if _unread(other)]
        for first in range(0, len(identifiers), AT_ONCE):
            kept.update(_read(session, identifiers[first : first + AT_ONCE]))
    found: Rows = kept.pop(run.run_uuid)
    return found


def _read(session: Session, identifiers: list[str]) -> dict[str, Rows]:
    found: dict[str, Rows] = {identifier: {name: [] for name in CHILDREN} for identifier in identifiers}
    if session.connection().dialect.name == "postgresql":
        _read_at_once(session, found)
        return found
    nan = float("nan")
    metric, param, tag = SqlLatestMetric.__table__.c, SqlParam.__table__.c, SqlTag.__table__.c
    metrics = sa.select(
        metric.run_uuid, metric.key, metric.value, metric.is_nan, metric.timestamp, metric.step
    ).where(metric.run_uuid.in_(identifiers))
    for run, key, value, is_nan, timestamp, step in session.execute(metrics).all():
        found[run]["latest_metrics"].append((key, nan if is_nan else value, timestamp, step))
    for name, columns in (("params", param), ("tags", tag)):
        rows = sa.select(columns.run_uuid, columns.key, columns.value)
        for run, key, value in session.execute(rows.where(columns.run_uuid.in_(identifiers))).all():
            found[run][name].append((key, value))
    return found


def _read_at_once(session: Session, found: dict[str, Rows]) -> None:
    links = session.info.setdefault(LINKS, {})
    links.update((identifier, set()) for identifier in found)
    nan = float("nan")
    rows = session.connection().exec_driver_sql(ALL_AT_ONCE, {"runs": list(found)}).all()
    for kind, run, key, number, is_nan, timestamp, step, value in rows:
        if kind == "latest_metrics":
            found[run][kind].append((key, nan if is_nan else number, timestamp, step))
        elif kind in CHILDREN:
            found[run][kind].append((key, value))
        else:
            links[run].add(kind)
