"""Where the pipeline keeps the artifacts of its executions, and the role as which it runs."""

from __future__ import annotations

from aws_cdk import Aws, Duration, RemovalPolicy
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3
from constructs import Construct

from stages.access_logs import access_log_bucket
from stages.environment_build import artifact_bucket, build_role
from stages.gates import LOAD, SMOKE
from stages.migration import MIGRATE
from stages.settings import Settings


class ArtifactStore(Construct):
    """A bucket under its own key, readable by the builds that the settings' environments deploy."""

    def __init__(self, scope: Construct, construct_id: str, *, settings: Settings) -> None:
        super().__init__(scope, construct_id)
        days = max(environment.logs.days for _, environment in settings.environments.items())
        access_logs = access_log_bucket(self, "AccessLogs", days)
        self.key = kms.Key(
            self,
            "Key",
            description="Artifacts of the delivery pipeline",
            enable_key_rotation=True,
            removal_policy=RemovalPolicy.RETAIN,
        )
        self.bucket = s3.Bucket(
            self,
            "Bucket",
            bucket_name=artifact_bucket(settings),
            block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
            encryption=s3.BucketEncryption.KMS,
            encryption_key=self.key,
            bucket_key_enabled=True,
            enforce_ssl=True,
            versioned=True,
            server_access_logs_bucket=access_logs,
            server_access_logs_prefix="artifacts/",
            # Past executions are what a rollback goes back to; a year of them is kept.
            lifecycle_rules=[s3.LifecycleRule(expiration=Duration.days(365))],
            removal_policy=RemovalPolicy.RETAIN,
        )
        self._admit_builds(settings)

    def _admit_builds(self, settings: Settings) -> None:
        """Let each environment's builds, its migration and its gates, read the source that they run.

        The account is the principal and the role a condition: a policy that names a role is invalid until the role
        exists, and on the first deployment the builds' roles do not exist yet.
        """
        for name, environment in settings.environments.items():
            prefix = f"{settings.name}-{name}"
            roles = [
                f"arn:{Aws.PARTITION}:iam::{environment.account}:role/{build_role(prefix, build)}"
                for build in ((MIGRATE, SMOKE, LOAD) if environment.load else (MIGRATE, SMOKE))
            ]
            builds = iam.PrincipalWithConditions(
                iam.AccountPrincipal(environment.account), {"ArnEquals": {"aws:PrincipalArn": roles}}
            )
            self.bucket.add_to_resource_policy(
                iam.PolicyStatement(
                    principals=[builds],
                    actions=["s3:GetObject", "s3:GetObjectVersion"],
                    resources=[self.bucket.arn_for_objects("*")],
                )
            )
            self.key.add_to_resource_policy(
                iam.PolicyStatement(principals=[builds], actions=["kms:Decrypt"], resources=["*"])
            )
