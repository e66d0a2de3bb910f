"""The load's own place on the server: an experiment and models of its own, made before and removed after."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from load_tests.api import Api, ApiError, NoAnswerError, artifact_path

MODELS = 10
"""Most registered models to make. MLflow numbers versions per model: many users who register at once in one
model would measure the retries of that numbering, which no real team would see."""

ALIAS = "champion"
_SCHEME = "mlflow-artifacts:/"


@dataclass
class Place:
    """An experiment, its folder below the artifact root, and models whose version 1 has the alias."""

    name: str = field(default_factory=lambda: f"load-check-{uuid.uuid4().hex[:12]}")
    experiment_id: str | None = None
    artifacts: str | None = None
    models: list[str] = field(default_factory=list)

    def prepare(self, api: Api, users: int) -> None:
        """Make everything; what was made before an error is known, and `remove` removes it.

        Raises:
            ApiError: If the server refuses, or does not serve artifacts itself.
        """
        made = api.call("POST", "/api/2.0/mlflow/experiments/create", {"name": self.name})
        self.experiment_id = str(made["experiment_id"])
        location = str(self._experiment(api)["artifact_location"])
        # The folder is deleted as a whole in the end, so it must be this experiment's alone.
        if not location.startswith(_SCHEME) or not location.endswith(f"/{self.experiment_id}"):
            raise ApiError(
                f"experiment {self.name} keeps its artifacts at {location}: the load check needs a server"
                " that serves artifacts itself (--artifacts-destination), one folder per experiment"
            )
        self.artifacts = location.removeprefix(_SCHEME).strip("/")
        query = {"experiment_id": self.experiment_id, "start_time": int(time.time() * 1000)}
        run_id = api.call("POST", "/api/2.0/mlflow/runs/create", query)["run"]["info"]["run_id"]
        for number in range(min(users, MODELS)):
            model = f"{self.name}-{number}"
            # Noted first: a model may be made although the answer is lost.
            self.models.append(model)
            api.call("POST", "/api/2.0/mlflow/registered-models/create", {"name": model})
            version = {"name": model, "run_id": run_id, "source": f"{location}/{run_id}/artifacts/model"}
            api.call("POST", "/api/2.0/mlflow/model-versions/create", version)
            alias = {"name": model, "alias": ALIAS, "version": "1"}
            api.call("POST", "/api/2.0/mlflow/registered-models/alias", alias)

    def remove(self, api: Api) -> list[str]:
        """Remove everything, trying again a few times in all; return a sentence for each part that stays.

        Runs and the experiment are deleted as the API deletes them: hidden, gone for good after `mlflow gc`.
        In a versioned bucket, earlier versions of the artifacts stay until its lifecycle rule expires them.
        """
        leftovers: list[str] = []
        pauses = [1, 2, 4]
        gone: NoAnswerError | None = None

        def attempt(what: str, action: Callable[[], None]) -> None:
            nonlocal gone
            error: ApiError | None = gone
            while not gone:
                try:
                    action()
                    return
                except ApiError as failure:
                    error = failure
                if not pauses:
                    # Each try at a server that hangs takes its full timeout: do not try every part.
                    gone = error if isinstance(error, NoAnswerError) else None
                    break
                time.sleep(pauses.pop(0))
            leftovers.append(f"{what} was not removed, remove it by hand ({error})")

        for model in self.models:
            attempt(f"registered model {model}", partial(self._remove_model, api, model))
        if self.experiment_id is not None:
            of_ours = f"of experiment {self.name} (id {self.experiment_id})"
            attempt(f"traces {of_ours}", partial(self._remove_traces, api))
            attempt(f"artifact folder {self.artifacts} {of_ours}", partial(self._remove_artifacts, api))
            attempt(
                f"experiment {self.name} (id {self.experiment_id})", partial(self._remove_experiment, api)
            )
        return leftovers

    def _remove_model(self, api: Api, model: str) -> None:
        try:
            api.call("DELETE", "/api/2.0/mlflow/registered-models/delete", {"name": model})
        except ApiError as error:
            if error.status != 404:
                raise

    def _remove_traces(self, api: Api) -> None:
        for_ever = 2**62
        query = {"experiment_id": self.experiment_id, "max_timestamp_millis": for_ever, "max_traces": 100}
        while int(api.call("POST", "/api/3.0/mlflow/traces/delete-traces", query).get("traces_deleted", 0)):
            pass

    def _remove_artifacts(self, api: Api) -> None:
        if self.artifacts is None:
            return
        api.call("DELETE", artifact_path(self.artifacts))
        if left := next(api.files(self.artifacts), None):
            raise ApiError(f"{left} is still listed after an answer that it was deleted")

    def _remove_experiment(self, api: Api) -> None:
        try:
            api.call("POST", "/api/2.0/mlflow/experiments/delete", {"experiment_id": self.experiment_id})
        except ApiError:
            # A lost answer to an earlier try makes this one fail: what counts is the state.
            if self._experiment(api)["lifecycle_stage"] != "deleted":
                raise

    def _experiment(self, api: Api) -> dict[str, Any]:
        query = {"experiment_id": self.experiment_id}
        return dict(api.call("GET", "/api/2.0/mlflow/experiments/get", params=query)["experiment"])
