"""Bad releases on one service: where each stops, who serves meanwhile, how long until only the old version serves.

A release that does not come up never gets a request: the deployment fails and undoes itself. One that comes up and then
is slow, or dies of what it serves, passes the deployment; the load check behind it is what stops it. The pipeline
around that is drilled elsewhere.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from rehearsal.cloudformation import StackFailed

from .client import REQUEST_SECONDS
from .service import IMPATIENT, Drill, Service, running_service
from .workspace import REPOSITORY, Edit

pytestmark = pytest.mark.drill

SLOW_SECONDS = 1.0
"""More than ten times what a small request takes on a busy machine."""

LEAK_MIB = 16
"""What a request leaves behind. Of the 1024 MiB that dev gives a task it takes about 350 before any request."""


CRASHES = Edit(
    "mlflow_image/entrypoint.py",
    "def serve() -> None:\n",
    'def serve() -> None:\n    sys.exit("This server gives up at once.")\n',
)


def _instead(behaviour: str) -> Edit:
    """A server that listens as soon as it can, and does `behaviour` with every request, health checks too."""
    return Edit(
        "mlflow_image/server.py",
        "def application() -> Any:\n",
        f"""def application() -> Any:
    async def drilled(scope, receive, send):
        if scope["type"] == "http":
{behaviour}

    return drilled


def _application() -> Any:
""",
    )


HANGS = _instead(
    """            print("This server never answers.", flush=True)
            while (await receive())["type"] != "http.disconnect":
                pass"""
)
FAILS = _instead(
    """            print("This server answers 500.", flush=True)
            await send({"type": "http.response.start", "status": 500, "headers": []})
            await send({"type": "http.response.body", "body": b"no"})"""
)


def _before(behaviour: str) -> Edit:
    """A healthy server that does `behaviour` before it handles any other request as it should."""
    return Edit(
        "mlflow_image/server.py",
        "    return app\n",
        f"""    import asyncio

    hoard = []

    async def drilled(scope, receive, send):
        if scope["type"] == "http" and scope["path"] != "/health":
            {behaviour}
        await app(scope, receive, send)

    return drilled
""",
    )


SLOW = _before(f"await asyncio.sleep({SLOW_SECONDS})")
LEAKS = _before(f"hoard.append(b'x' * ({LEAK_MIB} * 2**20))")


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with running_service() as service:
        yield service


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        pytest.param(CRASHES, "This server gives up at once.", id="crashes-at-start"),
        pytest.param(HANGS, "This server never answers.", id="hangs"),
        pytest.param(FAILS, "This server answers 500.", id="answers-500"),
    ],
)
def test_the_deployment_stops_it(
    service: Service, edit: Edit, reason: str, request: pytest.FixtureRequest
) -> None:
    """The circuit breaker opens; the old tasks are the same and have served every request."""
    before = set(service.tasks())
    service.build("bad", edit)
    with Drill(request.node.callspec.id, service, clients=1) as drill:
        began = time.monotonic()
        with pytest.raises(StackFailed, match="ECS deployment circuit breaker") as failure:
            service.deploy("bad", grace=IMPATIENT)
        drill.note(
            f"stopped by its deployment, only the old version serves after {time.monotonic() - began:.0f} s"
        )
        assert reason in str(failure.value)
        assert set(service.tasks()) == service.healthy() == before
        drill.go_on()
        drill.assert_nothing_failed()


def test_a_slow_one_is_let_in(service: Service) -> None:
    """It is healthy, so the deployment lets it in and the load check is what must stop it: by its throughput or its
    95th percentiles, if these were set for the platform. Not a request fails, neither then nor on the way back, which
    is one deployment."""
    service.build("slow", SLOW)
    with Drill("slow", service, clients=1) as drill:
        service.deploy("slow")
        assert _seconds(service) >= SLOW_SECONDS
        began = time.monotonic()
        service.deploy("good")
        drill.note(f"let in; taken back, only the old version serves after {time.monotonic() - began:.0f} s")
        assert _seconds(service) < SLOW_SECONDS
        drill.go_on()
        drill.assert_nothing_failed()


def test_the_load_check_stops_one_that_leaks(service: Service, tmp_path: Path) -> None:
    """The deployment lets it in, too. Its tasks are killed at their memory limit, with what they had in flight, and
    replaced, again and again: the load check sees the failures."""
    service.build("leaks", LEAKS)
    service.deploy("leaks")
    failed = _load_check(service, tmp_path)
    assert "NOT OK  error rate" in failed
    assert any("OutOfMemoryError" in task["stopped_reason"] for task in service.stopped())
    began = time.monotonic()
    service.deploy("good")
    with Drill("leaks", service, clients=1) as drill:
        drill.note(
            "stopped by the load check;"
            f" taken back, only the old version serves after {time.monotonic() - began:.0f} s"
        )
        drill.go_on()
        drill.assert_nothing_failed()


def _seconds(service: Service) -> float:
    """How long the quickest of three small requests takes."""
    url = f"{service.url}/api/2.0/mlflow/experiments/get"
    answers = [requests.get(url, params={"experiment_id": "0"}, timeout=REQUEST_SECONDS) for _ in range(3)]
    assert {answer.status_code for answer in answers} == {200}
    return min(answer.elapsed.total_seconds() for answer in answers)


def _load_check(service: Service, folder: Path) -> str:
    """Run the release's load check with dev's thresholds, and return its output. It must not pass."""
    settings = tomllib.loads((REPOSITORY / "platform.toml").read_text(encoding="utf-8"))
    load = settings["environments"]["dev"]["load"]
    done = subprocess.run(
        [sys.executable, "-m", "load_tests"],
        cwd=folder,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(REPOSITORY),
            "MLFLOW_TRACKING_URI": service.url,
            **{f"LOAD_{name.upper()}": str(value) for name, value in load.items()},
        },
        capture_output=True,
        text=True,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 1, output
    return output
