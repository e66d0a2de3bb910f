"""A release that comes up and then fails requests: an alarm takes it back while it is deployed.

The circuit breaker cannot see it, as `/health` is well. It is drilled with the harder half in it: the release has
migrated the database, and the old tasks are gone when the alarm goes off, so what comes back is old servers that start
on a newer schema.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from rehearsal.cloudformation import StackFailed

from .client import PoliteClient
from .service import Drill, running_service
from .workspace import Edit

pytestmark = pytest.mark.drill

PREVIOUS, NEXT = "3.10.0", "3.16.1"
"""Releases of MLflow between which the migrations are additive."""

FAILS_HALF = Edit(
    "mlflow_image/server.py",
    "    return app\n",
    """    import itertools

    count = itertools.count()

    async def drilled(scope, receive, send):
        if scope["type"] == "http" and scope["path"] != "/health" and next(count) % 2:
            await send({"type": "http.response.start", "status": 500, "headers": []})
            await send({"type": "http.response.body", "body": b"no"})
        else:
            await app(scope, receive, send)

    return drilled
""",
)


def test_an_alarm_brings_the_old_tasks_back_on_the_migrated_database() -> None:
    """From then on nothing fails; what was acknowledged before, during and after is there."""
    with running_service(PREVIOUS) as service:
        service.build("bad", FAILS_HALF, mlflow=NEXT)
        before = set(service.tasks())
        with Drill("alarm after a migration", service, clients=3, client=PoliteClient) as drill:
            migrated = service.migrate("bad")
            assert migrated["kind"] == "additive"
            drill.go_on()
            assert drill.failures == []
            with pytest.raises(StackFailed) as failure:
                service.deploy("bad")
            back = time.monotonic()
            told = str(failure.value)
            assert "ECS deployment alarm: mlflow-dev-ServerErrors is in ALARM, Sum of HTTPCode_Target" in told
            assert told.endswith("is rolled back (UPDATE_ROLLBACK_COMPLETE)")

            tasks = service.tasks()
            assert set(tasks) == service.healthy()
            started = [task for name, task in tasks.items() if name not in before]
            assert started, "the first new task that served has replaced an old one"
            for task in started:
                [log] = task["logs"].values()
                text = Path(log).read_text(encoding="utf-8")
                assert f"newer than this image's {migrated['before']}" in text
                assert "additive migration(s); serving it as it is" in text

            drill.go_on(60)
            drill.stop()
            assert len(drill.failures) >= 10
            assert [failure for failure in drill.failures if failure.ended > back] == []
            assert drill.lost() == []
            seconds = back - drill.failures[0].began
            drill.note(
                f"{len(started)} of {len(tasks)} old tasks started anew; only the old version serves"
                f" {seconds:.0f} s after the first failure"
            )
