"""What MLflow alone does when it is attacked. When one of these fails, the part of the image that it names can go."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from ..test_image_entrypoint import ARTIFACTS, BUCKET, PASSWORD, RUNS, Task, free_port
from .conftest import Attacked

MLFLOW = "/api/2.0/mlflow"
JSON = {"Content-Type": "application/json"}
TOO_LONG = 32 * 2**20 + 1


@pytest.fixture(scope="module")
def stock(attacked: Attacked) -> Iterator[Attacked]:
    """`mlflow server` as it comes, beside the attacked one: on the same PostgreSQL, in the same bucket."""
    name, port = attacked.postgres.create("stock"), free_port()
    uri = f"postgresql+psycopg://postgres@127.0.0.1:{attacked.postgres.port}/{name}"
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    command += ["--backend-store-uri", uri, "--artifacts-destination", f"s3://{BUCKET}/stock"]
    own = {
        "PGPASSWORD": PASSWORD,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    task = Task({**attacked.s3, **own, "MLFLOW_PORT": str(port)}, command)
    try:
        yield Attacked(task.wait_healthy(), attacked.postgres, name, attacked.s3)
    finally:
        task.stop()


@pytest.mark.parametrize(
    "target",
    [
        f"{MLFLOW}/traces?experiment_ids=x",
        "/api/3.0/mlflow/datasets/x/records?page_token=nonsense",
        "/ajax-api/2.0/mlflow/metrics/get-history-bulk?run_id=x&metric_key=a&max_results=x",
        "/graphql?query=%00",
    ],
)
def test_it_fails_where_a_value_does_not_fit(stock: Attacked, target: str) -> None:
    """inputs.py"""
    assert stock.request("GET", target)[0] >= 500


def test_it_acknowledges_a_batch_of_which_it_stores_a_part(stock: Attacked) -> None:
    """`_drop_nothing_silently` in inputs.py"""
    metric: dict[str, Any] = {"value": 1, "timestamp": 1, "step": 1}
    metrics = [{"key": "a", **metric}, {"key": "b", **metric, "timestamp": 2**70}, {"key": "c", **metric}]
    run = stock.start_run()
    batch = {"run_id": run, "metrics": metrics, "params": [{"key": "p", "value": "v"}]}
    assert stock.post(f"{RUNS}/log-batch", batch)[0] == 200
    assert ("c",) not in stock.rows("SELECT key FROM metrics WHERE run_uuid = %s", run)
    assert stock.rows("SELECT key FROM params WHERE run_uuid = %s", run) == []


def test_it_answers_500_for_an_artifact_that_is_not_there(stock: Attacked) -> None:
    """`_tell_what_is_missing` in inputs.py"""
    assert stock.request("GET", f"{ARTIFACTS}/nowhere.txt")[0] == 500


def test_it_answers_500_for_the_state_of_an_experiment(stock: Attacked) -> None:
    """INVALID_STATE in inputs.py"""
    made = stock.create(f"{MLFLOW}/experiments/create", {"name": "to be deleted"})["experiment_id"]
    stock.create(f"{MLFLOW}/experiments/delete", {"experiment_id": made})
    assert stock.post(f"{MLFLOW}/experiments/update", {"experiment_id": made, "new_name": "x"})[0] == 500


def test_it_reads_a_body_however_long(stock: Attacked) -> None:
    """`BoundedBodies` in limits.py"""
    body = json.dumps({"max_results": 1}).encode().ljust(TOO_LONG)
    assert stock.request("POST", f"{MLFLOW}/experiments/search", body, **JSON)[0] == 200


def test_it_expands_spans_however_long(stock: Attacked) -> None:
    """`_check_expansion` in limits.py"""
    spans = gzip.compress(b'{"resourceSpans": [{"scopeSpans": [{"spans": []}]}]}'.ljust(TOO_LONG), 1)
    headers = {**JSON, "x-mlflow-experiment-id": "0", "Content-Encoding": "gzip"}
    assert stock.request("POST", "/v1/traces", spans, **headers)[0] == 200


def test_it_fetches_a_folder_and_then_sends_nothing(stock: Attacked) -> None:
    """`_download_one_file` in limits.py"""
    assert stock.request("PUT", f"{ARTIFACTS}/folder/file.txt", b"content")[0] == 200
    assert stock.request("GET", f"{ARTIFACTS}/folder") == (200, b"")


@pytest.mark.parametrize("path", ["%20", "%00", "%23", "%3F"])
def test_it_deletes_everything_where_nothing_is_named(stock: Attacked, path: str) -> None:
    """`_delete_what_is_named` in limits.py"""
    assert stock.request("PUT", f"{ARTIFACTS}/kept/file.txt", b"content")[0] == 200
    assert stock.request("DELETE", f"{ARTIFACTS}/{path}")[0] == 200
    assert stock.request("GET", f"{ARTIFACTS}/kept/file.txt")[0] == 500, "it is still there"


@pytest.mark.parametrize("place", ["s3://somebody-else/artifacts", "/etc"])
def test_it_takes_places_outside_its_bucket(stock: Attacked, place: str) -> None:
    """own_bucket.py"""
    experiment = {"name": f"kept in {place}", "artifact_location": place}
    assert stock.post(f"{MLFLOW}/experiments/create", experiment)[0] == 200


def test_it_lets_other_sites_write_outside_of_its_api(stock: Attacked) -> None:
    """origins.py"""
    elsewhere = {**JSON, "Origin": "https://elsewhere.example.com"}
    query = b'{"query": "query { mlflowGetRun(input: {runId: \\"x\\"}) { apiError { code } } }"}'
    assert stock.request("POST", "/graphql", query, **elsewhere)[0] != 403
    assert stock.request("POST", f"{RUNS}/search", b"{}", **elsewhere)[0] == 403
