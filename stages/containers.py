"""What a user puts into the server's tasks: secrets for the server, containers beside it."""

from __future__ import annotations

from collections.abc import Mapping

from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_logs as logs
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct

from stages.settings.compute import Sidecar


def own_secrets(scope: Construct, prefix: str, wanted: Mapping[str, str]) -> dict[str, ecs.Secret]:
    """The user's secrets, by the variable that gets each. The task's execution role may read these, and no others.

    They must be encrypted with Secrets Manager's own key: the execution role gets no right to another.
    """
    secrets = {}
    for variable, arn in wanted.items():
        # One key of a JSON secret is written as ECS writes it: ARN:KEY::
        parts = arn.split(":")
        whole, key = ":".join(parts[:7]), parts[7] if len(parts) > 7 else None
        secret = secretsmanager.Secret.from_secret_complete_arn(scope, f"{prefix}{variable}", whole)
        secrets[variable] = ecs.Secret.from_secrets_manager(secret, key)
    return secrets


def add_sidecar(definition: ecs.TaskDefinition, sidecar: Sidecar, log_group: logs.ILogGroup) -> None:
    """Run a container beside the server. What it needs is taken from the task's own size."""
    definition.add_container(
        sidecar.name,
        image=ecs.ContainerImage.from_registry(sidecar.image),
        cpu=sidecar.cpu,
        memory_limit_mib=sidecar.memory,
        essential=sidecar.essential,
        environment=dict(sidecar.variables),
        secrets=own_secrets(definition, f"{sidecar.name}-", sidecar.secrets),
        logging=ecs.LogDriver.aws_logs(stream_prefix=sidecar.name, log_group=log_group),
        readonly_root_filesystem=not sidecar.writable,
    )
