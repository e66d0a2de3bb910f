"""The database of an environment: its keys, who reaches it, and which server is in use.

A restore never touches the database in use: `restore_from` makes another server from a snapshot, beside the first one,
which stays in the stack as it is. When such a release is taken back, the restored server leaves the stack but is kept in
the account: to restore from the same snapshot again, rename or delete it first.
"""

from __future__ import annotations

import hashlib

from aws_cdk import RemovalPolicy
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_kms as kms
from constructs import Construct

from stages.database_cluster import ENGINES as CLUSTERS
from stages.database_cluster import Clusters
from stages.database_instance import Instances
from stages.database_server import DatabaseServer, Site
from stages.network import ISOLATED
from stages.settings.database import Database


def database_key(scope: Construct) -> kms.Key:
    """The key of the database, its snapshots and the master secret."""
    return _kept_key(scope, "DatabaseKey", "MLflow database, its snapshots and its master secret")


def database_user_key(scope: Construct) -> kms.Key:
    """The key of the secret of the server's own user: who may use it is no nearer to the master secret."""
    return _kept_key(scope, "DatabaseUserKey", "MLflow server's database user")


def _kept_key(scope: Construct, construct_id: str, description: str) -> kms.Key:
    return kms.Key(
        scope,
        construct_id,
        description=description,
        enable_key_rotation=True,
        removal_policy=RemovalPolicy.RETAIN,
    )


def database_server(
    scope: Construct,
    prefix: str,
    settings: Database,
    vpc: ec2.IVpc,
    key: kms.Key,
    user_key: kms.Key | None,
) -> DatabaseServer:
    """Make what the settings ask for in `scope`, and return the server in use."""
    site = Site(
        scope=scope,
        prefix=prefix,
        vpc=vpc,
        subnets=ISOLATED,
        group=ec2.SecurityGroup(
            scope, "DatabaseGroup", vpc=vpc, description="MLflow database", allow_all_outbound=False
        ),
        key=key,
        user_key=user_key,
    )
    kind: type[Clusters | Instances] = Clusters if settings.engine in CLUSTERS else Instances
    servers = kind(site, settings)
    used = servers.make("Database", f"{prefix}-database")
    if settings.restore_from:
        # Named after its snapshot, so that the next restore is another database again.
        name = hashlib.sha256(settings.restore_from.encode()).hexdigest()[:8]
        used = servers.make(f"Database-{name}", f"{prefix}-database-{name}", settings.restore_from)
    used.watch()
    return used
