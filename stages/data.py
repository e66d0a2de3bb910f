"""What must never be lost: the database and the artifact bucket, each under a key of its own."""

from __future__ import annotations

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
from stages.settings import Database, Environment

DATABASE_NAME = "mlflow"
DATABASE_PORT = 5432


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
        self.database_key = key = kms.Key(
            self,
            "DatabaseKey",
            description="MLflow database, its snapshots and its master secret",
            enable_key_rotation=True,
            removal_policy=RemovalPolicy.RETAIN,
        )
        engine = rds.DatabaseInstanceEngine.postgres(version=rds.PostgresEngineVersion.VER_18_3)
        instance = rds.DatabaseInstance(
            self,
            "Database",
            engine=engine,
            instance_identifier=f"{prefix}-database",
            instance_type=ec2.InstanceType(size.instance_class),
            vpc=vpc,
            vpc_subnets=ec2.SubnetSelection(subnet_type=ec2.SubnetType.PRIVATE_ISOLATED),
            security_groups=[
                ec2.SecurityGroup(
                    self, "DatabaseGroup", vpc=vpc, description="MLflow database", allow_all_outbound=False
                )
            ],
            database_name=DATABASE_NAME,
            port=DATABASE_PORT,
            credentials=rds.Credentials.from_username("mlflow", encryption_key=key),
            manage_master_user_password=True,
            multi_az=size.multi_az,
            allocated_storage=size.storage_gib,
            max_allocated_storage=size.storage_gib * 5,
            storage_encrypted=True,
            storage_encryption_key=key,
            storage_type=rds.StorageType.GP3,
            backup_retention=Duration.days(size.backup_days),
            copy_tags_to_snapshot=True,
            delete_automated_backups=False,
            deletion_protection=size.deletion_protection,
            auto_minor_version_upgrade=True,
            cloudwatch_logs_exports=["postgresql"],
            enable_performance_insights=True,
            performance_insight_encryption_key=key,
            parameter_group=rds.ParameterGroup(
                self,
                "DatabaseParameters",
                engine=engine,
                description="MLflow database: TLS only",
                parameters={"rds.force_ssl": "1"},
            ),
            removal_policy=RemovalPolicy.SNAPSHOT,
        )
        log_group = logs.LogGroup(
            self,
            "DatabaseLogs",
            log_group_name=f"/aws/rds/instance/{prefix}-database/postgresql",
            retention=logs.RetentionDays.THREE_MONTHS,
            removal_policy=RemovalPolicy.DESTROY,
        )
        # Otherwise RDS makes the group itself, without retention, and this stack finds its name taken.
        instance.node.add_dependency(log_group)
        if not size.deletion_protection:
            acknowledge(
                instance,
                "The settings choose to leave this environment deletable; a final snapshot is taken all the same.",
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
        database_alarms(self, prefix, instance)
        return instance
