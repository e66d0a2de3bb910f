"""AWS's APIs inside the network, for an environment without NAT: an endpoint for each one that something here calls.

S3 is reached by its gateway. Names and addresses are the usual ones (private DNS), so that no client is told. What may go
through is bound twice: by an endpoint's policy to this account and to the actions that roles here are allowed, and by
security groups to the tasks and builds that call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aws_cdk import Aws
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from constructs import Construct

_Service = ec2.InterfaceVpcEndpointAwsService

PULL = (
    "ecr:BatchCheckLayerAvailability",
    "ecr:BatchGetImage",
    "ecr:GetAuthorizationToken",
    "ecr:GetDownloadUrlForLayer",
)
PACKAGES = (
    "codeartifact:GetAuthorizationToken",
    "codeartifact:GetRepositoryEndpoint",
    "codeartifact:ReadFromRepository",
)

APIS: Mapping[str, tuple[ec2.InterfaceVpcEndpointAwsService, Sequence[str]]] = {
    "EcrApi": (_Service.ECR, PULL),
    "EcrDocker": (_Service.ECR_DOCKER, PULL),
    "SecretsManager": (
        _Service.SECRETS_MANAGER,
        (
            "secretsmanager:DescribeSecret",
            "secretsmanager:GetSecretValue",
            # The function that rotates a password.
            "secretsmanager:GetRandomPassword",
            "secretsmanager:PutSecretValue",
            "secretsmanager:UpdateSecretVersionStage",
        ),
    ),
    "Logs": (
        _Service.CLOUDWATCH_LOGS,
        ("logs:CreateLogGroup", "logs:CreateLogStream", "logs:GetLogEvents", "logs:PutLogEvents"),
    ),
    # The migration's build runs its task; the task takes snapshots.
    "Ecs": (_Service.ECS, ("ecs:DescribeTasks", "ecs:RunTask")),
    "Rds": (
        _Service.RDS,
        (
            "rds:AddTagsToResource",
            "rds:CreateDBClusterSnapshot",
            "rds:CreateDBSnapshot",
            "rds:DescribeDBClusterSnapshots",
            "rds:DescribeDBSnapshots",
        ),
    ),
    # What a build writes down for the next release, and its report.
    "Ssm": (_Service.SSM, ("ssm:GetParameter", "ssm:PutParameter")),
    "CodeBuild": (
        _Service.CODEBUILD,
        (
            "codebuild:BatchPutCodeCoverages",
            "codebuild:BatchPutTestCases",
            "codebuild:CreateReport",
            "codebuild:CreateReportGroup",
            "codebuild:UpdateReport",
        ),
    ),
    "Packages": (_Service.CODEARTIFACT_API, PACKAGES),
    "PackageFiles": (_Service.CODEARTIFACT_REPOSITORIES, PACKAGES),
}

ARTIFACTS = (
    "s3:AbortMultipartUpload",
    "s3:DeleteObject",
    "s3:GetObject",
    "s3:ListBucket",
    "s3:ListMultipartUploadParts",
    "s3:PutObject",
)
SOURCE = ("s3:GetObject", "s3:GetObjectVersion")


def endpoints(scope: Construct, vpc: ec2.Vpc, subnets: ec2.SubnetSelection) -> ec2.SecurityGroup:
    """Make them, and return the group that all of them are in; it admits nobody yet."""
    group = ec2.SecurityGroup(
        scope, "EndpointGroup", vpc=vpc, description="Endpoints of AWS APIs", allow_all_outbound=False
    )
    for construct_id, (service, actions) in APIS.items():
        endpoint = vpc.add_interface_endpoint(
            construct_id, service=service, subnets=subnets, security_groups=[group], open=False
        )
        endpoint.add_to_policy(_own(actions))
    return group


def bind(s3: ec2.GatewayVpcEndpoint, tooling: str) -> None:
    """Let nothing through S3's gateway but artifacts, the release's source and the layers of images.

    Args:
        s3: the gateway.
        tooling: the account whose bucket holds the source.
    """
    s3.add_to_policy(_own(ARTIFACTS, {"aws:ResourceAccount": Aws.ACCOUNT_ID}))
    s3.add_to_policy(_own(SOURCE, {"aws:ResourceAccount": tooling}))
    # ECR hands out layers from a bucket of its own, by links that it signs itself.
    s3.add_to_policy(
        iam.PolicyStatement(
            principals=[iam.AnyPrincipal()],
            actions=["s3:GetObject"],
            resources=[f"arn:{Aws.PARTITION}:s3:::prod-{Aws.REGION}-starport-layer-bucket/*"],
        )
    )


def _own(actions: Sequence[str], conditions: Mapping[str, str] | None = None) -> iam.PolicyStatement:
    """Whoever is of this account may do these."""
    return iam.PolicyStatement(
        principals=[iam.AnyPrincipal()],
        actions=list(actions),
        resources=["*"],
        conditions={"StringEquals": {"aws:PrincipalAccount": Aws.ACCOUNT_ID, **(conditions or {})}},
    )
