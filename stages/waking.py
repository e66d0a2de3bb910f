"""What the Migrate build is told and allowed where a schedule may have stopped the service: `operations/wake.py`."""

from __future__ import annotations

from aws_cdk import Stack
from aws_cdk import aws_iam as iam

from stages.findings import acknowledge
from stages.settings.compute import Compute


def waking(prefix: str, settings: Compute) -> dict[str, str]:
    """The variables of the command, or none where the service never sleeps."""
    if settings.schedule is None:
        return {}
    return {
        "WAKE_CLUSTER": prefix,
        "WAKE_SERVICE": prefix,
        "WAKE_TASKS": str(settings.tasks),
        "WAKE_MAX_TASKS": str(settings.max_tasks),
    }


def allow_waking(role: iam.Role, prefix: str, settings: Compute) -> None:
    """Let a build start the service's tasks and put scaling's bounds back, where there is a schedule."""
    if settings.schedule is None:
        return
    stack = Stack.of(role)
    service = stack.format_arn(service="ecs", resource="service", resource_name=f"{prefix}/{prefix}")
    targets = stack.format_arn(
        service="application-autoscaling", resource="scalable-target", resource_name="*"
    )
    role.add_to_policy(
        iam.PolicyStatement(actions=["ecs:DescribeServices", "ecs:UpdateService"], resources=[service])
    )
    role.add_to_policy(
        iam.PolicyStatement(
            actions=["application-autoscaling:RegisterScalableTarget"],
            resources=[targets],
            conditions={
                "StringEquals": {
                    "application-autoscaling:service-namespace": "ecs",
                    "application-autoscaling:scalable-dimension": "ecs:service:DesiredCount",
                }
            },
        )
    )
    acknowledge(
        role,
        "Application Auto Scaling makes up the id of a scalable target; the conditions admit task counts of services alone.",
        f"IAM5[Resource::arn:{stack.partition}:application-autoscaling:{stack.region}:{stack.account}:scalable-target/*]",
    )
