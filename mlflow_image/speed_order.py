"""Finds a page of runs without sorting all runs there are.

MLflow's statement has DISTINCT, for which the database compares whole rows of every run. But only a filter by dataset can
find a run twice: a run has one metric, parameter or tag of a name. Without DISTINCT it keeps a page of the best, no more.

Ordered by a metric, PostgreSQL would still read that metric of every run. The index of `indexes.py` has its values in order:
they are taken from its end until a page is full. Which runs these are, and in what order, is MLflow's: values first, then
NaN, then runs without the metric, equal ones newest first. Where the end of the index does not fill a page with values,
MLflow's statement is sent. So it is where an experiment has few runs, which are sorted sooner than looked for.
"""

import time
from typing import Any

import sqlalchemy as sa
from mlflow.entities import LifecycleStage, Run, RunInputs, RunOutputs
from mlflow.store.tracking import sqlalchemy_store
from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlRun
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.utils.search_utils import SearchUtils
from sqlalchemy.orm import Session

FEW = 1_000  # runs: sorted in a millisecond or two
WALK = 5_000  # values, of all experiments: some 10 ms at worst; enough where a run in a hundred is asked for
DEEPEST = 100_000  # runs before the page
BELIEVED_SECONDS = 60.0  # that there are few runs: counting them is a tenth of a small experiment's search

_few_until: dict[Any, float] = {}

COUNT = """
SELECT count(*) FROM (
    SELECT 1 FROM runs WHERE experiment_id = ANY(%(experiments)s) AND lifecycle_stage = ANY(%(stages)s) LIMIT %(few)s
) AS found
"""


def apply() -> None:
    SqlAlchemyStore._search_runs = search_runs


def search_runs(
    store: Any,
    experiment_ids: list[str],
    filter_string: str | None,
    run_view_type: int,
    max_results: int | None,
    order_by: list[str] | None,
    page_token: str | None,
) -> tuple[list[Run], bytes | None]:
    """MLflow's own, but for the statement: each check comes when MLflow makes it."""
    store._validate_max_results_param(max_results, allow_null=True)
    stages = set(LifecycleStage.view_type_to_stages(run_view_type))
    with store.ManagedSessionMaker() as session:
        filters = SearchUtils.parse_search_filter(filter_string)
        order = sqlalchemy_store._get_orderby_clauses(order_by, session)
        clauses = sqlalchemy_store._get_sqlalchemy_filter_clauses(filters, session, store._get_dialect())
        offset = SearchUtils.parse_start_offset_from_page_token(page_token)
        asked = store._filter_experiment_ids(session, sqlalchemy_store._parse_experiment_ids(experiment_ids))
        within = (SqlRun.experiment_id.in_(asked), SqlRun.lifecycle_stage.in_(stages))

        def page(statement: Any) -> Any:
            statement = statement.options(*store._get_eager_run_query_options()).offset(offset)
            limited = statement if max_results is None else statement.limit(max_results + 1)
            return session.execute(limited).scalars(SqlRun).all()

        found = None
        metric = _metric(order_by) if store.db_type == "postgresql" else None
        if (
            metric
            and max_results
            and 0 <= offset <= DEEPEST
            and not clauses[2]
            and not _few(session, asked, stages)
        ):
            best = _best(session, store, filters, metric, order, offset + max_results + 1)
            found = page(best.where(*within))
        if found is None or len(found) <= (max_results or 0):
            found = page(_all(clauses, order).where(*within))
        runs = _with_links(store, session, [run.to_mlflow_entity() for run in found])
    if max_results is None or len(runs) <= max_results:
        return runs, None
    return runs[:max_results], SearchUtils.create_page_token(offset + max_results)


def _all(clauses: Any, order: Any) -> Any:
    """MLflow's statement, with DISTINCT where it makes a difference."""
    cases, order_by, joins = order
    statement = _filtered(sa.select(SqlRun, *cases), clauses)
    for join in joins:
        statement = statement.outerjoin(join)
    if clauses[2]:
        statement = statement.distinct()
    return statement.order_by(*order_by)


def _filtered(statement: Any, clauses: Any) -> Any:
    attributes, others, datasets = clauses
    for other in others:
        statement = statement.join(other)
    for dataset in datasets:
        statement = statement.join(dataset, SqlRun.run_uuid == dataset.c.destination_id)
    return statement.where(*attributes)


def _metric(order_by: list[str] | None) -> tuple[str, bool] | None:
    """The metric by which to order first, and whether from the lowest value on."""
    if not order_by:
        return None
    kind, key, ascending = SearchUtils.parse_order_by_for_search_runs(order_by[0])
    return (SearchUtils.translate_key_alias(key), ascending) if SearchUtils.is_metric(kind, "=") else None


def _few(session: Session, experiments: list[int], stages: set[str]) -> bool:
    """Whether runs are few. If they are so no more, a page is found the slower way for a minute; it is the same page."""
    key = (*experiments, *sorted(stages), FEW)
    now = time.monotonic()
    if _few_until.get(key, now) > now:
        return True
    asked = {"experiments": experiments, "stages": list(stages), "few": FEW}
    count: int = session.connection().exec_driver_sql(COUNT, asked).scalar_one()
    if count >= FEW:
        return False
    if len(_few_until) > FEW:
        _few_until.clear()
    _few_until[key] = now + BELIEVED_SECONDS
    return True


def _best(
    session: Session, store: Any, filters: list[Any], metric: tuple[str, bool], order: Any, wanted: int
) -> Any:
    """The runs with the best values of the metric, from the end of the index."""
    key, ascending = metric
    dialect = store._get_dialect()
    own = [
        one
        for one in filters
        if SearchUtils.is_metric(one["type"], "=") and SearchUtils.translate_key_alias(one["key"]) == key
    ]
    others = [one for one in filters if one not in own]
    clauses = sqlalchemy_store._get_sqlalchemy_filter_clauses(others, session, dialect)
    value = SqlLatestMetric.value
    # Ties come along, because which of them are first, their runs tell.
    best = (
        sa.select(SqlLatestMetric.run_uuid, value)
        .where(SqlLatestMetric.key == key, SqlLatestMetric.is_nan == sa.false())
        .where(
            *(
                SearchUtils.get_sql_comparison_func(one["comparator"], dialect)(value, float(one["value"]))
                for one in own
            )
        )
        .order_by(value if ascending else value.desc())
        .fetch(WALK + 4 * wanted, with_ties=True)
        .subquery()
    )
    cases, order_by, joins = order
    # The first two of the order are this metric's, and so are the first two columns and the first join.
    statement = _filtered(
        sa.select(SqlRun, *cases[2:]).join(best, SqlRun.run_uuid == best.c.run_uuid), clauses
    )
    for join in joins[1:]:
        statement = statement.outerjoin(join)
    return statement.order_by(best.c.value if ascending else best.c.value.desc(), *order_by[2:])


def _with_links(store: Any, session: Session, runs: list[Run]) -> list[Run]:
    """The runs with their datasets and models, as MLflow adds them."""
    identifiers = [run.info.run_id for run in runs]
    inputs = store._get_run_inputs(run_uuids=identifiers, session=session)
    outputs = store._get_model_outputs_bulk(run_ids=identifiers, session=session)
    return [
        Run(run.info, run.data, RunInputs(dataset_inputs=linked), RunOutputs(outputs[run.info.run_id]))
        for run, linked in zip(runs, inputs, strict=True)
    ]
