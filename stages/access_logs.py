"""Where access logs go: a bucket for nothing else, each entry kept for as long as logs are."""

from __future__ import annotations

from aws_cdk import Duration, RemovalPolicy
from aws_cdk import aws_s3 as s3
from constructs import Construct

from stages.findings import acknowledge, acknowledge_in_packs

OVERWRITTEN = 30
"""Days for which an entry that somebody overwrote or deleted can be brought back; the services never do either."""


def access_log_bucket(
    scope: Construct, construct_id: str, days: int, ownership: s3.ObjectOwnership | None = None
) -> s3.Bucket:
    """A bucket that receives the access logs of another bucket, of a load balancer or of CloudFront.

    It is encrypted with S3's own key: load balancers cannot write to a bucket under a key of the account. CloudFront writes
    where it may set who owns what it wrote.
    """
    bucket = s3.Bucket(
        scope,
        construct_id,
        block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
        encryption=s3.BucketEncryption.S3_MANAGED,
        enforce_ssl=True,
        versioned=True,
        object_ownership=ownership,
        lifecycle_rules=[
            s3.LifecycleRule(
                expiration=Duration.days(days), noncurrent_version_expiration=Duration.days(OVERWRITTEN)
            )
        ],
        removal_policy=RemovalPolicy.RETAIN,
    )
    acknowledge(bucket, "This bucket receives access logs; logging it into itself would never end.", "S1")
    acknowledge_in_packs(
        bucket,
        "Neither load balancers nor S3 deliver logs to a bucket under a key of the account; S3 encrypts it with its own.",
        "S3DefaultEncryptionKMS",
    )
    return bucket
