"""Takes an environment back to an earlier release, and follows that to its end."""

from __future__ import annotations

import sys
import time
from typing import Any

from operations.aws import CannotOperate, sentences
from operations.confirm import confirmed
from operations.releases import History, Migrated, Pipeline, show
from stages.settings import Settings

POLL_SECONDS = 2.0
SHORTEST_COMMIT = 7
"""Digits of a commit that are asked for at least; what git shows."""

RESTARTS = 3
"""How often a re-run is started anew because the pipeline changed itself to that commit's definition and restarted."""

DONE, FAILED, REFUSED = 0, 1, 3
RESTARTED = "Restarted"


class Rollback:
    """One rollback of one environment."""

    def __init__(self, settings: Settings, environment: str) -> None:
        self._settings = settings
        self._pipeline = Pipeline(settings)
        self._history = self._pipeline.history(environment)

    def run(self, to: str | None, *, yes: bool) -> int:
        """Show, check, ask, do, follow. 0: it serves; 1: it was begun and failed; 3: a breaking migration forbids it.

        Raises:
            CannotOperate: there is nothing to go back to, nobody said yes, or AWS refused. Nothing was changed.
        """
        history = self._history
        print(show(history), end="\n\n")
        commit = self._target(to)
        if barrier := history.barrier(commit):
            print(_refusal(history, commit, barrier), file=sys.stderr)
            return REFUSED
        self._check_idle(commit)
        print(self._plan(commit))
        if not confirmed("Do it?", yes=yes):
            raise CannotOperate("Nothing was changed.")
        way = history.way_back(commit)
        execution = self._roll_back(commit) if way == "stage rollback" else self._start(commit)
        print(f"\n{'Rolling back' if way == 'stage rollback' else 'Re-running'}: execution {execution}")
        try:
            return self._conclude(commit, self._follow(execution, commit))
        except CannotOperate as problem:
            print(
                f"{problem}\nThe rollback was begun and goes on in CodePipeline: `make releases"
                f" ENV={history.environment}` shows what became of it.",
                file=sys.stderr,
            )
            return FAILED

    def _target(self, to: str | None) -> str:
        history = self._history
        name = history.environment
        if history.serving is None:
            raise CannotOperate(f"nothing was released to {name} yet; there is nothing to go back to")
        if to is None:
            commit = history.before_this()
            if commit is None:
                raise CannotOperate(
                    f"{history.serving.commit[:12]} is the first release that succeeded in {name}; there is none before it"
                )
            return commit
        if len(to) < SHORTEST_COMMIT:
            raise CannotOperate(f"{to}: give at least {SHORTEST_COMMIT} digits of the commit")
        found = {r.commit for r in history.releases if r.commit.startswith(to.lower())}
        if len(found) != 1:
            what = "fits several releases; give more digits" if found else "was not released there"
            raise CannotOperate(f"{to}: {what}; `make releases ENV={name}` lists them")
        commit = found.pop()
        if commit == history.serving.commit:
            raise CannotOperate(f"{commit[:12]} serves in {name} already")
        if not history.succeeded(commit):
            raise CannotOperate(
                f"{commit[:12]} never succeeded in {name}; to try it again, retry its failed stage in CodePipeline"
            )
        return commit

    def _check_idle(self, commit: str) -> None:
        history = self._history
        if history.running is not None:
            raise CannotOperate(
                f"execution {history.running} is in {history.stage} now; wait for its end, or stop it:"
                f" aws codepipeline stop-pipeline-execution --pipeline-name {self._settings.name}"
                f" --pipeline-execution-id {history.running} --abandon"
            )
        running = self._pipeline.in_progress()
        if history.way_back(commit) == "re-run" and running is not None:
            raise CannotOperate(
                f"execution {running} is in the pipeline, and a re-run would wait behind it: reject its approval if it"
                f" waits for one, or stop it: aws codepipeline stop-pipeline-execution --pipeline-name"
                f" {self._settings.name} --pipeline-execution-id {running} --abandon"
            )

    def _plan(self, commit: str) -> str:
        history = self._history
        assert history.serving is not None
        lines = [f"{history.environment} goes from {history.serving.commit[:12]} back to {commit[:12]}:"]
        if history.way_back(commit) == "stage rollback":
            lines.append(
                f"  how       stage rollback: {history.stage} alone, with that release's own artifacts; no approval"
            )
        else:
            lines.append(
                "  how       re-run of that commit through the whole pipeline, every environment and the approval"
                " included: the pipeline's definition changed since, so CodePipeline cannot roll the stage back"
            )
        if any(record.commit == commit for record in history.migrated):
            lines.append("  database  stays as it is; no migration since then is recorded as breaking")
        else:
            lines.append(
                "  database  stays as it is; there is no release record of that commit, so whether its schema fits is"
                " for the migrate step to find out: it stops the rollback before the service is touched"
            )
        return "\n".join(lines)

    def _roll_back(self, commit: str) -> str:
        with sentences(f"rolling {self._history.stage} back"):
            begun = self._pipeline.client.rollback_stage(
                pipelineName=self._settings.name,
                stageName=self._history.stage,
                targetPipelineExecutionId=self._history.targets[commit],
            )
        return str(begun["pipelineExecutionId"])

    def _start(self, commit: str) -> str:
        with sentences(f"starting the pipeline for commit {commit}"):
            begun = self._pipeline.client.start_pipeline_execution(
                name=self._settings.name,
                sourceRevisions=[
                    {
                        "actionName": self._pipeline.source_action,
                        "revisionType": "COMMIT_ID",
                        "revisionValue": commit,
                    }
                ],
            )
        return str(begun["pipelineExecutionId"])

    def _follow(self, execution: str, commit: str) -> bool:
        """Print what happens until the environment's stage is through, or the execution has ended."""
        for _ in range(RESTARTS):
            status = self._follow_one(execution)
            if status != RESTARTED:
                return status == "Succeeded"
            print("The pipeline took on that commit's definition of itself and begins again.")
            execution = self._after_restart(execution, commit)
            print(f"Re-running: execution {execution}")
        return False

    def _follow_one(self, execution: str) -> str:
        client, name = self._pipeline.client, self._settings.name
        seen: set[str] = set()
        waits = False
        while True:
            with sentences(f"following execution {execution}"):
                status = client.get_pipeline_execution(pipelineName=name, pipelineExecutionId=execution)[
                    "pipelineExecution"
                ]["status"]
                pages = client.get_paginator("list_action_executions").paginate(
                    pipelineName=name, filter={"pipelineExecutionId": execution}
                )
                actions = [action for page in pages for action in page["actionExecutionDetails"]]
            actions.sort(key=lambda action: action["startTime"])
            for action in actions:
                if action["status"] != "InProgress" and action["actionExecutionId"] not in seen:
                    seen.add(action["actionExecutionId"])
                    print(_line(action), flush=True)
                if action["status"] == "InProgress" and _is_approval(action) and not waits:
                    waits = True
                    print(
                        f"  … {action['stageName']} / {action['actionName']} waits for a person", flush=True
                    )
            if status not in ("InProgress", "Stopping"):
                # CodePipeline cancels an execution when the pipeline's definition changes; older ones it calls failed.
                failed = any(action["status"] == "Failed" for action in actions)
                return RESTARTED if status in ("Cancelled", "Failed") and not failed else str(status)
            if self._is_through(actions):
                print(f"The re-run goes on to what comes after {self._history.stage}.")
                return "Succeeded"
            time.sleep(POLL_SECONDS)

    def _is_through(self, actions: list[dict[str, Any]]) -> bool:
        """Whether the environment's stage is over, although a re-run goes on to those after it."""
        stages = list(self._pipeline.stages)
        later = stages[stages.index(self._history.stage) + 1 :]
        return any(action["stageName"] in later for action in actions)

    def _after_restart(self, cancelled: str, commit: str) -> str:
        """The execution that takes `commit` on, after the pipeline restarted because its definition changed.

        CloudFormation restarts the pipeline with the branch's newest commit, which would bring the release back that is
        being left. So that one is stopped, and the commit is started again.
        """
        with sentences("looking for the restarted execution"):
            found = Pipeline(self._settings)
            for execution in found.executions:
                id_ = execution["pipelineExecutionId"]
                if id_ == cancelled:
                    break
                if execution["status"] == "InProgress" and found.commit(execution) == commit:
                    return str(id_)
                if execution["status"] == "InProgress":
                    found.client.stop_pipeline_execution(
                        pipelineName=self._settings.name,
                        pipelineExecutionId=id_,
                        abandon=True,
                        reason=f"a re-run of {commit[:12]} was restarted with another commit",
                    )
        return self._start(commit)

    def _conclude(self, commit: str, succeeded: bool) -> int:
        history = Pipeline(self._settings).history(self._history.environment)
        serves = history.serving.commit if history.serving else "nothing"
        print()
        if succeeded and serves == commit:
            print(f"{history.environment} serves {commit[:12]} again.")
            return DONE
        print(
            f"The rollback to {commit[:12]} did not succeed; {history.environment} serves {serves[:12]}."
            " What failed is marked above; its log says why."
        )
        return FAILED


def _refusal(history: History, commit: str, breaking: Migrated) -> str:
    name = history.environment
    said = (
        f"{name} cannot go back to {commit[:12]}: release {breaking.commit[:12]} of {breaking.at} changed the database's"
        f" schema (to {breaking.revision}) so that older releases cannot use it. Nothing was changed."
    )
    if breaking.snapshot is None:
        return f"{said}\nNo snapshot was taken before that migration: the way out is a new release that mends what is wrong."
    return (
        f"{said}\nThe database as it was before is kept as snapshot {breaking.snapshot}. To go back to it:\n"
        f"    make restore ENV={name} SNAPSHOT={breaking.snapshot}\n"
        f"That would lose all that was written to {name} since {breaking.at}. A new release that mends what is wrong"
        " loses nothing."
    )


def _is_approval(action: dict[str, Any]) -> bool:
    kind = action.get("input", {}).get("actionTypeId", {})
    return bool(kind.get("category") == "Approval")


def _line(action: dict[str, Any]) -> str:
    mark = "✓" if action["status"] == "Succeeded" else "✗"
    seconds = (action["lastUpdateTime"] - action["startTime"]).total_seconds()
    result = action.get("output", {}).get("executionResult", {})
    error = result.get("errorDetails", {}).get("message", "")
    said = error or result.get("externalExecutionSummary", "")
    where = f"{action['stageName']} / {action['actionName']}"
    line = f"  {mark} {where:<44} {seconds:7.0f} s  {said}".rstrip()
    log = result.get("externalExecutionUrl")
    return f"{line}\n      {log}" if action["status"] == "Failed" and log else line
