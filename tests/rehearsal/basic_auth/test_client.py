"""What people and gates do with MLflow's own client: each sees what they made and what they were granted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from .conftest import AS_ADMIN, GATES, PERMISSIONS, Platform

ROOT = Path(__file__).parents[3]

WORK = """
import sys, mlflow
from mlflow import MlflowClient
client = MlflowClient()
def logged(experiment):
    with mlflow.start_run(experiment_id=experiment) as run:
        mlflow.log_param("param", "value")
        mlflow.log_metric("metric", 1.5)
        mlflow.log_text("content", "file.txt")
    return run.info.run_id
def traced():
    with mlflow.start_span("span") as span:
        span.set_inputs({"question": "why"})
    mlflow.flush_trace_async_logging()
    return span.trace_id
def refused(call):
    try:
        call()
    except mlflow.MlflowException as error:
        return error.get_http_status_code() == 403 or str(error)
    return "not refused"
"""


def work(platform: Platform, user: str, password: str, program: str) -> Any:
    """Run a program with MLflow's client, signed in as that user; what it gives as `result`."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"{WORK}\n{program}\nimport json; print(json.dumps(result))"],
        env={**os.environ, **signed_in(platform, user, password)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def signed_in(platform: Platform, user: str, password: str) -> dict[str, str]:
    return {
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{platform.task.port}",
        "MLFLOW_TRACKING_USERNAME": user,
        "MLFLOW_TRACKING_PASSWORD": password,
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def grant(platform: Platform, user: str, experiment: str, permission: str) -> None:
    body = {
        "username": user,
        "resource_type": "experiment",
        "resource_id": experiment,
        "permission": permission,
    }
    platform.made(AS_ADMIN, f"{PERMISSIONS}/grant", body)


def test_two_people_share_what_was_granted_and_no_more(platform: Platform) -> None:
    alice, bob = ("alice", "ecila-likes-Gr33n-tea"), ("bob", "bob-likes-Gr33n-tea-too")
    for user, password in (alice, bob):
        platform.made(AS_ADMIN, "/api/2.0/mlflow/users/create", {"username": user, "password": password})
    experiment, run, trace = work(
        platform,
        *alice,
        """
experiment = client.create_experiment("of alice")
mlflow.set_experiment(experiment_id=experiment)
run = logged(experiment)
result = [experiment, run, traced()]
assert [found.info.run_id for found in client.search_runs([experiment])] == [run]
assert mlflow.artifacts.load_text(f"runs:/{run}/file.txt") == "content"
assert client.get_trace(result[2]).data.spans
assert [one.name for one in client.search_experiments()] == ["of alice"]
client.create_registered_model("model of alice")
client.create_model_version("model of alice", f"runs:/{run}/model", run)
""",
    )
    look = f"""
experiment, run, trace = {[experiment, run, trace]!r}
reads = dict(
    run=lambda: client.get_run(run),
    trace=lambda: client.get_trace(trace),
    artifact=lambda: mlflow.artifacts.load_text(f"runs:/{{run}}/file.txt"),
)
writes = dict(
    tag=lambda: client.set_tag(run, "tag", "of bob"),
    trace_tag=lambda: client.set_trace_tag(trace, "tag", "of bob"),
    run=lambda: logged(experiment),
    delete=lambda: client.delete_run(run),
)
read = {{name: refused(call) for name, call in reads.items()}}
write = {{name: refused(call) for name, call in writes.items()}}
seen = [one.name for one in client.search_experiments()]
found = len(client.search_runs([experiment])), len(client.search_registered_models())
result = [read, write, seen, found]
"""
    read, write, seen, found = work(platform, *bob, look)
    assert read.pop("artifact") != "not refused"
    assert (read, seen, found) == ({"run": True, "trace": True}, [], [0, 0])
    assert set(write.values()) == {True}
    grant(platform, "bob", experiment, "READ")
    read, write, seen, found = work(platform, *bob, look)
    assert set(read.values()) == {"not refused"}
    assert set(write.values()) == {True}
    assert (seen, found) == (["of alice"], [1, 0])


def test_the_smoke_tests_pass_as_the_gates_user(platform: Platform) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "smoke_tests"],
        cwd=ROOT,
        env={**os.environ, **signed_in(platform, "gates", GATES), "SMOKE_DEMO": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:]
