"""The schema migration of one environment: a task of the new image, run once before the new service rolls out.

The pipeline starts a build here (`python -m operations.migrate`) that runs the task and waits for its end. When that
says no, the service is not touched. What the task does is `mlflow_image/migration.py`.
"""

from __future__ import annotations

from typing import Any

from aws_cdk import Duration, RemovalPolicy, Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from constructs import Construct

from stages.data import DataStack
from stages.environment_build import EnvironmentBuild
from stages.findings import acknowledge, reference
from stages.mlflow_task import MlflowTask
from stages.network import PRIVATE, NetworkStack
from stages.settings import Environment, Settings
from stages.waking import allow_waking, waking

MIGRATE = "migrate"

CPU, MEMORY = 512, 1024
"""The task imports MLflow once and sends SQL: the smallest size that is not slowed down by its own start."""

TIMEOUT = Duration.hours(4)
"""For the snapshot (minutes to an hour) and the migration of a large database together."""


def release_parameter(prefix: str) -> str:
    """Name of the SSM parameter that each release is written to; its history is the list of releases."""
    return f"/{prefix}/release"


class MigrationStack(Stack):
    """The migration's task definition, the cluster it runs in, and the build that runs it."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        prefix: str,
        settings: Settings,
        environment: Environment,
        network: NetworkStack,
        data: DataStack,
        **stack: Any,
    ) -> None:
        super().__init__(scope, construct_id, **stack)
        self._prefix = prefix
        self._data = data
        self._cluster = ecs.Cluster(
            self,
            "Cluster",
            cluster_name=f"{prefix}-migration",
            vpc=network.vpc,
            container_insights_v2=ecs.ContainerInsights.ENABLED,
        )
        group = self._group(network, "MigrationGroup", "The migration task", "AWS APIs, the image")
        group.connections.allow_to(
            data.database.connections,
            ec2.Port.tcp(data.database.dialect.port),
            "The database that is migrated",
        )
        build_group = self._group(
            network,
            "BuildGroup",
            "The build that starts the migration task",
            "AWS APIs, Python packages, the source of the release",
        )
        self._role = iam.Role(
            self,
            "TaskRole",
            description="Migration: snapshots of its own database",
            assumed_by=iam.ServicePrincipal("ecs-tasks.amazonaws.com"),
        )
        self._allow_snapshots(environment.database.restore_from)
        self._task = self._migration_task(settings, environment)
        subnets = network.vpc.select_subnets(subnet_group_name=PRIVATE.subnet_group_name)
        build = EnvironmentBuild(
            self,
            MIGRATE,
            prefix=prefix,
            settings=settings,
            description="Schema migration",
            build_spec="operations/migrate.buildspec.yml",
            variables={
                "MIGRATION_CLUSTER": self._cluster.cluster_name,
                "MIGRATION_TASK_DEFINITION": self._task.definition.task_definition_arn,
                "MIGRATION_SUBNETS": ",".join(subnets.subnet_ids),
                "MIGRATION_SECURITY_GROUP": group.security_group_id,
                "MIGRATION_LOG_GROUP": self._task.log_group.log_group_name,
                "RELEASE_PARAMETER": release_parameter(prefix),
                **waking(prefix, environment),
                **({"RESTORED_FROM": restored} if (restored := environment.database.restore_from) else {}),
                **(
                    {"ALLOW_BREAKING_MIGRATION": allowed}
                    if (allowed := settings.allow_breaking_migration)
                    else {}
                ),
            },
            network=network,
            group=build_group,
            key=kms.Key(
                self,
                "Key",
                description="The migration's build",
                enable_key_rotation=True,
                removal_policy=RemovalPolicy.DESTROY,
            ),
            timeout=TIMEOUT,
        )
        self._allow_running(build.role)
        allow_waking(build.role, prefix, environment)

    def _group(
        self, network: NetworkStack, construct_id: str, description: str, calls: str
    ) -> ec2.SecurityGroup:
        """A group whose members may call out by HTTPS, and whom nobody reaches."""
        group = ec2.SecurityGroup(
            self, construct_id, vpc=network.vpc, description=description, allow_all_outbound=False
        )
        network.let_out(group, calls)
        return group

    def _migration_task(self, settings: Settings, environment: Environment) -> MlflowTask:
        database = self._data.database
        variables = {database.snapshots.variable: database.identifier}
        if settings.allow_breaking_migration:
            variables["ALLOW_BREAKING_MIGRATION"] = settings.allow_breaking_migration
        if environment.database.restore_from:
            variables["DATABASE_RESTORED_FROM"] = environment.database.restore_from
        return MlflowTask(
            self,
            "Task",
            family=f"{self._prefix}-migration",
            cpu=CPU,
            memory=MEMORY,
            role=self._role,
            data=self._data,
            image=settings.image,
            source=settings.source.url,
            command=MIGRATE,
            sets_up=True,
            environment=variables,
            # Time to roll back the migration that runs; what a database does not roll back, the next run completes.
            stop_timeout=Duration.seconds(120),
            log_group_name=f"/{self._prefix}/migration",
        )

    def _allow_snapshots(self, restore_from: str | None) -> None:
        database, names = self._data.database, f"{self._prefix}-database-*"
        database.snapshots.allow(self, self._role, database, names, restore_from or "")
        kind = database.snapshots.resource
        acknowledge(
            self._role,
            "A snapshot's name has the time in it; the policy is bound to snapshots of this environment's databases.",
            f"IAM5[Resource::arn:{self.partition}:rds:{self.region}:{self.account}:{kind}:{names}]",
        )

    def _allow_running(self, role: iam.Role) -> None:
        """What the build needs to run the task, read how it ended, and note the release."""
        cluster = reference(self, self._cluster.cluster_name)
        in_cluster = {"ArnEquals": {"ecs:cluster": self._cluster.cluster_arn}}
        tasks = self.format_arn(
            service="ecs", resource="task", resource_name=f"{self._cluster.cluster_name}/*"
        )
        parameter = self.format_arn(
            service="ssm", resource="parameter", resource_name=release_parameter(self._prefix).lstrip("/")
        )
        for statement in (
            iam.PolicyStatement(
                actions=["ecs:RunTask"],
                resources=[self._task.definition.task_definition_arn],
                conditions=in_cluster,
            ),
            iam.PolicyStatement(actions=["ecs:DescribeTasks"], resources=[tasks], conditions=in_cluster),
            iam.PolicyStatement(
                actions=["iam:PassRole"],
                resources=[self._role.role_arn, self._task.execution_role.role_arn],
                conditions={"StringEquals": {"iam:PassedToService": "ecs-tasks.amazonaws.com"}},
            ),
            iam.PolicyStatement(
                actions=["logs:GetLogEvents"], resources=[f"{self._task.log_group.log_group_arn}"]
            ),
            iam.PolicyStatement(actions=["ssm:PutParameter"], resources=[parameter]),
        ):
            role.add_to_policy(statement)
        acknowledge(
            role,
            "A task's id is made when it runs; the statement is bound to the migration's own cluster.",
            f"IAM5[Resource::arn:{self.partition}:ecs:{self.region}:{self.account}:task/{cluster}/*]",
        )
