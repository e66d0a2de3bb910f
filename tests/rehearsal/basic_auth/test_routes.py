"""Every route of the server: for somebody without a password, and for a user who was granted nothing.

What MLflow's servers have been reported for: CVE-2025-15381 (traces), CVE-2026-0545 (jobs), CVE-2026-2652 (`/v1/traces`).
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlencode

import pytest

from ..test_image_entrypoint import IMAGE
from .conftest import AS_ADMIN, EXPERIMENTS, Platform

MARK = "for-the-administrator-alone"
"""In what is kept, and in no name that a request has: an answer may repeat that."""

OPEN = {
    # facts about the server
    *(
        "/",
        "/version",
        "/health",
        "/health/ready",
        "/health/details",
        "/mlflow/server-info",
        "/mlflow/ui-telemetry",
    ),
    *(f"/mlflow/gateway/{fact}" for fact in ("supported-models", "supported-providers", "secrets/config")),
    # who is asking
    *("/mlflow/users/current", "/mlflow/users/current/permissions"),
    # lists of what who is asking may see
    *(f"/mlflow/{kind}/search" for kind in ("experiments", "runs", "registered-models", "model-versions")),
    *("/mlflow/logged-models/search", "/jobs/search", "/graphql"),
    *("/mlflow/mcp-servers", "/mlflow/mcp-servers/endpoints"),
    *(f"/mlflow/gateway/{kind}/list" for kind in ("endpoints", "model-definitions", "secrets")),
    *("/mlflow/gateway-proxy", "/gateway/mlflow/v1/models"),
    # something of one's own
    "/mlflow/experiments/create",
}
"""What a user without a grant may ask, without the API's version in front."""

SHOWN = {
    *(
        "/mlflow/runs/get",
        "/mlflow/runs/search",
        "/mlflow/traces/<trace_id>",
        "/mlflow/traces/search",
        "/graphql",
    ),
    *("/mlflow/registered-models/get", "/mlflow-artifacts/artifacts/{artifact_path:path}"),
}
"""Some of what the very same requests show to the administrator."""

ROUTES = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import server, settings, withheld
where, how = settings.read(os.environ)
withheld.take(os.environ)
os.environ.update(server.environment(where, how))
os.environ[server.SCHEMA_VARIABLE] = "{}"
application = server.application(withheld.secrets)
from mlflow.server import app as flask
def natives(routes):
    for route in routes:
        if hasattr(route, "effective_candidates"):
            yield from natives(route.effective_candidates())
            yield from natives(route.effective_low_priority_routes())
            continue
        route = getattr(route, "starlette_route", None) or route
        if getattr(route, "methods", None):
            yield [route.path, sorted(route.methods)]
found = [[str(rule), sorted(rule.methods)] for rule in flask.url_map.iter_rules()]
print(json.dumps(found + list(natives(application.router.routes))))
os._exit(0)
"""


@pytest.fixture(scope="package")
def routes(platform: Platform) -> list[tuple[str, str]]:
    """Every method and path that the server has, FastAPI's and Flask's, as the worker itself lists them."""
    done = subprocess.run(
        [sys.executable, "-c", ROUTES, str(IMAGE)],
        env={**os.environ, **platform.variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    listed = json.loads(done.stdout.splitlines()[-1])
    found = sorted({(method, path) for path, methods in listed for method in methods})
    for known in (
        ("POST", "/v1/traces"),
        ("GET", "/ajax-api/3.0/jobs/{job_id}"),
        ("GET", "/ajax-api/2.0/mlflow/get-trace-artifact"),
        ("POST", "/graphql"),
        ("POST", "/api/2.0/mlflow/users/create"),
    ):
        assert known in found
    return found


def filled(path: str, values: dict[str, str]) -> str:
    """The path with its parameters, `<converter:name>` or `{name:converter}`, taken from the values."""

    def value(found: re.Match[str]) -> str:
        name = (found[1] or found[2]).split(":")[-1 if found[1] else 0]
        return values.get(name, "1")

    return re.sub(r"<([^>]+)>|\{([^}]+)\}", value, path)


def test_nobody_passes_without_a_password_but_for_health(
    platform: Platform, routes: list[tuple[str, str]]
) -> None:
    """CVE-2026-0545, CVE-2026-2652, and whatever comes next."""
    with ThreadPoolExecutor(4) as threads:
        answers = threads.map(
            lambda route: platform.task.request(route[0], filled(route[1], {}), b"{}")[0], routes
        )
        open_ = {route for route, status in zip(routes, answers, strict=True) if status != 401}
    assert open_ == {("GET", "/health"), ("HEAD", "/health")}
    for path in (
        "/",
        "/static-files/",
        "/health/",
        "/health/ready",
        "/health/details",
        "/health/../version",
        "/x",
    ):
        assert platform.task.get(path)[0] == 401, path


@pytest.mark.parametrize(
    "header",
    [
        "Bearer something",
        "Basic",
        "Basic !!!",
        "Basic /////w==",
        f"Basic {base64.b64encode(b'admin').decode()}",
        f"Basic {base64.b64encode(b'admin:').decode()}",
        f"Basic {base64.b64encode(b'admin:password1234').decode()}",
        f"Basic {base64.b64encode(b'ad' + bytes(1) + b'min:x').decode()}",
        f"Basic {base64.b64encode(b'admin:' + b'x' * 5000).decode()}",
        "Digest username=admin",
    ],
)
def test_what_is_no_password_is_refused(platform: Platform, header: str) -> None:
    for path in (f"{EXPERIMENTS}/search?max_results=1", "/ajax-api/3.0/jobs/1"):
        assert platform.task.get(path, Authorization=header)[0] == 401


def test_a_browser_is_asked_for_a_password(platform: Platform) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{platform.task.port}/", timeout=30)
    assert refused.value.headers["WWW-Authenticate"].startswith("Basic realm=")


@pytest.fixture(scope="package")
def belongings(platform: Platform) -> dict[str, Any]:
    """What the administrator has: each kind of thing that the routes are about, by the names that requests use."""

    def made(path: str, body: Any) -> Any:
        return platform.made(AS_ADMIN, path, body)

    now, tags = int(time.time() * 1000), [{"key": "tag", "value": MARK}]
    experiment = made(f"{EXPERIMENTS}/create", {"name": "experiment", "tags": tags})["experiment_id"]
    run = made(
        "/api/2.0/mlflow/runs/create", {"experiment_id": experiment, "start_time": now, "run_name": "run"}
    )
    run_id = run["run"]["info"]["run_id"]
    made("/api/2.0/mlflow/runs/log-parameter", {"run_id": run_id, "key": "param", "value": MARK})
    made("/api/2.0/mlflow/runs/log-metric", {"run_id": run_id, "key": "metric", "value": 1, "timestamp": now})
    made("/api/2.0/mlflow/runs/set-tag", {"run_id": run_id, "key": "tag", "value": MARK})
    artifact = f"{experiment}/{run_id}/artifacts/file.txt"
    status, _ = platform.task.request(
        "PUT", f"/api/2.0/mlflow-artifacts/artifacts/{artifact}", MARK.encode(), AS_ADMIN
    )
    assert status == 200
    trace_id = "tr-0123456789abcdef"
    location = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment}}
    made(
        "/api/3.0/mlflow/traces",
        {
            "trace": {
                "trace_info": {
                    "trace_id": trace_id,
                    "trace_location": location,
                    "request_time": "2026-01-01T00:00:00Z",
                    "state": "OK",
                    "request_preview": MARK,
                    "tags": {"tag": MARK},
                }
            }
        },
    )
    assessment = made(
        f"/api/3.0/mlflow/traces/{trace_id}/assessments",
        {
            "assessment": {
                "assessment_name": "assessment",
                "trace_id": trace_id,
                "source": {"source_type": "HUMAN", "source_id": "admin"},
                "create_time": "2026-01-01T00:00:00Z",
                "last_update_time": "2026-01-01T00:00:00Z",
                "feedback": {"value": MARK},
            }
        },
    )["assessment"]["assessment_id"]
    model = "model"
    made("/api/2.0/mlflow/registered-models/create", {"name": model, "description": MARK})
    made(
        "/api/2.0/mlflow/model-versions/create",
        {
            "name": model,
            "source": f"mlflow-artifacts:/{experiment}/{run_id}/artifacts/model",
            "run_id": run_id,
        },
    )
    made("/api/2.0/mlflow/registered-models/alias", {"name": model, "alias": "alias", "version": "1"})
    logged = made("/api/2.0/mlflow/logged-models", {"experiment_id": experiment, "name": "logged"})
    dataset = made("/api/3.0/mlflow/datasets/create", {"name": "dataset", "experiment_ids": [experiment]})
    model_id, dataset_id = logged["model"]["info"]["model_id"], dataset["dataset"]["dataset_id"]
    return {
        "experiment_id": experiment,
        "experiment_ids": [experiment],
        "experiment_name": "experiment",
        "run_id": run_id,
        "run_uuid": run_id,
        "run_ids": [run_id],
        "metric_key": "metric",
        "metric_keys": ["metric"],
        "key": "param",
        "tag_key": "tag",
        "value": "stranger",
        "path": "file.txt",
        "artifact_path": artifact,
        "trace_id": trace_id,
        "request_id": trace_id,
        "trace_ids": [trace_id],
        "request_ids": [trace_id],
        "locations": [location],
        "assessment_id": assessment,
        "name": model,
        "alias": "alias",
        "version": "1",
        "stage": "Production",
        "new_name": "stranger",
        "source": "mlflow-artifacts:/0/model",
        "model_id": model_id,
        "dataset_id": dataset_id,
        "dataset_ids": [dataset_id],
        "username": "admin",
        "password": "strangers-Choose-th1s",
        "is_admin": True,
        "role_id": 1,
        "resource_type": "experiment",
        "resource_id": experiment,
        "permission": "MANAGE",
        "max_results": 100,
        "query": "query Q($data: MlflowGetRunInput!)"
        " { mlflowGetRun(input: $data) { run { info { runName } data { params { value } } } } }",
        "variables": {"data": {"runId": run_id}},
        "operationName": "Q",
    }


def swept(
    platform: Platform, who: dict[str, str], routes: list[tuple[str, str]], belongings: dict[str, Any]
) -> dict[tuple[str, str], tuple[int, str]]:
    """What each route answers, when it is asked about these belongings."""
    one = {name: str(value[0] if isinstance(value, list) else value) for name, value in belongings.items()}
    headers = {**who, "Content-Type": "application/json", "X-Mlflow-Experiment-Id": one["experiment_id"]}
    query = urlencode({name: text for name, text in one.items() if name not in ("query", "variables")})
    body = json.dumps(belongings).encode()

    def ask(route: tuple[str, str]) -> tuple[int, str]:
        method, path = route
        if method in ("GET", "HEAD", "OPTIONS"):
            status, answer = platform.task.request(method, f"{filled(path, one)}?{query}", None, headers)
        else:
            status, answer = platform.task.request(method, filled(path, one), body, headers)
        return status, answer.decode(errors="replace")

    with ThreadPoolExecutor(4) as threads:
        return dict(zip(routes, threads.map(ask, routes), strict=True))


def without_version(path: str) -> str:
    return re.sub(r"^/(ajax-)?api/\d+\.\d+", "", path).removesuffix("/") or "/"


def test_who_was_granted_nothing_sees_nothing_and_changes_nothing(
    platform: Platform, routes: list[tuple[str, str]], belongings: dict[str, Any]
) -> None:
    stranger = platform.user("stranger")
    before = content(platform)
    answers = swept(platform, stranger, [route for route in routes if route[0] != "OPTIONS"], belongings)
    assert {without_version(path) for (_, path), (status, _) in answers.items() if status < 400} == OPEN
    assert {route for route, (_, answer) in answers.items() if MARK in answer} == set()
    assert before - content(platform) == set(), "something was changed or is gone"
    assert {status for status, _ in answers.values() if status >= 500} <= {501, 503}, (
        "jobs and workspaces are off"
    )
    reading = [route for route in routes if route[0] == "GET" or route[1].endswith(("search", "graphql"))]
    answers = swept(platform, AS_ADMIN, reading, belongings)
    shown = {without_version(path) for (_, path), (_, answer) in answers.items() if MARK in answer}
    assert not SHOWN - shown, "the requests were not good ones"


def content(platform: Platform) -> set[tuple[str, tuple[Any, ...]]]:
    """Every row of every table."""
    tables = platform.rows("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
    return {(name, row) for (name,) in tables for row in platform.rows(f'SELECT t::text FROM "{name}" t')}
