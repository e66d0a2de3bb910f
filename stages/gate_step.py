"""A gate as a step of CDK Pipelines: a native action that starts a CodeBuild project in the environment's account."""

from __future__ import annotations

from typing import Any

import jsii
from aws_cdk import aws_codebuild as codebuild
from aws_cdk import aws_codepipeline as codepipeline
from aws_cdk import aws_codepipeline_actions as actions
from aws_cdk import aws_iam as iam
from aws_cdk import pipelines
from constructs import Construct

from stages.gates import gate_project, starter_role
from stages.settings import Environment


@jsii.implements(pipelines.ICodePipelineActionFactory)
class GateStep(pipelines.Step):
    """Starts `gate` in an environment and waits for its verdict; CodePipeline shows the build in the other account."""

    def __init__(
        self, gate: str, *, prefix: str, environment: Environment, source: pipelines.IFileSetProducer
    ) -> None:
        super().__init__(gate.title())
        self._gate = gate
        self._prefix = prefix
        self._environment = environment
        assert source.primary_output is not None
        self._source = source.primary_output

    @jsii.member(jsii_name="produceAction")
    def produce_action(
        self,
        stage: codepipeline.IStage,
        *,
        scope: Construct,
        action_name: str,
        run_order: int,
        artifacts: pipelines.ArtifactMap,
        **_others: Any,
    ) -> pipelines.CodePipelineActionFactoryResult:
        """Add the action to the pipeline's stage."""
        region, account = self._environment.region, self._environment.account
        project = gate_project(self._prefix, self._gate)
        stage.add_action(
            actions.CodeBuildAction(
                action_name=action_name,
                run_order=run_order,
                input=artifacts.to_code_pipeline(self._source),
                project=codebuild.PipelineProject.from_project_arn(
                    scope, f"{project}-project", f"arn:aws:codebuild:{region}:{account}:project/{project}"
                ),
                # Immutable: the role belongs to the environment, which grants it what it needs.
                role=iam.Role.from_role_arn(
                    scope,
                    f"{project}-starter",
                    f"arn:aws:iam::{account}:role/{starter_role(self._prefix)}",
                    mutable=False,
                ),
            )
        )
        return pipelines.CodePipelineActionFactoryResult(run_orders_consumed=1)
