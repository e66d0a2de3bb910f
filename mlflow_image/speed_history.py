"""Answers a metric's history from plain rows.

MLflow makes of each of a thousand rows a tracked object of SQLAlchemy's, an entity, a protobuf message and a dictionary, and
only then the four lines of JSON. The checks, the statement and the answer stay the same.
"""

from json.encoder import encode_basestring_ascii
from typing import Any

import speed_views
import sqlalchemy as sa
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.protos.service_pb2 import GetMetricHistory
from mlflow.server import handlers
from mlflow.store.tracking.dbmodels.models import SqlMetric
from mlflow.utils.search_utils import SearchUtils
from speed_json import write_double

SCHEMA = {
    "run_id": [handlers._assert_string, handlers._assert_required],
    "metric_key": [handlers._assert_string, handlers._assert_required],
    "page_token": [handlers._assert_string],
}


def apply() -> None:
    speed_views.replace("_get_metric_history", _history)


def _history() -> str:
    asked = handlers._get_request_message(GetMetricHistory(), schema=SCHEMA)
    most = asked.max_results if asked.HasField("max_results") else None
    if most is not None and most <= 0:
        raise MlflowException(
            f"Invalid value {most} for parameter 'max_results' supplied. It must be a positive integer.",
            error_code=INVALID_PARAMETER_VALUE,
        )
    rows, token = read(
        handlers._get_tracking_store(),
        asked.run_id or asked.run_uuid,
        asked.metric_key,
        most,
        asked.page_token or None,
    )
    return written(rows, token)


def read(store: Any, run_id: str, key: str, most: int | None, token: str | None) -> tuple[Any, str | None]:
    """A page's rows (key, value, whether that is no number, timestamp, step), and the next page's token."""
    metric = SqlMetric.__table__.c
    with store.ManagedSessionMaker() as session:
        store._validate_run_accessible(session, run_id)
        offset = SearchUtils.parse_start_offset_from_page_token(token)
        asked = sa.select(metric.key, metric.value, metric.is_nan, metric.timestamp, metric.step)
        asked = asked.where(metric.run_uuid == run_id, metric.key == key)
        asked = asked.order_by(metric.timestamp, metric.step, metric.value).offset(offset)
        if most is not None:
            asked = asked.limit(most + 1)
        rows = session.execute(asked).all()
    if most is not None and len(rows) == most + 1:
        return rows[:most], SearchUtils.create_page_token(offset + most).decode()
    return rows, None


def written(rows: Any, token: str | None) -> str:
    """The JSON of GetMetricHistory.Response as MLflow writes it, to the byte."""
    parts = []
    if rows:
        nan = float("nan")
        between = ",\n    "
        metrics = [
            f'{{\n      "key": {encode_basestring_ascii(key)},'
            f'\n      "value": {write_double(nan if is_nan else value)},'
            f'\n      "timestamp": {timestamp},'
            f'\n      "step": {step}\n    }}'
            for key, value, is_nan, timestamp, step in rows
        ]
        parts.append(f'"metrics": [\n    {between.join(metrics)}\n  ]')
    if token:
        parts.append(f'"next_page_token": {encode_basestring_ascii(token)}')
    between = ",\n  "
    return f"{{\n  {between.join(parts)}\n}}" if parts else "{}"
