"""What is attacked: the image's entrypoint, two workers, a PostgreSQL and an S3 server of its own."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from ..test_image_entrypoint import ENTRYPOINT, RUNS, Postgres, Task, s3_client, s3_server

BALANCER = {"X-Forwarded-For": "203.0.113.7"}
"""How a request looks that came through the load balancer. MLflow lets a client on its own machine do more."""

# Names that lead where no webhook may go. Only what DNS would say is made up.
DNS = """
import socket
ADDRESSES = {
    "metadata.attack.test": "169.254.169.254",
    "task-metadata.attack.test": "169.254.170.2",
    "database.attack.test": "10.0.2.15",
    "loopback.attack.test": "127.0.0.1",
}
resolve = socket.getaddrinfo
def answer(host, *arguments, **named):
    return resolve(ADDRESSES.get(host, host), *arguments, **named)
socket.getaddrinfo = answer
"""


@dataclass(frozen=True)
class Attacked:
    task: Task
    postgres: Postgres
    database: str
    s3: dict[str, str]

    def request(
        self, method: str, target: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, bytes]:
        """As the client sends it: no library tidies the target up."""
        connection = HTTPConnection("127.0.0.1", self.task.port, timeout=60)
        try:
            connection.request(method, target, body, {**BALANCER, **headers})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        content = {"Content-Type": "application/json", **headers}
        status, answer = self.request("POST", path, json.dumps(body).encode(), **content)
        return status, json.loads(answer) if answer.startswith(b"{") else answer.decode()

    def create(self, path: str, body: Any) -> dict[str, Any]:
        status, answer = self.post(path, body)
        assert status == 200, answer
        created: dict[str, Any] = answer
        return created

    def start_run(self, experiment: str = "0") -> str:
        answer = self.create(
            f"{RUNS}/create", {"experiment_id": experiment, "start_time": int(time.time() * 1000)}
        )
        return str(answer["run"]["info"]["run_id"])

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self.postgres.connect(self.database) as connection:
            return connection.execute(query.encode(), values).fetchall()

    @property
    def objects(self) -> Any:
        return s3_client(self.s3)


@pytest.fixture(scope="package")
def attacked() -> Iterator[Attacked]:
    """For the attacks that leave the server as they found it."""
    with new_server() as server:
        yield server


@contextlib.contextmanager
def new_server() -> Iterator[Attacked]:
    """A server of the image, its database and its bucket, which nobody else uses."""
    folder = Path(tempfile.mkdtemp(prefix="image-attacks-"))
    folder.chmod(0o755)  # PostgreSQL runs as another user when the tests run as root
    (folder / "sitecustomize.py").write_text(DNS, encoding="utf-8")
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        postgres = Postgres(folder)
        stack.callback(postgres.stop)
        name = postgres.create("attacked")
        migration = Task(postgres.variables(name), [*ENTRYPOINT, "migrate"])
        stack.callback(migration.stop)
        assert migration.ends(600) == 0, migration.output
        s3 = stack.enter_context(s3_server())
        task = Task({**postgres.variables(name), **s3, "WORKERS": "2", "PYTHONPATH": str(folder)})
        stack.callback(task.stop)
        yield Attacked(task.wait_healthy(), postgres, name, s3)
