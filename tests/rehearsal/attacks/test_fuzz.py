"""Ten thousand random requests: no failure of the server, no hang, nothing lost.

What is drawn depends on what was answered before. With one client, as in `make test`, a run sends what the last one sent;
`make fuzz` has eight and a seed of the day, so that it may find what no run did before.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from typing import Any

import pytest

from ..test_image_entrypoint import ARTIFACTS, PASSWORD
from .conftest import Attacked, new_server
from .random_requests import LONGEST_SECONDS, Drawing, Drawn, Route, routes

REQUESTS = 10_000
CLIENTS = int(os.environ.get("FUZZ_CLIENTS", "1"))
SEED = os.environ.get("FUZZ_SEED", "mlflow")
MLFLOW = "/api/2.0/mlflow"

DOCUMENTED = (
    (501, b"this server has no such feature"),
    (501, b"job execution feature is not enabled"),
    (503, b"disabled because the server is running without workspaces support"),
)
"""The answers of 500 and above that docs/audit.md names, with what they say."""

KNOWN = (
    "alias",
    "artifact_location",
    "artifact_path",
    "assessment_id",
    "dataset_id",
    "endpoint_id",
    "experiment_id",
    "issue_id",
    "job_id",
    "key",
    "model_id",
    "name",
    "page_token",
    "path",
    "queue_id",
    "request_id",
    "run_id",
    "run_uuid",
    "secret_id",
    "source",
    "trace_id",
    "value",
    "version",
    "webhook_id",
)
FIRST_KEPT = 1_000_000
"""The id of the experiment that must be left as it is, too high to be guessed."""


@dataclass
class Client:
    """Sends what it draws, and remembers what it was told."""

    port: int
    drawing: Drawing
    kept: frozenset[str]
    statuses: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    made: dict[str, set[str]] = field(default_factory=lambda: {"run_id": set(), "experiment_id": set()})

    def run(self) -> Client:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=LONGEST_SECONDS)
        for _ in range(REQUESTS // CLIENTS):
            drawn = self.drawing.draw()
            try:
                connection.request(drawn.method, drawn.target, drawn.body, drawn.headers)
                response = connection.getresponse()
                status, answer = response.status, response.read()
            except (OSError, HTTPException) as error:
                self.failures.append(f"{error!r}: {drawn}")
                connection.close()
                continue
            self.statuses[status] += 1
            if status >= 500 and not any(status == code and words in answer for code, words in DOCUMENTED):
                self.failures.append(f"{status} {answer[:300]!r}: {drawn}")
            if status == 200:
                self._learn(drawn, answer)
        connection.close()
        return self

    def _learn(self, drawn: Drawn, answer: bytes) -> None:
        try:
            told = json.loads(answer)
        except (ValueError, RecursionError):
            return
        if drawn.target.endswith("/mlflow/experiments/create"):
            self.made["experiment_id"].add(told["experiment_id"])
        if drawn.target.endswith("/mlflow/runs/create"):
            self.made["run_id"].add(told["run"]["info"]["run_id"])
        self._remember(told)

    def _remember(self, told: Any) -> None:
        for name, value in told.items() if isinstance(told, dict) else ():
            if isinstance(value, str) and name in self.drawing.known and value not in self.kept:
                self.drawing.known[name].append(value)
            self._remember(value)
        for item in told if isinstance(told, list) else ():
            self._remember(item)


@pytest.fixture(scope="module")
def attacked() -> Iterator[Attacked]:
    """A server of its own: random requests delete what other tests need, such as the first experiment."""
    with new_server() as server:
        yield server


@pytest.fixture(scope="module")
def described() -> list[Route]:
    return routes()


def test_every_request_can_be_drawn_again(described: list[Route]) -> None:
    first, again = (Drawing("seed", described, {name: [] for name in KNOWN}) for _ in range(2))
    assert [first.draw() for _ in range(300)] == [again.draw() for _ in range(300)]


def test_the_routes_are_mlflows_own(described: list[Route]) -> None:
    """A service or a framework that is no longer read would leave its routes out."""
    paths = {(route.method, route.path): route.message for route in described}
    assert len(paths) > 300
    for declared in ("runs/create", "registered-models/create", "webhooks"):
        assert paths["POST", f"{MLFLOW}/{declared}"] is not None
    for other in (
        ("POST", "/v1/traces"),
        ("POST", "/graphql"),
        ("GET", "/get-artifact"),
        ("POST", "/ajax-api/3.0/jobs/"),
    ):
        assert other in paths


def test_ten_thousand_random_requests(attacked: Attacked, described: list[Route]) -> None:
    kept = _keep(attacked)
    before, processes = _state(attacked), [process.pid for process in attacked.task.tree]
    clients = []
    for number in range(CLIENTS):
        known: dict[str, list[str]] = {name: [] for name in KNOWN}
        known["experiment_id"], known["version"] = ["0"], ["1"]
        clients.append(Client(attacked.task.port, Drawing(f"{SEED} {number}", described, known), kept))
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(Client.run, clients))

    failures = [failure for client in clients for failure in client.failures]
    assert not failures, f"{len(failures)} failures with {CLIENTS} clients and seed {SEED!r}:\n" + "\n".join(
        failures[:20]
    )
    statuses = sum((client.statuses for client in clients), Counter[int]())
    assert statuses.total() == REQUESTS
    assert statuses[200] > REQUESTS / 20, statuses  # or no request got far
    assert [process.pid for process in attacked.task.tree] == processes
    assert attacked.request("GET", "/health")[0] == 200

    assert _state(attacked) == before, "what was there is not as it was"
    attacked.start_run(str(FIRST_KEPT))
    for table, column, name in (
        ("runs", "run_uuid", "run_id"),
        ("experiments", "experiment_id", "experiment_id"),
    ):
        stored = {str(value) for (value,) in attacked.rows(f"SELECT {column} FROM {table}")}
        made = {value for client in clients for value in client.made[name]}
        assert made, f"no {name} was made"
        assert made <= stored, f"acknowledged and lost: {made - stored}"
    assert PASSWORD not in attacked.task.output


def _keep(attacked: Attacked) -> frozenset[str]:
    """Make what no request may lose, and return the ids and names that no request must know."""
    attacked.rows(f"SELECT setval('experiments_experiment_id_seq', {FIRST_KEPT}, false)")
    experiment = attacked.create(f"{MLFLOW}/experiments/create", {"name": "kept experiment"})["experiment_id"]
    assert experiment == str(FIRST_KEPT)
    runs = [attacked.start_run(experiment) for _ in range(5)]
    for run in runs:
        metrics = [{"key": f"m{n}", "value": n, "timestamp": 1, "step": n} for n in range(20)]
        params = [{"key": f"p{n}", "value": str(n)} for n in range(20)]
        attacked.create(f"{MLFLOW}/runs/log-batch", {"run_id": run, "metrics": metrics, "params": params})
        target = f"{ARTIFACTS}/{experiment}/{run}/artifacts/kept.txt"
        assert attacked.request("PUT", target, run.encode())[0] == 200
    attacked.create(f"{MLFLOW}/registered-models/create", {"name": "kept model"})
    version = {"name": "kept model", "source": f"runs:/{runs[0]}/model", "run_id": runs[0]}
    attacked.create(f"{MLFLOW}/model-versions/create", version)
    return frozenset({experiment, *runs, "kept model", "kept experiment"})


def _state(attacked: Attacked) -> dict[str, list[Any]]:
    """All that was kept, as the database and the bucket have it."""
    own = f"(SELECT run_uuid FROM runs WHERE experiment_id = {FIRST_KEPT})"
    state: dict[str, list[Any]] = {
        "experiments": attacked.rows(f"SELECT * FROM experiments WHERE experiment_id = {FIRST_KEPT}"),
        "runs": attacked.rows(f"SELECT * FROM runs WHERE experiment_id = {FIRST_KEPT} ORDER BY run_uuid"),
        "model_versions": attacked.rows("SELECT * FROM model_versions WHERE name = 'kept model'"),
    }
    for table in ("metrics", "latest_metrics", "params", "tags"):
        state[table] = sorted(attacked.rows(f"SELECT t::text FROM {table} t WHERE run_uuid IN {own}"))
    prefix = f"kept/here/{FIRST_KEPT}/"
    listed = attacked.objects.list_objects_v2(Bucket=_bucket(attacked), Prefix=prefix)["Contents"]
    state["objects"] = sorted((item["Key"], item["ETag"]) for item in listed)
    return state


def _bucket(attacked: Attacked) -> str:
    return attacked.s3["ARTIFACTS_DESTINATION"].split("/")[2]
