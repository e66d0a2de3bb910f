"""Reads an experiment in one statement, and starts and ends a run in two and in one.

MLflow has SQLAlchemy track an object for an experiment, a run and each tag, and asks for the rows of a run that it has just
made: up to eleven exchanges with the database to start a run. What the rows hold is known before. Where anything is in
the way (no such experiment or run, a deleted one, a value that the database refuses) nothing is written, and
MLflow's own code does it from the start, with its own answer.
"""

import uuid
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa
from mlflow.entities import LifecycleStage, Run, RunData, RunInfo, RunInputs, RunStatus, RunTag
from mlflow.store.tracking import sqlalchemy_store as stock
from mlflow.store.tracking.dbmodels.models import SqlExperiment, SqlExperimentTag
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from speed_writes import at_once, fits

_experiments, _tags = SqlExperiment.__table__, SqlExperimentTag.__table__
EXPERIMENT = (
    sa.select(_experiments, _tags.c.key.label("tag"), _tags.c.value)
    .outerjoin(_tags, _tags.c.experiment_id == _experiments.c.experiment_id)
    .where(_experiments.c.experiment_id == sa.bindparam("experiment"))
)
PLACE = "SELECT artifact_location FROM experiments WHERE experiment_id = %(experiment)s AND lifecycle_stage = 'active'"
START = """
WITH run AS (
    INSERT INTO runs (run_uuid, name, user_id, start_time, artifact_uri, experiment_id, status, lifecycle_stage,
                      source_type, source_name, entry_point_name, source_version)
    VALUES (%(run)s::text, %(name)s, %(user)s, %(start)s, %(place)s, %(experiment)s, 'RUNNING', 'active',
            'UNKNOWN', '', '', '')
)
INSERT INTO tags (run_uuid, key, value)
SELECT %(run)s::text, tag.* FROM unnest(%(keys)s::text[], %(values)s::text[]) AS tag
"""
END = """
UPDATE runs SET status = coalesce(%(status)s, status), end_time = coalesce(%(end)s, end_time)
WHERE run_uuid = %(run)s AND lifecycle_stage = 'active'
RETURNING run_uuid, experiment_id::text, user_id, status, start_time, end_time, lifecycle_stage, artifact_uri, name
"""


def apply() -> None:
    get_experiment, create_run = SqlAlchemyStore.get_experiment, SqlAlchemyStore.create_run
    update_run_info = SqlAlchemyStore.update_run_info

    def get_experiment_at_once(store: Any, experiment_id: str) -> Any:
        if not (type(store)._get_query is SqlAlchemyStore._get_query and _plain(experiment_id)):
            return get_experiment(store, experiment_id)
        retention = store._get_effective_experiment_trace_archival_retention_context()
        with store.ManagedSessionMaker() as session:
            rows = session.connection().execute(EXPERIMENT, {"experiment": int(experiment_id)}).all()
        if not rows:
            return get_experiment(store, experiment_id)
        tags = [SqlExperimentTag(key=row.tag, value=row.value) for row in rows if row.tag is not None]
        return store._to_experiment(_Experiment(**rows[0]._mapping, tags=tags), retention)

    def create_run_at_once(
        store: Any, experiment_id: str, user_id: str, start_time: int, tags: list[RunTag], run_name: str
    ) -> Run:
        run = None
        if fits(store) and _plain(experiment_id) and None not in (user_id, start_time):
            run = start(store, experiment_id, user_id, start_time, tags or [], run_name)
        return run or create_run(store, experiment_id, user_id, start_time, tags, run_name)

    def update_run_info_at_once(
        store: Any, run_id: str, run_status: Any, end_time: int | None, run_name: str | None
    ) -> RunInfo:
        info = None
        if fits(store) and not run_name:
            info = end(store, run_id, run_status, end_time)
        return info or update_run_info(store, run_id, run_status, end_time, run_name)

    SqlAlchemyStore.get_experiment = get_experiment_at_once
    SqlAlchemyStore.create_run = create_run_at_once
    SqlAlchemyStore.update_run_info = update_run_info_at_once


class _Experiment(SimpleNamespace):
    """An experiment's row, for MLflow's own conversion."""

    to_mlflow_entity = SqlExperiment.to_mlflow_entity


def _plain(experiment_id: Any) -> bool:
    """Whether it is a number as MLflow writes it, of a size that the column has."""
    if not isinstance(experiment_id, str) or not experiment_id.isdecimal():
        return False
    return len(experiment_id) < 10 and str(int(experiment_id)) == experiment_id


def start(
    store: Any, experiment_id: str, user: str, start_time: int, tags: list[RunTag], run_name: str
) -> Run | None:
    """The new run, or None if nothing was written."""
    told = stock._get_run_name_from_tags(tags)
    if run_name and told and run_name != told:
        return None
    name = run_name or told or stock._generate_random_name()
    tags = [*tags] if told else [*tags, RunTag(stock.MLFLOW_RUN_NAME, name)]
    run, status = uuid.uuid4().hex, RunStatus.to_string(RunStatus.RUNNING)
    with at_once(store) as ask:
        found = ask(PLACE, {"experiment": int(experiment_id)})
        if not found:
            return None
        place = stock.append_to_uri_path(found[0][0], run, SqlAlchemyStore.ARTIFACTS_FOLDER_NAME)
        values = {
            "run": run,
            "name": name,
            "user": user,
            "start": start_time,
            "place": place,
            "experiment": int(experiment_id),
            "keys": [tag.key for tag in tags],
            "values": [tag.value for tag in tags],
        }
        if ask(START, values) is None:
            return None
    info = RunInfo(run, experiment_id, user, status, start_time, None, LifecycleStage.ACTIVE, place, name)
    return Run(info, RunData([], [], tags), RunInputs(dataset_inputs=[]))


def end(store: Any, run: str, run_status: Any, end_time: int | None) -> RunInfo | None:
    """What the run is now, or None if it is not to be had this way; MLflow's own code may then write the same again."""
    try:
        status = None if run_status is None else RunStatus.to_string(run_status)
    except Exception:  # there is no such status, which MLflow says after it has looked for the run
        return None
    with at_once(store) as ask:
        found = ask(END, {"run": run, "status": status, "end": end_time})
    # A run without a name is told by a tag.
    return RunInfo(*found[0]) if found and found[0][-1] else None
