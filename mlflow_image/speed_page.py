"""Reads a page of runs, with all that belongs to them, in one statement: a run is a row, its metrics are arrays in it.

For PostgreSQL. MLflow loads a tracked object for each run, metric, parameter and tag, in six statements.
"""

from typing import Any

import sqlalchemy as sa
from mlflow.entities import Run, RunInfo, RunInputs, RunOutputs
from mlflow.store.tracking.dbmodels.models import SqlInput, SqlLatestMetric, SqlParam, SqlRun, SqlTag
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME
from speed_runs import DATASET, MODEL_OUTPUT, RowData
from sqlalchemy.orm import Session

# In the order of RunInfo's arguments below.
INFO = (
    SqlRun.run_uuid,
    SqlRun.experiment_id,
    SqlRun.user_id,
    SqlRun.status,
    SqlRun.start_time,
    SqlRun.end_time,
    SqlRun.lifecycle_stage,
    SqlRun.artifact_uri,
    SqlRun.name,
)


def whole(page: sa.Select[Any]) -> sa.Select[Any]:
    """What reads whole runs, of a statement with a limit that selects INFO.

    All else refers to the page, so the database goes through it run by run, in its order.
    """
    runs = page.subquery("page")
    run = runs.c.run_uuid
    value = sa.case((SqlLatestMetric.is_nan, sa.text("'NaN'")), else_=SqlLatestMetric.value)
    belonging = [
        sa.select(*(sa.func.array_agg(column, type_=sa.types.NullType()) for column in columns))
        .where(table.run_uuid == run)
        .lateral()
        for table, columns in (
            (SqlLatestMetric, (SqlLatestMetric.key, value, SqlLatestMetric.timestamp, SqlLatestMetric.step)),
            (SqlParam, (SqlParam.key, SqlParam.value)),
            (SqlTag, (SqlTag.key, SqlTag.value)),
        )
    ]
    linked = sa.or_(
        sa.exists().where(SqlInput.destination_type == DATASET, SqlInput.destination_id == run),
        sa.exists().where(SqlInput.source_type == MODEL_OUTPUT, SqlInput.source_id == run),
    )
    info = (runs.c[column.key] for column in INFO)
    return sa.select(*info, *belonging, linked).select_from(runs, *belonging)


def read(store: Any, session: Session, statement: sa.Select[Any], values: dict[str, Any]) -> list[Run]:
    """The runs that `whole` made a statement of, with their datasets and models as MLflow adds them."""
    rows = session.connection().execute(statement, values).all()
    runs = [_run(*row[:-1]) for row in rows]
    return with_links(store, session, runs) if any(row[-1] for row in rows) else runs


def with_links(store: Any, session: Session, runs: list[Run]) -> list[Run]:
    identifiers = [run.info.run_id for run in runs]
    inputs = store._get_run_inputs(run_uuids=identifiers, session=session)
    outputs = store._get_model_outputs_bulk(run_ids=identifiers, session=session)
    return [
        Run(run.info, run.data, RunInputs(dataset_inputs=linked), RunOutputs(outputs[run.info.run_id]))
        for run, linked in zip(runs, inputs, strict=True)
    ]


def _run(
    run: str,
    experiment: int,
    user: Any,
    status: Any,
    start: Any,
    end: Any,
    stage: Any,
    place: Any,
    name: Any,
    *rest: Any,
) -> Run:
    metrics, params, tags = (
        list(zip(*(column or () for column in columns), strict=True))
        for columns in (rest[:4], rest[4:6], rest[6:])
    )
    if not name:
        name = dict(tags).get(MLFLOW_RUN_NAME) or name
    info = RunInfo(run, str(experiment), user, status, start, end, stage, place, name)
    data = RowData({"latest_metrics": metrics, "params": params, "tags": tags})
    return Run(info, data, RunInputs([]), RunOutputs([]))
