"""The delivery pipeline, from a push to main to MLflow in production. Read from top to bottom, this is the pipeline."""

from __future__ import annotations

import sys
from typing import Any

from aws_cdk import App, Stack, pipelines
from aws_cdk import Environment as AwsEnvironment
from aws_cdk import aws_codebuild as codebuild
from aws_cdk import aws_codepipeline as codepipeline
from aws_cdk import aws_iam as iam
from constructs import Construct

from stages.artifact_store import ArtifactStore
from stages.build_step import EnvironmentBuildStep, exported
from stages.environment_build import pipeline_role
from stages.gates import LOAD, SMOKE
from stages.migration import MIGRATE
from stages.packs import check
from stages.pipeline_conditions import roll_back_on_failure
from stages.pipeline_findings import acknowledge_pipeline
from stages.platform import PlatformStage
from stages.processors import PROCESSORS
from stages.settings import Settings, SettingsError, load_settings
from stages.toolchain import BUILD_IMAGE, npm_pin


class PipelineStack(Stack):
    """Source, Build, UpdatePipeline, Assets, Dev, Staging, Promote, Prod."""

    def __init__(self, scope: Construct, construct_id: str, *, settings: Settings, **stack: Any) -> None:
        super().__init__(scope, construct_id, **stack)
        store = ArtifactStore(self, "ArtifactStore", settings=settings)

        source = pipelines.CodePipelineSource.connection(
            settings.source.repository,
            settings.source.branch,
            connection_arn=settings.source.connection_arn,
            trigger_on_push=True,
        )

        pipeline = codepipeline.Pipeline(
            self,
            "Pipeline",
            pipeline_name=settings.name,
            pipeline_type=codepipeline.PipelineType.V2,
            execution_mode=codepipeline.ExecutionMode.QUEUED,
            restart_execution_on_update=True,
            artifact_bucket=store.bucket,
            role=iam.Role(
                self,
                "PipelineRole",
                role_name=pipeline_role(settings.name),
                assumed_by=iam.ServicePrincipal("codepipeline.amazonaws.com"),
            ),
        )
        delivery = pipelines.CodePipeline(
            self,
            "Delivery",
            code_pipeline=pipeline,
            synth=pipelines.CodeBuildStep(
                "Check",
                input=source,
                commands=["make check"],
                primary_output_directory="cdk.out",
            ),
            code_build_defaults=pipelines.CodeBuildOptions(
                build_environment=codebuild.BuildEnvironment(build_image=BUILD_IMAGE)
            ),
            # The image is built once for every environment, on the kind of processor that it will run on.
            asset_publishing_code_build_defaults=pipelines.CodeBuildOptions(
                build_environment=codebuild.BuildEnvironment(
                    build_image=PROCESSORS[settings.image.architecture].build
                )
            ),
            cli_version=npm_pin("aws-cdk"),
            cdk_assets_cli_version=npm_pin("cdk-assets"),
            # One publisher: the image is built once, and its project's definition does not change with the image, so
            # that an image-only release leaves the pipeline as it is and past executions stay rollback targets.
            publish_assets_in_parallel=False,
            # A prepared change set that failed cannot be retried (aws-cdk #21677).
            use_change_sets=False,
        )

        def step(name: str, environment: str) -> EnvironmentBuildStep:
            return EnvironmentBuildStep(
                name,
                prefix=f"{settings.name}-{environment}",
                environment=dict(settings.environments.items())[environment],
                source=source,
            )

        def deploy(environment: str) -> None:
            stage = PlatformStage(self, environment.title(), settings=settings, environment=environment)
            # The service rolls out only when the migration has said yes.
            before_service = pipelines.StackSteps(stack=stage.migration, post=[step(MIGRATE, environment)])
            smoke, load = step(SMOKE, environment), step(LOAD, environment)
            load.add_step_dependency(smoke)
            delivery.add_stage(stage, stack_steps=[before_service], post=[smoke, load])

        deploy("dev")
        deploy("staging")

        staging = f"{settings.name}-staging"
        # A stage of its own: a rollback of Prod is not held up by an approval inside it.
        delivery.add_wave(
            "Promote",
            pre=[
                pipelines.ManualApprovalStep(
                    "Approve",
                    # CodePipeline fills the builds' variables in. The text itself is the same for every release: another
                    # would be another pipeline, without rollback targets.
                    comment="Staging runs this release and passed its smoke tests and its load check"
                    f" ({exported(staging, LOAD, 'VERDICT')}). Its schema: {exported(staging, MIGRATE, 'SCHEMA')}"
                    " `make releases` shows what each environment runs and can go back to. Approve it for prod?",
                )
            ],
        )

        deploy("prod")
        delivery.build_pipeline()
        roll_back_on_failure(pipeline, ("Dev", "Staging", "Prod"))
        acknowledge_pipeline(store, pipeline, delivery)


def main() -> int:
    """Synthesize; cdk-nag findings that nobody acknowledged make it fail."""
    try:
        settings = load_settings()
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    app = App()
    PipelineStack(
        app,
        f"{settings.name}-pipeline",
        settings=settings,
        env=AwsEnvironment(account=settings.tooling.account, region=settings.tooling.region),
    )
    check(app, settings.compliance)
    app.synth()
    return 0


if __name__ == "__main__":
    sys.exit(main())
