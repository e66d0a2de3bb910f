"""Aurora Serverless v2 for PostgreSQL or MySQL: a cluster that scales by itself, down to a pause if the settings say so."""

from __future__ import annotations

from collections.abc import Mapping

from aws_cdk import Duration, RemovalPolicy
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
from stages.monitoring import cluster_alarms
from stages.settings.database import Database

PAUSE_AFTER = Duration.minutes(10)
"""How long nobody must be connected before a cluster with a minimum of zero pauses; waking it takes some 15 seconds."""

SNAPSHOTS = Snapshots(
    variable="DATABASE_CLUSTER",
    create="rds:CreateDBClusterSnapshot",
    describe="rds:DescribeDBClusterSnapshots",
    resource="cluster-snapshot",
)
# The parameters of the cluster, then those that Aurora has for its instances alone.
ENGINES: Mapping[str, tuple[rds.IClusterEngine, Dialect, Mapping[str, str], Mapping[str, str]]] = {
    "aurora-postgres": (
        rds.DatabaseClusterEngine.aurora_postgres(version=rds.AuroraPostgresEngineVersion.VER_17_7),
        POSTGRES,
        POSTGRES_TLS_ONLY,
        {},
    ),
    "aurora-mysql": (
        rds.DatabaseClusterEngine.aurora_mysql(version=rds.AuroraMysqlEngineVersion.VER_3_11_0),
        MYSQL,
        MYSQL_TLS_ONLY,
        MYSQL_TRIGGERS_AND_SLOW_LOG,
    ),
}


class Clusters:
    """The environment's clusters: the first one, and any that a restore made beside it."""

    def __init__(self, site: Site, settings: Database) -> None:
        self._site, self._settings = site, settings
        self._engine, self._dialect, parameters, self._instance_parameters = ENGINES[settings.engine]
        self._parameters = rds.ParameterGroup(
            site.scope,
            "DatabaseParameters",
            engine=self._engine,
            description="MLflow database: TLS only",
            parameters=dict(parameters),
        )

    def make(self, construct_id: str, identifier: str, snapshot: str = "") -> DatabaseServer:
        """A cluster, empty or from a snapshot: one writer, and a reader in another zone to take over if multi_az."""
        site, settings = self._site, self._settings
        pauses = settings.min_capacity == 0
        cluster = rds.DatabaseCluster(
            site.scope,
            construct_id,
            engine=self._engine,
            cluster_identifier=identifier,
            writer=self._serverless("Writer"),
            # It scales with the writer, or it could not take over at once.
            readers=[self._serverless("Reader", scale_with_writer=True)] if settings.multi_az else [],
            serverless_v2_min_capacity=settings.min_capacity,
            serverless_v2_max_capacity=settings.max_capacity,
            serverless_v2_auto_pause_duration=PAUSE_AFTER if pauses else None,
            vpc=site.vpc,
            vpc_subnets=site.subnets,
            security_groups=[site.group],
            default_database_name=DATABASE_NAME,
            port=self._dialect.port,
            credentials=rds.Credentials.from_username(MASTER, encryption_key=site.key),
            manage_master_user_password=True,
            # Whatever `sign_in` says: turned off before the last task is gone that uses it, it would lock that one out.
            iam_authentication=True,
            storage_encrypted=True,
            storage_encryption_key=site.key,
            backup=rds.BackupProps(retention=Duration.days(settings.backup_days)),
            copy_tags_to_snapshot=True,
            delete_automated_backups=False,
            deletion_protection=settings.deletion_protection,
            cloudwatch_logs_exports=list(self._dialect.logs),
            enable_performance_insights=True,
            performance_insight_encryption_key=site.key,
            enable_cluster_level_enhanced_monitoring=True,
            monitoring_interval=MONITORING_INTERVAL,
            parameter_group=self._parameters,
            removal_policy=RemovalPolicy.RETAIN,
        )
        export_logs(cluster, site, construct_id, f"cluster/{identifier}", self._dialect)
        acknowledge_server(cluster, deletion_protection=settings.deletion_protection)
        if self._settings.engine == "aurora-mysql":
            acknowledge(
                cluster,
                "Backtrack does not exist for Serverless v2; going back is a restore from a snapshot, which keeps this one.",
                "RDS14",
            )
        if snapshot:
            _restore(cluster, snapshot)
        return self._server(cluster, user_secret(cluster, site, construct_id))

    def _server(self, cluster: rds.DatabaseCluster, user_secret_arn: str | None) -> DatabaseServer:
        assert cluster.secret is not None
        return DatabaseServer(
            dialect=self._dialect,
            identifier=cluster.cluster_identifier,
            arn=cluster.cluster_arn,
            host=cluster.cluster_endpoint.hostname,
            # Not the endpoint's port: that is a number, and would not survive the way into another stack.
            port=str(self._dialect.port),
            connections=cluster.connections,
            master_secret_arn=cluster.secret.secret_arn,
            user_secret_arn=user_secret_arn,
            token_user_arn=token_user_arn(cluster, cluster.cluster_resource_identifier),
            snapshots=SNAPSHOTS,
            watch=lambda: cluster_alarms(self._site.scope, self._site.prefix, cluster),
            # A connection that is kept open keeps the cluster awake, used or not.
            client={"MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool"}
            if self._settings.min_capacity == 0
            else {},
        )

    def _serverless(self, name: str, *, scale_with_writer: bool | None = None) -> rds.IClusterInstance:
        return rds.ClusterInstance.serverless_v2(
            name,
            scale_with_writer=scale_with_writer,
            auto_minor_version_upgrade=True,
            parameters=dict(self._instance_parameters) or None,
            publicly_accessible=False,
            # Said for the cluster already, but the CDK warns unless its instances say it as well.
            enable_performance_insights=True,
            performance_insight_encryption_key=self._site.key,
        )


def _restore(cluster: rds.DatabaseCluster, snapshot: str) -> None:
    """Make the cluster from a snapshot.

    By override, for the reasons that `database_instance.py` gives. What a snapshot brings must not be given.
    """
    resource = cluster.node.default_child
    assert isinstance(resource, rds.CfnDBCluster)
    resource.add_property_override("SnapshotIdentifier", snapshot)
    for brought in ("DatabaseName", "MasterUsername", "StorageEncrypted", "EngineVersion"):
        resource.add_property_deletion_override(brought)
