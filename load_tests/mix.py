"""The mixed tracking workload: what one user of an MLflow server does, and how often."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from locust import FastHttpUser, between, task
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from load_tests.api import artifact_path
from load_tests.ledger import Ledger, Run, artifact_bytes, history_holds
from load_tests.place import ALIAS, Place
from load_tests.verdict import Kind

OPERATIONS: dict[str, Kind] = {
    "start run": "write",
    "end run": "write",
    "log batch": "write",
    "log metric": "write",
    "upload artifact": "write",
    "register version": "write",
    "write trace": "write",
    "search runs": "read",
    "get run": "read",
    "metric history": "read",
    "download artifact": "read",
    "version by alias": "read",
    "search traces": "read",
}
"""Every operation of the mix. Each is one request; a load that leaves one out proves nothing about it."""

REQUEST_TIMEOUT = 10.0
"""Seconds after which a request of the load counts as failed. Both connecting and waiting have this limit."""

_METRICS_PER_BATCH, _PARAMS_PER_BATCH, _TAGS_PER_BATCH = 10, 3, 2

_dice = random.Random()


class TrackingUser(FastHttpUser):
    """Somebody who trains: logs to a run of their own, looks at others, stores files, registers, traces.

    Each task's weight is its share in the mix. Tasks are not drawn at random but dealt from one shuffled deck
    that all users share, so that the shares are exact and even a short load has every operation.
    """

    wait_time = between(0.1, 0.5)
    connection_timeout = REQUEST_TIMEOUT
    network_timeout = REQUEST_TIMEOUT
    # Locust's default trusts any certificate, and would hand the token to whoever answers.
    insecure = False

    place: ClassVar[Place]
    ledger: ClassVar[Ledger]
    _deck: ClassVar[list[Callable[[TrackingUser], None]]] = []

    _run: Run | None = None

    def on_start(self) -> None:
        self.tasks = [TrackingUser._deal]
        self._model = _dice.choice(self.place.models)
        self._step = 0

    def _deal(self) -> None:
        if not TrackingUser._deck:
            cards: list[Any] = list(TrackingUser.tasks)
            _dice.shuffle(cards)
            TrackingUser._deck = cards
        TrackingUser._deck.pop()(self)

    @task(1)
    def next_run(self) -> None:
        """End the run and start another."""
        if run := self._current_run():
            query = {"run_id": run.run_id, "status": "FINISHED", "end_time": _now()}
            if self._call("end run", "POST", "/api/2.0/mlflow/runs/update", json=query) is not None:
                run.ended = True
            self._start_run()

    @task(3)
    def log_batch(self) -> None:
        """Log metrics, params and tags in one request, as an autologging framework does."""
        if not (run := self._current_run()):
            return
        step, now = self._next_step(), _now()
        metrics = {f"batch_{number}": _dice.random() for number in range(_METRICS_PER_BATCH)}
        params = {
            f"param_{step}_{number}": f"value {number} of {step}" for number in range(_PARAMS_PER_BATCH)
        }
        tags = {f"tag_{number}": f"set at {step}" for number in range(_TAGS_PER_BATCH)}
        query = {
            "run_id": run.run_id,
            "metrics": [
                {"key": key, "value": value, "timestamp": now, "step": step} for key, value in metrics.items()
            ],
            "params": [{"key": key, "value": value} for key, value in params.items()],
            "tags": [{"key": key, "value": value} for key, value in tags.items()],
        }
        # A tag that is set again without an acknowledgement may have either value.
        for key in tags:
            run.tags.pop(key, None)
        if self._call("log batch", "POST", "/api/2.0/mlflow/runs/log-batch", json=query) is not None:
            run.params |= params
            run.tags |= tags
            for key, value in metrics.items():
                run.metrics.setdefault(key, {})[step] = value

    @task(6)
    def log_metric(self) -> None:
        """Log one value, as a training loop does."""
        if not (run := self._current_run()):
            return
        step, value = self._next_step(), _dice.random()
        query = {"run_id": run.run_id, "key": "loss", "value": value, "timestamp": _now(), "step": step}
        if self._call("log metric", "POST", "/api/2.0/mlflow/runs/log-metric", json=query) is not None:
            run.metrics.setdefault("loss", {})[step] = value

    @task(2)
    def search_runs(self) -> None:
        """List the newest runs, as the experiment page does."""
        query = {
            "experiment_ids": [self.place.experiment_id],
            "order_by": ["attributes.start_time DESC"],
            "max_results": 25,
        }
        self._call("search runs", "POST", "/api/2.0/mlflow/runs/search", json=query)

    @task(3)
    def get_run(self) -> None:
        """Open the run's page."""
        if not (run := self._current_run()):
            return
        answer = self._call("get run", "GET", f"/api/2.0/mlflow/runs/get?run_id={run.run_id}")
        if answer is not None:
            stored = {param["key"]: param["value"] for param in answer["run"]["data"].get("params", [])}
            kept = run.params.items() <= stored.items()
            self.ledger.expect(kept, f"get run {run.run_id} lacks acknowledged params")

    @task(2)
    def metric_history(self) -> None:
        """Draw the run's loss curve."""
        if not (run := self._current_run()):
            return
        path = f"/api/2.0/mlflow/metrics/get-history?run_id={run.run_id}&metric_key=loss"
        answer = self._call("metric history", "GET", path)
        if answer is not None:
            self.ledger.expect(
                history_holds(answer.get("metrics", []), run.metrics.get("loss", {})),
                f"metric history of run {run.run_id} lacks acknowledged values",
            )

    @task(1)
    def store_artifact(self) -> None:
        """Upload a file through the server and download it again."""
        if not (run := self._current_run()):
            return
        path = f"{self.place.artifacts}/{run.run_id}/artifacts/file-{self._next_step()}.bin"
        content = artifact_bytes(path)
        headers = {"Content-Type": "application/octet-stream"}
        sent = self._call(
            "upload artifact", "PUT", artifact_path(path), data=content, headers=headers, raw=True
        )
        if sent is None:
            return
        run.artifacts.append(path)
        received = self._call("download artifact", "GET", artifact_path(path), raw=True)
        if received is not None:
            self.ledger.expect(received == content, f"artifact {path} came back different from what was sent")

    @task(1)
    def register_version(self) -> None:
        """Register the run's model as a new version."""
        if not (run := self._current_run()):
            return
        source = f"mlflow-artifacts:/{self.place.artifacts}/{run.run_id}/artifacts/model"
        query = {"name": self._model, "source": source, "run_id": run.run_id}
        answer = self._call("register version", "POST", "/api/2.0/mlflow/model-versions/create", json=query)
        if answer is not None:
            self.ledger.versions.append((self._model, str(answer["model_version"]["version"]), source))

    @task(2)
    def version_by_alias(self) -> None:
        """Ask which version is in use, as a deployment does."""
        path = f"/api/2.0/mlflow/registered-models/alias?name={self._model}&alias={ALIAS}"
        answer = self._call("version by alias", "GET", path)
        if answer is not None:
            found = str(answer["model_version"]["version"])
            self.ledger.expect(found == "1", f"alias {ALIAS} of {self._model} is version {found}, set was 1")

    @task(2)
    def write_trace(self) -> None:
        """Send a small agent's trace over OTLP, as any OpenTelemetry client does."""
        trace_id = os.urandom(16)
        spans = _agent_spans(trace_id)
        request = ExportTraceServiceRequest()
        request.resource_spans.add().scope_spans.add().spans.extend(spans)
        headers = {
            "Content-Type": "application/x-protobuf",
            "x-mlflow-experiment-id": self.place.experiment_id,
        }
        sent = self._call(
            "write trace", "POST", "/v1/traces", data=request.SerializeToString(), headers=headers, raw=True
        )
        if sent is not None:
            self.ledger.traces.append((f"tr-{trace_id.hex()}", len(spans)))

    @task(1)
    def search_traces(self) -> None:
        """List the newest traces."""
        experiment = {"experiment_id": self.place.experiment_id}
        query = {
            "locations": [{"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": experiment}],
            "max_results": 25,
            "order_by": ["timestamp_ms DESC"],
        }
        self._call("search traces", "POST", "/api/3.0/mlflow/traces/search", json=query)

    def _current_run(self) -> Run | None:
        """The user's open run, started if there is none yet; None if that failed."""
        if self._run is None or self._run.ended:
            self._start_run()
        return self._run

    def _start_run(self) -> None:
        query = {"experiment_id": self.place.experiment_id, "start_time": _now()}
        answer = self._call("start run", "POST", "/api/2.0/mlflow/runs/create", json=query)
        self._run = Run(answer["run"]["info"]["run_id"]) if answer is not None else None
        if self._run:
            self.ledger.runs.append(self._run)

    def _next_step(self) -> int:
        self._step += 1
        return self._step

    def _call(
        self,
        operation: str,
        method: str,
        path: str,
        *,
        json: Any = None,
        data: bytes | None = None,
        headers: Mapping[str, str | None] | None = None,
        raw: bool = False,
    ) -> Any:
        """Send one request; return its answer (decoded, or bytes if `raw`), or None if it failed."""
        body: Any = data  # Bytes are sent as they are, whatever locust's annotation says.
        with self.client.request(
            method,
            path,
            name=operation,
            json=json,
            data=body,
            headers=dict(headers or {}),
            catch_response=True,
        ) as response:
            if response.status_code != 200:
                response.failure(_cause(response))
                return None
            if raw:
                return response.content or b""
            try:
                return response.json()
            except ValueError:
                response.failure("HTTP 200 with something that is not JSON")
                return None


def _cause(response: Any) -> str:
    """Why a request failed, in words that do not differ from one request to the next where that can be."""
    if response.status_code:
        return f"HTTP {response.status_code}: {' '.join(str(response.text).split())[:160]}"
    error = getattr(response, "error", None)
    return f"no answer: {getattr(error, 'original', None) or error}"


def _now() -> int:
    return int(time.time() * 1000)


def _agent_spans(trace_id: bytes) -> list[Span]:
    """A root span with a retrieval and a model call below it, half a second long, ending now."""
    end = time.time_ns()
    start = end - 500_000_000
    root = os.urandom(8)
    return [
        Span(
            trace_id=trace_id, span_id=root, name="agent", start_time_unix_nano=start, end_time_unix_nano=end
        ),
        *(
            Span(
                trace_id=trace_id,
                span_id=os.urandom(8),
                parent_span_id=root,
                name=name,
                start_time_unix_nano=start + 1_000_000,
                end_time_unix_nano=end - 1_000_000,
            )
            for name in ("retrieve", "generate")
        ),
    ]
