"""Clients that use an environment while something happens to it, and forget nothing they were told.

None of them tries anything twice: what fails once counts as failed.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import requests
from mlflow import MlflowClient

REQUEST_SECONDS = 90.0
"""How long a client waits for an answer: longer than the load balancer, which gives up after 60 s."""

PAUSE_SECONDS = 0.2
NO_RETRIES = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(int(REQUEST_SECONDS)),
}
PIECE = b"a piece of an artifact\n" * 400
PIECES = 5


@dataclass(frozen=True)
class Failure:
    """A request that did not go well."""

    what: str
    why: str
    began: float
    seconds: float

    @property
    def ended(self) -> float:
        """When it was clear that it failed, by the clock that `began` is from."""
        return self.began + self.seconds

    def overlaps(self, began: float, ended: float) -> bool:
        """Whether it was in flight at any time from `began` to `ended`."""
        return self.began <= ended and self.ended >= began

    def __str__(self) -> str:
        return f"{self.what} after {self.seconds:.1f} s: {self.why}"


@dataclass
class Written:
    """What the server has acknowledged of a run."""

    run: str
    metrics: dict[str, float] = field(default_factory=dict)
    artifacts: dict[str, bytes] = field(default_factory=dict)


class _Failed(Exception):
    """A request failed and has been counted."""


class Client:
    """Three clients at once, from the beginning of a `with` block to its end: two over plain kept-alive connections,
    one of which uploads so slowly that a request is always in flight, and MLflow's own."""

    def __init__(self, url: str, *, pause: float = PAUSE_SECONDS) -> None:
        """`pause`: seconds that each of them waits after it has read back what it wrote."""
        self.url = url
        self._pause = pause
        self.requests = 0
        self.failures: list[Failure] = []
        self.written: list[Written] = []
        self._counting = threading.Lock()
        self._stop = threading.Event()
        self._variables = mock.patch.dict(os.environ, NO_RETRIES)  # read at each request of MLflow's client
        self._threads = [
            threading.Thread(target=self._repeat, args=pair, daemon=True)
            for pair in (
                (self._log, requests.Session()),
                (self._upload, requests.Session()),
                (self._use_mlflow_client, MlflowClient(tracking_uri=url)),
            )
        ]

    def __enter__(self) -> Client:
        self._variables.start()
        with requests.Session() as session:
            name = f"drill-{uuid.uuid4().hex}"
            self._experiment = _post(session, self.url, "experiments/create", name=name)["experiment_id"]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._variables.stop()

    @property
    def loops(self) -> int:
        """How many requests it has in flight at most."""
        return len(self._threads)

    @property
    def succeeded(self) -> int:
        """Requests that went well so far."""
        with self._counting:
            return self.requests - len(self.failures)

    def lost(self) -> list[str]:
        """Everything that was acknowledged and is not there now, in sentences."""
        with requests.Session() as session:
            return [sentence for written in self.written for sentence in self._missing(session, written)]

    def _missing(self, session: requests.Session, written: Written) -> Iterator[str]:
        answer = session.get(
            f"{self.url}/api/2.0/mlflow/runs/get", params={"run_id": written.run}, timeout=REQUEST_SECONDS
        )
        if answer.status_code != 200:
            yield f"run {written.run}: {answer.status_code}"
            return
        there = {metric["key"]: metric["value"] for metric in answer.json()["run"]["data"].get("metrics", [])}
        for name, value in written.metrics.items():
            if there.get(name) != value:
                yield f"run {written.run}: metric {name} is {there.get(name)}, {value} was acknowledged"
        for path, content in written.artifacts.items():
            kept = session.get(self._artifact(written.run, path), timeout=REQUEST_SECONDS)
            if kept.content != content:
                yield f"run {written.run}: artifact {path}: {kept.status_code}, {len(kept.content)} bytes"

    def _log(self, session: requests.Session) -> None:
        """Start a run, log to it and read it back."""
        written = self._start_run(session)
        for step in range(3):
            name, value = f"metric-{step}", step + 0.5
            body = {"run_id": written.run, "key": name, "value": value, "timestamp": step}
            self._attempt("log metric", _post, session, self.url, "runs/log-metric", **body)
            written.metrics[name] = value
            self._attempt("get run", self._read, session, written)

    def _upload(self, session: requests.Session) -> None:
        """Upload an artifact in pieces, which takes a second, and read it back."""
        written = self._start_run(session)
        path = "pieces.txt"
        self._attempt("upload", self._put_slowly, session, self._artifact(written.run, path))
        written.artifacts[path] = PIECE * PIECES
        self._attempt("download", self._read, session, written)

    def _use_mlflow_client(self, client: MlflowClient) -> None:
        """The same with the client library that people use."""
        run = self._attempt("client: start run", client.create_run, self._experiment)
        written = Written(run.info.run_id)
        self.written.append(written)
        self._attempt("client: log metric", client.log_metric, written.run, "loss", 0.25)
        written.metrics["loss"] = 0.25
        self._attempt("client: get run", client.get_run, written.run)

    def _repeat(self, work: Callable[[Any], None], connection: Any) -> None:
        while not self._stop.wait(self._pause):
            with contextlib.suppress(_Failed):  # counted already; what would have followed it is left out
                work(connection)

    def _attempt(self, what: str, request: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Make one request and count it.

        Raises:
            _Failed: it failed.
        """
        began = time.monotonic()
        failure = None
        answer = None
        try:
            answer = request(*arguments, **named)
        except Exception as error:  # whatever the libraries raise is a failed request
            failure = Failure(what, f"{type(error).__name__}: {error}", began, time.monotonic() - began)
        with self._counting:
            self.requests += 1
            if failure:
                self.failures.append(failure)
        if failure:
            raise _Failed
        return answer

    def _start_run(self, session: requests.Session) -> Written:
        made = self._attempt(
            "start run", _post, session, self.url, "runs/create", experiment_id=self._experiment
        )
        written = Written(made["run"]["info"]["run_id"])
        self.written.append(written)
        return written

    def _read(self, session: requests.Session, written: Written) -> None:
        for sentence in self._missing(session, written):
            raise ValueError(sentence)

    def _put_slowly(self, session: requests.Session, url: str) -> None:
        _checked(session.put(url, data=_slowly(), timeout=REQUEST_SECONDS))

    def _artifact(self, run: str, path: str) -> str:
        return f"{self.url}/api/2.0/mlflow-artifacts/artifacts/{self._experiment}/{run}/artifacts/{path}"


class Pieces:
    """An artifact that is uploaded slowly, and says how long it is beforehand.

    3.10.0 takes an upload that does not, answers 200 and stores an empty file: its own defect, mended since.
    """

    def __len__(self) -> int:
        return len(PIECE) * PIECES

    def __iter__(self) -> Iterator[bytes]:
        return _slowly()


class PoliteClient(Client):
    """A client whose uploads say how long they are."""

    def _put_slowly(self, session: requests.Session, url: str) -> None:
        _checked(session.put(url, data=Pieces(), timeout=REQUEST_SECONDS))


def _post(session: requests.Session, url: str, path: str, **body: Any) -> Any:
    return (
        _checked(session.post(f"{url}/api/2.0/mlflow/{path}", json=body, timeout=REQUEST_SECONDS)).json()
        or True
    )


def _checked(answer: requests.Response) -> requests.Response:
    if answer.status_code != 200:
        raise requests.HTTPError(f"{answer.status_code} {answer.text[:200]}")
    return answer


def _slowly() -> Iterator[bytes]:
    for _ in range(PIECES):
        time.sleep(0.2)
        yield PIECE
