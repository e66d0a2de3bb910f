"""How long an environment keeps its logs, and the key that encrypts them."""

from __future__ import annotations

from aws_cdk import Aws, RemovalPolicy, Stack, Stage
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_logs as logs

from stages.settings.logs import Logs


def keep_logs(stage: Stage, first: Stack, settings: Logs) -> None:
    """Give every log group of the stage its retention, unless it keeps its lines for longer, and its key.

    All at once, when the stage is complete: a group that somebody adds to any stack is kept like the others.

    Args:
        stage: the environment.
        first: the stack that is deployed before all others, where the key is made.
        settings: what is wanted.
    """
    key = _key(first).key_arn if settings.own_key else None
    for group in stage.node.find_all():
        if isinstance(group, logs.CfnLogGroup):
            group.retention_in_days = max(settings.days, group.retention_in_days or 0)
            if key:
                group.kms_key_id = key


def _key(scope: Stack) -> kms.Key:
    key = kms.Key(
        scope,
        "LogKey",
        description="Logs",
        enable_key_rotation=True,
        # Logs outlive the stack that wrote them.
        removal_policy=RemovalPolicy.RETAIN,
    )
    key.add_to_resource_policy(
        iam.PolicyStatement(
            principals=[iam.ServicePrincipal(f"logs.{Aws.REGION}.amazonaws.com")],
            actions=["kms:Decrypt", "kms:Describe*", "kms:Encrypt", "kms:GenerateDataKey*", "kms:ReEncrypt*"],
            resources=["*"],
            conditions={
                "ArnLike": {
                    "kms:EncryptionContext:aws:logs:arn": f"arn:{Aws.PARTITION}:logs:{Aws.REGION}:{Aws.ACCOUNT_ID}:*"
                }
            },
        )
    )
    return key
