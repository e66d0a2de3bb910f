"""An image that works in one environment and not in the next: the release goes back there, and nowhere else.

What each kind of bad release does in each environment is drilled in `test_bad_releases.py`.
"""

from __future__ import annotations

import pytest

from .client import Client
from .conftest import CLIENT_PAUSE_SECONDS
from .workspace import Edit, Release, Workspace

pytestmark = pytest.mark.drill

WRONG_IN_STAGING = Edit(
    "mlflow_image/server.py",
    "    return app\n",
    """    async def drilled(scope, receive, send):
        if scope["type"] == "http" and scope["path"].endswith("/runs/create"):
            print("This server makes no runs.", flush=True)
            await send({"type": "http.response.start", "status": 500, "headers": []})
            await send({"type": "http.response.body", "body": b"no"})
            return
        await app(scope, receive, send)

    return drilled if "-staging-" in os.environ["DATABASE_SECRET_ARN"] else app
""",
)


def test_an_image_that_fails_its_gate_is_taken_back_in_staging(workspace: Workspace, base: Release) -> None:
    """Healthy, but wrong: dev keeps it, staging deploys it, staging's smoke tests stop it, the stage goes back, and the
    release before serves staging again. Prod has not noticed."""
    before, stacks = workspace.tasks("prod"), workspace.stacks("prod")
    image = _image(workspace, "staging")
    with Client(base.environments["prod"]["url"], pause=CLIENT_PAUSE_SECONDS) as client:
        release = workspace.release("No runs in staging", WRONG_IN_STAGING, approve=True)
    assert release.status != 0
    assert release.stages["Dev"] == "succeeded"
    assert release.stopped_at == ("Staging", "Smoke")
    assert "✗ Smoke" in release.output
    assert release.stages["Promote"] == release.stages["Prod"] == "not run"
    assert release.report["rollback"]["rollback_stage"] == "Staging"
    assert release.report["rollback"]["status"] == "Succeeded"
    assert _image(workspace, "staging") == image != _image(workspace, "dev")
    print(f"prod: {client.requests} requests, {len(client.failures)} failed")
    assert client.succeeded > 50
    assert not client.failures, f"{len(client.failures)} of {client.requests}: {client.failures[:5]}"
    assert client.lost() == []
    assert (workspace.tasks("prod"), workspace.stacks("prod")) == (before, stacks)


def _image(workspace: Workspace, environment: str) -> str:
    """The image that an environment's service was deployed with."""
    resources = workspace.stack(environment, "tracking")["resources"].values()
    task = next(one for one in resources if one["type"] == "AWS::ECS::TaskDefinition")
    return str(task["properties"]["ContainerDefinitions"][0]["Image"])
