"""What a client writes, it reads back: runs, metrics, artifacts, models, traces.

Everything is made under names of its own and removed in the end, even after a failure. What the REST API
cannot remove stays: rows that are only marked as deleted (runs, experiment, logged model) until `mlflow gc`,
and in a versioned bucket the deleted artifacts' earlier versions until the lifecycle rule expires them.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.utils import pyfunc

from load_tests.api import Api, ApiError, artifact_path

BIG_FILE_BYTES = 3_000_000
_SCHEME = "mlflow-artifacts:/"


@dataclass(frozen=True)
class Place:
    """An experiment and a run of this test run's own; its name is also the registered model's."""

    name: str
    experiment_id: str
    artifacts: str
    run_id: str


@pytest.fixture(scope="module")
def client() -> MlflowClient:
    return MlflowClient()


@pytest.fixture(scope="module")
def place(client: MlflowClient, api: Api) -> Iterator[Place]:
    """Make the place, hand it out, and remove all that the tests put there."""
    name = f"smoke-{uuid.uuid4().hex[:12]}"
    experiment_id = client.create_experiment(name)
    artifacts = ""
    try:
        location = client.get_experiment(experiment_id).artifact_location
        # The folder is deleted as a whole in the end, so it must be this experiment's alone.
        assert location.startswith(_SCHEME), (
            f"artifacts go to {location}: the server does not serve artifacts itself"
        )
        assert location.endswith(f"/{experiment_id}"), (
            f"artifacts go to {location}, which other experiments share"
        )
        artifacts = location.removeprefix(_SCHEME).strip("/")
        mlflow.set_experiment(experiment_id=experiment_id)
        yield Place(name, experiment_id, artifacts, client.create_run(experiment_id).info.run_id)
    finally:
        _remove(client, api, name, experiment_id, artifacts)


def _remove(client: MlflowClient, api: Api, name: str, experiment_id: str, artifacts: str) -> None:
    """Try each removal, whatever became of the others, then fail naming all that is left."""

    def remove_model() -> None:
        if client.search_registered_models(f"name = '{name}'"):
            client.delete_registered_model(name)

    def remove_logged_models() -> None:
        for model in client.search_logged_models([experiment_id]):
            client.delete_logged_model(model.model_id)

    def remove_traces() -> None:
        now = int(time.time() * 1000)
        client.delete_traces(experiment_id, max_timestamp_millis=now + 86_400_000)

    def remove_artifacts() -> None:
        if artifacts:
            api.call("DELETE", artifact_path(artifacts))
            if left := next(api.files(artifacts), None):
                raise ApiError(f"{left} is still there")

    def remove_experiment() -> None:
        client.delete_experiment(experiment_id)

    parts: dict[str, Callable[[], None]] = {
        f"registered model {name}": remove_model,
        f"logged models of experiment {experiment_id}": remove_logged_models,
        f"traces of experiment {experiment_id}": remove_traces,
        f"artifact folder {artifacts}": remove_artifacts,
        f"experiment {name} (id {experiment_id})": remove_experiment,
    }
    left = []
    for part, remove in parts.items():
        try:
            remove()
        except (MlflowException, ApiError) as error:
            left.append(f"{part} was not removed, remove it by hand ({error})")
    if left:
        pytest.fail("\n".join(left), pytrace=False)


def test_run_keeps_params_metrics_and_tags(client: MlflowClient, place: Place) -> None:
    now = int(time.time() * 1000)
    history = [Metric("loss", 1 / (step + 1), now + step, step) for step in range(20)]
    client.log_batch(
        place.run_id, metrics=history, params=[Param("depth", "7")], tags=[RunTag("team", "smoke - ü")]
    )
    client.log_metric(place.run_id, "accuracy", 0.75, step=3)
    client.set_terminated(place.run_id)

    run = client.get_run(place.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"depth": "7"}
    assert run.data.tags["team"] == "smoke - ü"
    assert run.data.metrics == {"loss": 1 / 20, "accuracy": 0.75}
    kept = [(metric.step, metric.value) for metric in client.get_metric_history(place.run_id, "loss")]
    assert sorted(kept) == [(metric.step, metric.value) for metric in history]
    found = client.search_runs([place.experiment_id], "params.depth = '7' and metrics.accuracy > 0.7")
    assert [run.info.run_id for run in found] == [place.run_id]


@pytest.mark.parametrize("size", [0, 1, BIG_FILE_BYTES])
def test_artifact_comes_back_as_it_was(client: MlflowClient, place: Place, tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    file = tmp_path / f"{size} bytes.bin"
    file.write_bytes(content)
    client.log_artifact(place.run_id, str(file), "folder")
    path = f"folder/{file.name}"
    listed = {entry.path: entry.file_size or 0 for entry in client.list_artifacts(place.run_id, "folder")}
    assert listed.get(path) == size
    (tmp_path / "back").mkdir()
    received = Path(client.download_artifacts(place.run_id, path, str(tmp_path / "back")))
    assert received.read_bytes() == content


def test_model_is_registered_and_loads_by_alias(client: MlflowClient, place: Place) -> None:
    def add_one(model_input: list[int]) -> list[int]:
        return [number + 1 for number in model_input]

    with mlflow.start_run(run_id=place.run_id):
        # Naming the requirements spares MLflow from working them out in a subprocess.
        mlflow.pyfunc.log_model(
            name="model",
            python_model=pyfunc(add_one),
            pip_requirements=[f"mlflow=={mlflow.__version__}"],
            registered_model_name=place.name,
        )
    client.set_registered_model_alias(place.name, "champion", "1")

    version = client.get_model_version_by_alias(place.name, "champion")
    assert (version.version, version.run_id) == ("1", place.run_id)
    model = mlflow.pyfunc.load_model(f"models:/{place.name}@champion")
    assert model.predict([1, 2]) == [2, 3]


def test_trace_keeps_its_spans(client: MlflowClient, place: Place) -> None:
    with mlflow.start_span("question") as root:
        root.set_inputs({"text": "why?"})
        with mlflow.start_span("retrieve", span_type="RETRIEVER") as child:
            child.set_outputs(["because"])
        root.set_outputs({"text": "because"})
    mlflow.flush_trace_async_logging()

    trace = client.get_trace(root.trace_id)
    spans = {span.name: span for span in trace.data.spans}
    assert set(spans) == {"question", "retrieve"}
    assert spans["retrieve"].parent_id == spans["question"].span_id
    assert spans["question"].inputs == {"text": "why?"}
    assert spans["retrieve"].outputs == ["because"]
    found = client.search_traces(locations=[place.experiment_id])
    assert [trace.info.trace_id for trace in found] == [root.trace_id]
