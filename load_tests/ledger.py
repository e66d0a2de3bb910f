"""What the server acknowledged during the load, and the proof that it kept it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from load_tests.api import Api, ApiError, NoAnswerError

SAMPLE = 20
"""Runs, model versions and traces to read back, of each at most this many."""

ARTIFACT_BYTES = 100_000
T = TypeVar("T")


@dataclass
class Run:
    """A run and everything that the server said it stored for it."""

    run_id: str
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, dict[int, float]] = field(default_factory=dict)
    artifacts: list[str] = field(default_factory=list)
    ended: bool = False


@dataclass
class Ledger:
    """Acknowledged writes, and answers given during the load that contradict them.

    A write without an acknowledgement may or may not be there. Only acknowledged ones are held against the
    server.
    """

    runs: list[Run] = field(default_factory=list)
    versions: list[tuple[str, str, str]] = field(default_factory=list)
    traces: list[tuple[str, int]] = field(default_factory=list)
    wrong_answers: list[str] = field(default_factory=list)

    def expect(self, right: bool, sentence: str) -> None:
        """Note `sentence` as a wrong answer unless `right`."""
        if not right:
            self.wrong_answers.append(sentence)

    def read_back(self, api: Api) -> list[str]:
        """Read a sample of what was acknowledged; return a sentence for all that is missing or different."""
        lost: list[str] = []
        checks = [
            *(partial(_run_problems, api, run) for run in _some(self.runs)),
            *(partial(_version_problems, api, *version) for version in _some(self.versions)),
            *(partial(_trace_problems, api, *trace) for trace in _some(self.traces)),
        ]
        for check in checks:
            try:
                for sentence in check():
                    lost.append(sentence)
            except ApiError as error:
                lost.append(f"could not be read back: {error}")
                if isinstance(error, NoAnswerError):
                    break
        return lost


def artifact_bytes(path: str) -> bytes:
    """The content of the artifact at `path`: incompressible, and the same whenever it is asked for."""
    return random.Random(path).randbytes(ARTIFACT_BYTES)


def history_holds(history: Sequence[dict[str, Any]], acknowledged: dict[int, float]) -> bool:
    """Whether a metric history, as the API gives it, has every acknowledged step with its value."""
    found = {int(point.get("step", 0)): float(point["value"]) for point in history}
    return all(found.get(step) == value for step, value in acknowledged.items())


def _some(things: Sequence[T]) -> Sequence[T]:
    return random.sample(things, min(SAMPLE, len(things)))


def _run_problems(api: Api, run: Run) -> Iterator[str]:
    found = api.call("GET", "/api/2.0/mlflow/runs/get", params={"run_id": run.run_id})["run"]
    for kind, acknowledged in (("params", run.params), ("tags", run.tags)):
        stored = {entry["key"]: entry["value"] for entry in found["data"].get(kind, [])}
        for key, value in acknowledged.items():
            if stored.get(key) != value:
                yield f"run {run.run_id}: {kind} {key} is {stored.get(key)!r}, acknowledged was {value!r}"
    if run.ended and found["info"]["status"] != "FINISHED":
        yield f"run {run.run_id}: status is {found['info']['status']}, acknowledged was FINISHED"
    for key, steps in run.metrics.items():
        query = {"run_id": run.run_id, "metric_key": key}
        answer = api.call("GET", "/api/2.0/mlflow/metrics/get-history", params=query)
        if not history_holds(answer.get("metrics", []), steps):
            yield f"run {run.run_id}: history of metric {key} lacks acknowledged values"
    for path in run.artifacts[:1]:
        if api.download(path) != artifact_bytes(path):
            yield f"run {run.run_id}: artifact {path} differs from what was uploaded"


def _version_problems(api: Api, name: str, number: str, source: str) -> Iterator[str]:
    query = {"name": name, "version": number}
    found = api.call("GET", "/api/2.0/mlflow/model-versions/get", params=query)["model_version"]
    if found["source"] != source:
        yield f"model {name} version {number}: source is {found['source']!r}, acknowledged was {source!r}"


def _trace_problems(api: Api, trace_id: str, spans: int) -> Iterator[str]:
    answer = api.call("GET", "/api/3.0/mlflow/traces/get", params={"trace_id": trace_id})
    found = len(answer["trace"].get("spans", []))
    if found != spans:
        yield f"trace {trace_id}: {found} spans, acknowledged were {spans}"
