"""Images that do not work, one in each environment: where the release stops, and who serves meanwhile.

What each kind of failure does to the service itself is drilled in `test_bad_releases.py`, without the pipeline.
"""

from __future__ import annotations

import pytest

from .client import Client
from .workspace import Edit, Release, Workspace

pytestmark = pytest.mark.drill

IMPATIENT = Edit(
    "stages/tracking.py", "STARTUP_GRACE = Duration.seconds(120)", "STARTUP_GRACE = Duration.seconds(15)"
)
"""With the bad image's release only: how soon health checks count decides how long the drill takes, not how it ends."""


def _application(environment: str, answer: str) -> Edit:
    """The server's application, wrapped where the environment's database is its own: `answer` comes before its own."""
    return Edit(
        "mlflow_image/server.py",
        "    return app\n",
        f"""    import asyncio

    async def drilled(scope, receive, send):
        if scope["type"] == "http":
{answer}
        await app(scope, receive, send)

    return drilled if "-{environment}-" in os.environ["DATABASE_SECRET_ARN"] else app
""",
    )


FAILS_IN_DEV = _application(
    "dev",
    """            print("This server answers 500.", flush=True)
            await send({"type": "http.response.start", "status": 500, "headers": []})
            await send({"type": "http.response.body", "body": b"no"})
            return""",
)

WRONG_IN_STAGING = _application(
    "staging",
    """            if scope["path"].endswith("/runs/create"):
                print("This server makes no runs.", flush=True)
                await send({"type": "http.response.start", "status": 500, "headers": []})
                await send({"type": "http.response.body", "body": b"no"})
                return""",
)

EXITS_IN_PROD = Edit(
    "mlflow_image/entrypoint.py",
    "def serve() -> None:\n",
    """def serve() -> None:
    if "-prod-" in os.environ.get("DATABASE_SECRET_ARN", ""):
        sys.exit("This server gives up at once.")
""",
)


def test_an_image_that_does_not_start_stops_in_dev(workspace: Workspace, base: Release) -> None:
    """The circuit breaker opens; dev's tasks are the same as before and have served every request; the report shows
    the end of the bad task's log. Then the stage goes back to the release before, which changes nothing."""
    before = {name: workspace.tasks(name) for name in base.environments}
    others = {name: workspace.stacks(name) for name in ("staging", "prod")}
    with Client(base.environments["dev"]["url"]) as client:
        release = workspace.release("500 in dev", FAILS_IN_DEV, IMPATIENT, approve=True)

    assert release.status != 0
    assert release.stopped_at == ("Dev", "mlflow-dev-tracking.Deploy")
    assert release.stages["Dev"] == "failed"
    assert release.stages["Staging"] == release.stages["Prod"] == "not run"
    assert "✗ mlflow-dev-tracking.Deploy" in release.output
    assert "This server answers 500." in release.output
    assert "This server answers 500." in (workspace.state / "report.html").read_text(encoding="utf-8")
    _assert_served(client, "dev")
    assert workspace.stack("dev", "tracking")["status"] == "UPDATE_ROLLBACK_COMPLETE"
    _assert_rolled_back(release, "Dev")
    assert workspace.tasks("dev") == before["dev"]
    assert {name: workspace.tasks(name) for name in others} == {name: before[name] for name in others}
    assert {name: workspace.stacks(name) for name in others} == others


def test_an_image_that_fails_its_gate_is_taken_back_in_staging(workspace: Workspace, base: Release) -> None:
    """Healthy, but wrong: staging deploys it, its smoke tests stop it, the stage goes back, and the release before
    serves staging again. Prod has not noticed."""
    before, stacks = workspace.tasks("prod"), workspace.stacks("prod")
    image = _image(workspace, "staging")
    with Client(base.environments["prod"]["url"]) as client:
        release = workspace.release("No runs in staging", WRONG_IN_STAGING, approve=True)
    assert release.status != 0
    assert release.stages["Dev"] == "succeeded"
    assert release.stopped_at == ("Staging", "Smoke")
    assert release.stages["Promote"] == release.stages["Prod"] == "not run"
    _assert_rolled_back(release, "Staging")
    assert _image(workspace, "staging") == image != _image(workspace, "dev")
    _assert_served(client, "prod")
    assert (workspace.tasks("prod"), workspace.stacks("prod")) == (before, stacks)


def test_an_image_that_exits_in_prod_leaves_prod_as_it_was(workspace: Workspace, base: Release) -> None:
    """Good in dev and staging, approved, and it gives up at once in prod: prod's tasks are the same as before."""
    before = workspace.tasks("prod")
    with Client(base.environments["prod"]["url"]) as client:
        release = workspace.release("Exits in prod", EXITS_IN_PROD, IMPATIENT, approve=True)
    assert release.status != 0
    assert release.stages["Staging"] == release.stages["Promote"] == "succeeded"
    assert release.stopped_at == ("Prod", "mlflow-prod-tracking.Deploy")
    assert "This server gives up at once." in release.output
    _assert_served(client, "prod")
    _assert_rolled_back(release, "Prod")
    assert workspace.tasks("prod") == before


def _image(workspace: Workspace, environment: str) -> str:
    """The image that an environment's service was deployed with."""
    resources = workspace.stack(environment, "tracking")["resources"].values()
    task = next(one for one in resources if one["type"] == "AWS::ECS::TaskDefinition")
    return str(task["properties"]["ContainerDefinitions"][0]["Image"])


def _assert_served(client: Client, name: str) -> None:
    print(f"{name}: {client.requests} requests, {len(client.failures)} failed")
    assert client.succeeded > 50
    assert not client.failures, f"{len(client.failures)} of {client.requests}: {client.failures[:5]}"
    assert client.lost() == []


def _assert_rolled_back(release: Release, stage: str) -> None:
    """The stage's automatic rollback ran and succeeded; the report has it."""
    rollback = release.report["rollback"]
    assert rollback is not None
    assert rollback["rollback_stage"] == stage
    assert rollback["status"] == "Succeeded", rollback
