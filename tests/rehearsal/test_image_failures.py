"""What clients are told when the database fails, and how long they wait for it, on a real PostgreSQL and MariaDB."""

from __future__ import annotations

import inspect
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

import psutil
import psycopg
import pytest
from mlflow.exceptions import MlflowException
from mlflow.server import handlers
from mlflow.store.db import utils
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as NoConnectionError
from sqlalchemy.orm import sessionmaker

from .mariadb import NEEDS_MARIADB, MariaDB
from .test_image_entrypoint import (
    ENTRYPOINT,
    IMAGE,
    RUNS,
    Postgres,
    Start,
    Task,
    patched,
    postgres,
    s3,
    start,
    template,
    wait_until,
)

sys.path.insert(0, str(IMAGE))

import failures

__all__ = ["postgres", "s3", "start", "template"]  # the fixtures

SHORT = "import deadlines; deadlines.CLIENT_SECONDS, deadlines.POOL_SECONDS = 3, 2"
"""Client-side limits, so that a test need not wait for the real ones."""
STUCK = 60
"""Requests at once: more than the server has threads (40) and connections (41)."""
SEARCH = f"{RUNS}/search", {"experiment_ids": ["0"]}
BOUND_SECONDS = 50
"""Room for a busy machine; without limits nothing of this would ever end."""


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """The database's processes stopped, its connections open."""
    parent = psutil.Process(pid)
    stopped = [parent, *parent.children(recursive=True)]
    for process in stopped:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in stopped:
            process.send_signal(signal.SIGCONT)


def outlives_a_freeze(task: Task, pid: int) -> None:
    """While its database is frozen a server refuses requests in time and stays healthy; then it serves again."""
    run = task.start_run()
    processes = {process.pid for process in task.tree}
    with frozen(pid), ThreadPoolExecutor(STUCK) as pool:
        for _ in range(2):  # a second time, when the connections are known to be dead
            begin = time.monotonic()
            stuck = [pool.submit(task.post, *SEARCH) for _ in range(STUCK)]
            assert task.get("/health")[0] == 200
            assert ready(task)[1]["database"] == "no answer"
            answers = [request.result() for request in stuck]
            assert time.monotonic() - begin < BOUND_SECONDS
            assert {status for status, _ in answers} == {503}, answers
            assert all("does not answer" in str(answer) for _, answer in answers), answers
    wait_until(lambda: task.get(f"{RUNS}/get?run_id={run}")[0] == 200, BOUND_SECONDS, "recovering")
    with ThreadPoolExecutor(STUCK) as pool:
        assert {status for status, _ in pool.map(lambda _: task.post(*SEARCH), range(STUCK))} == {200}
    assert {process.pid for process in task.tree} == processes


def test_a_frozen_postgresql_holds_no_request_for_ever(
    postgres: Postgres, template: str, start: Start
) -> None:
    task = start(postgres.create("frozen", template), command=patched(SHORT)).wait_healthy()
    outlives_a_freeze(task, int((postgres.data / "postmaster.pid").read_text().split()[0]))


def test_a_statement_has_its_time(postgres: Postgres, template: str, start: Start) -> None:
    """The database's own limit comes first. Where it does not work, as in one that is frozen, the client's does."""
    name = postgres.create("slow", template)
    limits = (
        "import deadlines; deadlines.CLIENT_SECONDS = {}; deadlines.POSTGRESQL['statement_timeout'] = '{}s'"
    )
    by_server = start(name, command=patched(limits.format(60, 2))).wait_healthy()
    by_client = start(name, command=patched(limits.format(2, 60))).wait_healthy()
    with postgres.connect(name) as holder, holder.transaction():
        holder.execute("LOCK TABLE runs")
        status, told = by_server.post(*SEARCH)
        assert (status, "did not finish this request in the time it has" in told["message"]) == (503, True)
        status, told = by_client.post(*SEARCH)
        assert (status, "does not answer" in told["message"]) == (503, True)
    assert "canceling statement due to statement timeout" in by_server.output
    assert "no answer within 2 s" in by_client.output
    assert by_server.post(*SEARCH)[0] == by_client.post(*SEARCH)[0] == 200


@pytest.mark.mariadb
@NEEDS_MARIADB
def test_a_frozen_mariadb_holds_no_request_for_ever(s3: dict[str, str]) -> None:
    mariadb = MariaDB()
    tasks: list[Task] = []
    try:
        variables = {**mariadb.variables(mariadb.create("frozen")), **s3}
        tasks.append(Task({**variables, "MIGRATE_WITHOUT_SNAPSHOT": "true"}, [*ENTRYPOINT, "migrate"]))
        assert tasks[0].ends(300) == 0, tasks[0].output
        tasks.append(Task(variables, patched(SHORT)))
        outlives_a_freeze(tasks[1].wait_healthy(), mariadb.pid)
        with mariadb.connect() as connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM information_schema.processlist WHERE db = 'frozen' AND command = 'Sleep'"
            )
            assert cursor.fetchone()[0] > 0
    finally:
        for task in tasks:
            task.stop()
        mariadb.stop()


def test_a_stopped_database_is_told_of_in_a_sentence_by_every_endpoint(
    postgres: Postgres, template: str, start: Start
) -> None:
    """No answer names the database's place or its SQL. The log has what was hidden, under the id in the answer."""
    name = postgres.create("told_to_nobody", template)
    with postgres.connect(name) as connection:
        connection.execute("CREATE ROLE sly_user SUPERUSER LOGIN PASSWORD 'sly password'")
    task = start(name, DATABASE_USER="sly_user", DATABASE_PASSWORD="sly password").wait_healthy()
    task.start_run()
    well = {"status": "OK", "database": "OK", "bucket": "OK"}
    assert ready(task) == (200, well)
    postgres.stop()
    try:
        answers = list(everything(task))
        away = (503, {"status": "UNAVAILABLE", "database": "no answer", "bucket": "OK"})
        wait_until(lambda: ready(task) == away, BOUND_SECONDS, "missing the database")
        assert task.get("/health")[0] == 200
    finally:
        postgres.start()
    wait_until(lambda: ready(task) == (200, well), BOUND_SECONDS, "finding the database again")
    hidden = re.compile(
        rf"127\.0\.0\.1|localhost|{postgres.port}|{name}|sly_user|sly password|psycopg|sqlalche|\[SQL|SELECT |INSERT "
    )
    # What went well may name the bucket's host: that is what a presigned URL is.
    assert [answer for answer in answers if answer[1] >= 400 and hidden.search(answer[2])] == []
    refused = [answer for answer in answers if answer[1] == 503 and "database" in answer[2]]
    assert len(refused) > 50, "the database should be missed by most of them"
    assert "GET /api/3.0/mlflow/prompt-optimization/jobs/0" in {where for where, _, _ in refused}, (
        "a store that is opened by its first request should be tried once"
    )
    for where, _, told in refused:
        found = re.search(r"The database does not answer at the moment.* details of request (\w{16})\.", told)
        assert found, (where, told)
        assert re.search(rf"Request {found[1]} \(\w+ '.*'\): \w+: .*{postgres.port}", task.output), where
    assert "sly password" not in task.output


def ready(task: Task) -> tuple[int, Any]:
    status, told = task.get("/health/ready")
    return status, json.loads(told)


def test_a_bucket_that_does_not_answer_is_not_ready(postgres: Postgres, template: str, start: Start) -> None:
    """A port that takes connections and says nothing: asked once at a time, with nobody waiting for long."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        place = f"http://127.0.0.1:{silent.getsockname()[1]}"
        task = start(postgres.create("no_bucket", template), AWS_ENDPOINT_URL=place).wait_healthy()
        with ThreadPoolExecutor(STUCK) as pool:
            answers = list(pool.map(lambda _: ready(task), range(STUCK)))
    # Were they not to share one check, they would be through one after another, in two minutes.
    assert answers == [(503, {"status": "UNAVAILABLE", "database": "OK", "bucket": "no answer"})] * STUCK
    assert task.output.count("The bucket does not answer") == 1


def everything(task: Task) -> Iterator[tuple[str, int, str]]:
    """What each endpoint of MLflow's API answers to a request that looks as if it were meant."""
    paths = {
        (re.sub(r"<[^>]*>", "0", path), method)
        for path, _, methods in handlers.get_endpoints()
        for method in methods
        if "/ajax-api/" not in path  # the same endpoints, for the UI
    }
    body: dict[str, Any] = {
        "name": "x",
        "experiment_ids": ["0"],
        "experiment_id": "0",
        "run_id": "0" * 32,
        "key": "k",
        "value": 1,
        "timestamp": 1,
        "max_results": 1,
    }
    query = urlencode(body, doseq=True)

    def ask(where: tuple[str, str]) -> tuple[str, int, str]:
        path, method = where
        if method == "GET":
            status, told = task.get(f"{path}?{query}")
        else:
            header = {"Content-Type": "application/json"}
            status, told = task.request(method, path, json.dumps(body).encode(), header)
        return f"{method} {path}", status, told.decode(errors="replace")

    with ThreadPoolExecutor(8) as pool:
        yield from pool.map(ask, sorted(paths))


def test_a_refused_value_is_told_without_sql(postgres: Postgres, template: str, start: Start) -> None:
    """These are no outages: 400, and what is stored already is named by MLflow itself."""
    task = start(postgres.create("values", template)).wait_healthy()
    create = "/api/2.0/mlflow/experiments/create"
    assert task.post(create, {"name": "twice"})[0] == 200
    status, told = task.post(create, {"name": "twice"})
    assert status == 400
    assert "twice) already exists" in told["message"]
    assert "contradicts what is stored" in told["message"]
    assert "INSERT" not in str(told)
    assert "experiments" not in str(told)


def test_mlflow_still_tries_again_what_a_deadlock_ended() -> None:
    """It knows one by the word, which our sentence must keep."""
    error = OperationalError("UPDATE runs", None, psycopg.errors.DeadlockDetected("deadlock detected"))
    failures.plain(error, "details")
    tries: list[int] = []

    def write() -> None:
        tries.append(1)
        if len(tries) == 1:
            raise MlflowException(str(error), error_code=utils.TEMPORARILY_UNAVAILABLE)

    SqlAlchemyStore._run_with_deadlock_retry(SqlAlchemyStore.__new__(SqlAlchemyStore), write)
    assert len(tries) == 2


# What upstream lacks. When one of these fails, the part of the image that it names can go.


def test_mlflow_tells_clients_where_its_database_is() -> None:
    """failures.py"""
    error = told_by_mlflow(psycopg_refusal())
    assert "hidden-host" in str(error)
    assert "SELECT secret" in str(error)


def test_mlflow_blames_the_client_when_the_pool_is_exhausted() -> None:
    """_Pool in deadlines.py"""
    error = told_by_mlflow(NoConnectionError("QueuePool limit of size 5 overflow 5 reached"))
    assert error.get_http_status_code() == 400


def test_mlflow_imports_its_basic_auth_with_a_search_of_runs_though_nobody_signs_in() -> None:
    """`_without_basic_auth` in server.py"""
    assert "from mlflow.server import auth" in inspect.getsource(handlers.search_runs_impl)
    program = "{}\nfor _ in range(3):\n try:\n  from mlflow.server import auth\n except ImportError: pass\nprint(made)"
    count = """
import importlib.abc, sys
import mlflow.server.handlers
made = 0
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        global made
        made += name == "mlflow.server.auth"
sys.meta_path.insert(0, Finder())
"""
    ours = f"{count}\nsys.path.insert(0, {str(IMAGE)!r})\nimport server\nserver._without_basic_auth()"
    made = [
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program.format(begin)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for begin in (count, ours)
    ]
    assert made == ["1", "0"]


def psycopg_refusal() -> Exception:
    return OperationalError(
        "SELECT secret", {}, psycopg.OperationalError('connection to "hidden-host" failed')
    )


def told_by_mlflow(error: Exception) -> MlflowException:
    """What becomes of the error in MLflow's own session."""
    maker = utils._get_managed_session_maker(sessionmaker(), "postgresql")
    with pytest.raises(MlflowException) as raised, maker():
        raise error
    return raised.value
