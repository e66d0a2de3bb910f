"""Acknowledgement of cdk-nag findings, each with the reason a reviewer reads."""

from __future__ import annotations

from aws_cdk import Acknowledgment, Stack, Validations
from constructs import IConstruct

IN_PACKS = {
    "EC23": ("EC2RestrictedCommonPorts", "EC2RestrictedSSH"),
    "S1": ("S3BucketLoggingEnabled",),
    "SMG4": ("SecretsManagerRotationEnabled",),
}
"""Rules of AwsSolutions that other packs have, too, under another name: the reason is the same."""


def acknowledge(construct: IConstruct, reason: str, *findings: str) -> None:
    """Accept cdk-nag findings on `construct` and everything below it.

    Args:
        construct: the smallest construct that has the finding.
        reason: why this is right here; it lands in `validation-report.json`, the audit artifact.
        findings: ids as cdk-nag prints them, such as `IAM5[Resource::*]`. The AwsSolutions pack is meant: only an id
            with the pack's full prefix leaves its reason in the report.
    """
    Validations.of(construct).acknowledge(
        *(Acknowledgment(id=f"AwsSolutions::AwsSolutions-{finding}", reason=reason) for finding in findings)
    )
    acknowledge_in_packs(
        construct, reason, *(rule for finding in findings for rule in IN_PACKS.get(finding, ()))
    )


def acknowledge_in_packs(construct: IConstruct, reason: str, *rules: str) -> None:
    """The same for a rule of the packs that the setting `compliance` switches on; they name most of their rules alike."""
    Validations.of(construct).acknowledge(
        *(
            Acknowledgment(id=f"{pack}::{pack}-{rule}", reason=reason)
            for pack in ("NIST.800.53.R5", "PCI.DSS.321")
            for rule in rules
        )
    )


def reference(scope: IConstruct, value: str) -> str:
    """How cdk-nag writes a value that only the deployment knows: `<LogicalId>` or `<LogicalId.Attribute>`."""
    resolved = Stack.of(scope).resolve(value)
    if "Ref" in resolved:
        return f"<{resolved['Ref']}>"
    return f"<{'.'.join(resolved['Fn::GetAtt'])}>"
