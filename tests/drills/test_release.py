"""Releases that go well, one after the other: the first, the same again, a new image, a new pipeline."""

from __future__ import annotations

import re

import pytest
import requests

from .client import Client
from .conftest import Rollover
from .workspace import Release, Workspace

pytestmark = pytest.mark.drill

STAGES = ["Source", "Build", "UpdatePipeline", "Assets", "Dev", "Staging", "Promote", "Prod"]


def test_a_release_reaches_prod(base: Release) -> None:
    """Every stage succeeds; three environments serve; the report says what was released and what that proves."""
    report = base.report
    assert report["status"] == "succeeded"
    assert report["commit"] == base.commit
    assert re.fullmatch("sha256:[0-9a-f]{64}", report["image"])
    assert base.stages == dict.fromkeys(STAGES, "succeeded")
    assert report["executions"] == 1
    assert list(base.environments) == ["dev", "staging", "prod"]
    for name, environment in base.environments.items():
        assert environment["tasks"] == 2, name
        assert environment["image"] == report["image"], name
        assert requests.get(f"{environment['url']}/health", timeout=30).status_code == 200, name
        assert environment["url"] in base.output
    assert "AWS::EC2::NatGateway" in report["declared_not_rehearsed"]
    assert "AWS::ECS::Service" not in report["declared_not_rehearsed"]
    assert report["not_proven"]


def test_the_same_commit_again_changes_nothing(workspace: Workspace, base: Release) -> None:
    """A rehearsal of what is deployed already tests it again, says that nothing changed, and touches no task."""
    workspace.commit("The same")
    if workspace.deployed != workspace.good:  # a drill before this one left something else
        assert workspace.rehearse("The same", approve=True).status == 0
    before = {name: workspace.tasks(name) for name in base.environments}
    again = workspace.rehearse("The same again", approve=True)
    assert again.status == 0
    assert "Nothing changed" in again.output
    assert again.stages == dict.fromkeys(STAGES, "succeeded")
    for name in base.environments:
        assert workspace.tasks(name) == before[name], name


def test_a_new_image_rolls_over_without_a_failed_request(
    workspace: Workspace, base: Release, rejected: Rollover
) -> None:
    """dev and staging take a new image while clients use them; not one request fails, nothing written is lost."""
    environments = rejected.release.environments
    for name in ("dev", "staging"):
        client = rejected.clients[name]
        _assert_served(client, name)
        assert environments[name]["image"] != base.report["image"], name
        assert environments[name]["image"] == rejected.release.report["image"], name
        assert environments[name]["tasks"] == 2, name


def test_no_means_that_prod_is_left_alone(workspace: Workspace, base: Release, rejected: Rollover) -> None:
    """Rejected at Promote: not a success, and prod has the image and the very tasks that it had."""
    release = rejected.release
    assert release.status != 0
    assert release.report["status"] == "failed"
    assert release.stopped_at == ("Promote", "Approve")
    assert release.stages["Promote"] == "rejected"
    assert release.stages["Prod"] == "not run"
    assert release.environments["prod"] == base.environments["prod"]
    _assert_served(rejected.clients["prod"], "prod")


def test_a_change_of_the_pipeline_changes_the_pipeline_first(base: Release, promoted: Rollover) -> None:
    """UpdatePipeline changes the pipeline; a second execution, of the new one, takes the release to prod."""
    release = promoted.release
    assert release.status == 0
    assert release.report["executions"] == 2
    assert "The pipeline changed itself" in release.output
    assert "Shall prod run it, too? yes" in release.output
    assert release.stages == dict.fromkeys(STAGES, "succeeded")


def test_prod_takes_what_was_approved_without_a_failed_request(
    workspace: Workspace, rejected: Rollover, promoted: Rollover
) -> None:
    """The image that dev and staging have already reaches prod; only prod's tasks are replaced."""
    release = promoted.release
    digests = {environment["image"] for environment in release.environments.values()}
    assert digests == {rejected.release.report["image"]}
    for name, client in promoted.clients.items():
        _assert_served(client, name)


def _assert_served(client: Client, name: str) -> None:
    assert client.succeeded > 50, f"{name}: the client did next to nothing, which proves nothing"
    assert not client.failures, f"{name}: {len(client.failures)} of {client.requests}: {client.failures[:5]}"
    assert client.lost() == [], name
