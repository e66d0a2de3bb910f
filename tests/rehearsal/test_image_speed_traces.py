"""Traces that are written in one statement leave what MLflow's own code leaves, and fail as it does."""

from __future__ import annotations

import json
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from mlflow.entities.span import Span
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Sent
from sqlalchemy import text

from . import test_image_entrypoint as image
from . import test_image_speed_writes as writes
from .test_image_entrypoint import IMAGE

sys.path.insert(0, str(IMAGE))

import speed_traces

postgres, s3, start, template = image.postgres, image.s3, image.start, image.template  # fixtures
store, statements = writes.store, writes.statements  # and these

USAGE = {"mlflow.chat.tokenUsage": '{"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}'}
COST = {"mlflow.llm.cost": '{"input_cost": 0.1, "output_cost": 0.2, "total_cost": 0.30000000000000004}'}
ROOT, CHILD = 1, 2


def value(told: Any) -> AnyValue:
    match told:
        case bool():
            return AnyValue(bool_value=told)
        case int():
            return AnyValue(int_value=told)
        case float():
            return AnyValue(double_value=told)
    return AnyValue(string_value=told)


def span(
    trace: int,
    number: int = ROOT,
    attributes: dict[str, Any] | None = None,
    resource: dict[str, Any] | None = None,
    **fields: Any,
) -> Span:
    defaults: dict[str, Any] = {
        "name": "agent",
        "start_time_unix_nano": 1_700_000_000_123_456_789,
        "end_time_unix_nano": 1_700_000_001_123_456_789,
        "parent_span_id": b"" if number == ROOT else ROOT.to_bytes(8),
    }
    sent = Sent(trace_id=trace.to_bytes(16), span_id=number.to_bytes(8), **(defaults | fields))
    sent.attributes.extend(KeyValue(key=key, value=value(told)) for key, told in (attributes or {}).items())
    told = Resource(attributes=[KeyValue(key=key, value=value(of)) for key, of in (resource or {}).items()])
    return Span.from_otel_proto(sent, resource=told)


Case = Callable[[int], list[list[Span]]]
# What is sent of one trace (or from its number on), batch after batch.
CASES: dict[str, Case] = {
    "one span": lambda n: [[span(n)]],
    "three spans": lambda n: [[span(n, CHILD, end_time_unix_nano=1_700_000_009_000_000_000), span(n), span(n, 3)]],
    "no root": lambda n: [[span(n, CHILD)]],
    "a root that comes later": lambda n: [[span(n, CHILD, USAGE)], [span(n, ROOT, USAGE)]],
    "the same again": lambda n: [[span(n, ROOT, COST)], [span(n, ROOT, COST)]],
    "the same twice in a batch": lambda n: [[span(n), span(n)]],
    "nothing": lambda n: [[]],
    "an error": lambda n: [[span(n, status={"code": 2, "message": "ü"})]],
    "not ended": lambda n: [[span(n, end_time_unix_nano=0)]],
    "tokens and costs": lambda n: [[span(n, ROOT, USAGE), span(n, CHILD, {**USAGE, **COST}), span(n, 3, COST)]],
    "costs that are none": lambda n: [[span(n, ROOT, {"mlflow.llm.cost": '{"input_cost": "x", "total_cost": NaN}'})]],
    "costs that are no object": lambda n: [[span(n, ROOT, {"mlflow.llm.cost": "[1]"})]],
    "OpenTelemetry's names": lambda n: [
        [
            span(
                n,
                ROOT,
                {
                    "gen_ai.request.model": "m-1", "gen_ai.provider.name": "p", "gen_ai.usage.input_tokens": 5,
                    "gen_ai.usage.output_tokens": 6, "gen_ai.conversation.id": "c 1", "user.id": "somebody",
                },
            )
        ]
    ],
    "a session and a user": lambda n: [[span(n, CHILD, {"session.id": "s"}), span(n, ROOT, {"user.id": "u"})]],
    "a user that is a number": lambda n: [[span(n, ROOT, {"user.id": 5, "session.id": 7})]],
    "a user that is an object": lambda n: [[span(n, ROOT, {"user.id": '{"a": 1}'})]],
    "a session that is too long": lambda n: [[span(n, ROOT, {"session.id": "s" * 300})]],
    "previews": lambda n: [
        [span(n, ROOT, {"mlflow.spanInputs": json.dumps({"q": "ü" * 2000}), "mlflow.spanOutputs": '"yes\\u0000"'})]
    ],
    "tags": lambda n: [
        [
            span(n, ROOT, {"mlflow.traceTag.a": "1", "mlflow.traceTag.mlflow.traceName": "n", "mlflow.traceTag.": "x"}),
            span(n, CHILD, {"mlflow.traceTag.b": "2"}),
        ]
    ],
    "tags that MLflow writes itself": lambda n: [[span(n, ROOT, {"mlflow.traceTag.mlflow.trace.spansLocation": "x"})]],
    "a name that is too long": lambda n: [[span(n, ROOT, {"mlflow.traceTag.mlflow.traceName": "n" * 9000})]],
    "a resource": lambda n: [
        [span(n, ROOT, {"mlflow.traceTag.a": "mine"}, {"a": "its", "service.name": "ü", "number": 5, "mlflow.x": "no"})]
    ],
    "two traces": lambda n: [[span(n), span(n + 1), span(n, CHILD)], [span(n + 1, CHILD), span(n + 2)]],
    "a null character": lambda n: [[span(n, name="a\0b")], [span(n, CHILD, {"key": "a\0b"})]],
    "a time too far": lambda n: [[span(n, end_time_unix_nano=2**63 + 5)]],
    "a type that is too long": lambda n: [[span(n, ROOT, {"mlflow.spanType": "t" * 600})]],
}  # fmt: skip


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return writes.until_the_end(monkeypatch, speed_traces, "_log_spans_once")


@pytest.fixture(scope="module")
def numbers() -> Iterator[int]:
    return iter(range(1, 10**6, 10))


def outcome(store: SqlAlchemyStore, experiment: str, spans: list[Span]) -> tuple[str, ...]:
    try:
        return writes.outcome(store, "none", partial(store.log_spans, experiment, spans))
    except Exception as error:
        return type(error).__name__, str(error)


def rows(store: SqlAlchemyStore, first: int) -> list[list[str]]:
    """What is stored of the three traces from `first` on, without their numbers."""
    found = []
    traces = {f"tr-{(first + more).to_bytes(16).hex()}": f"trace {more}" for more in range(3)}
    with store.engine.connect() as connection:
        for table, key in (
            ("trace_info", "request_id"), ("trace_tags", "request_id"), ("trace_request_metadata", "request_id"),
            ("spans", "trace_id"),
        ):  # fmt: skip
            query = f"SELECT to_jsonb(t) FROM {table} t WHERE {key} = ANY(:traces)"
            told = json.dumps(connection.execute(text(query), {"traces": list(traces)}).scalars().all())
            for trace, name in traces.items():
                told = told.replace(trace.removeprefix("tr-"), name)
                told = told.replace(b64encode(bytes.fromhex(trace.removeprefix("tr-"))).decode(), name)
            found.append(sorted(map(str, json.loads(told))))
    return found


@pytest.mark.parametrize("case", CASES)
def test_a_trace_leaves_what_mlflow_leaves(
    store: SqlAlchemyStore, fast: Callable[[], None], numbers: Iterator[int], case: str
) -> None:
    results = []
    for number in (next(numbers), next(numbers)):
        batches = CASES[case](number)
        told = [outcome(store, "0", its) for its in batches]
        results.append((told, rows(store, number)))
        fast()
    assert results[1] == results[0]


def test_an_experiment_that_is_not_there_is_refused_alike(
    store: SqlAlchemyStore, fast: Callable[[], None], numbers: Iterator[int]
) -> None:
    results = []
    for _ in range(2):
        number = next(numbers)
        for experiment in ("99", "x", "", "-1"):
            results.append(outcome(store, experiment, [span(number)]))
        results.append(tuple(map(str, rows(store, number))))
        fast()
    half = len(results) // 2
    assert results[:half] == results[half:]
    assert "written" not in str(results)


def test_two_statements_do_it(
    store: SqlAlchemyStore, fast: Callable[[], None], numbers: Iterator[int], statements: list[str]
) -> None:
    store.log_spans("0", [span(next(numbers))])
    assert len(statements) > 6, "MLflow has changed: its own way may do by now"
    fast()
    statements.clear()
    store.log_spans("0", [span(next(numbers))])
    assert len(statements) == 2
