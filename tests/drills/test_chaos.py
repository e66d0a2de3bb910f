"""A service in use while it is changed, and while parts of it die: what fails, for how long, and what is lost.

Changes that are made on purpose must not fail one request. An accident may fail what depends on the part that is gone,
while it is gone. Nothing that was acknowledged is ever lost, and nobody restarts anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from .client import REQUEST_SECONDS
from .service import Drill, Service, kill, running_service
from .workspace import Edit, wait_until

pytestmark = pytest.mark.drill

NEXT = Edit("mlflow_image/entrypoint.py", "import os\n", "# A new release.\nimport os\n")

OUTAGE_SECONDS = 10.0
RECOVERY_SECONDS = 30.0
"""A bound, only against hanging, on how much longer than an outage its failures may last."""

STUCK = 200
"""Requests that hang at once: with two tasks, more than twice as many as they have threads (40 each)."""


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with running_service() as service:
        service.build("next", NEXT)
        yield service


def _roll_over(service: Service, drill: Drill) -> None:
    before = set(service.tasks())
    service.deploy("next")
    assert not before & set(service.tasks())


def _scale(service: Service, drill: Drill) -> None:
    for tasks in (4, 2, 1, 2):
        service.deploy(tasks=tasks)
        assert len(service.healthy()) == tasks
        drill.go_on()


def _replace_all(service: Service, drill: Drill) -> None:
    before = set(service.tasks())
    service.deploy(force=drill.name)
    assert not before & set(service.tasks())


def _two_workers(service: Service, drill: Drill) -> None:
    """There and back, so that tasks with two workers start and stop under load."""
    service.deploy(workers=2)
    drill.go_on()
    service.deploy(workers=1)


def _rotate(service: Service, drill: Drill) -> None:
    """Open connections live on with the old password, so bursts ask for more of them than there are, all the while."""
    tasks = set(service.tasks())

    def burst() -> None:
        with ThreadPoolExecutor(24) as pool:
            assert set(pool.map(lambda _: _search(service), range(48))) == {200}

    with ThreadPoolExecutor(1) as rotating:
        rotation = rotating.submit(service.rotate)
        while not rotation.done():
            burst()
        rotation.result()
    (rotated,) = service.query("SELECT now()")[0]

    def fresh() -> bool:
        burst()
        return bool(
            service.query(
                "SELECT 1 FROM pg_stat_activity WHERE backend_type = 'client backend'"
                f" AND pid <> pg_backend_pid() AND backend_start > '{rotated}'"
            )
        )

    wait_until(fresh, "a new connection with the new password", 60)
    drill.go_on()
    assert set(service.tasks()) == tasks


def _change_schema(service: Service, drill: Drill) -> None:
    """What an additive migration does, while the old version serves."""
    for statement in (
        "ALTER TABLE runs ADD COLUMN drilled VARCHAR(20)",
        "CREATE TABLE drilled (id INTEGER PRIMARY KEY, run VARCHAR(32) REFERENCES runs (run_uuid))",
        "CREATE INDEX drilled_by_start ON runs (experiment_id, start_time)",
    ):
        service.query(statement)
        drill.go_on()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(_roll_over, id="rolling-update"),
        pytest.param(_scale, id="scaling-out-and-in"),
        pytest.param(_replace_all, id="tasks-replaced"),
        pytest.param(_two_workers, id="two-workers"),
        pytest.param(_rotate, id="password-rotated"),
        pytest.param(_change_schema, id="additive-schema-change"),
    ],
)
def test_no_request_notices(
    service: Service, change: Callable[[Service, Drill], None], request: pytest.FixtureRequest
) -> None:
    """With uploads in flight all the while and nobody trying anything twice."""
    with Drill(request.node.callspec.id, service) as drill:
        change(service, drill)
        drill.go_on()
        drill.assert_nothing_failed()


def test_killed_tasks(service: Service) -> None:
    """Only requests in flight on a task that is killed fail, each client's one at most, and the service recovers alone.

    The rehearsed scheduler notices at once that a process has ended, and takes its target away. On AWS that takes some
    seconds, in which every second request fails: there the number of failures is no bound, what is lost is.
    """
    outages = []
    with Drill("tasks killed", service) as drill:
        for _ in range(3):
            victim = next(iter(service.tasks().values()))
            killed = kill(victim)
            wait_until(lambda gone=victim["id"]: gone not in service.tasks(), "the end of the task", 60)  # type: ignore[misc]
            outages.append((killed, time.monotonic()))
            drill.go_on()  # with the other task alone
            wait_until(lambda: len(service.healthy()) == 2, "two healthy tasks", 120)
        drill.stop()
        assert len(drill.failures) <= drill.loops * len(outages)
        for failure in drill.failures:
            assert any(failure.overlaps(*outage) for outage in outages), failure
        assert drill.lost() == []


def test_stopped_database(service: Service) -> None:
    """While it is away only what needs it fails, at once; then everything goes on with the same tasks."""
    before = set(service.tasks())
    _upload(service)
    with Drill("database stopped", service) as drill:
        stopped = time.monotonic()
        service.postgres.stop()
        try:
            wait_until(lambda: _search(service) == 503, "a refusal", 60)
            while time.monotonic() < stopped + OUTAGE_SECONDS:
                assert _health(service) == 200
                assert _download(service) == 200
        finally:
            service.postgres.start()
        ended = time.monotonic()
        drill.go_on()
        drill.stop()
        assert drill.failures
        for failure in drill.failures:
            assert failure.overlaps(stopped, ended), failure
            assert failure.ended < ended + RECOVERY_SECONDS, failure
        assert drill.lost() == []
    assert set(service.tasks()) == before


def test_frozen_database(service: Service) -> None:
    """It hangs, and with it more requests than the servers have threads: health checks are answered all the while, so
    no task is replaced, and once it goes on every request that hung has an answer."""
    before = set(service.tasks())
    with Drill("database frozen", service) as drill, ThreadPoolExecutor(STUCK) as pool:
        frozen = time.monotonic()
        with service.frozen("database-"):
            stuck = [pool.submit(_search, service) for _ in range(STUCK)]
            while time.monotonic() < frozen + OUTAGE_SECONDS:
                assert _health(service) == 200
        ended = time.monotonic()
        statuses = {request.result() for request in stuck}
        assert time.monotonic() < ended + RECOVERY_SECONDS
        assert statuses <= {200, 503}
        drill.go_on()
        drill.stop()
        for failure in drill.failures:
            assert failure.overlaps(frozen, ended), failure
            assert failure.ended < ended + RECOVERY_SECONDS, failure
        assert drill.lost() == []
    assert set(service.tasks()) == before


def test_frozen_bucket(service: Service) -> None:
    """S3 hangs, and with it more uploads than the servers have threads: what does not need it goes on."""
    before = set(service.tasks())
    with Drill("bucket frozen", service) as drill, ThreadPoolExecutor(STUCK) as pool:
        frozen = time.monotonic()
        with service.frozen("accounts"):
            stuck = [pool.submit(_upload, service, f"stuck-{number}") for number in range(STUCK)]
            while time.monotonic() < frozen + OUTAGE_SECONDS:
                assert _health(service) == 200
                assert _search(service) == 200
        ended = time.monotonic()
        statuses = {request.result() for request in stuck}
        assert time.monotonic() < ended + RECOVERY_SECONDS
        assert statuses <= {200, 503}
        drill.go_on()
        drill.stop()
        for failure in drill.failures:
            assert failure.overlaps(frozen, ended), failure
            assert failure.ended < ended + RECOVERY_SECONDS, failure
        assert drill.lost() == []
    assert set(service.tasks()) == before


def _health(service: Service) -> int:
    return requests.get(f"{service.url}/health", timeout=REQUEST_SECONDS).status_code


def _search(service: Service) -> int:
    """Read from the database."""
    url = f"{service.url}/api/2.0/mlflow/experiments/search"
    return requests.post(url, json={"max_results": 1}, timeout=REQUEST_SECONDS).status_code


def _upload(service: Service, name: str = "drill") -> int:
    """Write to the bucket, without the database."""
    url = f"{service.url}/api/2.0/mlflow-artifacts/artifacts/drills/{name}"
    return requests.put(url, data=b"kept", timeout=REQUEST_SECONDS).status_code


def _download(service: Service) -> int:
    """Read from the bucket, without the database."""
    url = f"{service.url}/api/2.0/mlflow-artifacts/artifacts/drills/drill"
    return requests.get(url, timeout=REQUEST_SECONDS).status_code
