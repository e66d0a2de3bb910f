"""cdk-nag: no finding without an acknowledgement, no acknowledgement without a reason, and the pack does bite."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from .assembly import ENVIRONMENTS, Assembly

Report = dict[str, Any]


@pytest.fixture
def reports(assembly: Assembly) -> list[Report]:
    content = json.loads((assembly.directory / "validation-report.json").read_text(encoding="utf-8"))
    found: list[Report] = content["pluginReports"]
    return found


@pytest.fixture
def acknowledged(reports: list[Report]) -> list[Report]:
    return [finding for report in reports for finding in report["suppressedViolations"]]


def test_no_finding_is_open(reports: list[Report]) -> None:
    assert "AwsSolutions" in {report["pluginName"] for report in reports}
    assert {report["pluginName"]: report["violations"] for report in reports} == {
        report["pluginName"]: [] for report in reports
    }
    assert {report["conclusion"] for report in reports} == {"success"}


def test_every_acknowledgement_gives_a_reason(acknowledged: list[Report]) -> None:
    reasons = {finding["reason"] for finding in acknowledged}
    for reason in reasons:
        assert reason.endswith("."), reason
        assert len(reason.split()) >= 8, reason
    print(f"{len(acknowledged)} acknowledged cdk-nag findings, {len(reasons)} reasons:")
    for rule, count in Counter(
        finding["ruleName"].partition("[")[0] for finding in acknowledged
    ).most_common():
        print(f"  {rule}: {count}")


def test_the_pack_looked_at_the_pipeline_and_every_stage(
    assembly: Assembly, acknowledged: list[Report]
) -> None:
    pipeline = f"{assembly.settings.name}-pipeline"
    looked = {finding["acknowledgedAt"] for finding in acknowledged}
    assert any(path.startswith(f"{pipeline}/Pipeline") for path in looked)
    for environment in ENVIRONMENTS:
        assert any(path.startswith(f"{pipeline}/{environment.title()}/") for path in looked), environment


def test_no_acknowledgement_covers_a_whole_stack(assembly: Assembly, acknowledged: list[Report]) -> None:
    """It would swallow what is added to the stack later."""
    pipeline = f"{assembly.settings.name}-pipeline"
    for finding in acknowledged:
        within = finding["acknowledgedAt"].removeprefix(f"{pipeline}/")
        stage, _, below = within.partition("/")
        construct = below.partition("/")[2] if stage.lower() in ENVIRONMENTS else stage
        assert construct, f"{finding['ruleName']} is acknowledged for all of {finding['acknowledgedAt']}"


def test_an_unacknowledged_finding_inside_a_stage_is_reported() -> None:
    from aws_cdk import App, Stack, Stage
    from aws_cdk import aws_s3 as s3
    from cdk_nag import AwsSolutionsChecks

    stack = Stack(Stage(App(analytics_reporting=False), "Dev"), "Data")
    s3.Bucket(stack, "Open")
    report = AwsSolutionsChecks().validate_scope(stack)
    assert not report.success
    assert {violation.rule_name for violation in report.violations} == {"AwsSolutions-S1", "AwsSolutions-S10"}
    (resource,) = report.violations[0].violating_resources
    assert resource.construct_path == "Dev/Data/Open/Resource"
