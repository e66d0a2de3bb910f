"""Where artifacts are kept, and what the server may do there: a bucket of the platform's own, or a folder of another."""

from __future__ import annotations

from dataclasses import dataclass

from aws_cdk import Duration, RemovalPolicy, Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3
from constructs import Construct

from stages.access_logs import access_log_bucket
from stages.findings import acknowledge, reference
from stages.settings.artifacts import Artifacts

AT_ONCE = Duration.days(0)


@dataclass(frozen=True)
class ArtifactStore:
    """The place, and the right to it."""

    destination: str
    """As the image wants it: s3://bucket, or s3://bucket/folder."""

    policy: iam.ManagedPolicy
    bucket_arn: str
    objects_arn: str
    objects_in_findings: str
    """The same as cdk-nag writes it."""

    key_arn: str | None
    listing: dict[str, dict[str, list[str]]] | None = None
    """The condition that binds a listing to the folder."""


def artifact_store(scope: Construct, settings: Artifacts, log_days: int) -> ArtifactStore:
    """Make the bucket in `scope` if none is named, and the policy for it."""
    if settings.bucket:
        return _folder(scope, settings.bucket, settings.prefix or "", settings.key_arn)
    return _own_bucket(scope, settings, log_days)


def _own_bucket(scope: Construct, settings: Artifacts, log_days: int) -> ArtifactStore:
    """A versioned bucket under a key of its own, which outlives its stack."""
    access_logs = access_log_bucket(scope, "AccessLogs", log_days)
    key = kms.Key(
        scope,
        "ArtifactsKey",
        description="MLflow artifacts",
        enable_key_rotation=True,
        removal_policy=RemovalPolicy.RETAIN,
    )
    tiering = s3.Transition(storage_class=s3.StorageClass.INTELLIGENT_TIERING, transition_after=AT_ONCE)
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
                abort_incomplete_multipart_upload_after=Duration.days(settings.incomplete_uploads_days),
                noncurrent_version_expiration=Duration.days(settings.old_versions_days),
                transitions=[tiering] if settings.intelligent_tiering else None,
            )
        ],
        removal_policy=RemovalPolicy.RETAIN,
    )
    objects, found = bucket.arn_for_objects("*"), f"{reference(scope, bucket.bucket_arn)}/*"
    policy = _policy(scope, bucket.bucket_arn, objects, key.key_arn)
    acknowledge(
        policy,
        "MLflow names the objects; the policy is bound to the five object actions it needs, in its own bucket.",
        f"IAM5[Resource::{found}]",
    )
    return ArtifactStore(f"s3://{bucket.bucket_name}", policy, bucket.bucket_arn, objects, found, key.key_arn)


def _folder(scope: Construct, bucket: str, prefix: str, key_arn: str | None) -> ArtifactStore:
    """A folder of somebody's bucket, about which nothing is changed; encryption, versions, logs are its owner's."""
    arn = f"arn:{Stack.of(scope).partition}:s3:::{bucket}"
    objects = f"{arn}/{prefix}/*"
    listing = {"StringLike": {"s3:prefix": [prefix, f"{prefix}/*"]}}
    policy = _policy(scope, arn, objects, key_arn, listing=listing)
    acknowledge(
        policy,
        "MLflow names the objects; the policy is bound to the five object actions it needs, in its own folder.",
        f"IAM5[Resource::{objects}]",
    )
    return ArtifactStore(f"s3://{bucket}/{prefix}", policy, arn, objects, objects, key_arn, listing)


def _policy(
    scope: Construct,
    bucket: str,
    objects: str,
    key: str | None,
    *,
    listing: dict[str, dict[str, list[str]]] | None = None,
) -> iam.ManagedPolicy:
    """What the server may do in AWS: list, read, write and delete artifacts, nothing else."""
    return iam.ManagedPolicy(
        scope,
        "ArtifactsPolicy",
        description="MLflow artifacts in their own bucket",
        statements=[
            iam.PolicyStatement(actions=["s3:ListBucket"], resources=[bucket], conditions=listing),
            iam.PolicyStatement(
                actions=[
                    "s3:AbortMultipartUpload",
                    "s3:DeleteObject",
                    "s3:GetObject",
                    "s3:ListMultipartUploadParts",
                    "s3:PutObject",
                ],
                resources=[objects],
            ),
            *(
                [iam.PolicyStatement(actions=["kms:Decrypt", "kms:GenerateDataKey"], resources=[key])]
                if key
                else []
            ),
        ],
    )
