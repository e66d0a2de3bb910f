"""The packs beyond AwsSolutions: on by setting, nothing open in a strict delivery, and counted on a page of their own."""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from typing import Any

import pytest
from pydantic import ValidationError

from stages.packs import EVERYWHERE, PACKS
from stages.settings import Settings

from .assembly import ROOT, Assembly

PAGE = ROOT / "docs" / "compliance.md"
BEGIN, END = "<!-- written by `make compliance` -->\n", "<!-- until here -->\n"
IN_REPORTS = {
    "AwsSolutions": "AwsSolutions",
    "NIST.800.53.R5": "NIST 800-53 r5",
    "PCI.DSS.321": "PCI DSS 3.2.1",
}
"""The packs as the report names them, and as people do."""


def acknowledged(assembly: Assembly) -> dict[str, list[dict[str, Any]]]:
    """The acknowledged findings of each pack; none may be open."""
    content = json.loads((assembly.directory / "validation-report.json").read_text(encoding="utf-8"))
    found: dict[str, list[dict[str, Any]]] = {}
    for report in content["pluginReports"]:
        assert not report["violations"], report["pluginName"]
        found[report["pluginName"]] = report.get("suppressedViolations", [])
    return found


def of_dev(findings: list[dict[str, Any]]) -> int:
    """How many are dev's own, and not the pipeline's."""
    return sum("Dev" in finding["acknowledgedAt"].split("/")[:2] for finding in findings)


def test_the_packs_looked_at_the_whole_strict_delivery(strict_delivery: Assembly) -> None:
    found = acknowledged(strict_delivery)
    assert IN_REPORTS.keys() <= found.keys()
    for pack in ("NIST.800.53.R5", "PCI.DSS.321"):
        stages = {finding["acknowledgedAt"].split("/")[1] for finding in found[pack]}
        assert {"Dev", "Staging", "Prod", "ArtifactStore", "PipelineRole"} <= stages


def test_every_reason_is_a_sentence(strict_delivery: Assembly) -> None:
    reasons = {f["reason"] for findings in acknowledged(strict_delivery).values() for f in findings}
    reasons |= {reason for rules in EVERYWHERE.values() for _, reason in rules}
    assert not [reason for reason in reasons if not reason.endswith(".") or len(reason.split()) < 8]


def test_without_compliance_no_other_pack_looks(standard_dev: Assembly) -> None:
    assert acknowledged(standard_dev).keys() & IN_REPORTS.keys() == {"AwsSolutions"}


@pytest.mark.parametrize("pack", PACKS.values(), ids=PACKS)
def test_a_pack_does_bite(pack: Any) -> None:
    from aws_cdk import App, Stack
    from aws_cdk import aws_s3 as s3

    stack = Stack(App(analytics_reporting=False), "Data")
    s3.Bucket(stack, "Open")
    rules = {violation.rule_name.partition("-")[2] for violation in pack().validate_scope(stack).violations}
    assert {"S3BucketVersioningEnabled", "S3DefaultEncryptionKMS", "S3BucketSSLRequestsOnly"} <= rules


@pytest.mark.parametrize("profile", ["standard", "cost"])
def test_a_pack_wants_every_environment_strict(strict_delivery: Assembly, profile: str) -> None:
    content = strict_delivery.settings.model_dump()
    content["environments"]["staging"]["profile"] = profile
    with pytest.raises(ValidationError) as refused:
        Settings.model_validate(content)
    assert (
        f'is checked for the whole delivery, but environments.staging.profile = "{profile}" does not promise what'
        ' it asks for; set that to "strict", or remove compliance'
    ) in str(refused.value)


def test_the_page_counts_what_is_acknowledged(
    standard_dev: Assembly, cost_dev: Assembly, strict_delivery: Assembly
) -> None:
    by_profile = {
        "standard": acknowledged(standard_dev),
        "cost": acknowledged(cost_dev),
        "strict": acknowledged(strict_delivery),
    }
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    written = before + BEGIN + page(by_profile) + END + after
    if os.environ.get("UPDATE_COMPLIANCE"):
        PAGE.write_text(written, encoding="utf-8")
    assert written == PAGE.read_text(encoding="utf-8"), "docs/compliance.md is stale: run `make compliance`"


def page(by_profile: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """How many findings of each pack are acknowledged in one environment, by profile; then why, where packs are on."""
    lines = ["| pack | " + " | ".join(by_profile) + " | the pipeline itself |", "|---|" + "---|" * 4]
    strict = by_profile["strict"]
    for pack, name in IN_REPORTS.items():
        counts = [str(of_dev(found[pack])) if pack in found else "refused" for found in by_profile.values()]
        own = sum(
            finding["acknowledgedAt"].split("/")[1] not in ("Dev", "Staging", "Prod")
            for finding in strict[pack]
        )
        lines.append(f"| {name} | " + " | ".join(counts) + f" | {own} |")
    lines += ["", "| rule | NIST | PCI | why it is right here |", "|---|---|---|---|"]
    rules: dict[tuple[str, str], dict[str, int]] = defaultdict(lambda: dict.fromkeys(IN_REPORTS, 0))
    for pack in ("NIST.800.53.R5", "PCI.DSS.321"):
        for finding in strict[pack]:
            rules[finding["ruleName"].removeprefix(f"{pack}-"), finding["reason"]][pack] += 1
    for (rule, reason), counted in sorted(rules.items()):
        lines.append(f"| {rule} | {counted['NIST.800.53.R5']} | {counted['PCI.DSS.321']} | {reason} |")
    return "\n" + re.sub(r"\| 0 (?=\|)", "| ", "\n".join(lines)) + "\n\n"
