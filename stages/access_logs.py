"""Where access logs go: a bucket for nothing else, emptied after three months."""

from __future__ import annotations

from aws_cdk import Duration, RemovalPolicy
from aws_cdk import aws_s3 as s3
from constructs import Construct

from stages.findings import acknowledge


def access_log_bucket(scope: Construct, construct_id: str) -> s3.Bucket:
    """A bucket that receives the access logs of another bucket or of a load balancer.

    It is encrypted with S3's own key: load balancers cannot write to a bucket under a key of the account.
    """
    bucket = s3.Bucket(
        scope,
        construct_id,
        block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
        encryption=s3.BucketEncryption.S3_MANAGED,
        enforce_ssl=True,
        lifecycle_rules=[s3.LifecycleRule(expiration=Duration.days(90))],
        removal_policy=RemovalPolicy.RETAIN,
    )
    acknowledge(bucket, "This bucket receives access logs; logging it into itself would never end.", "S1")
    return bucket
