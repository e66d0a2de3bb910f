"""A task of the MLflow image: what the service's tasks and the migration's task have in common."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from aws_cdk import Aws, Duration, RemovalPolicy
from aws_cdk import aws_ecr_assets as ecr_assets
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_iam as iam
from aws_cdk import aws_logs as logs
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct

from stages import processors
from stages.data import DataStack
from stages.database_server import DATABASE_NAME, TOKEN_USER, USER
from stages.findings import acknowledge
from stages.mlflow_users import MlflowUsers
from stages.server_keys import ServerKeys
from stages.settings.image import Image

IMAGE_DIRECTORY = Path(__file__).resolve().parent.parent / "mlflow_image"


class MlflowTask(Construct):
    """A Fargate task definition with one container that can sign in to the environment's database."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        family: str,
        cpu: int,
        memory: int,
        role: iam.Role,
        data: DataStack,
        image: Image,
        source: str,
        command: str,
        environment: Mapping[str, str],
        stop_timeout: Duration,
        log_group_name: str,
        ports: Sequence[int] = (),
        keys: ServerKeys | None = None,
        users: MlflowUsers | None = None,
        sets_up: bool = False,
    ) -> None:
        """`sets_up`: it is given the master secret as well, to make the database user that it then is."""
        super().__init__(scope, construct_id)
        database = data.database
        self.definition = ecs.FargateTaskDefinition(
            self,
            "Definition",
            family=family,
            cpu=cpu,
            memory_limit_mib=memory,
            task_role=role,
            execution_role=None if database.user_secret_arn else self._execution_role(),
            runtime_platform=ecs.RuntimePlatform(
                cpu_architecture=processors.PROCESSORS[image.architecture].fargate,
                operating_system_family=ecs.OperatingSystemFamily.LINUX,
            ),
        )
        self.definition.add_volume(name="tmp")
        self.log_group = logs.LogGroup(
            self,
            "Logs",
            log_group_name=log_group_name,
            retention=logs.RetentionDays.THREE_MONTHS,
            removal_policy=RemovalPolicy.DESTROY,
        )
        container = self.definition.add_container(
            "mlflow",
            image=ecs.ContainerImage.from_docker_image_asset(_server_image(self, image, source)),
            command=[command],
            port_mappings=[ecs.PortMapping(container_port=port) for port in ports],
            environment={
                "DATABASE_ENGINE": database.dialect.family,
                "DATABASE_HOST": database.host,
                "DATABASE_NAME": DATABASE_NAME,
                "DATABASE_PORT": database.port,
                "DATABASE_SSLMODE": "verify-full",
                **_user(database.user_secret_arn, sets_up),
                **({"SIGN_IN": "basic"} if data.users else {}),
                **environment,
            },
            secrets={
                **self._password(database.user_secret_arn),
                **(self._master(database.master_secret_arn) if sets_up else {}),
                **{name: self._server_key(name, arn) for name, arn in (keys.arns if keys else {}).items()},
                **{
                    name: self._server_key(name, arn, "password")
                    for name, arn in (users.passwords if users else {}).items()
                },
            },
            logging=ecs.LogDriver.aws_logs(stream_prefix=command, log_group=self.log_group),
            readonly_root_filesystem=True,
            stop_timeout=stop_timeout,
        )
        container.add_mount_points(
            ecs.MountPoint(container_path="/tmp", source_volume="tmp", read_only=False)
        )
        acknowledge(
            self.definition,
            "The environment holds names and addresses only; every password comes from Secrets Manager.",
            "ECS2",
        )
        assert self.definition.execution_role is not None
        self.execution_role = self.definition.execution_role
        if database.user_secret_arn and data.database_user_key:
            # The task reads the password again when it has been rotated.
            role.add_to_policy(_may("secretsmanager:GetSecretValue", database.user_secret_arn))
            read_key = _may_decrypt(data.database_user_key.key_arn)
            role.add_to_policy(read_key)
            self.definition.add_to_execution_role_policy(read_key)
        else:
            role.add_to_policy(_may("rds-db:connect", database.token_user_arn))
        if sets_up:
            self.definition.add_to_execution_role_policy(_may_decrypt(data.database_key.key_arn))
        if keys:
            self.definition.add_to_execution_role_policy(_may_decrypt(keys.key.key_arn))
        if users:
            self.definition.add_to_execution_role_policy(_may_decrypt(users.key.key_arn))
        acknowledge(
            self.execution_role,
            "ecr:GetAuthorizationToken has no resource to name; pulling and logging are bound to repository and group.",
            "IAM5[Resource::*]",
        )

    def _execution_role(self) -> iam.Role:
        """One beside that of tasks with a password: those may have to be started again while these roll out."""
        return iam.Role(self, "ExecutionRole", assumed_by=iam.ServicePrincipal("ecs-tasks.amazonaws.com"))

    def _password(self, arn: str | None) -> dict[str, ecs.Secret]:
        if arn is None:
            return {}
        # Imported by its ARN: granting on the construct itself would write this stack's role into the policy of the
        # other stack's key, and each stack would wait for the other.
        secret = secretsmanager.Secret.from_secret_complete_arn(self, "DatabaseSecret", arn)
        return {
            "DATABASE_USER": ecs.Secret.from_secrets_manager(secret, "username"),
            "DATABASE_PASSWORD": ecs.Secret.from_secrets_manager(secret, "password"),
        }

    def _master(self, arn: str) -> dict[str, ecs.Secret]:
        secret = secretsmanager.Secret.from_secret_complete_arn(self, "MasterSecret", arn)
        return {
            "DATABASE_SETUP_USER": ecs.Secret.from_secrets_manager(secret, "username"),
            "DATABASE_SETUP_PASSWORD": ecs.Secret.from_secrets_manager(secret, "password"),
        }

    def _server_key(self, name: str, arn: str, field: str | None = None) -> ecs.Secret:
        return ecs.Secret.from_secrets_manager(
            secretsmanager.Secret.from_secret_complete_arn(self, name, arn), field
        )


def _user(secret_arn: str | None, sets_up: bool) -> dict[str, str]:
    """The variables that say how to sign in, and for whom to set up."""
    if secret_arn is not None:
        return {"DATABASE_SECRET_ARN": secret_arn}
    owner = {"DATABASE_OWNER": USER} if sets_up else {}
    return {"DATABASE_SIGN_IN": "iam", "DATABASE_USER": TOKEN_USER, **owner}


def _may(action: str, resource: str) -> iam.PolicyStatement:
    return iam.PolicyStatement(actions=[action], resources=[resource])


def _server_image(scope: Construct, image: Image, source: str) -> ecr_assets.DockerImageAsset:
    """The server's image. The same directory and base everywhere are the same asset: it is built and published once."""
    base = {"PYTHON_IMAGE": image.base} if image.base else {}
    # CodeBuild says which commit it builds. The label is that of the commit that first built this content: were it part
    # of the asset's name, every commit would be another image, and roll the service out anew.
    labels = {
        "REVISION": os.environ.get("CODEBUILD_RESOLVED_SOURCE_VERSION", ""),
        "SOURCE": source,
    }
    return ecr_assets.DockerImageAsset(
        scope,
        "Image",
        display_name="MLflow server",
        directory=str(IMAGE_DIRECTORY),
        platform=processors.PROCESSORS[image.architecture].image,
        build_args={**base, **labels},
        extra_hash=image.base,
        invalidation=ecr_assets.DockerImageAssetInvalidationOptions(build_args=False),
    )


def _may_decrypt(key_arn: str) -> iam.PolicyStatement:
    """What reading a secret takes besides the right to read it."""
    return iam.PolicyStatement(
        actions=["kms:Decrypt"],
        resources=[key_arn],
        conditions={"StringEquals": {"kms:ViaService": f"secretsmanager.{Aws.REGION}.amazonaws.com"}},
    )
