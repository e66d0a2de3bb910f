"""The artifact bucket, under a key of its own, and what the server may do with it."""

from __future__ import annotations

from aws_cdk import Duration, RemovalPolicy
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3
from constructs import Construct

from stages.access_logs import access_log_bucket
from stages.findings import acknowledge, reference


def artifact_bucket(scope: Construct) -> tuple[s3.Bucket, kms.Key]:
    """A versioned bucket that outlives its stack."""
    access_logs = access_log_bucket(scope, "AccessLogs")
    key = kms.Key(
        scope,
        "ArtifactsKey",
        description="MLflow artifacts",
        enable_key_rotation=True,
        removal_policy=RemovalPolicy.RETAIN,
    )
    bucket = s3.Bucket(
        scope,
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
    return bucket, key


def artifacts_policy(scope: Construct, bucket: s3.Bucket, key: kms.Key) -> iam.ManagedPolicy:
    """What the server may do in AWS: list, read, write and delete in its own bucket, nothing else."""
    policy = iam.ManagedPolicy(
        scope,
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
        f"IAM5[Resource::{reference(scope, bucket.bucket_arn)}/*]",
    )
    return policy
