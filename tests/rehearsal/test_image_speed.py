"""The faster parts of the server answer to the byte as MLflow's own do, and stand aside where they do not fit."""

from __future__ import annotations

import gc
import json
import random
import sys
from base64 import b64encode
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from google.protobuf.json_format import SerializeToJsonError  # type: ignore[import-untyped]
from google.protobuf.message_factory import GetMessageClass  # type: ignore[import-untyped]
from mlflow.protos import model_registry_pb2, service_pb2
from mlflow.server.fastapi_app import create_fastapi_app
from mlflow.utils import proto_json_utils
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.routing import Match

from . import test_image_entrypoint as image
from .test_image_entrypoint import ARTIFACTS, IMAGE, RUNS, Postgres, Task

sys.path.insert(0, str(IMAGE))

import speed
import speed_json
import speed_requests

postgres, s3, start, template = image.postgres, image.s3, image.start, image.template  # fixtures

MAKE_DATA = Path(__file__).parents[1] / "drills" / "make_data.py"
V2, V3 = "/api/2.0/mlflow", "/api/3.0/mlflow"
RUN_FIELDS = "info { runName status runUuid experimentId startTime endTime }"
GRAPHQL = (
    "query GetRun($data: MlflowGetRunInput!) { mlflowGetRun(input: $data) { apiError { code message } run { "
    + RUN_FIELDS
    + " data { metrics { key value timestamp step } params { key value } tags { key value } } } } }"
)

Answer = tuple[int, dict[str, str], bytes]


def ask(task: Task, method: str, path: str, body: object = None, **headers: str) -> Answer:
    connection = HTTPConnection("127.0.0.1", task.port, timeout=60)
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method, path, content, {"Content-Type": "application/json", **headers})
    response = connection.getresponse()
    answer = response.read()
    connection.close()
    told = {name.lower(): value for name, value in response.getheaders()}
    for name in ("date", "x-mlflow-gateway-duration-ms", "x-mlflow-gateway-overhead-duration-ms"):
        told.pop(name, None)
    if path.startswith("/get-artifact"):  # it tells the time of a temporary file
        told.pop("last-modified", None)
        told.pop("etag", None)
    if "allow" in told:  # in the order of a set, which differs from process to process
        told["allow"] = ", ".join(sorted(told["allow"].split(", ")))
    return response.status, told, answer


def in_order(answer: Answer) -> Answer:
    status, told, body = answer
    if told["content-type"] == "application/json":
        body = json.dumps(json.loads(body), sort_keys=True).encode()
    return status, told, body


@pytest.fixture(scope="module")
def pair(postgres: Postgres, s3: dict[str, str], template: str) -> Any:
    """Two servers of one database with a bit of everything in it: MLflow as it is, and the faster one."""
    name = postgres.create("speed", template)
    variables = {**postgres.variables(name), **s3}
    tasks = [Task({**variables, "MLFLOW_SPEED": "off"}), Task(variables)]
    try:
        stock, fast = (task.wait_healthy() for task in tasks)
        maker = Task(
            {"MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet"},
            [sys.executable, str(MAKE_DATA), f"http://127.0.0.1:{fast.port}", "a"],
        )
        tasks.append(maker)
        assert maker.ends(300) == 0, maker.output
        yield stock, fast
    finally:
        for task in tasks:
            task.stop()


def reading(task: Task) -> list[tuple[str, str, object]]:
    """A request to each endpoint that reads, about what the database really holds."""

    def post(path: str, body: object) -> Any:
        return json.loads(ask(task, "POST", path, body)[2])

    found = post(f"{V2}/experiments/search", {"max_results": 100, "view_type": "ALL"})["experiments"]
    experiments = [experiment["experiment_id"] for experiment in found]
    everything = {"experiment_ids": experiments, "run_view_type": "ALL"}
    runs = post(f"{RUNS}/search", everything)["runs"]
    whole = next(run for run in runs if '"odd"' in json.dumps(run))
    experiment, run = whole["info"]["experiment_id"], whole["info"]["run_id"]
    models = post(f"{V2}/logged-models/search", {"experiment_ids": experiments})["models"]
    model = models[0]["info"]["model_id"]
    place = [{"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": e}} for e in experiments]
    traces = post(f"{V3}/traces/search", {"locations": place})["traces"]
    trace = traces[0]["trace_id"]
    orders = (
        "start_time DESC", "metrics.`metric/1` ASC", "metrics.odd DESC", "params.`param.1`", "tags.number DESC"
    )  # fmt: skip
    filters = (
        "", "metrics.odd > 0", "params.long LIKE 'ü%'", "tags.number = '3'", "attributes.status = 'FAILED'",
        "dataset.name = 'set-1'", "nonsense", "metrics.none > 1", "tags.state = 'running'",
    )  # fmt: skip
    tokens = [
        b64encode(text.encode()).decode() for text in ('{"offset": 3}', '{"offset": 0}', "[]", "{", "7")
    ]
    pages = [f"page_token={quote(token)}" for token in [*tokens, "%"]]
    pages += [f"max_results={most}" for most in (-1, 0, 1, 4, 5, "x", 2**40)] + [f"max_results=1&{pages[0]}"]
    artifact = quote(f"{experiment}/{run}/artifacts/model")
    folder = quote(f"{artifact}/über uns", safe="/%")
    return [
        ("GET", "/health", None),
        ("GET", "/version", None),
        ("GET", "/", None),
        ("GET", "/static-files/nothing.js", None),
        ("GET", f"{V3}/server-info", None),
        ("GET", f"{V2}/nothing/there", None),
        ("POST", f"{V2}/experiments/get", {}),
        ("OPTIONS", f"{RUNS}/search", None),
        ("HEAD", f"{RUNS}/get?run_id={run}", None),
        ("POST", f"{RUNS}/search", b"{broken"),
        ("POST", f"{RUNS}/search", {"experiment_ids": 7}),
        ("POST", f"{RUNS}/search", {**everything, "max_results": 60000}),
        ("POST", f"{RUNS}/search", {"experiment_ids": []}),
        *(("POST", f"{RUNS}/search", {**everything, "order_by": [order]}) for order in orders),
        *(("POST", f"{RUNS}/search", {**everything, "filter": clause, "max_results": 7}) for clause in filters),
        ("POST", f"{RUNS}/search", {**everything, "max_results": 5, "order_by": ["start_time"]}),
        ("POST", f"{RUNS}/search", {"experiment_ids": experiments, "run_view_type": "DELETED_ONLY"}),
        ("POST", "/ajax-api/2.0/mlflow/runs/search", everything),
        *(("GET", f"{RUNS}/get?run_id={other['info']['run_id']}", None) for other in runs),
        ("GET", f"{RUNS}/get?run_id=none", None),
        ("GET", f"{V2}/metrics/get-history?run_id={run}&metric_key=odd", None),
        ("GET", f"{V2}/metrics/get-history?run_id={run}&metric_key=metric%2F1&max_results=3", None),
        *(
            ("GET", f"{V2}/metrics/get-history?{query}", None)
            for query in (
                f"run_id={run}&metric_key=none", "run_id=none&metric_key=odd", f"run_id={run}", "metric_key=odd",
                f"run_uuid={run}&metric_key=odd", *(f"run_id={run}&metric_key=odd&{page}" for page in pages),
            )
        ),
        ("GET", f"/ajax-api/2.0/mlflow/metrics/get-history-bulk-interval?run_ids={run}&metric_key=odd", None),
        ("GET", f"/ajax-api/2.0/mlflow/metrics/get-history-bulk?run_id={run}&metric_key=odd", None),
        ("GET", f"{V2}/experiments/get?experiment_id={experiment}", None),
        ("GET", f"{V2}/experiments/get-by-name?experiment_name={quote('a süd')}", None),
        ("POST", f"{V2}/experiments/search", {"max_results": 2, "order_by": ["name DESC"]}),
        ("POST", "/ajax-api/2.0/mlflow/experiments/search-datasets", {"experiment_ids": experiments}),
        ("GET", f"{V2}/artifacts/list?run_id={run}&path=model", None),
        ("GET", f"{V2}-artifacts/artifacts?path={experiment}/{run}/artifacts/model", None),
        ("GET", f"/get-artifact?run_id={run}&path=model/weights.bin", None),
        ("GET", f"{ARTIFACTS}/{artifact}/weights.bin", None),
        ("GET", f"{ARTIFACTS}/{folder}/notes%20and%20more.txt", None),
        ("GET", f"/ajax-api/2.0/mlflow-artifacts/artifacts/{artifact}/weights.bin", None),
        ("GET", f"{ARTIFACTS}/{artifact}/../../secret", None),
        ("GET", f"{ARTIFACTS}/..%2F..%2Fsecret", None),
        ("GET", f"{V2}/registered-models/search", None),
        ("GET", f"{V2}/registered-models/get?name=a-model-1", None),
        ("GET", f"{V2}/registered-models/get?name=none", None),
        ("GET", f"{V2}/registered-models/alias?name=a-model-1&alias=champion", None),
        ("POST", f"{V2}/registered-models/get-latest-versions", {"name": "a-model-1"}),
        ("GET", f"{V2}/model-versions/search", None),
        ("GET", f"{V2}/model-versions/get?name=a-model-1&version=2", None),
        ("GET", f"{V2}/model-versions/get-download-uri?name=a-model-1&version=2", None),
        ("POST", f"{V2}/logged-models/search", {"experiment_ids": experiments}),
        ("GET", f"{V2}/logged-models/{model}", None),
        ("POST", f"{V3}/traces/search", {"locations": place}),
        ("POST", f"{V3}/traces/search", {"locations": place, "filter": "tags.kind = 'drill'", "max_results": 2}),
        ("GET", f"{V3}/traces/{trace}", None),
        ("GET", f"{V3}/traces/get?trace_id={trace}", None),
        ("GET", f"/ajax-api/3.0/mlflow/get-trace-artifact?request_id={trace}", None),
        ("POST", "/graphql", {"query": GRAPHQL, "variables": {"data": {"runId": run}}}),
        ("GET", "/gateway/none/mlflow/invocations", None),
        ("GET", "/ajax-api/3.0/jobs/none", None),
        ("GET", "/v1/traces", None),
    ]  # fmt: skip


def test_the_answers_are_mlflows_own(pair: tuple[Task, Task]) -> None:
    stock, fast = pair
    requests = reading(stock)
    bodies = set()
    for method, path, body in requests:
        expected, found = ask(stock, method, path, body), ask(fast, method, path, body)
        bodies.add(expected[2])
        if "/traces" in path:  # protobuf's maps have another order in each process
            expected, found = in_order(expected), in_order(found)
        assert found == expected, f"{method} {path} {body}"
    assert len(bodies) > 0.7 * len(requests), "most of the requests should have answers of their own"
    # MLflow keeps infinity as the largest number.
    assert any(b'"NaN"' in body and b"1.7976931348623157e+308" in body for body in bodies)
    assert any(b"\\u00fc" in body for body in bodies)
    assert "stays off" not in fast.output


def test_headers_that_middlewares_look_at_are_answered_alike(pair: tuple[Task, Task]) -> None:
    stock, fast = pair
    path = f"{V2}/experiments/get?experiment_id=0"
    for headers in (
        {"Host": "evil.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "http://localhost:3000"},
        {"X-MLFLOW-WORKSPACE": "other"},
        {"X-MLFLOW-WORKSPACE": " "},
        {"Content-Encoding": "gzip"},
    ):
        for method, body in (("GET", None), ("POST", {"experiment_id": "0"}), ("OPTIONS", None)):
            expected, found = (
                ask(stock, method, path, body, **headers),
                ask(fast, method, path, body, **headers),
            )
            assert found == expected, (method, headers)


def test_a_large_answer_comes_whole(pair: tuple[Task, Task]) -> None:
    """Larger than what is sent in one piece."""
    stock, fast = pair
    run = fast.start_run()
    for first in range(0, 12_000, 1000):
        metrics = [
            {"key": "long", "value": step / 7, "timestamp": 1, "step": step}
            for step in range(first, first + 1000)
        ]
        assert fast.post(f"{RUNS}/log-batch", {"run_id": run, "metrics": metrics})[0] == 200
    path = f"{V2}/metrics/get-history?run_id={run}&metric_key=long"
    expected = ask(stock, "GET", path)
    assert len(expected[2]) > 1 << 20
    assert ask(fast, "GET", path) == expected
    script = next(
        part.split('"')[0]
        for part in ask(stock, "GET", "/")[2].decode().split('src="')
        if part.startswith("static-files/") and ".js" in part
    )
    assert ask(fast, "GET", f"/{script}") == ask(stock, "GET", f"/{script}")


def test_what_was_written_in_the_same_breath_is_answered(pair: tuple[Task, Task]) -> None:
    """Runs whose rows were changed, but not written yet, when they are answered."""
    _, fast = pair
    status, answer = fast.post(
        f"{RUNS}/create", {"experiment_id": "0", "run_name": "new", "tags": [{"key": "a", "value": "ü"}]}
    )
    assert status == 200
    tags = {tag["key"]: tag["value"] for tag in answer["run"]["data"]["tags"]}
    assert tags == {"a": "ü", "mlflow.runName": "new"}
    run = answer["run"]["info"]["run_id"]
    status, answer = fast.post(f"{RUNS}/update", {"run_id": run, "run_name": "renamed", "status": "FINISHED"})
    assert (status, answer["run_info"]["run_name"]) == (200, "renamed")
    status, found = fast.get(f"{RUNS}/get?run_id={run}")
    assert status == 200
    assert {"key": "mlflow.runName", "value": "renamed"} in json.loads(found)["run"]["data"]["tags"]


def filled(kind: Any, drawn: random.Random, depth: int = 0) -> Any:
    """A message of that kind with a value in most of its fields, the odd ones among them."""
    message = kind()
    if kind.DESCRIPTOR.name in ("Timestamp", "Duration"):
        message.FromMilliseconds(drawn.randrange(10**12))
        return message
    for field in message.DESCRIPTOR.fields:
        if drawn.random() < 0.2 or depth > 4:
            continue
        value = getattr(message, field.name)
        inner = field.message_type
        if inner is not None and inner.GetOptions().map_entry:
            for key in ("b", "ü", ""):
                if inner.fields_by_name["value"].message_type is not None:
                    value[key].CopyFrom(filled(type(value[key]), drawn, depth + 1))
                else:
                    value[key] = scalar(inner.fields_by_name["value"], drawn)
        elif field.is_repeated and inner is not None:
            for _ in range(drawn.randrange(3)):
                value.add().CopyFrom(filled(GetMessageClass(inner), drawn, depth + 1))
        elif field.is_repeated:
            value.extend(scalar(field, drawn) for _ in range(drawn.randrange(3)))
        elif inner is not None:
            value.CopyFrom(filled(type(value), drawn, depth + 1))
        else:
            setattr(message, field.name, scalar(field, drawn))
    return message


def scalar(field: Any, drawn: random.Random) -> Any:
    match field.cpp_type:
        case field.CPPTYPE_STRING if field.type == field.TYPE_BYTES:
            return drawn.randbytes(5)
        case field.CPPTYPE_STRING:
            return drawn.choice(["", "a", 'q"\\/\n\x00', "üñ\u2028", "😀"])
        case field.CPPTYPE_ENUM:
            return drawn.choice(field.enum_type.values).number
        case field.CPPTYPE_BOOL:
            return drawn.random() < 0.5
        case field.CPPTYPE_DOUBLE | field.CPPTYPE_FLOAT:
            return drawn.choice(
                [0.0, -0.0, 1.0, 0.1, 1e16, 1e-7, 1e300, float("nan"), float("inf"), -float("inf")]
            )
        case field.CPPTYPE_INT32 | field.CPPTYPE_UINT32:
            return drawn.choice([0, 1, 2**31 - 1])
    return drawn.choice([0, 1, 2**53 + 1, 2**63 - 1])


def test_every_message_is_written_as_mlflow_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.server import handlers

    for module in (proto_json_utils, handlers):  # so that they are put back
        monkeypatch.setattr(module, "message_to_json", module.message_to_json)
    stock = proto_json_utils.message_to_json
    left: list[str] = []

    def as_before(message: Any, **options: Any) -> str:
        left.append(message.DESCRIPTOR.full_name)
        return str(stock(message, **options))

    proto_json_utils.message_to_json = as_before
    speed_json.apply()
    drawn = random.Random(4)
    kinds = [
        GetMessageClass(kind)
        for file in (service_pb2, model_registry_pb2)
        for outer in file.DESCRIPTOR.message_types_by_name.values()
        for kind in (outer, *outer.nested_types)
        if not kind.GetOptions().map_entry
    ]
    assert len(kinds) > 100
    written = 0
    for kind in kinds:
        for _ in range(20):
            message = filled(kind, drawn)
            try:
                expected = stock(message)
            except (TypeError, SerializeToJsonError):  # a value of an assessment that is infinite, say
                with pytest.raises((TypeError, SerializeToJsonError)):
                    handlers.message_to_json(message)
                continue
            written += 1
            assert handlers.message_to_json(message) == expected
            assert handlers.message_to_json(message, pretty=False) == stock(message, pretty=False)
    assert written > 10 * len(kinds)
    for kind in (service_pb2.SearchRuns.Response, service_pb2.GetMetricHistory.Response):
        left.clear()
        handlers.message_to_json(filled(kind, drawn))
        assert left == [], "these are to be written without MLflow's own code"


def test_requests_to_flask_pass_by_what_is_not_for_them() -> None:
    application = create_fastapi_app()
    speed_requests.apply(application)
    middlewares = [middleware.cls for middleware in application.user_middleware]
    assert {speed_requests._Workspace, speed_requests._GatewayTiming} <= set(middlewares)
    assert BaseHTTPMiddleware not in middlewares
    first = application.router.routes[0]
    for path, match in (
        (f"{RUNS}/search", Match.FULL),
        ("/graphql", Match.FULL),
        ("/v1/traces", Match.NONE),
        ("/gateway/any/mlflow/invocations", Match.NONE),
        (f"{ARTIFACTS}/0/any", Match.NONE),
    ):
        scope = {"type": "http", "method": "POST", "path": path, "headers": []}
        assert first.matches(scope)[0] == match, path


@pytest.mark.parametrize("change", speed.CHANGES, ids=lambda change: change.name)
def test_upstream_is_still_what_each_change_was_made_for(change: speed.Change) -> None:
    """After an update of MLflow or a library: look whether it still needs the change, then renew VERSION and hashes."""
    assert speed.differing(change) == ""


def test_the_collector_still_looks_at_what_was_imported() -> None:
    """Python 3.14 has another collector."""
    assert sys.version_info < (3, 14)
    assert gc.get_threshold()[0] <= 2000


Apply = Callable[[str], list[str]]


@pytest.fixture
def apply(monkeypatch: pytest.MonkeyPatch) -> Apply:
    """Applies changes that do nothing, and returns the names of those that were put in place."""

    def run(asked: str, version: str = speed.VERSION) -> list[str]:
        done: list[str] = []

        def change(name: str, verified: dict[str, str]) -> speed.Change:
            return speed.Change(name, lambda _: done.append(name), verified)

        known = "mlflow.utils.proto_json_utils:message_to_json"
        monkeypatch.setattr(
            speed,
            "CHANGES",
            (
                change("fits", {known: speed.digest(known)}),
                change("differs", {known: "0" * 16}),
                change("gone", {"mlflow.utils.proto_json_utils:nothing": "0" * 16}),
                change("any", {}),
            ),
        )
        monkeypatch.setenv(speed.VARIABLE, asked)
        speed.apply(None)
        return done

    return run


def test_only_what_fits_is_changed(apply: Apply, capsys: pytest.CaptureFixture[str]) -> None:
    assert apply("") == ["fits", "any"]
    told = capsys.readouterr().err
    assert "faster differs stays off" in told
    assert "faster gone stays off: mlflow.utils.proto_json_utils:nothing is missing" in told


def test_changes_can_be_turned_off(apply: Apply, capsys: pytest.CaptureFixture[str]) -> None:
    assert apply("off") == []
    assert apply("any, differs") == ["any"]
    assert apply("wrong") == []
    assert "names wrong, which is none of any, differs, fits, gone or off" in capsys.readouterr().err


def test_another_mlflow_is_left_as_it_is(apply: Apply, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlflow.__version__", "3.16.1")
    assert apply("") == ["any"]
