"""Releases that must be refused: by their settings, by cdk-nag, by the load check."""

from __future__ import annotations

import re

import pytest

from .workspace import Edit, Release, Workspace

pytestmark = pytest.mark.drill


def test_wrong_settings_are_refused_in_one_sentence(refused: Release) -> None:
    """Nothing is deployed from settings that cannot be right; the sentence names key, value and mend."""
    assert refused.status == 2
    assert "Error 2" in refused.output  # make's own status is 2 for whatever failed
    sentence = (
        'platform.toml: environments.staging.cidr = "10.10.128.0/17": overlaps environments.dev.cidr ='
        ' "10.10.0.0/16"; give each environment a network of its own'
    )
    assert sentence in refused.output
    assert "Traceback" not in refused.output


def test_a_finding_that_nobody_acknowledged_fails_the_build(workspace: Workspace, base: Release) -> None:
    """A bucket that takes plain HTTP: Build fails and names the bucket; nothing is deployed anywhere."""
    before = {name: workspace.stacks(name) for name in base.environments}
    careless = (
        Edit(
            "stages/data.py",
            "from aws_cdk import aws_ec2 as ec2\n",
            "from aws_cdk import aws_ec2 as ec2, aws_s3 as s3\n",
        ),
        Edit(
            "stages/data.py",
            "        self.artifacts = artifact_store(self, settings.artifacts, settings.logs.days)\n",
            "        self.artifacts = artifact_store(self, settings.artifacts, settings.logs.days)\n"
            '        s3.Bucket(self, "Careless")\n',
        ),
    )
    release = workspace.release("A careless bucket", *careless, approve=True)
    assert release.status != 0
    assert release.stopped_at == ("Build", "Check")
    assert "AwsSolutions-S10" in release.output
    assert re.search("Dev/Data/Careless", release.output)
    assert release.stages["UpdatePipeline"] == release.stages["Dev"] == "not run"
    assert {name: workspace.stacks(name) for name in base.environments} == before


def test_a_load_threshold_that_cannot_be_met_stops_in_dev(workspace: Workspace, base: Release) -> None:
    """Nobody serves 100,000 requests a second: dev's load check says what it measured, staging is not touched."""
    before = {name: workspace.stacks(name) for name in ("staging", "prod")}
    tasks = {name: workspace.tasks(name) for name in before}
    text = (workspace.root / "platform.toml").read_text(encoding="utf-8")
    dev = text[: text.index("[environments.staging]")]
    fast = Edit("platform.toml", dev, dev.replace("min_rps = 0.1", "min_rps = 100000.0"))
    assert fast.old != fast.new
    release = workspace.release("A hundred thousand requests a second", fast, approve=True)
    assert release.status != 0
    assert release.stopped_at == ("Dev", "Load")
    assert release.action("Dev", "Smoke")["status"] == "succeeded"
    assert re.search(r"FAIL: throughput [\d.]+ requests/s < 100000 requests/s", release.output)
    assert release.stages["Staging"] == "not run"
    assert {name: workspace.stacks(name) for name in before} == before
    assert {name: workspace.tasks(name) for name in tasks} == tasks
