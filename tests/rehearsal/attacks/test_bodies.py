"""Bodies that are too long, broken, or hold what does not fit."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import pytest

from ..test_image_entrypoint import ARTIFACTS, RUNS
from .conftest import BALANCER, Attacked

MLFLOW = "/api/2.0/mlflow"
SEARCH = f"{MLFLOW}/experiments/search"
LARGEST = 32 * 2**20
JSON = {"Content-Type": "application/json"}
OTLP = {"Content-Type": "application/x-protobuf", "x-mlflow-experiment-id": "0"}


@pytest.mark.parametrize("target", [SEARCH, "/v1/traces", "/graphql", "/ajax-api/3.0/jobs/search"])
def test_an_announced_body_that_is_too_long_is_not_read(attacked: Attacked, target: str) -> None:
    with socket.create_connection(("127.0.0.1", attacked.task.port), timeout=60) as client:
        client.sendall(
            f"POST {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"x-mlflow-experiment-id: 0\r\nContent-Length: {LARGEST + 1}\r\n\r\n".encode()
        )
        assert client.recv(64).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("target", [SEARCH, "/v1/traces", "/graphql", "/ajax-api/3.0/jobs/search"])
def test_a_body_without_a_length_is_cut_off_while_it_streams(attacked: Attacked, target: str) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 100 * LARGEST:
            sent += 2**20
            yield b" " * 2**20

    connection = HTTPConnection("127.0.0.1", attacked.task.port, timeout=60)
    headers = {**BALANCER, **JSON, "x-mlflow-experiment-id": "0", "Transfer-Encoding": "chunked"}
    try:
        connection.request("POST", target, endless(), headers, encode_chunked=True)
        assert connection.getresponse().status == 413
    except OSError:
        pass  # the server closed the connection before its answer could be read
    finally:
        connection.close()
    assert LARGEST < sent < 3 * LARGEST  # what the network holds besides


def test_a_body_that_is_long_but_not_too_long_is_read(attacked: Attacked) -> None:
    body = json.dumps({"max_results": 1}).encode() + b" " * (LARGEST - 1000)
    assert attacked.request("POST", SEARCH, body, **JSON)[0] == 200


def test_an_artifact_may_be_longer(attacked: Attacked) -> None:
    content = bytes(LARGEST + 2**20)
    target = f"{ARTIFACTS}/long/artifact.bin"
    assert attacked.request("PUT", target, content)[0] == 200
    assert attacked.request("GET", target) == (200, content)


@pytest.mark.parametrize("members", [1, 2])
def test_spans_may_not_expand_without_bound(attacked: Attacked, members: int) -> None:
    """A gzip stream may have members, each of which is expanded."""
    bomb = gzip.compress(bytes(10), 1) * (members - 1) + gzip.compress(bytes(16 * LARGEST), 1)
    assert len(bomb) < LARGEST
    status, answer = attacked.request("POST", "/v1/traces", bomb, **OTLP, **{"Content-Encoding": "gzip"})
    assert status == 413, answer


def test_compressed_spans_are_read(attacked: Attacked) -> None:
    """Or the refusal above would prove nothing."""
    spans = gzip.compress(b'{"resourceSpans": [{"scopeSpans": [{"spans": []}]}]}')
    headers = {**OTLP, **JSON, "Content-Encoding": "gzip"}
    assert attacked.request("POST", "/v1/traces", spans, **headers)[0] == 200


BROKEN = [b"", b"{", b"[", b"null", b"[]", b"1", b'"x"', b'"{"', b"\xff\xfe\x00", b'{"a":}', b"[" * 100_000]


@pytest.mark.parametrize("body", BROKEN, ids=lambda body: repr(body[:12]))
def test_broken_json_is_refused(attacked: Attacked, body: bytes) -> None:
    for target in (f"{RUNS}/log-batch", f"{MLFLOW}/experiments/create", "/graphql", "/v1/traces"):
        status, answer = attacked.request("POST", target, body, **JSON, **{"x-mlflow-experiment-id": "0"})
        assert status in (400, 422), (target, answer)


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("runs/log-batch", {"run_id": "RUN", "metrics": None}),
    ("runs/log-batch", {"run_id": "RUN", "metrics": 7}),
    ("runs/log-batch", {"run_id": "RUN", "metrics": [{"key": "a", "value": "x", "timestamp": "y"}]}),
    ("runs/log-metric", {"run_id": "RUN", "key": "a", "value": 1, "timestamp": 2**70}),
    ("runs/log-metric", {"run_id": "RUN", "key": "a", "value": 1, "timestamp": 1, "step": 2**63}),
    ("runs/log-metric", {"run_id": "RUN", "key": "a\0", "value": 1, "timestamp": 1}),
    ("runs/log-parameter", {"run_id": "RUN", "key": "a", "value": "x\0y"}),
    ("runs/set-tag", {"run_id": "RUN", "key": "a", "value": "\0"}),
    ("runs/log-model", {"run_id": "RUN", "model_json": "7"}),
    ("runs/log-model", {"run_id": "RUN", "model_json": "{"}),
    ("runs/create", {"experiment_id": "not a number"}),
    ("runs/create", {"experiment_id": "99999999999999999999"}),
    ("runs/create", {"experiment_id": "0", "start_time": 2**63 - 1, "run_name": "\0"}),
    ("runs/search", {"experiment_ids": ["x"], "filter": "metrics.a <"}),
    (
        "runs/search",
        {"experiment_ids": ["0"], "order_by": ["metrics.a DESC", "metrics.a"], "page_token": "x"},
    ),
    ("runs/search", {"experiment_ids": ["0"], "max_results": 10**9}),
    ("experiments/create", {"name": "a\0b"}),
    ("experiments/create", {"name": {"a": 1}}),
    ("experiments/search", {"max_results": 10**9}),
    ("experiments/search", {"max_results": -1}),
    ("registered-models/create", {"name": "\0"}),
    ("registered-models/create", {"name": "a", "tags": [7]}),
    ("webhooks", {"name": "a", "url": "https://example.com", "events": [{"entity": "ENTITY_UNSPECIFIED"}]}),
]


@pytest.mark.parametrize(("path", "body"), WRONG)
def test_what_does_not_fit_is_refused(attacked: Attacked, path: str, body: dict[str, Any]) -> None:
    if body.get("run_id"):
        body = {**body, "run_id": attacked.start_run()}
    status, answer = attacked.post(f"{MLFLOW}/{path}", body)
    assert status == 400, answer
    assert "psycopg" not in str(answer)


@pytest.mark.parametrize(
    "target",
    [
        f"{RUNS}/get?run_id=%00",
        f"{RUNS}/get?run_id={'a' * 20_000}",
        f"{MLFLOW}/experiments/get?experiment_id=%00",
        f"{MLFLOW}/experiments/get?experiment_id=9999999999999999999999",
        f"{MLFLOW}/metrics/get-history?run_id=x&metric_key=%00&max_results=99999999999",
        f"{MLFLOW}/registered-models/search?max_results=99999999999",
        f"{MLFLOW}/traces?experiment_ids=x",
        f"{MLFLOW}/traces?experiment_ids=0&order_by=name&order_by=name+DESC",
        "/api/3.0/mlflow/datasets/x/records?page_token=nonsense",
        "/ajax-api/2.0/mlflow/metrics/get-history-bulk?run_id=x&metric_key=a&max_results=x",
        "/get-artifact?run_id=x",
        "/graphql?query=%00",
    ],
)
def test_queries_that_do_not_fit_are_refused(attacked: Attacked, target: str) -> None:
    status, answer = attacked.request("GET", target)
    assert 400 <= status < 500, answer
    assert b"psycopg" not in answer
    assert str(attacked.postgres.port).encode() not in answer
