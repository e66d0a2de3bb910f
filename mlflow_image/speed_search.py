"""Writes the answer to a search of runs from the rows that were read for it.

MLflow makes of each metric, parameter and tag an entity, a protobuf message and a dictionary, and only then lines of JSON.
The checks, the search and the answer stay the same. A run with datasets or models is written from its message.
"""

from json.encoder import encode_basestring_ascii
from typing import Any

import speed_views
from mlflow.entities import Run, ViewType
from mlflow.protos.service_pb2 import SearchRuns
from mlflow.server import handlers
from speed_json import LeaveItError, write_double, written
from speed_runs import RowData, Rows

SCHEMA = {
    "experiment_ids": [handlers._assert_array],
    "filter": [handlers._assert_string],
    "max_results": speed_views.at_most(50_000),
    "order_by": [handlers._assert_array, handlers._assert_item_type_string],
}


def apply() -> None:
    speed_views.replace("_search_runs", _search)


def _search() -> str:
    asked = handlers._get_request_message(SearchRuns(), schema=SCHEMA)
    given = asked.HasField("run_view_type")
    runs = handlers._get_tracking_store().search_runs(
        experiment_ids=_readable(list(asked.experiment_ids)),
        filter_string=asked.filter,
        run_view_type=ViewType.from_proto(asked.run_view_type) if given else ViewType.ACTIVE_ONLY,
        max_results=asked.max_results,
        order_by=asked.order_by,
        page_token=asked.page_token or None,
    )
    try:
        return answer(runs, runs.token)
    except LeaveItError:
        message = SearchRuns.Response(
            runs=[run.to_proto() for run in runs], next_page_token=runs.token or None
        )
        text: str = handlers.message_to_json(message)
        return text


def _readable(experiments: list[str]) -> list[str]:
    """Those that the user may read, where MLflow's own users sign in."""
    try:
        from mlflow.server import auth
    except ImportError:
        return experiments
    found: list[str] = auth.filter_experiment_ids(experiments) if auth.auth_config else experiments
    return found


def answer(runs: Any, token: bytes | None) -> str:
    """The JSON of SearchRuns.Response as MLflow writes it, to the byte, or LeaveItError."""
    parts = []
    if runs:
        between = ",\n    "
        parts.append(f'"runs": [\n    {between.join([_run(run) for run in runs])}\n  ]')
    if token:
        parts.append(f'"next_page_token": {encode_basestring_ascii(token.decode())}')
    between = ",\n  "
    return f"{{\n  {between.join(parts)}\n}}" if parts else "{}"


def _run(run: Run) -> str:
    rows = run.data.rows() if isinstance(run.data, RowData) else None
    linked = run.inputs.dataset_inputs or run.inputs.model_inputs or run.outputs.model_outputs
    if rows is None or linked:
        return written(run.to_proto(), "\n    ")
    info = written(run.info.to_proto(), "\n      ")
    return f'{{\n      "info": {info},\n      "data": {_data(rows)},\n      "inputs": {{}},\n      "outputs": {{}}\n    }}'


def _data(rows: Rows) -> str:
    parts = []
    between = ",\n          "
    if found := rows["latest_metrics"]:
        metrics = [
            f'{{\n            "key": {encode_basestring_ascii(key)},'
            f'\n            "value": {write_double(value)},'
            f'\n            "timestamp": {timestamp},'
            f'\n            "step": {step}\n          }}'
            for key, value, timestamp, step in found
        ]
        parts.append(f'"metrics": [\n          {between.join(metrics)}\n        ]')
    for kind in ("params", "tags"):
        if found := rows[kind]:
            pairs = [
                f'{{\n            "key": {encode_basestring_ascii(key)}'
                + ("" if value is None else f',\n            "value": {encode_basestring_ascii(value)}')
                + "\n          }"
                for key, value in found
            ]
            parts.append(f'"{kind}": [\n          {between.join(pairs)}\n        ]')
    between = ",\n        "
    return f"{{\n        {between.join(parts)}\n      }}" if parts else "{}"
