"""Finds a page of runs without sorting all runs there are, by a statement that is made once for each question.

MLflow's statement has DISTINCT, for which the database compares whole rows of every run. But only a filter by dataset can
find a run twice: a run has one metric, parameter or tag of a name. Without DISTINCT it keeps a page of the best, no more.

Ordered by a metric, PostgreSQL would still read that metric of every run. The index of `indexes.py` has its values in order:
they are taken from its end until a page is full. Which runs these are, and in what order, is MLflow's: values first, then
NaN, then runs without the metric, equal ones newest first. Where the end of the index does not fill a page with values,
MLflow's statement is sent: for a while at once.

To parse a question and to make its statement takes longer than the database does, and a page that is open in a browser
asks the same again and again.
"""

import functools
import time
from typing import Any, NamedTuple

import speed_page
import sqlalchemy as sa
from mlflow.entities import LifecycleStage, Run
from mlflow.store.tracking import sqlalchemy_store
from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlRun
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.utils.search_utils import SearchUtils
from sqlalchemy.orm import Session
from sqlalchemy.sql import visitors

WALK = 5_000  # values, of all experiments: some 10 ms at worst; enough where a run in a hundred is asked for
DEEPEST = 100_000  # runs before the page
IN_VAIN_SECONDS = 60.0  # that the end of the index filled no page is believed: few runs are sorted sooner
KEPT = 256  # questions, none of which is...
LONG = 2_000  # ...this long or longer, in characters

_in_vain_until: dict[int, float] = {}


def apply() -> None:
    SqlAlchemyStore._search_runs = search_runs


class Question(NamedTuple):
    """Statements that find a page of runs, of :experiments and :stages, from :offset on, no more than :limit."""

    all: sa.Select[Any]
    best: sa.Select[Any] | None  # from the index's end, :walk values of it; where that is of use


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
    stages = LifecycleStage.view_type_to_stages(run_view_type)
    order = tuple(order_by or ())
    limit = None if max_results is None else max_results + 1
    # Only what has a limit is a page.
    whole = store.db_type == "postgresql" and limit is not None
    long = len(filter_string or "") + sum(map(len, order)) >= LONG
    with store.ManagedSessionMaker() as session:
        made = _question.__wrapped__ if long else _question
        question = made(filter_string, order, store._get_dialect(), whole)
        offset = SearchUtils.parse_start_offset_from_page_token(page_token)
        asked = store._filter_experiment_ids(session, sqlalchemy_store._parse_experiment_ids(experiment_ids))
        values = {"experiments": asked, "stages": stages, "offset": offset}
        if whole:
            runs = _page(store, session, question, {**values, "limit": limit}, (filter_string, *order))
        else:
            statement = question.all if limit is None else question.all.limit(limit)
            found = session.execute(statement.options(*store._get_eager_run_query_options()), values)
            runs = [run.to_mlflow_entity() for run in found.scalars(SqlRun).all()]
            runs = speed_page.with_links(store, session, runs)
    if max_results is None or len(runs) <= max_results:
        return runs, None
    return runs[:max_results], SearchUtils.create_page_token(offset + max_results)


def _page(store: Any, session: Session, question: Question, values: dict[str, Any], words: Any) -> list[Run]:
    wanted = values["offset"] + values["limit"]
    now = time.monotonic()
    key = hash((words, *values["experiments"], *values["stages"], wanted))
    if question.best is not None and 0 <= values["offset"] <= DEEPEST and _in_vain_until.get(key, now) <= now:
        found = speed_page.read(store, session, question.best, {**values, "walk": WALK + 4 * wanted})
        if len(found) == values["limit"]:
            return found
        if len(_in_vain_until) > 1_000:
            _in_vain_until.clear()
        _in_vain_until[key] = now + IN_VAIN_SECONDS
    return speed_page.read(store, session, question.all, values)


@functools.lru_cache(KEPT)
def _question(filter_string: str | None, order_by: tuple[str, ...], dialect: str, whole: bool) -> Question:
    session = Session()  # by which MLflow builds parts of statements; this one is for that alone
    filters = SearchUtils.parse_search_filter(filter_string)
    order = sqlalchemy_store._get_orderby_clauses(list(order_by), session)
    clauses = sqlalchemy_store._get_sqlalchemy_filter_clauses(filters, session, dialect)
    # The numbers by which missing values are last: as parameters they are no part of an index, in PostgreSQL's plan.
    for part in (part for column in order[0] for part in visitors.iterate(column)):
        if isinstance(part, sa.BindParameter):
            part.literal_execute = True
    if not whole:
        return Question(_within(_all(SqlRun, clauses, order)), None)
    best = None
    metric = _metric(order_by)
    if metric and not clauses[2]:
        best = _limited(_best(session, dialect, filters, metric, order))
    return Question(_limited(_all(speed_page.INFO, clauses, order)), best)


def _within(statement: Any) -> Any:
    return statement.where(
        SqlRun.experiment_id.in_(sa.bindparam("experiments", expanding=True)),
        SqlRun.lifecycle_stage.in_(sa.bindparam("stages", expanding=True)),
    ).offset(sa.bindparam("offset", type_=sa.BigInteger(), literal_execute=True))


def _limited(statement: Any) -> Any:
    return speed_page.whole(
        _within(statement).limit(sa.bindparam("limit", type_=sa.Integer(), literal_execute=True))
    )


def _all(selected: Any, clauses: Any, order: Any) -> Any:
    """MLflow's statement, with DISTINCT where it makes a difference."""
    cases, order_by, joins = order
    columns = selected if isinstance(selected, tuple) else (selected,)
    statement = _filtered(sa.select(*columns, *cases), clauses)
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


def _metric(order_by: tuple[str, ...]) -> tuple[str, bool] | None:
    """The metric by which to order first, and whether from the lowest value on."""
    if not order_by:
        return None
    kind, key, ascending = SearchUtils.parse_order_by_for_search_runs(order_by[0])
    return (SearchUtils.translate_key_alias(key), ascending) if SearchUtils.is_metric(kind, "=") else None


def _best(session: Session, dialect: str, filters: list[Any], metric: tuple[str, bool], order: Any) -> Any:
    """The runs with the best values of the metric, from the end of the index."""
    key, ascending = metric
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
        .fetch(sa.bindparam("walk"), with_ties=True)
        .subquery()
    )
    cases, order_by, joins = order
    # The first two of the order are this metric's, and so are the first two columns and the first join.
    statement = _filtered(
        sa.select(*speed_page.INFO, *cases[2:]).join(best, SqlRun.run_uuid == best.c.run_uuid), clauses
    )
    for join in joins[1:]:
        statement = statement.outerjoin(join)
    return statement.order_by(best.c.value if ascending else best.c.value.desc(), *order_by[2:])
