"""What is asked of a server: each operation is one request, and a sign by which a right answer is known."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

from load_tests.api import artifact_path

from .fill import ALIAS, BEGAN, HISTORY_STEPS, MODEL, Content

SMALL, LARGE = 100_000, 100_000_000
"""Bytes of an artifact."""

Group = Literal["other", "read", "write", "artifact", "large artifact"]


@dataclass(frozen=True)
class Request:
    """One request, ready to be sent."""

    method: str
    path: str
    body: bytes | None = None
    content_type: str = "application/json"
    authorization: str = ""


@dataclass(frozen=True)
class Operation:
    """A kind of request. `request` makes the n-th one; no two have the same n."""

    name: str
    group: Group
    request: Callable[[int], Request]
    sign: bytes = b""
    """What a right answer has in it..."""
    times: int = 1
    """...so many times..."""
    length: int = 0
    """...or its length in bytes, where that is all there is to know."""

    def right(self, body: bytes) -> bool:
        """Whether this is what a server should answer."""
        if self.length:
            return len(body) == self.length
        return body.count(self.sign) == self.times if self.sign else True


RUN_PAGE = """
query GetRun($data: MlflowGetRunInput!) { mlflowGetRun(input: $data) {
  apiError { code message }
  run {
    info { runName runUuid status experimentId startTime endTime artifactUri lifecycleStage userId }
    data { metrics { key value step timestamp } params { key value } tags { key value } }
    experiment { experimentId name artifactLocation lifecycleStage lastUpdateTime tags { key value } }
    inputs { datasetInputs { dataset { digest name } } modelInputs { modelId } }
  }
} }"""
"""What the run's page asks for."""


def operations(content: Content, artifacts: bool) -> list[Operation]:
    """All operations, in the order in which they are measured: nothing is found or read that was written before it."""
    experiment, long = content.experiment_id, content.long_run_id

    def run(n: int) -> str:
        return content.run_ids[n % len(content.run_ids)]

    def get(path: str) -> Callable[[int], Request]:
        return lambda _: Request("GET", path)

    def search(rows: int, **query: Any) -> Callable[[int], Request]:
        asked = {"experiment_ids": [experiment], "max_results": rows, **query}
        return lambda _: _post("/api/2.0/mlflow/runs/search", asked)

    traces = {
        "locations": [{"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment}}],
        "max_results": 25,
        "order_by": ["timestamp_ms DESC"],
    }
    by_start, by_metric = ["attributes.start_time DESC"], ["metrics.accuracy DESC"]
    read = [
        Operation("health", "other", get("/health"), b"OK"),
        Operation(
            "get experiment",
            "read",
            get(f"/api/2.0/mlflow/experiments/get?experiment_id={experiment}"),
            b'"artifact_location"',
        ),
        Operation(
            "get run",
            "read",
            lambda n: Request("GET", f"/api/2.0/mlflow/runs/get?run_id={run(n)}"),
            b'"learning_rate"',
        ),
        Operation("search runs, 20 rows", "read", search(20), b'"run_uuid"', 20),
        Operation("search runs, 100 rows", "read", search(100), b'"run_uuid"', 100),
        Operation(
            "search runs by metric, 20 rows",
            "read",
            search(20, filter="metrics.accuracy > 0.5", order_by=by_metric),
            b'"run_uuid"',
            20,
        ),
        Operation(
            "search runs by start time, 20 rows",
            "read",
            search(20, filter=f"attributes.start_time > {BEGAN}", order_by=by_start),
            b'"run_uuid"',
            20,
        ),
        Operation(
            f"metric history, {HISTORY_STEPS} steps",
            "read",
            get(f"/api/2.0/mlflow/metrics/get-history?run_id={long}&metric_key=loss"),
            b'"timestamp"',
            HISTORY_STEPS,
        ),
        Operation(
            "search traces, 25 rows",
            "read",
            lambda _: _post("/api/3.0/mlflow/traces/search", traces),
            b'"trace_id"',
            25,
        ),
        Operation(
            "run page (GraphQL)",
            "read",
            lambda n: _post(
                "/graphql",
                {"operationName": "GetRun", "query": RUN_PAGE, "variables": {"data": {"runId": run(n)}}},
            ),
            b'"learning_rate"',
        ),
        Operation(
            "model version by alias",
            "read",
            get(f"/api/2.0/mlflow/registered-models/alias?name={quote(MODEL)}&alias={ALIAS}"),
            b'"version"',
        ),
    ]
    write = [
        Operation(
            "create run",
            "write",
            lambda n: _post(
                "/api/2.0/mlflow/runs/create",
                {"experiment_id": experiment, "start_time": BEGAN + n, "run_name": f"benchmark {n}"},
            ),
            b'"run_uuid"',
        ),
        Operation(
            "log metric",
            "write",
            lambda n: _post(
                "/api/2.0/mlflow/runs/log-metric",
                {"run_id": run(n), "key": "measured", "value": n / 7, "timestamp": BEGAN + n, "step": n},
            ),
            b"{}",
        ),
        Operation("log batch", "write", lambda n: _batch(run(n), n), b"{}"),
        Operation(
            "register model version",
            "write",
            lambda n: _post(
                "/api/2.0/mlflow/model-versions/create",
                # Versions are numbered for each model: writers of one model would measure how they wait for one another.
                {
                    "name": f"model-{n % 100 + 1}",
                    "run_id": long,
                    "source": f"mlflow-artifacts:/1/{long}/artifacts/model",
                },
            ),
            b'"version"',
        ),
    ]
    return [*read, *write, *(_artifacts() if artifacts else [])]


def with_password(content: Content, authorization: str) -> Operation:
    """What a user asks who signs in with a password."""

    def request(n: int) -> Request:
        run = content.run_ids[n % len(content.run_ids)]
        path = f"/api/2.0/mlflow/runs/get?run_id={run}"
        return Request("GET", path, authorization=authorization)

    return Operation("get run, with a password", "read", request, b'"learning_rate"')


def _artifacts() -> list[Operation]:
    """Files that go through the server to the bucket and back; each is read only after it was written."""
    found: list[Operation] = []
    sizes: tuple[tuple[str, Group, int], ...] = (
        ("100 KB", "artifact", SMALL),
        ("100 MB", "large artifact", LARGE),
    )
    for title, group, size in sizes:
        content = random.Random(size).randbytes(size)
        folder = f"benchmark/{size}"

        def put(n: int, content: bytes = content, folder: str = folder) -> Request:
            return Request(
                "PUT", artifact_path(f"{folder}/{n % 16}.bin"), content, "application/octet-stream"
            )

        def get(n: int, folder: str = folder) -> Request:
            return Request("GET", artifact_path(f"{folder}/{n % 16}.bin"))

        found += [
            Operation(f"PUT artifact of {title}", group, put),
            Operation(f"GET artifact of {title}", group, get, length=size),
        ]
    return found


def _batch(run_id: str, n: int) -> Request:
    """Ten metrics, three params and two tags, as an autologging framework sends them."""
    metrics = [
        {"key": f"batch_{m}", "value": (n + m) / 7, "timestamp": BEGAN + n, "step": n} for m in range(10)
    ]
    params = [{"key": f"param_{n}_{p}", "value": f"value {p} of {n}"} for p in range(3)]
    tags = [{"key": f"tag_{t}", "value": f"set at {n}"} for t in range(2)]
    return _post(
        "/api/2.0/mlflow/runs/log-batch",
        {"run_id": run_id, "metrics": metrics, "params": params, "tags": tags},
    )


def _post(path: str, body: dict[str, Any]) -> Request:
    return Request("POST", path, json.dumps(body).encode())
