"""Writes a new trace and its spans in one statement.

MLflow opens two sessions, has SQLAlchemy track an object for each row, builds its statements anew and updates twice what
it has just inserted: some fourteen exchanges with the database for a trace of three spans. What the rows hold is known
before: here PostgreSQL gets them at once, and what a trace is made of is still MLflow's own functions' to say. Where
anything is in the way (spans of a trace that is there already, no such experiment, a value that the database refuses)
nothing is written, and MLflow's own code does it from the start.
"""

import contextlib
import json
from typing import Any

from mlflow.entities.span import Span
from mlflow.store.tracking import sqlalchemy_store as stock
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracing.constant import SpanAttributeKey, SpansLocation, TraceMetadataKey, TraceTagKey
from speed_writes import at_once, fits

# What the new rows need to know of the experiment, and whether they are new.
LOOK = """
SELECT artifact_location, EXISTS (SELECT FROM trace_info WHERE request_id = ANY(%(traces)s))
FROM experiments WHERE experiment_id = %(experiment)s
"""
TRACE = (
    "request_id", "experiment_id", "timestamp_ms", "execution_time_ms", "status", "request_preview",
    "response_preview", "db_payload_generation", "trace_name", "session_id",
    *stock.TOKEN_COLUMN_BY_KEY.values(), *stock.COST_COLUMN_BY_KEY.values(),
)  # fmt: skip
SPAN = (
    "trace_id", "experiment_id", "span_id", "parent_span_id", "name", "type", "status", "start_time_unix_nano",
    "end_time_unix_nano", "content", "input_cost", "output_cost", "total_cost", "model_name", "model_provider",
)  # fmt: skip
Rows = dict[str, list[dict[str, Any]]]  # by table
PAIR = ("request_id", "key", "value")


def _insert(table: str, columns: tuple[str, ...]) -> str:
    names = ", ".join(columns)
    # Of the constants above only.
    return (
        f"INSERT INTO {table} ({names}) SELECT {names} "  # noqa: S608
        f"FROM json_populate_recordset(NULL::{table}, %({table})s)"
    )


# A trace that came in between is refused by its key, and the whole statement with it.
WRITE = (
    f"WITH traces AS ({_insert('trace_info', TRACE)}), tags AS ({_insert('trace_tags', PAIR)}), "
    f"metadata AS ({_insert('trace_request_metadata', PAIR)}) {_insert('spans', SPAN)}"
)


def apply() -> None:
    log_spans = SqlAlchemyStore._log_spans_once

    def log_spans_at_once(store: Any, location: str, spans: list[Span], tracking_uri: Any = None) -> Any:
        plain = spans and str(location).isdecimal() and not stock.rollups_enabled()
        if plain and fits(store) and write(store, int(location), spans):
            return spans
        return log_spans(store, location, spans, tracking_uri=tracking_uri)

    SqlAlchemyStore._log_spans_once = log_spans_at_once


def write(store: Any, experiment: int, spans: list[Span]) -> bool:
    """Write the traces of all spans and return true, or nothing and return false."""
    traces: dict[str, list[Span]] = {}
    for span in spans:
        traces.setdefault(span.trace_id, []).append(span)
    rows: Rows = {"trace_info": [], "trace_tags": [], "trace_request_metadata": [], "spans": []}
    with at_once(store) as ask:
        found = ask(LOOK, {"traces": list(traces), "experiment": experiment})
        if not found or found[0][1]:
            return False
        try:
            for trace, its in traces.items():
                _add(store, rows, experiment, found[0][0], trace, its)
        except Exception:  # whatever it is, MLflow's own code meets it too
            return False
        return ask(WRITE, {table: json.dumps(some) for table, some in rows.items()}) is not None


def _add(store: Any, rows: Rows, experiment: int, location: str, trace: str, spans: list[Span]) -> None:
    """Add the rows of one trace, as MLflow's `_log_spans_once` makes them for one that is new."""
    parsed = stock._try_parse_json_string
    usage: list[Any] = []
    cost: list[Any] = []
    session_id = user_id = None
    root: dict[str, Any] = {}
    given: dict[str, str] = {}
    for span in spans:
        content = stock.translate_span_when_storing(span)
        attributes = content.get("attributes", {})
        for nodes, key in ((usage, SpanAttributeKey.CHAT_USAGE), (cost, SpanAttributeKey.LLM_COST)):
            nodes.append(stock._span_aggregation_node(span.span_id, span.parent_id, attributes, key))
        if session_id is None and (
            told := attributes.get(SpanAttributeKey.SESSION_ID)
            or attributes.get(stock.GenAiSemconvKey.CONVERSATION_ID)
        ):
            session_id = stock.validate_session_id(parsed(told))
        if user_id is None and (told := attributes.get("user.id")):
            user_id = parsed(told)
        rows["spans"].append(_span_row(experiment, span, content, attributes))
        if span.parent_id is None:
            root = attributes
            given |= _given_tags(attributes)
    if not isinstance(user_id, str | None) or not isinstance(session_id, str | None):
        raise TypeError("JSON would make a text of it")
    start = min(span.start_time_ns for span in spans) // 1_000_000
    ends = [span.end_time_ns for span in spans if span.end_time_ns is not None]
    tokens = stock.aggregate_usage_from_span_nodes(usage) or {}
    costs = stock.aggregate_cost_from_span_nodes(cost) or {}
    rows["trace_info"].append({
        "request_id": trace,
        "experiment_id": experiment,
        "timestamp_ms": start,
        "execution_time_ms": max(ends) // 1_000_000 - start if ends else None,
        "status": store._get_trace_status_from_root_span(spans) or stock.TraceState.IN_PROGRESS.value,
        "request_preview": _preview(root.get(SpanAttributeKey.INPUTS), "user"),
        "response_preview": _preview(root.get(SpanAttributeKey.OUTPUTS), "assistant"),
        "db_payload_generation": 1,
        "trace_name": given.pop(TraceTagKey.TRACE_NAME, None),
        "session_id": session_id,
        **{column: stock.token_count_or_none(tokens.get(key)) for key, column in stock.TOKEN_COLUMN_BY_KEY.items()},
        **{column: stock.finite_float_or_none(costs.get(key)) for key, column in stock.COST_COLUMN_BY_KEY.items()},
    })  # fmt: skip
    place = stock.append_to_uri_path(
        location, SqlAlchemyStore.TRACE_FOLDER_NAME, trace, SqlAlchemyStore.ARTIFACTS_FOLDER_NAME
    )
    tags = {
        stock.MLFLOW_ARTIFACT_LOCATION: place,
        TraceTagKey.SPANS_LOCATION: SpansLocation.TRACKING_STORE.value,
        **_resource_tags(spans),
        **given,
    }
    rows["trace_tags"] += [{"request_id": trace, "key": key, "value": value} for key, value in tags.items()]
    if user_id:
        user = {"request_id": trace, "key": TraceMetadataKey.TRACE_USER, "value": user_id}
        rows["trace_request_metadata"].append(user)


def _span_row(
    experiment: int, span: Span, content: dict[str, Any], attributes: dict[str, Any]
) -> dict[str, Any]:
    parsed, number = stock._try_parse_json_string, stock.finite_float_or_none
    costs: Any = {}
    if told := attributes.get(SpanAttributeKey.LLM_COST):
        with contextlib.suppress(TypeError, ValueError):
            costs = json.loads(told)
    return {
        "trace_id": span.trace_id,
        "experiment_id": experiment,
        "span_id": span.span_id,
        "parent_span_id": span.parent_id,
        "name": span.name,
        "type": span.span_type,
        "status": span.status.status_code,
        "start_time_unix_nano": span.start_time_ns,
        "end_time_unix_nano": span.end_time_ns,
        "content": json.dumps(content, cls=stock.TraceJSONEncoder, ensure_ascii=False),
        **{name: number(costs.get(name)) for name in ("input_cost", "output_cost", "total_cost")},
        "model_name": stock.bounded_model_dimension(parsed(attributes.get(SpanAttributeKey.MODEL))),
        "model_provider": stock.bounded_model_dimension(
            parsed(attributes.get(SpanAttributeKey.MODEL_PROVIDER))
        ),
    }


def _given_tags(attributes: dict[str, Any]) -> dict[str, str]:
    """What a client tells by attributes of the root span; what MLflow does not allow is left out."""
    prefix = SpanAttributeKey.TRACE_TAG_PREFIX
    found: dict[str, str] = {}
    for name, value in attributes.items():
        if not name.startswith(prefix):
            continue
        with contextlib.suppress(Exception):
            key, text = stock._validate_trace_tag(
                name.removeprefix(prefix), str(stock._try_parse_json_string(value))
            )
            found[key] = text
    if TraceTagKey.TRACE_NAME in found:
        found[TraceTagKey.TRACE_NAME] = stock.validate_trace_name(found[TraceTagKey.TRACE_NAME])
    return found


def _resource_tags(spans: list[Span]) -> dict[str, str]:
    """What the first span that tells says of its sender, but for names that MLflow and OpenTelemetry keep for themselves."""
    resources = (getattr(span._span, "resource", None) for span in spans)
    attributes: dict[str, Any] = next(
        (one.attributes for one in resources if one is not None and one.attributes), {}
    )
    found: dict[str, str] = {}
    for name, value in attributes.items():
        if name.startswith(("telemetry.sdk.", "mlflow.")):
            continue
        text = value if isinstance(value, str) else json.dumps(value)
        with contextlib.suppress(Exception):
            key, text = stock._validate_trace_tag(name, text)
            found[key] = text
    return found


def _preview(told: Any, role: str) -> str | None:
    return stock._get_truncated_preview(told, role=role) if told else None
