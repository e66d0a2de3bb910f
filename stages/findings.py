"""Acknowledgement of cdk-nag findings, each with the reason a reviewer reads."""

from __future__ import annotations

from aws_cdk import Acknowledgment, Stack, Validations
from constructs import IConstruct


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


def reference(scope: IConstruct, value: str) -> str:
    """How cdk-nag writes a value that only the deployment knows: `<LogicalId>` or `<LogicalId.Attribute>`."""
    resolved = Stack.of(scope).resolve(value)
    if "Ref" in resolved:
        return f"<{resolved['Ref']}>"
    return f"<{'.'.join(resolved['Fn::GetAtt'])}>"
