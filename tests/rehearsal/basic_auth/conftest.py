"""Two tasks of two workers each on one database, whose users are MLflow's own."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ..test_image_entrypoint import ENTRYPOINT, Postgres, Task, s3_server

ADMIN, GATES = "Adm7xQ" * 8, "Gat3sW" * 8
SIGN_IN = {"SIGN_IN": "basic", "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN, "GATE_PASSWORD": GATES}
USERS = "/api/2.0/mlflow/users"
PERMISSIONS = "/api/3.0/mlflow/users/permissions"
EXPERIMENTS = "/api/2.0/mlflow/experiments"


def signed(user: str, password: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}


AS_ADMIN, AS_GATES = signed("admin", ADMIN), signed("gates", GATES)


@dataclass(frozen=True)
class Platform:
    """Two tasks on one database."""

    tasks: tuple[Task, Task]
    postgres: Postgres
    database: str
    variables: dict[str, str]

    @property
    def task(self) -> Task:
        return self.tasks[0]

    def ask(self, who: dict[str, str], method: str, path: str, body: Any = None) -> tuple[int, Any]:
        content = None if body is None else json.dumps(body).encode()
        kind = {} if body is None else {"Content-Type": "application/json"}
        status, answer = self.task.request(method, path, content, {**who, **kind})
        return status, json.loads(answer) if answer[:1] in (b"{", b"[") else answer.decode(errors="replace")

    def made(self, who: dict[str, str], path: str, body: Any) -> Any:
        status, answer = self.ask(who, "POST", path, body)
        assert status == 200, answer
        return answer

    def user(self, name: str) -> dict[str, str]:
        """Make a user, and say how it signs in."""
        password = f"{name[::-1]}-likes-Gr33n-tea"
        self.made(AS_ADMIN, f"{USERS}/create", {"username": name, "password": password})
        return signed(name, password)

    def statuses(self, who: dict[str, str], path: str = f"{EXPERIMENTS}/search?max_results=1") -> set[int]:
        """What each of the four workers answers, as far as eight new connections to each task get to all of them."""
        return {task.get(path, **who)[0] for task in self.tasks for _ in range(8)}

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with self.postgres.connect(self.database) as connection:
            return connection.execute(query.encode()).fetchall()


@dataclass(frozen=True)
class Template:
    """A database with both schemas, to be copied, and what was said while they were made."""

    name: str
    refused: str
    """By a server, before the users' tables were there."""
    first: str
    """By the migration that made them."""
    again: str
    """By one more."""


@pytest.fixture(scope="package")
def postgres() -> Iterator[Postgres]:
    folder = Path(tempfile.mkdtemp(prefix="image-users-"))
    folder.chmod(0o755)  # PostgreSQL runs as another user when the tests run as root
    postgres = Postgres(folder)
    yield postgres
    postgres.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="package")
def s3() -> Iterator[dict[str, str]]:
    with s3_server() as variables:
        yield variables


@pytest.fixture(scope="package")
def template(postgres: Postgres, s3: dict[str, str]) -> Template:
    name = postgres.create("basic_template")
    database = postgres.variables(name)

    def ended(status: int, command: str, **variables: str) -> str:
        task = Task({**database, **s3, **variables}, [*ENTRYPOINT, command])
        try:
            assert task.ends(300) == status, task.output
            return task.output
        finally:
            task.stop()

    ended(0, "migrate")
    refused = ended(1, "serve", **SIGN_IN)
    return Template(name, refused, *(ended(0, "migrate", SIGN_IN="basic") for _ in range(2)))


@pytest.fixture(scope="package")
def platform(postgres: Postgres, s3: dict[str, str], template: Template) -> Iterator[Platform]:
    database = postgres.create("basic", template.name)
    variables = {**postgres.variables(database), **s3, **SIGN_IN, "WORKERS": "2"}
    with contextlib.ExitStack() as stack:
        tasks = [Task(variables), Task(variables)]  # at once: each makes the users that are missing
        for task in tasks:
            stack.callback(task.stop)
        for task in tasks:
            task.wait_healthy()
        yield Platform((tasks[0], tasks[1]), postgres, database, variables)
