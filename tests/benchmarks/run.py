"""The benchmark from its first database to its last figure."""

from __future__ import annotations

import itertools
import os
import platform
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

import psutil

from tests.drills.places import Place, folder

from . import mix
from .fill import Content, fill
from .measure import rounded, send
from .operations import Operation, operations, with_password
from .places import Places, make_schema
from .plan import CLIENTS, Plan
from .servers import (
    ROOT,
    Side,
    come_to_rest,
    cpu_seconds,
    image,
    image_side,
    memory_mib,
    started,
    stock,
    stock_side,
)
from .users import image_with_users, stock_with_users

WARMING = 2
"""Requests of each of the most clients before anything is measured, so that every worker has done each thing."""
SQL_REPEATS = 10
BY_START_TIME = "search runs by start time, 20 rows"


def benchmark(plan: Plan, command: str) -> dict[str, Any]:
    """Measure everything; what failed is in the figures, and `failed.stopping` judges it.

    Raises:
        BenchmarkFailed: A server cannot be had at all.
    """
    begin = time.monotonic()
    figures: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": command,
        "commit": commit(),
        "machine": machine(),
        "load_average": {"start": rounded(os.getloadavg()[0])},
        "rounds": plan.rounds,
        "clients": list(CLIENTS),
        "mix_users": plan.mix_users,
    }
    say("installing both servers, if they are not there yet")
    released, built = stock(), image()
    sides = [stock_side(released), image_side(built)]
    per_core = image_side(built, psutil.cpu_count() or 1)
    users = {
        "stock": stock_with_users(sides[0], released, built),
        "image": image_with_users(sides[1], built, sides[1].workers),
    }
    figures["sides"] = {side.name: side.settings for side in [*sides, per_core]}
    figures["measured"] = measured = []
    with folder() as place:
        places = Places(place)
        try:
            schema = places.create("schema")
            say("making the schema, with stock MLflow")
            make_schema(released, schema)
            for size in plan.sizes:
                say(f"filling a database with {size} runs")
                filled = places.create(f"filled_{size}", like=schema.name)
                content = fill(filled, size)
                first, last = size == plan.sizes[0], size == plan.sizes[-1]
                for round_ in range(1, plan.rounds + 1):
                    for side in [*sides, *([per_core] if first else [])]:
                        say(f"{size} runs, round {round_} of {plan.rounds}, {side.name}")
                        copy = places.create("measured", like=filled.name)
                        try:
                            side.prepare(copy)
                            one = _Measurement(plan, side, places, copy, content)
                            found = one.take(
                                operations=side is not per_core, artifacts=first, mixed=first or last
                            )
                        finally:
                            places.drop(copy)
                        measured.append({"size": size, "round": round_, "side": side.name, **found})
                        if first and side.name in users:
                            say(f"  {side.name}, with MLflow's own users")
                            copy = places.create("measured", like=filled.name)
                            try:
                                users[side.name].prepare(copy)
                                one = _Measurement(plan, users[side.name], places, copy, content)
                                found["operations"] |= one.signed_in()
                            finally:
                                places.drop(copy)
                places.drop(filled)
        finally:
            places.remove()
    figures["load_average"]["end"] = rounded(os.getloadavg()[0])
    figures["minutes"] = rounded((time.monotonic() - begin) / 60)
    return figures


def say(text: str) -> None:
    """A line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


class _Measurement:
    """One server from its start to its stop."""

    def __init__(self, plan: Plan, side: Side, places: Places, place: Place, content: Content) -> None:
        self._plan, self._side, self._places, self._place, self._content = plan, side, places, place, content
        self._numbers = itertools.count(1)

    def take(self, *, operations: bool, artifacts: bool, mixed: bool) -> dict[str, Any]:
        server, start = started(self._side, self._place)
        cpu = partial(cpu_seconds, server)
        try:
            come_to_rest(server, self._plan.settle_seconds)
            found: dict[str, Any] = {
                "start_seconds": {"health": rounded(start.health), "database": rounded(start.database)},
                "memory_mib": {"rest": rounded(memory_mib(server))},
                "operations": {},
            }
            if operations:
                found["cold"] = self._warm(server.url, cpu, artifacts)
                found["operations"] = dict(self._operations(server.url, cpu, artifacts))
                found["sql_ms"], found["sql"] = self._sql(server.url, cpu)
            if mixed:
                found["mix"] = mix.load(server.url, self._plan.mix_users, self._plan.mix_seconds, cpu)
                say(f"  mix: {found['mix']['per_second']:g} requests/s")
            found["memory_mib"]["load"] = rounded(memory_mib(server))
            return found
        finally:
            server.kill()

    def signed_in(self) -> dict[str, Any]:
        """The one operation that says what a password costs."""
        server, _ = started(self._side, self._place)
        cpu = partial(cpu_seconds, server)
        operation = with_password(self._content, self._side.authorization)
        try:
            come_to_rest(server, self._plan.settle_seconds)
            send(server.url, operation, self._numbers, max(CLIENTS), cpu, at_least=WARMING)
            return {
                operation.name: {
                    str(clients): self._one(server.url, operation, clients, cpu) for clients in CLIENTS
                }
            }
        finally:
            server.kill()

    def _operations(
        self, url: str, cpu: Callable[[], float], artifacts: bool
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for operation in operations(self._content, artifacts):
            figures = {str(clients): self._one(url, operation, clients, cpu) for clients in CLIENTS}
            say(f"  {operation.name}: p50 " + ", ".join(f"{one['p50_ms']} ms" for one in figures.values()))
            yield operation.name, figures

    def _warm(self, url: str, cpu: Callable[[], float], artifacts: bool) -> dict[str, int]:
        """Have every worker do each thing before it is measured; returns what failed.

        That is told, and not held against a server: no figure is about the first requests.
        """
        say("  warming")
        small = [one for one in operations(self._content, artifacts) if one.group != "large artifact"]
        answers = [send(url, one, self._numbers, max(CLIENTS), cpu, at_least=WARMING) for one in small]
        return dict(sum((one.errors for one in answers), Counter[str]()))

    def _one(self, url: str, operation: Operation, clients: int, cpu: Callable[[], float]) -> dict[str, Any]:
        if operation.group == "large artifact":
            how: dict[str, Any] = {"at_least": self._plan.large_requests}
        else:
            how = {"seconds": self._plan.seconds}
        return send(url, operation, self._numbers, clients, cpu, **how).figures()

    def _sql(self, url: str, cpu: Callable[[], float]) -> tuple[float | None, dict[str, Any]]:
        """Milliseconds that PostgreSQL worked on one search by start time, and what became of the searches."""
        [operation] = [one for one in operations(self._content, False) if one.name == BY_START_TIME]
        with self._places.statements(self._place) as milliseconds:
            answers = send(url, operation, self._numbers, 1, cpu, at_least=SQL_REPEATS)
        right = len(answers.milliseconds)
        return rounded(sum(milliseconds) / right) if milliseconds and right else None, answers.figures()


def commit() -> str:
    """The checked-out commit, marked when files differ from it."""
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return told.stdout.strip() or "unknown"


def machine() -> dict[str, Any]:
    """What a reader has to know of this machine."""
    return {
        "cores": psutil.cpu_count() or 0,
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "os": _operating_system(),
        "python": platform.python_version(),
    }


def _operating_system() -> str:
    try:
        told = platform.freedesktop_os_release()
    except OSError:
        return f"{platform.system()} {platform.release()}"
    return f"{told['NAME'].removesuffix(' GNU/Linux')} {told.get('VERSION_ID', '')}".strip()
