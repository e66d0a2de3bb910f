"""What cdk-nag finds in the roles that CDK Pipelines makes for the pipeline and its builds, and why each is right."""

from __future__ import annotations

from aws_cdk import Stack, pipelines
from aws_cdk import aws_codepipeline as codepipeline

from stages.artifact_store import ArtifactStore
from stages.findings import acknowledge, reference

_READING = (
    "IAM5[Action::s3:GetObject*]",
    "IAM5[Action::s3:GetBucket*]",
    "IAM5[Action::s3:List*]",
    "IAM5[Action::kms:ReEncrypt*]",
    "IAM5[Action::kms:GenerateDataKey*]",
)
_WRITING = ("IAM5[Action::s3:DeleteObject*]", "IAM5[Action::s3:Abort*]")


def acknowledge_pipeline(
    store: ArtifactStore, pipeline: codepipeline.Pipeline, delivery: pipelines.CodePipeline
) -> None:
    """Acknowledge them on the narrowest constructs; call when the pipeline is built."""
    stack = Stack.of(delivery)
    objects = f"IAM5[Resource::{reference(stack, store.bucket.bucket_arn)}/*]"
    for construct, actions in (
        (pipeline.role, _READING + _WRITING),
        (pipeline, _READING + _WRITING),
        (delivery, _READING),
    ):
        acknowledge(
            construct,
            "CDK's own grants on the artifact bucket and its key, which hold this pipeline's artifacts and nothing else.",
            *actions,
            objects,
        )
    for project in (delivery.synth_project, delivery.self_mutation_project):
        name = reference(stack, project.project_name)
        acknowledge(
            project,
            "A build writes to the log streams and reports of its own project; their names are made when it runs.",
            f"IAM5[Resource::arn:{stack.partition}:logs:{stack.region}:{stack.account}:log-group:/aws/codebuild/{name}:*]",
            f"IAM5[Resource::arn:{stack.partition}:codebuild:{stack.region}:{stack.account}:report-group/{name}-*]",
        )
    acknowledge(
        delivery.self_mutation_project,
        "Self-mutation deploys this stack through the bootstrap roles; the statement's condition admits only roles that"
        " carry the bootstrap's tags. Reading a stack's state has no narrower resource before the stack exists.",
        f"IAM5[Resource::arn:*:iam::{stack.account}:role/*]",
        "IAM5[Resource::*]",
    )
    acknowledge(
        delivery.node.find_child("Assets"),
        "ecr:GetAuthorizationToken has no resource to name; the publisher's log and report groups are named after it.",
        "IAM5[Resource::*]",
        f"IAM5[Resource::arn:{stack.partition}:logs:{stack.region}:{stack.account}:log-group:/aws/codebuild/*]",
        f"IAM5[Resource::arn:{stack.partition}:codebuild:{stack.region}:{stack.account}:report-group/*]",
    )
