"""What must never be lost: the database and the artifact bucket, each under a key of its own.

A restore never touches the database in use: `restore_from` makes another instance from a snapshot, beside the first
one, which stays in the stack as it is. When such a release is taken back, the restored instance leaves the stack but is
kept in the account: to restore from the same snapshot again, rename or delete it first.
"""

from __future__ import annotations

import hashlib
from typing import Any

from aws_cdk import Duration, RemovalPolicy, Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_logs as logs
from aws_cdk import aws_rds as rds
from aws_cdk import aws_s3 as s3
from constructs import Construct

from stages.access_logs import access_log_bucket
from stages.findings import acknowledge, reference
from stages.monitoring import database_alarms
from stages.settings import Environment
from stages.settings.database import Database

DATABASE_NAME = "mlflow"
DATABASE_PORT = 5432
ENGINE = rds.DatabaseInstanceEngine.postgres(version=rds.PostgresEngineVersion.VER_18_3)


class DataStack(Stack):
    """PostgreSQL in isolated subnets and a versioned bucket; both outlive the stack."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        prefix: str,
        settings: Environment,
        vpc: ec2.IVpc,
        **stack: Any,
    ) -> None:
        super().__init__(scope, construct_id, **stack)
        self.bucket = self._artifacts()
        self.database = self._database(prefix, settings.database, vpc)

    def _artifacts(self) -> s3.Bucket:
        access_logs = access_log_bucket(self, "AccessLogs")
        key = kms.Key(
            self,
            "ArtifactsKey",
            description="MLflow artifacts",
            enable_key_rotation=True,
            removal_policy=RemovalPolicy.RETAIN,
        )
        bucket = s3.Bucket(
            self,
            "Artifacts",
            block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
            bucket_key_enabled=True,
            encryption=s3.BucketEncryption.KMS,
            encryption_key=key,
            enforce_ssl=True,
            versioned=True,
            server_access_logs_bucket=access_logs,
            server_access_logs_prefix="artifacts/",
            lifecycle_rules=[
                s3.LifecycleRule(
                    abort_incomplete_multipart_upload_after=Duration.days(7),
                    noncurrent_version_expiration=Duration.days(90),
                )
            ],
            removal_policy=RemovalPolicy.RETAIN,
        )
        self.artifacts_policy = self._artifacts_policy(bucket, key)
        return bucket

    def _artifacts_policy(self, bucket: s3.Bucket, key: kms.Key) -> iam.ManagedPolicy:
        """What the server may do in AWS: list, read, write and delete in its own bucket, nothing else."""
        policy = iam.ManagedPolicy(
            self,
            "ArtifactsPolicy",
            description="MLflow artifacts in their own bucket",
            statements=[
                iam.PolicyStatement(actions=["s3:ListBucket"], resources=[bucket.bucket_arn]),
                iam.PolicyStatement(
                    actions=[
                        "s3:AbortMultipartUpload",
                        "s3:DeleteObject",
                        "s3:GetObject",
                        "s3:ListMultipartUploadParts",
                        "s3:PutObject",
                    ],
                    resources=[bucket.arn_for_objects("*")],
                ),
                iam.PolicyStatement(actions=["kms:Decrypt", "kms:GenerateDataKey"], resources=[key.key_arn]),
            ],
        )
        acknowledge(
            policy,
            "MLflow names the objects; the policy is bound to the five object actions it needs, in its own bucket.",
            f"IAM5[Resource::{reference(self, bucket.bucket_arn)}/*]",
        )
        return policy

    def _database(self, prefix: str, size: Database, vpc: ec2.IVpc) -> rds.DatabaseInstance:
        """The database in use: the environment's first one, or one made from a snapshot beside it."""
        self.database_key = kms.Key(
            self,
            "DatabaseKey",
            description="MLflow database, its snapshots and its master secret",
            enable_key_rotation=True,
            removal_policy=RemovalPolicy.RETAIN,
        )
        self._group = ec2.SecurityGroup(
            self, "DatabaseGroup", vpc=vpc, description="MLflow database", allow_all_outbound=False
        )
        self._parameters = rds.ParameterGroup(
            self,
            "DatabaseParameters",
            engine=ENGINE,
            description="MLflow database: TLS only",
            parameters={"rds.force_ssl": "1"},
        )
        used = self._instance("Database", f"{prefix}-database", size, vpc)
        if size.restore_from:
            # Named after its snapshot, so that the next restore is another database again.
            name = hashlib.sha256(size.restore_from.encode()).hexdigest()[:8]
            used = self._instance(f"Database-{name}", f"{prefix}-database-{name}", size, vpc)
            _restore(used, size.restore_from)
        assert used.secret is not None
        self.secret_arn = used.secret.secret_arn
        database_alarms(self, prefix, used)
        return used

    def _instance(
        self, construct_id: str, identifier: str, size: Database, vpc: ec2.IVpc
    ) -> rds.DatabaseInstance:
        instance = rds.DatabaseInstance(
            self,
            construct_id,
            engine=ENGINE,
            instance_identifier=identifier,
            instance_type=ec2.InstanceType(size.instance_class),
            vpc=vpc,
            vpc_subnets=ec2.SubnetSelection(subnet_type=ec2.SubnetType.PRIVATE_ISOLATED),
            security_groups=[self._group],
            database_name=DATABASE_NAME,
            port=DATABASE_PORT,
            credentials=rds.Credentials.from_username("mlflow", encryption_key=self.database_key),
            manage_master_user_password=True,
            multi_az=size.multi_az,
            allocated_storage=size.storage_gib,
            max_allocated_storage=size.storage_gib * 5,
            storage_encrypted=True,
            storage_encryption_key=self.database_key,
            storage_type=rds.StorageType.GP3,
            backup_retention=Duration.days(size.backup_days),
            copy_tags_to_snapshot=True,
            delete_automated_backups=False,
            deletion_protection=size.deletion_protection,
            auto_minor_version_upgrade=True,
            cloudwatch_logs_exports=["postgresql"],
            enable_performance_insights=True,
            performance_insight_encryption_key=self.database_key,
            parameter_group=self._parameters,
            removal_policy=RemovalPolicy.RETAIN,
        )
        log_group = logs.LogGroup(
            self,
            f"{construct_id}Logs",
            log_group_name=f"/aws/rds/instance/{identifier}/postgresql",
            retention=logs.RetentionDays.THREE_MONTHS,
            removal_policy=RemovalPolicy.DESTROY,
        )
        # Otherwise RDS makes the group itself, without retention, and this stack finds its name taken.
        instance.node.add_dependency(log_group)
        if not size.deletion_protection:
            acknowledge(
                instance,
                "The settings choose to leave this environment's database deletable by hand; this stack never deletes it.",
                "RDS10",
            )
        if not size.multi_az:
            acknowledge(
                instance,
                "The settings choose one zone for this environment: no standby is paid for here.",
                "RDS3",
            )
        acknowledge(
            instance,
            "An obscure port hides nothing inside isolated subnets whose security group admits the tasks alone.",
            "RDS11",
        )
        return instance


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
