"""A search of traces is answered as MLflow's own code answers it, whatever is stored and asked."""

from __future__ import annotations

import json
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from flask.testing import FlaskClient
from mlflow.entities import AssessmentSource, Expectation, Feedback, IssueReference, TraceInfo, TraceLocation
from mlflow.entities.trace_state import TraceState
from mlflow.server import app as flask
from mlflow.server import handlers
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from . import test_image_entrypoint as image
from . import test_image_speed_writes as writes
from .test_image_entrypoint import IMAGE

sys.path.insert(0, str(IMAGE))

import speed_trace_search as search

postgres, s3, start, template = image.postgres, image.s3, image.start, image.template  # fixtures
store, statements = writes.store, writes.statements  # and these

PATH = "/api/3.0/mlflow/traces/search"
BEGAN = 1_700_000_000_123
ODD: dict[str, dict[str, Any]] = {
    "plain": {},
    "in progress": {"state": TraceState.IN_PROGRESS, "execution_duration": None},
    "an error": {"state": TraceState.ERROR, "execution_duration": 0},
    "unspecified": {"state": TraceState.STATE_UNSPECIFIED, "execution_duration": 61_000},
    "a whole second": {"request_time": BEGAN // 1000 * 1000, "execution_duration": 1001},
    "the beginning of time": {"request_time": 0},
    "before time": {"request_time": -1, "execution_duration": -1},
    "long before": {"request_time": -62_135_596_800_000, "execution_duration": -61_001},
    "the end of time": {"request_time": 253_402_300_799_999, "execution_duration": 315_576_000_000_000},
    "an end before the beginning": {"execution_duration": -1},
    "the same time": {},
    "previews": {"request_preview": "ü\U0001f600\"\\\n\x7f", "response_preview": "", "client_request_id": ""},
    "a client's": {"client_request_id": "ü-1", "request_preview": "p" * 1000},
    "tags": {"tags": {"a": "ü", "b": "", "c" * 250: "v" * 8000, "mlflow.traceName": "name"}},
    "metadata": {"trace_metadata": {"m": "1", "mlflow.trace.session": "s", "mlflow.user": '"\\'}},
    "tokens": {
        "trace_metadata": {
            "mlflow.trace.tokenUsage": '{"input_tokens": 3, "output_tokens": 0, "total_tokens": 3}',
            "mlflow.trace.cost": '{"input_cost": 0.1, "output_cost": 0.2, "total_cost": 0.30000000000000004}',
        }
    },
}  # fmt: skip
# What no client can bring about now, but an older one may have.
CHANGES = (
    "UPDATE trace_tags SET value = NULL WHERE key = 'b'",
    "INSERT INTO trace_tags VALUES ('mlflow.traceName', 'older', 'tr-tags'), ('mlflow.traceName', 'older', 'tr-plain')",
    "INSERT INTO trace_request_metadata (key, value, request_id) VALUES "
    "('none', NULL, 'tr-plain'), ('long', repeat('ü', 8000), 'tr-plain'), "
    "('mlflow.trace.session', 'older', 'tr-plain'), ('mlflow.trace.tokenUsage', '{}', 'tr-metadata')",
    "UPDATE trace_info SET input_tokens = 0, total_cost = 1e300, output_cost = 1e-7 WHERE request_id = 'tr-plain'",
)


@pytest.fixture(scope="module")
def places(store: SqlAlchemyStore) -> dict[str, str]:
    """Experiments: one with traces of every kind, one with some that were assessed, deleted ones, an empty one."""
    names = ("odd", "assessed", "deleted", "empty", "unknown")
    places = {name: str(store.create_experiment(f"traces {name}")) for name in names}

    def begin(place: str, name: str, **fields: Any) -> TraceInfo:
        defaults: dict[str, Any] = {"request_time": BEGAN, "execution_duration": 249, "state": TraceState.OK}
        location = TraceLocation.from_experiment_id(places[place])
        identifier = f"tr-{name}"
        return store.start_trace(TraceInfo(identifier, location, **(defaults | fields)))

    for name, fields in ODD.items():
        begin("odd", name, **fields)
    for number in range(4):
        begin("assessed", str(number), request_time=BEGAN + number)
        begin("deleted", f"deleted {number}")
    source = AssessmentSource(source_type="HUMAN", source_id="ü")
    for assessment in (
        Feedback("good", value={"a": [1.5, None, "ü"]}, source=source, rationale="so", metadata={"k": "v"}),
        Feedback("bad", error=ValueError("no"), source=source, span_id="s-1"),
        Expectation("right", value=7, source=source),
        IssueReference(issue_id="is-1", issue_name="odd", source=source, run_id="r"),
    ):
        assessment.trace_id = "tr-1"
        store.create_assessment(assessment)
    store.delete_experiment(places["deleted"])
    begin("unknown", "unknown")
    with store.engine.begin() as connection:
        for change in (
            *CHANGES,
            "UPDATE trace_info SET status = 'WHO_KNOWS' WHERE request_id = 'tr-unknown'",
        ):
            connection.execute(sa.text(change))
    return places


@pytest.fixture
def client(
    store: SqlAlchemyStore, places: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[FlaskClient]:
    monkeypatch.setattr(handlers, "_get_tracking_store", lambda *_: store)
    monkeypatch.setitem(
        flask.view_functions, "_search_traces_v3", handlers._search_traces_v3
    )  # so that it is put back
    with flask.test_client() as client:
        yield client


def at(*experiments: str) -> dict[str, Any]:
    places = [
        {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": one}} for one in experiments
    ]
    return {"locations": places}


def token(told: str) -> dict[str, str]:
    return {"page_token": b64encode(told.encode()).decode()}


Case = Callable[[dict[str, str]], Any]


def of(place: str, **more: Any) -> Case:
    return lambda places: at(places[place]) | more


def told(asked: Any) -> Case:
    return lambda _: asked


CASES: dict[str, Case] = {
    **{f"all that is {name}": of(name) for name in ("odd", "assessed", "deleted", "empty", "unknown")},
    "latest first": of("odd", order_by=["timestamp_ms DESC"]),
    "latest first by another name": of("odd", order_by=["attributes.timestamp DESC"]),
    "oldest first": of("odd", order_by=["timestamp_ms ASC"]),
    "by no direction": of("odd", order_by=["timestamp_ms"]),
    "by two": of("odd", order_by=["timestamp_ms DESC", "request_id DESC"]),
    "by the same twice": of("odd", order_by=["timestamp_ms DESC", "timestamp_ms DESC"]),
    "by duration": of("odd", order_by=["execution_time_ms DESC"]),
    "by a tag": of("odd", order_by=["tags.a"]),
    "by nonsense": of("odd", order_by=["nonsense of all"]),
    "by a number": of("odd", order_by=[7]),
    "by no list": of("odd", order_by="timestamp_ms DESC"),
    "filtered": of("odd", filter="status = 'OK'", max_results=3),
    "filtered by nonsense": of("odd", filter="nonsense"),
    "filtered by a number": of("odd", filter=7),
    "a page": of("odd", max_results=3),
    "the second page": of("odd", max_results=3, **token('{"offset": 3}')),
    "the last page": of("odd", max_results=3, **token(f'{{"offset": {len(ODD) - 3}}}')),
    "after the last page": of("odd", **token('{"offset": 500}')),
    "a page of the assessed": of("assessed", max_results=4),
    **{
        f"the token {text}": of("odd", **token(text))
        for text in ('{"offset": 0}', '{"offset": "2"}', '{"offset": -1}', '{"offset": 2.5}', "[]", "7", "{", "null",
                     '{"offset": 99999999999999999999}', '{"offset": true}', '{"offset": [1]}')
    },
    "no token": of("odd", page_token="%"),
    "a token that is a number": of("odd", page_token=5),
    **{f"{most} results": of("odd", max_results=most) for most in (0, -1, 1, 500, 501, "2", "x", None, 2**40)},
    "two experiments": lambda places: at(places["odd"], places["assessed"]) | {"max_results": 10},
    "an experiment twice": lambda places: at(places["assessed"], places["assessed"]),
    **{
        f"the experiment {name!r}": told(at(name))
        for name in ("", "x", "-1", " 1", "0", "99999", "2147483648", "9" * 30, "²", "٣")
    },
    "no place": told(at()),
    "no places": told({}),
    "another place": told(
        {"locations": [{"type": "INFERENCE_TABLE", "inference_table": {"full_table_name": "t"}}]}
    ),
    "a place that is none": told({"locations": 7}),
    "an unknown field": of("odd", more=1),
    "no object": told(7),
}  # fmt: skip


def in_order(body: bytes) -> str:
    """The same text, but for the order within protobuf's maps, which another process gives otherwise."""
    message = json.loads(body)
    for trace in message.get("traces", []):
        for entity in (trace, *trace.get("assessments", [])):
            for name in ("tags", "trace_metadata", "metadata"):
                if name in entity:
                    entity[name] = dict(sorted(entity[name].items()))
    return json.dumps(message)


@pytest.mark.parametrize("case", CASES)
def test_a_search_finds_what_mlflow_finds(client: FlaskClient, places: dict[str, str], case: str) -> None:
    asked = CASES[case](places)
    answers = []
    for _ in range(2):
        response = client.post(PATH, json=asked)
        text = in_order(response.data) if response.is_json else response.text
        # SQLAlchemy tells its statement, which the image withholds: each way has its own.
        text, refused, _statement = text.partition("[SQL")
        answers.append((response.status_code, response.content_type, text, refused or len(response.data)))
        search.apply()
    assert answers[1] == answers[0]
    if case.startswith("all that is") and not case.endswith(("empty", "unknown")):
        assert '"trace_id"' in answers[0][2]


def test_one_statement_does_it_and_another_for_assessments(
    client: FlaskClient, places: dict[str, str], statements: list[str]
) -> None:
    sent = []
    for _ in range(2):
        for place in ("odd", "assessed"):
            statements.clear()
            assert client.post(PATH, json=at(places[place])).status_code == 200
            sent.append(len(statements))
        search.apply()
    assert sent[0] == sent[1] == 4, "MLflow has changed: its own way may do by now"
    assert sent[2:] == [1, 2]
