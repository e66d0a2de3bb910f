"""Images that do not work: the release stops in dev, what served goes on serving, nobody else notices."""

from __future__ import annotations

import pytest

from .client import Client
from .workspace import Edit, Release, Workspace

pytestmark = [pytest.mark.drill, pytest.mark.xdist_group("drills")]

IMPATIENT = Edit(
    "stages/tracking.py", "STARTUP_GRACE = Duration.seconds(120)", "STARTUP_GRACE = Duration.seconds(15)"
)
"""With the bad image's release only: how soon health checks count decides how long the drill takes, not how it ends."""

EXITS = Edit(
    "mlflow_image/entrypoint.py",
    "def serve() -> None:\n",
    'def serve() -> None:\n    sys.exit("This server gives up at once.")\n',
)


def _application(health: str) -> Edit:
    """The server's application, wrapped: `health` is what it does with a request to `path`."""
    return Edit(
        "mlflow_image/server.py",
        "    return app\n",
        f"""    import asyncio

    async def drilled(scope, receive, send):
        path = scope.get("path")
        if scope["type"] == "http":
{health}
        await app(scope, receive, send)

    return drilled
""",
    )


SILENT = _application(
    """            if path == "/health":
                print("This server leaves /health unanswered.", flush=True)
                await asyncio.sleep(8)  # longer than the health check waits
                return"""
)

FAILS = _application(
    """            print("This server answers 500.", flush=True)
            await send({"type": "http.response.start", "status": 500, "headers": []})
            await send({"type": "http.response.body", "body": b"no"})
            return"""
)


@pytest.mark.parametrize(
    ("edit", "last_words"),
    [
        pytest.param(EXITS, "This server gives up at once.", id="exits-at-once"),
        pytest.param(SILENT, "This server leaves /health unanswered.", id="never-healthy"),
        pytest.param(FAILS, "This server answers 500.", id="answers-500"),
    ],
)
def test_an_unfit_image_stops_in_dev(
    workspace: Workspace, base: Release, edit: Edit, last_words: str
) -> None:
    """The circuit breaker opens; dev's tasks are the same as before and have served every request; the report shows
    the end of the bad task's log."""
    before = {name: workspace.tasks(name) for name in base.environments}
    others = {name: workspace.stacks(name) for name in ("staging", "prod")}
    with Client(base.environments["dev"]["url"]) as client:
        release = workspace.release("An unfit image", edit, IMPATIENT, approve=True)
    print(f"dev: {client.requests} requests, {len(client.failures)} failed")

    assert release.status != 0
    assert release.stopped_at == ("Dev", "mlflow-dev-tracking.Deploy")
    assert release.stages["Dev"] == "failed"
    assert release.action("Dev", "mlflow-dev-tracking.Deploy")["status"] == "failed"
    assert release.stages["Staging"] == release.stages["Prod"] == "not run"
    assert "✗ mlflow-dev-tracking.Deploy" in release.output
    assert last_words in release.output
    assert last_words in (workspace.state / "report.html").read_text(encoding="utf-8")

    assert client.succeeded > 50
    assert not client.failures, f"{len(client.failures)} of {client.requests}: {client.failures[:5]}"
    assert client.lost() == []
    assert workspace.stack("dev", "tracking")["status"] == "UPDATE_ROLLBACK_COMPLETE"
    assert {name: workspace.tasks(name) for name in base.environments} == before
    assert {name: workspace.stacks(name) for name in others} == others
