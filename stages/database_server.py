"""A database server as the rest of the platform knows it, whichever engine and whatever runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from aws_cdk import ArnFormat, Duration, RemovalPolicy, Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_logs as logs
from aws_cdk import aws_rds as rds
from constructs import Construct

from stages.findings import acknowledge

DATABASE_NAME = "mlflow"
MASTER = "mlflow"
"""Who sets up, and nobody else: the migration's task makes USER with its rights before it migrates."""

USER = "mlflow_server"
"""Whose the tables are, and who the server signs in as with a password: neither master nor superuser."""

TOKEN_USER = f"{USER}_iam"
"""Who it signs in as by IAM, and then acts as USER. Two, as RDS refuses the password of everybody who may use a token:
while a release with another `sign_in` rolls out, or is gone back from, both serve."""

MONITORING_INTERVAL = Duration.seconds(60)
"""Of enhanced monitoring: what the operating system under the database does. Finer is dearer, and for a search only."""

POSTGRES_TLS_ONLY = {"rds.force_ssl": "1"}
# MLflow's late migrations fail on a database of any other character set.
MYSQL_TLS_ONLY = {"require_secure_transport": "1", "character_set_server": "utf8mb4"}
# While MySQL logs its changes in binary, as it does for backups, only a superuser may make a trigger unless the first
# line says otherwise; on RDS nobody is one, and MLflow's migrations make some. The others fill the slow query log.
MYSQL_TRIGGERS_AND_SLOW_LOG = {
    "log_bin_trust_function_creators": "1",
    "slow_query_log": "1",
    "long_query_time": "2",
    "log_output": "FILE",
}


@dataclass(frozen=True)
class Dialect:
    """What a client has to know of an engine."""

    family: str
    """How the image calls it (DATABASE_ENGINE)."""

    port: int
    logs: tuple[str, ...]
    """What RDS exports to CloudWatch Logs."""


POSTGRES = Dialect("postgresql", 5432, ("postgresql",))
MYSQL = Dialect("mysql", 3306, ("error", "slowquery"))


@dataclass(frozen=True)
class Site:
    """Where a server is made."""

    scope: Construct
    prefix: str
    vpc: ec2.IVpc
    subnets: ec2.SubnetSelection
    group: ec2.SecurityGroup
    key: kms.Key
    user_key: kms.Key | None
    """Of the secret of USER; None: it has no password."""


@dataclass(frozen=True)
class Snapshots:
    """How RDS calls the snapshots of this kind of server, and how the image is told what to take them of."""

    variable: str
    create: str
    describe: str
    resource: str

    def arn(self, scope: Construct, name: str) -> str:
        """The ARN of a snapshot, or of all whose name matches."""
        return Stack.of(scope).format_arn(
            service="rds",
            resource=self.resource,
            resource_name=name,
            arn_format=ArnFormat.COLON_RESOURCE_NAME,
        )

    def allow(self, scope: Construct, role: iam.Role, server: DatabaseServer, names: str, known: str) -> None:
        """Let a role take snapshots of the server under `names`, and look at those and at the one called `known`."""
        own = self.arn(scope, names)
        # One to restore from may be RDS's own, or have any name.
        seen = [own, *([self.arn(scope, known)] if known else [])]
        for statement in (
            iam.PolicyStatement(actions=[self.create], resources=[server.arn, own]),
            iam.PolicyStatement(actions=["rds:AddTagsToResource"], resources=[own]),
            iam.PolicyStatement(actions=[self.describe], resources=seen),
        ):
            role.add_to_policy(statement)


@dataclass(frozen=True)
class DatabaseServer:
    """The server that is in use."""

    dialect: Dialect
    identifier: str
    arn: str
    host: str
    port: str
    connections: ec2.Connections
    master_secret_arn: str
    user_secret_arn: str | None
    """None: sign in as TOKEN_USER, with a token."""

    token_user_arn: str
    """What `rds-db:connect` names."""

    snapshots: Snapshots
    watch: Callable[[], None]
    """Makes the alarms of this server: only the one in use has some."""

    client: Mapping[str, str] = field(default_factory=dict)
    """Variables for the MLflow server, where this one needs another behaviour of its clients."""


def token_user_arn(scope: Construct, resource_id: str | None) -> str:
    """TOKEN_USER on the server of that resource id, which is not its name, and is never given out again."""
    return Stack.of(scope).format_arn(
        service="rds-db",
        resource="dbuser",
        resource_name=f"{resource_id}/{TOKEN_USER}",
        arn_format=ArnFormat.COLON_RESOURCE_NAME,
    )


def user_secret(
    server: rds.DatabaseInstance | rds.DatabaseCluster, site: Site, construct_id: str
) -> str | None:
    """The ARN of the secret of this server's USER, if it has one: generated once, and retained as the server itself is.

    Each server has its own, so that a restored one changes nothing for the one that is still in use.
    """
    if site.user_key is None:
        return None
    secret = rds.DatabaseSecret(
        site.scope,
        f"{construct_id}User",
        username=USER,
        dbname=DATABASE_NAME,
        encryption_key=site.user_key,
    )
    secret.apply_removal_policy(RemovalPolicy.RETAIN)
    # Who rotates finds the server by what is attached here.
    secret.attach(server)
    acknowledge(
        secret,
        "Rotated by the tracking stack: a first rotation can only succeed once the migration has made the user.",
        "SMG4",
    )
    return secret.secret_arn


def export_logs(server: Construct, site: Site, construct_id: str, of: str, dialect: Dialect) -> None:
    """Make the log groups that RDS writes to: it would make them itself, without retention."""
    for log in dialect.logs:
        group = logs.LogGroup(
            site.scope,
            # PostgreSQL's only log has no name of its own here: that is how existing environments know it.
            f"{construct_id}Logs" + ("" if len(dialect.logs) == 1 else f"-{log}"),
            log_group_name=f"/aws/rds/{of}/{log}",
            retention=logs.RetentionDays.THREE_MONTHS,
            removal_policy=RemovalPolicy.DESTROY,
        )
        # First, or this stack would find the name taken.
        server.node.add_dependency(group)


def acknowledge_server(server: Construct, *, deletion_protection: bool) -> None:
    """Accept what cdk-nag finds in every kind of server, beside the reason for it."""
    acknowledge(
        server,
        "Enhanced monitoring is written by RDS itself; AWS keeps the policy that its role needs for exactly that.",
        "IAM4[Policy::arn:<AWS::Partition>:iam::aws:policy/service-role/AmazonRDSEnhancedMonitoringRole]",
    )
    if not deletion_protection:
        acknowledge(
            server,
            "The settings choose to leave this environment's database deletable by hand; this stack never deletes it.",
            "RDS10",
        )
    acknowledge(
        server,
        "An obscure port hides nothing inside isolated subnets whose security group admits the tasks alone.",
        "RDS11",
    )
