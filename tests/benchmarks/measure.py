"""Requests sent by clients that keep their connections, and what they cost."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import gevent
from geventhttpclient import HTTPClient, HTTPParseError

from load_tests.verdict import percentile

from .operations import Operation

TIMEOUT_SECONDS = 120
PATIENCE = 20
"""Failures of one operation after which it is given up."""


@dataclass
class Answers:
    """What came of an operation's requests. Times are those of right answers."""

    milliseconds: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def figures(self) -> dict[str, float | int | dict[str, int] | None]:
        """For the report: percentiles in milliseconds, requests per second, milliseconds of CPU per request."""
        count = len(self.milliseconds)
        return {
            "requests": count,
            "failures": self.errors.total(),
            "errors": dict(self.errors),
            "p50_ms": rounded(percentile(self.milliseconds, 0.50)),
            "p95_ms": rounded(percentile(self.milliseconds, 0.95)),
            "per_second": rounded(count / self.seconds if self.seconds else None),
            "cpu_ms": rounded(self.cpu_seconds * 1000 / count if count else None),
        }


@contextmanager
def connection(url: str) -> Iterator[HTTPClient]:
    """One client with one connection, which sends at once what it has to send, as MLflow's own client does."""
    client = HTTPClient.from_url(
        url, concurrency=1, connection_timeout=TIMEOUT_SECONDS, network_timeout=TIMEOUT_SECONDS
    )
    # The library's hook for this; mypy takes it for a method that must not be assigned.
    setattr(client._connection_pool, "after_connect", _without_delay)  # noqa: B010
    try:
        yield client
    finally:
        client.close()


def send(
    url: str,
    operation: Operation,
    numbers: Iterator[int],
    clients: int,
    cpu: Callable[[], float],
    *,
    seconds: float = 0.0,
    at_least: int = 1,
) -> Answers:
    """Let clients send requests one after another for `seconds`, each of them `at_least` so many."""
    answers = Answers()
    begin = time.perf_counter()
    before = cpu()

    def client() -> None:
        with connection(url) as http:
            sent = 0
            while sent < at_least or time.perf_counter() < begin + seconds:
                if answers.errors.total() >= PATIENCE:
                    return
                sent += 1
                _one(http, operation, next(numbers), answers)

    gevent.joinall([gevent.spawn(client) for _ in range(clients)], raise_error=True)
    answers.seconds = time.perf_counter() - begin
    answers.cpu_seconds = cpu() - before
    return answers


def _without_delay(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _one(http: HTTPClient, operation: Operation, number: int, answers: Answers) -> None:
    request = operation.request(number)
    headers = {"Content-Type": request.content_type} if request.body is not None else {}
    if request.authorization:
        headers["Authorization"] = request.authorization
    begin = time.perf_counter()
    try:
        response = http.request(request.method, request.path, request.body or b"", headers)
        body = bytes(response.read())
    except (OSError, HTTPParseError, gevent.Timeout) as error:
        answers.errors[f"{operation.name}: no answer ({type(error).__name__})"] += 1
        return
    milliseconds = (time.perf_counter() - begin) * 1000
    if response.status_code != 200:
        text = " ".join(body[:160].decode(errors="replace").split())
        answers.errors[f"{operation.name}: HTTP {response.status_code} {text}"] += 1
    elif not operation.right(body):
        answers.errors[f"{operation.name}: HTTP 200 with a wrong answer"] += 1
    else:
        answers.milliseconds.append(milliseconds)


def rounded(value: float | None) -> float | None:
    """Four digits are more than such a figure holds."""
    return None if value is None else float(f"{value:.4g}")
