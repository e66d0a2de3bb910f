"""The rehearsed CodePipeline refuses what AWS's refuses, by the same errors."""

from __future__ import annotations

from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from .small_pipeline import Small

UNKNOWN = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def codepipeline(small: Small) -> Any:
    tooling = small.settings.tooling
    key = small.accounts.administrator(tooling.account, tooling.region)
    return boto3.client(
        "codepipeline",
        region_name=tooling.region,
        endpoint_url=small.accounts.endpoint,
        aws_access_key_id=key.access_key_id,
        aws_secret_access_key=key.secret_access_key,
        aws_session_token=key.session_token,
    )


def refusal(codepipeline: Any, stage: str, target: str) -> str:
    with pytest.raises(ClientError) as refused:
        codepipeline.rollback_stage(pipelineName="mlflow", stageName=stage, targetPipelineExecutionId=target)
    return str(refused.value.response["Error"]["Code"])


def test_rollback_targets(small: Small, codepipeline: Any) -> None:
    small.release("1")
    first = small.newest()
    small.release("2", check='[ "$ENVIRONMENT" != dev ]')
    rollback, failed, _ = small.executions.all()
    assert refusal(codepipeline, "Dev", UNKNOWN) == "PipelineExecutionNotFoundException"
    assert refusal(codepipeline, "Nowhere", first.id) == "StageNotFoundException"
    assert refusal(codepipeline, "Dev", failed.id) == "UnableToRollbackStageException"
    assert refusal(codepipeline, "Dev", rollback.id) == "UnableToRollbackStageException"
    begun = codepipeline.rollback_stage(
        pipelineName="mlflow", stageName="Dev", targetPipelineExecutionId=first.id
    )
    assert small.newest().id == begun["pipelineExecutionId"]
    assert small.newest().queued
    assert refusal(codepipeline, "Dev", first.id) == "ConflictException"
    small.release("3", stage="Another")
    assert refusal(codepipeline, "Dev", first.id) == "PipelineExecutionOutdatedException"


def test_a_queued_execution_can_be_stopped_and_one_that_ended_cannot(small: Small, codepipeline: Any) -> None:
    small.release("1")
    revision = {"actionName": "repository", "revisionType": "COMMIT_ID", "revisionValue": "HEAD"}
    begun = codepipeline.start_pipeline_execution(name="mlflow", sourceRevisions=[revision])
    which = {"pipelineName": "mlflow", "pipelineExecutionId": begun["pipelineExecutionId"]}
    codepipeline.stop_pipeline_execution(**which, abandon=True)
    assert codepipeline.get_pipeline_execution(**which)["pipelineExecution"]["status"] == "Stopped"
    with pytest.raises(codepipeline.exceptions.PipelineExecutionNotStoppableException):
        codepipeline.stop_pipeline_execution(**which, abandon=True)


def test_a_re_run_names_the_source_actions_commit(codepipeline: Any) -> None:
    with pytest.raises(codepipeline.exceptions.ValidationException, match="source action repository"):
        codepipeline.start_pipeline_execution(name="mlflow")


def test_another_pipeline_is_not_there(codepipeline: Any) -> None:
    with pytest.raises(codepipeline.exceptions.PipelineNotFoundException):
        codepipeline.list_pipeline_executions(pipelineName="other")
