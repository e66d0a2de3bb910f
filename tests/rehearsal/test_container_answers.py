"""The image answers every route of MLflow as a server does that has all packages whole: nothing was left out in error."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import pytest

from . import test_container as container
from . import test_image_entrypoint as entrypoint
from .attacks.random_requests import LONGEST_SECONDS, Drawing, Drawn, Route, routes
from .attacks.test_fuzz import KNOWN
from .test_container import Run
from .test_image_entrypoint import Postgres, Task

engine, image, run, pytestmark = container.engine, container.image, container.run, container.pytestmark
postgres, s3, template = entrypoint.postgres, entrypoint.s3, entrypoint.template

ROUNDS = 3
"""Requests to each route; the later ones know what the earlier ones made."""
MAKERS_FIRST = ("POST", "PUT", "PATCH", "GET", "DELETE")
VARYING = re.compile(r"\b[a-z]+-[a-z]+-\d+\b|\b(0x)?[0-9a-f]{8,}\b|\d+")
"""Names that MLflow gives to runs, ids, addresses, times, ports."""


class Server:
    """One of the two, and what was made in it."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.known: dict[str, list[str]] = {name: [] for name in KNOWN}
        self.known["experiment_id"], self.known["version"] = ["0"], ["1"]

    def ask(self, drawn: Drawn) -> tuple[int, Any]:
        connection = HTTPConnection("127.0.0.1", self.task.port, timeout=LONGEST_SECONDS)
        try:
            connection.request(drawn.method, drawn.target, drawn.body, drawn.headers)
            response = connection.getresponse()
            status, answer = response.status, response.read().decode(errors="replace")
            answer = answer.replace(str(self.task.folder), "")
        finally:
            connection.close()
        try:
            told = json.loads(answer)
        except (ValueError, RecursionError):
            return status, same_for_all(answer)
        if status == 200 and drawn.method == "POST" and drawn.target.endswith(("/create", "/webhooks")):
            self._remember(told)
        return status, same_for_all(told)

    def _remember(self, told: Any) -> None:
        for name, value in told.items() if isinstance(told, dict) else ():
            if isinstance(value, str) and name in self.known:
                self.known[name].append(value)
            self._remember(value)


def same_for_all(told: Any) -> Any:
    """An answer without what is another one at each server: ids and times, and the order that follows from them."""
    match told:
        case dict():
            return {same_for_all(name): same_for_all(value) for name, value in told.items()}
        case list():
            return sorted(map(same_for_all, told), key=lambda item: json.dumps(item, sort_keys=True))
        case str():
            return " ".join(
                sorted(re.findall(r"\w+", VARYING.sub("*", told)))
            )  # Python writes a set in any order
        case int() | float() if not isinstance(told, bool):
            return "*"
        case _:
            return told


@pytest.fixture
def servers(
    run: Run, postgres: Postgres, template: str, s3: dict[str, str]
) -> Iterator[tuple[Server, Server]]:
    """The image's, and the same entrypoint with all packages in full."""
    lean = run(postgres.variables(postgres.create("lean", template)))
    full = Task({**postgres.variables(postgres.create("full", template)), **s3})
    yield Server(lean.wait_healthy()), Server(full.wait_healthy())
    full.stop()


def test_every_route_answers_the_same(servers: tuple[Server, Server]) -> None:
    described: list[Route] = sorted(routes(), key=lambda route: MAKERS_FIRST.index(route.method))
    assert len(described) > 300
    differences, statuses = [], Counter[int]()
    for number in range(ROUNDS):
        for route in described:
            asked = [
                Drawing(f"{number} {route.method} {route.path}", [route], server.known).draw()
                for server in servers
            ]
            lean, full = (server.ask(drawn) for server, drawn in zip(servers, asked, strict=True))
            statuses[lean[0]] += 1
            if lean != full:
                differences.append(f"{asked[0]}\n  image: {lean}\n  full:  {full}")
    assert not differences, f"{len(differences)} of {statuses.total()}:\n" + "\n".join(differences[:20])
    assert statuses[200] > statuses.total() / 10, statuses  # or no request got far
