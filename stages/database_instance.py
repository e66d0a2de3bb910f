"""RDS PostgreSQL or MySQL: one instance, with a standby in another zone if the settings want one."""

from __future__ import annotations

from collections.abc import Mapping

from aws_cdk import Duration, RemovalPolicy
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_rds as rds

from stages.database_server import (
    DATABASE_NAME,
    MASTER,
    MONITORING_INTERVAL,
    MYSQL,
    MYSQL_TLS_ONLY,
    MYSQL_TRIGGERS_AND_SLOW_LOG,
    POSTGRES,
    POSTGRES_TLS_ONLY,
    DatabaseServer,
    Dialect,
    Site,
    Snapshots,
    acknowledge_server,
    export_logs,
    token_user_arn,
    user_secret,
)
from stages.findings import acknowledge
from stages.monitoring import instance_alarms
from stages.settings.database import Database

SNAPSHOTS = Snapshots(
    variable="DATABASE_INSTANCE",
    create="rds:CreateDBSnapshot",
    describe="rds:DescribeDBSnapshots",
    resource="snapshot",
)
ENGINES: Mapping[str, tuple[rds.IInstanceEngine, Dialect, Mapping[str, str]]] = {
    "postgres": (
        rds.DatabaseInstanceEngine.postgres(version=rds.PostgresEngineVersion.VER_18_3),
        POSTGRES,
        POSTGRES_TLS_ONLY,
    ),
    "mysql": (
        rds.DatabaseInstanceEngine.mysql(version=rds.MysqlEngineVersion.VER_8_4_8),
        MYSQL,
        {**MYSQL_TLS_ONLY, **MYSQL_TRIGGERS_AND_SLOW_LOG},
    ),
}


class Instances:
    """The environment's instances: the first one, and any that a restore made beside it."""

    def __init__(self, site: Site, settings: Database) -> None:
        self._site, self._settings = site, settings
        self._engine, self._dialect, parameters = ENGINES[settings.engine]
        self._parameters = rds.ParameterGroup(
            site.scope,
            "DatabaseParameters",
            engine=self._engine,
            description="MLflow database: TLS only",
            parameters=dict(parameters),
        )

    def make(self, construct_id: str, identifier: str, snapshot: str = "") -> DatabaseServer:
        """An instance, empty or from a snapshot."""
        site, settings = self._site, self._settings
        instance = rds.DatabaseInstance(
            site.scope,
            construct_id,
            engine=self._engine,
            instance_identifier=identifier,
            instance_type=ec2.InstanceType(settings.instance_class or ""),
            vpc=site.vpc,
            vpc_subnets=site.subnets,
            security_groups=[site.group],
            database_name=DATABASE_NAME,
            port=self._dialect.port,
            credentials=rds.Credentials.from_username(MASTER, encryption_key=site.key),
            manage_master_user_password=True,
            # Whatever `sign_in` says: turned off before the last task is gone that uses it, it would lock that one out.
            iam_authentication=True,
            multi_az=settings.multi_az,
            allocated_storage=settings.storage_gib,
            max_allocated_storage=(settings.storage_gib or 0) * 5,
            storage_encrypted=True,
            storage_encryption_key=site.key,
            storage_type=rds.StorageType.GP3,
            backup_retention=Duration.days(settings.backup_days),
            copy_tags_to_snapshot=True,
            delete_automated_backups=False,
            deletion_protection=settings.deletion_protection,
            auto_minor_version_upgrade=True,
            cloudwatch_logs_exports=list(self._dialect.logs),
            enable_performance_insights=True,
            performance_insight_encryption_key=site.key,
            monitoring_interval=MONITORING_INTERVAL,
            parameter_group=self._parameters,
            removal_policy=RemovalPolicy.RETAIN,
        )
        export_logs(instance, site, construct_id, f"instance/{identifier}", self._dialect)
        acknowledge_server(instance, deletion_protection=settings.deletion_protection)
        if not settings.multi_az:
            acknowledge(
                instance,
                "The settings choose one zone for this environment: no standby is paid for here.",
                "RDS3",
            )
        if snapshot:
            _restore(instance, snapshot)
        return self._server(instance, user_secret(instance, site, construct_id))

    def _server(self, instance: rds.DatabaseInstance, user_secret_arn: str | None) -> DatabaseServer:
        assert instance.secret is not None
        return DatabaseServer(
            dialect=self._dialect,
            identifier=instance.instance_identifier,
            arn=instance.instance_arn,
            host=instance.db_instance_endpoint_address,
            port=instance.db_instance_endpoint_port,
            connections=instance.connections,
            master_secret_arn=instance.secret.secret_arn,
            user_secret_arn=user_secret_arn,
            token_user_arn=token_user_arn(instance, instance.instance_resource_id),
            snapshots=SNAPSHOTS,
            watch=lambda: instance_alarms(self._site.scope, self._site.prefix, instance),
        )


def _restore(instance: rds.DatabaseInstance, snapshot: str) -> None:
    """Make the instance from a snapshot.

    By override: the L2 for restored instances cannot leave the master password to RDS (`manage_master_user_password`),
    and is another class for what is the same database in every other respect. What a snapshot brings must not be given; its
    size and version may have grown beyond the settings', and RDS refuses to shrink either.
    """
    resource = instance.node.default_child
    assert isinstance(resource, rds.CfnDBInstance)
    resource.add_property_override("DBSnapshotIdentifier", snapshot)
    for brought in (
        "DBName",
        "MasterUsername",
        "StorageEncrypted",
        "KmsKeyId",
        "AllocatedStorage",
        "EngineVersion",
    ):
        resource.add_property_deletion_override(brought)
