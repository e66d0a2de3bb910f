"""The password of the server's database user is changed on a schedule, by the function that AWS keeps for that.

It belongs to the tracking stack, which is deployed after the migration has made the user: a new schedule rotates at once,
and could not before. A restored database has a secret of its own; the schedule follows the database in use.
"""

from __future__ import annotations

from aws_cdk import Duration
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_kms as kms
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct, IDependable

from stages.data import DataStack
from stages.database_server import MYSQL
from stages.network import PRIVATE, NetworkStack

EXCLUDED = " %+~`#$&*()|[]{}:;<>?!'/@\"\\"
"""What a new password does without: the same as the first one, which CDK's DatabaseSecret generates."""


def rotate_password(
    scope: Construct, prefix: str, days: int, network: NetworkStack, data: DataStack, after: IDependable
) -> None:
    """Rotate the secret of the server's user, if it has one, every so many days, first as soon as `after` is there."""
    database, vpc, key = data.database, network.vpc, data.database_user_key
    if database.user_secret_arn is None or key is None:
        return
    group = ec2.SecurityGroup(
        scope,
        "RotationGroup",
        vpc=vpc,
        description="Rotation of the password of MLflow",
        allow_all_outbound=False,
    )
    group.connections.allow_to(
        database.connections, ec2.Port.tcp(database.dialect.port), "Rotation of the password in the database"
    )
    network.let_out(group, "AWS APIs: Secrets Manager")
    hosted = (
        secretsmanager.HostedRotation.mysql_single_user
        if database.dialect is MYSQL
        else secretsmanager.HostedRotation.postgre_sql_single_user
    )
    # By ARN, for the reason that `mlflow_task.py` gives.
    secret = secretsmanager.Secret.from_secret_attributes(
        scope,
        "RotatedSecret",
        secret_complete_arn=database.user_secret_arn,
        encryption_key=kms.Key.from_key_arn(scope, "RotatedSecretKey", key.key_arn),
    )
    schedule = secret.add_rotation_schedule(
        "Rotation",
        automatically_after=Duration.days(days),
        hosted_rotation=hosted(
            function_name=f"{prefix}-password-rotation",
            vpc=vpc,
            vpc_subnets=PRIVATE,
            security_groups=[group],
            exclude_characters=EXCLUDED,
        ),
    )
    schedule.node.add_dependency(after)
