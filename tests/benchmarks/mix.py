"""The mixed workload of load_tests/, with so many users that the server is the one that sets the pace."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gevent
from gevent.event import Event

from load_tests.api import Api
from load_tests.ledger import Ledger
from load_tests.mix import OPERATIONS
from load_tests.place import Place
from load_tests.run import run_load
from load_tests.settings import LoadSettings
from load_tests.verdict import measure, percentile

from .measure import rounded

SPAWN_RATE = 100


def load(url: str, users: int, seconds: int, cpu: Callable[[], float]) -> dict[str, Any]:
    """Load the server, read back what it acknowledged, and remove it. Its figures are those of the steady period."""
    settings = LoadSettings(
        url=url,
        authorization=None,
        users=users,
        spawn_rate=SPAWN_RATE,
        seconds=seconds,
        max_error_rate=0,
        max_read_p95_ms=float("inf"),
        max_write_p95_ms=float("inf"),
        min_rps=0,
        max_slowdown=float("inf"),
        baseline_parameter=None,
    )
    place, ledger, api = Place(), Ledger(), Api(url, None)
    cores: list[float] = []

    def watch() -> None:
        gevent.sleep(users / SPAWN_RATE + 1)
        begin, before = time.perf_counter(), cpu()
        gevent.sleep(max(seconds - users / SPAWN_RATE - 2, 1))
        cores.append((cpu() - before) / (time.perf_counter() - begin))

    try:
        place.prepare(api, users)
        watching = gevent.spawn(watch)
        loaded = run_load(settings, place, ledger, Event())
        watching.join()
        lost = ledger.read_back(api)
    finally:
        left = place.remove(api)
    figures = measure(loaded.samples, loaded.seconds, OPERATIONS)
    times = [sample.milliseconds for sample in loaded.samples]
    problems = [*loaded.incomplete, *ledger.wrong_answers, *lost, *left]
    return {
        "requests": figures.requests - figures.failures,
        "failures": figures.failures + len(problems),
        "errors": dict(figures.errors) | dict.fromkeys(problems, 1),
        "p50_ms": rounded(percentile(times, 0.50)),
        "p95_ms": rounded(percentile(times, 0.95)),
        "per_second": rounded(figures.rps),
        "cpu_ms": rounded(cores[0] * 1000 / figures.rps if figures.rps else None),
    }
