"""A build in an environment as a step of CDK Pipelines: a native action that CodePipeline shows and waits for."""

from __future__ import annotations

from typing import Any

import jsii
from aws_cdk import aws_codebuild as codebuild
from aws_cdk import aws_codepipeline as codepipeline
from aws_cdk import aws_codepipeline_actions as actions
from aws_cdk import aws_iam as iam
from aws_cdk import pipelines
from constructs import Construct

from stages.environment_build import build_project, starter_role
from stages.settings import Environment


def exported(prefix: str, name: str, variable: str) -> str:
    """Stands, in an action's configuration, for what the build `name` exported in this execution."""
    return f"#{{{build_project(prefix, name)}.{variable}}}"


EXECUTION = "PIPELINE_EXECUTION"
"""The build's variable that holds the id of the pipeline execution that started it."""


@jsii.implements(pipelines.ICodePipelineActionFactory)
class EnvironmentBuildStep(pipelines.Step):
    """Starts the build `name` in an environment and waits for its verdict."""

    def __init__(
        self, name: str, *, prefix: str, environment: Environment, source: pipelines.IFileSetProducer
    ) -> None:
        super().__init__(name.title())
        self._name = name
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
        project = build_project(self._prefix, self._name)
        stage.add_action(
            actions.CodeBuildAction(
                action_name=action_name,
                run_order=run_order,
                variables_namespace=project,
                input=artifacts.to_code_pipeline(self._source),
                project=codebuild.PipelineProject.from_project_arn(
                    scope, f"{project}-project", f"arn:aws:codebuild:{region}:{account}:project/{project}"
                ),
                # Immutable: the role belongs to the environment, which grants it what it needs.
                role=iam.Role.from_role_arn(
                    scope,
                    f"{project}-starter",
                    f"arn:aws:iam::{account}:role/{starter_role(self._prefix, self._name)}",
                    mutable=False,
                ),
                environment_variables={
                    EXECUTION: codebuild.BuildEnvironmentVariable(
                        value=codepipeline.GlobalVariables.EXECUTION_ID
                    )
                },
            )
        )
        return pipelines.CodePipelineActionFactoryResult(run_orders_consumed=1)
