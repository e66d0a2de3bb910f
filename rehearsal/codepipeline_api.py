"""CodePipeline's API for the rehearsed accounts: answers from the records of executions, takes requests as records.

moto's own CodePipeline runs nothing and says Succeeded. Here an execution that is asked for becomes a record that is
queued; `python -m rehearsal operate` carries it out. What is refused, and by which error, is as AWS has it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from moto.codepipeline.exceptions import (
    PipelineExecutionNotFoundException,
    PipelineNotFoundException,
)
from moto.codepipeline.responses import CodePipelineResponse
from moto.core.exceptions import JsonRESTError

from rehearsal.cloudformation import Resource, load_stack
from rehearsal.executions import (
    ROLLBACK,
    START,
    Action,
    Executions,
    Record,
    StageRun,
    is_target,
    structure_version,
)
from rehearsal.pipeline import pipeline_of

_STATUSES = {"running": "InProgress", "succeeded": "Succeeded", "failed": "Failed", "rejected": "Failed"}


def answer_codepipeline(state: Path) -> None:
    """Have moto answer CodePipeline's API with what is in a rehearsal's state folder."""
    for name, answer in {
        "get_pipeline": _get_pipeline,
        "get_pipeline_state": _get_pipeline_state,
        "list_pipeline_executions": _list_pipeline_executions,
        "get_pipeline_execution": _get_pipeline_execution,
        "list_action_executions": _list_action_executions,
        "rollback_stage": _rollback_stage,
        "start_pipeline_execution": _start_pipeline_execution,
        "stop_pipeline_execution": _stop_pipeline_execution,
    }.items():
        setattr(CodePipelineResponse, name, _with_state(state, answer))


class _Deployed:
    """The pipeline that a request names, and its executions.

    Raises:
        PipelineNotFoundException: the rehearsal has no such pipeline.
    """

    def __init__(self, state: Path, name: str) -> None:
        file = state / "pipeline.json"
        where = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
        stack = load_stack(state, where["account"], where["region"], where["stack"]) if where else None
        if stack is None or pipeline_of(stack).physical.id != name:
            raise PipelineNotFoundException(f"The account does not have a pipeline with the name '{name}'.")
        self.pipeline: Resource = pipeline_of(stack)
        self.version = structure_version(self.pipeline)
        self.executions = Executions(state)

    @property
    def stages(self) -> list[str]:
        return [declared["Name"] for declared in self.pipeline.properties["Stages"]]

    def execution(self, id_: str) -> Record:
        """The execution of this id.

        Raises:
            PipelineExecutionNotFoundException: there is none.
        """
        record = self.executions.get(id_)
        if record is None:
            raise PipelineExecutionNotFoundException(f"Could not find an execution with the ID '{id_}'.")
        return record


Answer = Callable[[_Deployed, CodePipelineResponse], dict[str, Any]]


def _with_state(state: Path, answer: Answer) -> Callable[[CodePipelineResponse], str]:
    def respond(request: CodePipelineResponse) -> str:
        name = request._get_param("pipelineName") or request._get_param("name")
        return json.dumps(answer(_Deployed(state, name), request))

    return respond


def _get_pipeline(deployed: _Deployed, request: CodePipelineResponse) -> dict[str, Any]:
    stages = [
        {
            "name": stage["Name"],
            "actions": [
                {
                    "name": action["Name"],
                    "actionTypeId": {key.lower(): value for key, value in action["ActionTypeId"].items()},
                    "runOrder": int(action.get("RunOrder", 1)),
                }
                for action in stage["Actions"]
            ],
        }
        for stage in deployed.pipeline.properties["Stages"]
    ]
    return {
        "pipeline": {"name": deployed.pipeline.physical.id, "version": deployed.version, "stages": stages}
    }


def _get_pipeline_state(deployed: _Deployed, request: CodePipelineResponse) -> dict[str, Any]:
    states = []
    for stage in deployed.stages:
        latest = next(
            (
                (record, run)
                for record in deployed.executions.all()
                for run in record.stages
                if run.name == stage and _status_of(run) is not None
            ),
            None,
        )
        state: dict[str, Any] = {"stageName": stage}
        if latest is not None:
            record, run = latest
            state["latestExecution"] = {
                "pipelineExecutionId": record.id,
                "status": _status_of(run),
                "type": _type(record),
            }
        states.append(state)
    return {
        "pipelineName": deployed.pipeline.physical.id,
        "pipelineVersion": deployed.version,
        "stageStates": states,
    }


def _list_pipeline_executions(deployed: _Deployed, request: CodePipelineResponse) -> dict[str, Any]:
    records = deployed.executions.all()
    stage = (request._get_param("filter") or {}).get("succeededInStage", {}).get("stageName")
    if stage is not None:
        records = [r for r in records if r.pipeline_version == deployed.version and r.succeeded_in(stage)]
    return {"pipelineExecutionSummaries": [_summary(record) for record in records]}


def _get_pipeline_execution(deployed: _Deployed, request: CodePipelineResponse) -> dict[str, Any]:
    record = deployed.execution(request._get_param("pipelineExecutionId"))
    return {
        "pipelineExecution": {
            "pipelineName": record.pipeline,
            "pipelineVersion": record.pipeline_version,
            "artifactRevisions": [],
            **{
                key: value
                for key, value in _summary(record).items()
                if key not in ("startTime", "lastUpdateTime", "sourceRevisions")
            },
        }
    }


def _list_action_executions(deployed: _Deployed, request: CodePipelineResponse) -> dict[str, Any]:
    wanted = (request._get_param("filter") or {}).get("pipelineExecutionId")
    records = [deployed.execution(wanted)] if wanted else deployed.executions.all()
    kinds = {
        action["Name"]: action["ActionTypeId"]
        for stage in deployed.pipeline.properties["Stages"]
        for action in stage["Actions"]
    }
    details = [
        _detail(record, run, action, kinds.get(action.name, {}))
        for record in records
        for run in record.stages
        for action in run.actions
        if action.started is not None
    ]
    details.sort(key=lambda detail: str(detail["startTime"]), reverse=True)
    return {"actionExecutionDetails": details}


def _rollback_stage(deployed: _Deployed, request: CodePipelineResponse) -> dict[str, Any]:
    stage, target = (
        request._get_param("stageName"),
        deployed.execution(request._get_param("targetPipelineExecutionId")),
    )
    if stage not in deployed.stages:
        raise JsonRESTError("StageNotFoundException", f"The pipeline has no stage named '{stage}'.")
    if target.pipeline_version != deployed.version:
        raise JsonRESTError(
            "PipelineExecutionOutdatedException",
            f"Execution '{target.id}' was started in version {target.pipeline_version} of the pipeline's structure,"
            f" which is now version {deployed.version}.",
        )
    if not is_target(target, stage, deployed.version):
        why = "is a rollback itself" if target.is_rollback else "did not succeed in the stage"
        raise JsonRESTError(
            "UnableToRollbackStageException",
            f"Execution '{target.id}' {why}; it cannot be a rollback's target.",
        )
    if any(r.status == "InProgress" and _reached(r) == stage for r in deployed.executions.all()):
        raise JsonRESTError("ConflictException", f"Stage '{stage}' is running.")
    record = deployed.executions.begin(
        deployed.pipeline,
        commit=target.commit,
        subject=target.subject,
        trigger=ROLLBACK,
        who="",
        queued=True,
        target=target,
        stage=stage,
    )
    return {"pipelineExecutionId": record.id}


def _start_pipeline_execution(deployed: _Deployed, request: CodePipelineResponse) -> dict[str, Any]:
    revisions = request._get_param("sourceRevisions") or []
    source = deployed.pipeline.properties["Stages"][0]["Actions"][0]["Name"]
    if [(r["actionName"], r["revisionType"]) for r in revisions] != [(source, "COMMIT_ID")]:
        raise JsonRESTError(
            "ValidationException",
            f"Name one COMMIT_ID for the source action {source}: the rehearsed branch has no head of its own.",
        )
    record = deployed.executions.begin(
        deployed.pipeline,
        commit=revisions[0]["revisionValue"],
        subject="",
        trigger=START,
        who="",
        queued=True,
    )
    return {"pipelineExecutionId": record.id}


def _stop_pipeline_execution(deployed: _Deployed, request: CodePipelineResponse) -> dict[str, Any]:
    record = deployed.execution(request._get_param("pipelineExecutionId"))
    if record.status != "InProgress":
        raise JsonRESTError(
            "PipelineExecutionNotStoppableException", f"Execution '{record.id}' has ended: {record.status}."
        )
    deployed.executions.ask_to_stop(record)
    return {"pipelineExecutionId": record.id}


def _summary(record: Record) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "pipelineExecutionId": record.id,
        "status": record.status,
        "startTime": record.started,
        "lastUpdateTime": record.ended or record.started,
        # AWS names no revision for a rollback; it names the execution that it goes back to.
        "sourceRevisions": []
        if record.is_rollback
        else [{"actionName": "Source", "revisionId": record.commit, "revisionSummary": record.subject}],
        "trigger": {"triggerType": record.trigger, "triggerDetail": record.who},
        "executionMode": "QUEUED",
        "executionType": _type(record),
    }
    if record.is_rollback:
        summary["rollbackMetadata"] = {"rollbackTargetPipelineExecutionId": record.rollback_target}
    return summary


def _detail(record: Record, run: StageRun, action: Action, kind: dict[str, str]) -> dict[str, Any]:
    assert action.started is not None
    ended = datetime.fromisoformat(action.started) + timedelta(seconds=action.seconds)
    status = _STATUSES[action.status]
    if status == "InProgress" and record.status != "InProgress":
        status = "Abandoned"
    who = next((a.who for a in record.approvals if (a.stage, a.action) == (run.name, action.name)), "")
    return {
        "pipelineExecutionId": record.id,
        "actionExecutionId": f"{record.id}/{run.name}/{action.name}",
        "pipelineVersion": record.pipeline_version,
        "stageName": run.name,
        "actionName": action.name,
        "startTime": action.started,
        "lastUpdateTime": ended.isoformat(timespec="milliseconds"),
        "updatedBy": who,
        "status": status,
        "input": {"actionTypeId": {key.lower(): value for key, value in kind.items()}},
        "output": {
            "executionResult": {
                "externalExecutionSummary": action.summary,
                "externalExecutionUrl": action.log or "",
            }
        },
    }


def _type(record: Record) -> str:
    return "ROLLBACK" if record.is_rollback else "STANDARD"


def _status_of(run: StageRun) -> str | None:
    """A stage's status in CodePipeline's words; None if it was not entered."""
    if run.status == "not run":
        return "InProgress" if any(action.started for action in run.actions) else None
    return _STATUSES[run.status]


def _reached(record: Record) -> str | None:
    """The stage that an execution is in."""
    entered = [run.name for run in record.stages if _status_of(run) is not None]
    return entered[-1] if entered else record.rollback_stage
