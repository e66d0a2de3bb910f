"""Answers a search of traces from plain rows: on PostgreSQL, an experiment's latest come in one statement.

MLflow asks in four, makes of each trace an entity, of that a protobuf message, of that a dictionary, and then the JSON. Here
the dictionary is made of the entity. What is filtered, ordered otherwise or of several experiments MLflow itself searches.
"""

import json
from collections import defaultdict
from datetime import datetime, timedelta
from typing import Any

import speed_views
from google.protobuf.json_format import MessageToDict  # type: ignore[import-untyped]
from mlflow.entities import TraceInfo, TraceLocation
from mlflow.entities.trace_info_v2 import _truncate_request_metadata, _truncate_tags
from mlflow.entities.trace_state import TraceState
from mlflow.protos.service_pb2 import SearchTracesV3
from mlflow.server import handlers
from mlflow.store.tracking import sqlalchemy_store as stock
from mlflow.store.tracking.dbmodels.models import SqlAssessments
from mlflow.tracing.constant import TraceTagKey
from speed_writes import fits

SCHEMA = {
    "locations": [handlers._assert_array, handlers._assert_required],
    "filter": [handlers._assert_string],
    "max_results": speed_views.at_most(500),
    "order_by": [handlers._assert_array, handlers._assert_item_type_string],
    "page_token": [handlers._assert_string],
}
LATEST_FIRST = ("attribute", "timestamp_ms", False)  # MLflow's own order, too
COLUMNS = ", ".join(column.name for column in stock._TRACE_INFO_COLUMNS)
# The inner statement finds the page, so that only its traces are asked for what belongs to them.
LATEST = f"""
SELECT found.*,
    (SELECT json_object_agg(key, value)::text FROM trace_tags t WHERE t.request_id = found.request_id) AS tags,
    (SELECT json_object_agg(key, value)::text FROM trace_request_metadata m
     WHERE m.request_id = found.request_id) AS metadata,
    EXISTS (SELECT FROM assessments a WHERE a.trace_id = found.request_id) AS assessed
FROM (
    SELECT {COLUMNS} FROM trace_info WHERE experiment_id = %(experiment)s
    ORDER BY timestamp_ms DESC, request_id LIMIT %(most)s OFFSET %(offset)s
) found
ORDER BY timestamp_ms DESC, request_id
"""  # noqa: S608  # of the columns' names only
EPOCH = datetime(1970, 1, 1)  # in UTC, and written without its zone
LONGEST = 10**14  # milliseconds: less than the end of protobuf's years, and than its longest duration
INT4 = 2**31


def apply() -> None:
    speed_views.replace("_search_traces_v3", _search)


def _search() -> str:
    asked = handlers._get_request_message(SearchTracesV3(), schema=SCHEMA)
    experiments = [
        location.mlflow_experiment.experiment_id
        for location in asked.locations
        if location.HasField("mlflow_experiment")
    ]
    store = handlers._get_tracking_store()
    traces, token = latest(store, experiments, asked) or store.search_traces(
        locations=experiments,
        filter_string=asked.filter,
        max_results=asked.max_results,
        order_by=asked.order_by,
        page_token=asked.page_token or None,
    )
    return answer(traces, token)


def latest(store: Any, experiments: list[str], asked: Any) -> tuple[list[TraceInfo], bytes | None] | None:
    """A page of an experiment's traces and the next page's token; None if something else is asked for."""
    if not fits(store) or len(experiments) != 1 or not experiments[0].isdecimal():
        return None
    experiment, most = int(experiments[0]), asked.max_results
    if experiment >= INT4 or most < 1 or asked.filter or len(asked.order_by) > 1:
        return None
    with store.ManagedSessionMaker() as session:
        if any(stock._parse_trace_order_by(clause) != LATEST_FIRST for clause in asked.order_by):
            return None
        offset = stock.SearchTraceUtils.parse_start_offset_from_page_token(asked.page_token)
        if not 0 <= offset < INT4:
            return None
        values = {"experiment": experiment, "most": most, "offset": offset}
        rows = session.connection().exec_driver_sql(LATEST, values).all()
        assessments = _assessments(session, [row.request_id for row in rows if row.assessed])
        traces = [_trace(row, assessments[row.request_id]) for row in rows]
    full = len(traces) == most
    return traces, stock.SearchTraceUtils.create_page_token(offset + most) if full else None


def _assessments(session: Any, traces: list[str]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = defaultdict(list)
    if traces:
        for one in session.query(SqlAssessments).filter(SqlAssessments.trace_id.in_(traces)).all():
            found[one.trace_id].append(one.to_mlflow_entity())
    return found


def _trace(row: Any, assessments: list[Any]) -> TraceInfo:
    """The entity, as MLflow's `_build_trace_infos_from_rows` makes it."""
    tags = json.loads(row.tags) if row.tags else {}
    tags.pop(TraceTagKey.TRACE_NAME, None)
    if row.trace_name is not None:
        tags[TraceTagKey.TRACE_NAME] = row.trace_name
    metadata = json.loads(row.metadata) if row.metadata else {}
    for key in stock.PROMOTED_TRACE_METADATA_KEYS:
        metadata.pop(key, None)
    return TraceInfo(
        trace_id=row.request_id,
        trace_location=TraceLocation.from_experiment_id(str(row.experiment_id)),
        request_time=row.timestamp_ms,
        execution_duration=row.execution_time_ms,
        state=TraceState(row.status),
        tags=tags,
        trace_metadata=metadata | stock.compatibility_metadata_from_columns(row),
        client_request_id=row.client_request_id,
        request_preview=row.request_preview,
        response_preview=row.response_preview,
        assessments=assessments,
    )


def answer(traces: list[TraceInfo], token: bytes | None) -> str:
    """The JSON of SearchTracesV3.Response as MLflow writes it, but for the order within maps, which is by chance there."""
    message: dict[str, Any] = {}
    if traces:
        message["traces"] = [_dictionary(trace) for trace in traces]
    if token:
        message["next_page_token"] = token.decode()
    return json.dumps(message, separators=(",", ":"))


def _dictionary(trace: TraceInfo) -> dict[str, Any]:
    """What protobuf makes of the trace's message, in the order of the fields' numbers."""
    time, duration = trace.request_time, trace.execution_duration
    if not 0 <= time < LONGEST or not 0 <= (duration or 0) < LONGEST:
        return _by_protobuf(trace)
    fields = {
        "trace_id": trace.trace_id,
        "client_request_id": trace.client_request_id,
        "trace_location": {
            "type": "MLFLOW_EXPERIMENT",
            "mlflow_experiment": {"experiment_id": trace.trace_location.mlflow_experiment.experiment_id},
        },
        "request_time": _time(time),
        "execution_duration": None if duration is None else f"{_seconds(duration)}s",
        "state": trace.state.value,
        "trace_metadata": _truncate_request_metadata(trace.trace_metadata) or None,
        "assessments": [_by_protobuf(one) for one in trace.assessments] or None,
        "tags": _truncate_tags(trace.tags) or None,
        "request_preview": trace.request_preview,
        "response_preview": trace.response_preview,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _by_protobuf(entity: Any) -> dict[str, Any]:
    found: dict[str, Any] = MessageToDict(entity.to_proto(), preserving_proto_field_name=True)
    return found


def _time(milliseconds: int) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    text = (EPOCH + timedelta(seconds=seconds)).isoformat()
    return f"{text}.{rest:03d}Z" if rest else f"{text}Z"


def _seconds(milliseconds: int) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds}.{rest:03d}" if rest else str(seconds)
