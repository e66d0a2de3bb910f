"""What was released to an environment, what serves there now, and what it can go back to.

Two sources: CodePipeline's history (commit, status, who approved), and the release record that the migrate step writes
to Parameter Store in the environment's account for every release (image, schema revision, kind of migration, snapshot).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from operations.aws import CannotOperate, parameter_history, pipeline_client, sentences
from stages.settings import Settings

EXECUTIONS = 100
"""How many executions of the pipeline are looked at. AWS keeps those of twelve months."""

ACTIONS = 3000
"""How many action executions are looked at; one release has about 30."""


@dataclass(frozen=True)
class Migrated:
    """A release record: what the migrate step found and did. `snapshot` was taken before a migration, if there was one."""

    commit: str
    image_digest: str
    revision: str
    kind: str
    snapshot: str | None
    execution: str
    at: str
    restored_from: str | None = None


@dataclass(frozen=True)
class Release:
    """One execution of the pipeline in one environment."""

    execution: str
    commit: str
    subject: str
    started: datetime
    status: str
    by: str
    is_rollback: bool
    migrated: Migrated | None


Way = Literal["stage rollback", "re-run"]


@dataclass(frozen=True)
class History:
    """An environment's releases, the newest first."""

    environment: str
    account: str
    stage: str
    releases: list[Release]
    serving: Release | None
    since: datetime | None
    migrated: list[Migrated]
    """Release records that lead to the database as it is, the oldest first."""
    targets: dict[str, str] = field(default_factory=dict)
    """By commit: the newest execution that CodePipeline lets the stage be rolled back to."""
    running: str | None = None
    """The execution that is in this stage now."""

    def succeeded(self, commit: str) -> bool:
        """Whether a commit has gone through this environment."""
        return any(r.commit == commit and r.status == "succeeded" for r in self.releases)

    def barrier(self, commit: str) -> Migrated | None:
        """The oldest breaking migration since a commit was last released here, or None."""
        places = [place for place, record in enumerate(self.migrated) if record.commit == commit]
        if not places:
            return None
        after = self.migrated[places[-1] + 1 :]
        return next((record for record in after if record.kind == "breaking"), None)

    def way_back(self, commit: str) -> Way:
        """How this environment would be taken to a commit that it had before."""
        return "stage rollback" if commit in self.targets else "re-run"

    def before_this(self) -> str | None:
        """The commit that was released here before the one that serves, for the first time each; None if there is none."""
        if self.serving is None:
            return None
        first: dict[str, datetime] = {}
        for release in self.releases:
            first[release.commit] = min(release.started, first.get(release.commit, release.started))
        earlier = [
            commit
            for commit, started in first.items()
            if started < first[self.serving.commit] and self.succeeded(commit)
        ]
        return max(earlier, key=lambda commit: first[commit]) if earlier else None


class Pipeline:
    """CodePipeline's history of the pipeline, read once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.client = pipeline_client(settings)
        name, tooling = settings.name, settings.tooling
        with sentences(f"reading the pipeline {name} in account {tooling.account}"):
            try:
                state = self.client.get_pipeline_state(name=name)
            except self.client.exceptions.PipelineNotFoundException:
                raise CannotOperate(
                    f"there is no pipeline {name} in {tooling.region} of the account that your credentials are for;"
                    f" it is in the tooling account {tooling.account}"
                ) from None
            definition = self.client.get_pipeline(name=name)["pipeline"]
            self.executions = self._pages(
                "list_pipeline_executions", "pipelineExecutionSummaries", EXECUTIONS, pipelineName=name
            )
            self.actions = self._pages(
                "list_action_executions", "actionExecutionDetails", ACTIONS, pipelineName=name
            )
        self.stages = {stage["name"]: stage["actions"] for stage in definition["stages"]}
        self.source_action = str(definition["stages"][0]["actions"][0]["name"])
        self._states = {stage["stageName"]: stage for stage in state["stageStates"]}
        self._by_id = {execution["pipelineExecutionId"]: execution for execution in self.executions}

    def history(self, environment: str) -> History:
        """What was released to an environment."""
        own = dict(self._settings.environments.items())[environment]
        prefix, stage = f"{self._settings.name}-{environment}", environment.title()
        parameter = f"/{prefix}/release"
        migrated = [_migrated(text, parameter) for text in parameter_history(self._settings, own, parameter)]
        releases = [
            self._release(execution, stage, migrated)
            for execution in self.executions
            if any(self._in(execution["pipelineExecutionId"], stage))
        ]
        deploys = [
            action
            for action in self.actions
            if (action["stageName"], action["actionName"], action["status"])
            == (stage, f"{prefix}-tracking.Deploy", "Succeeded")
        ]
        last = max(deploys, key=lambda action: action["lastUpdateTime"], default=None)
        serving = next((r for r in releases if last and r.execution == last["pipelineExecutionId"]), None)
        with sentences(f"reading what succeeded in {stage}"):
            rollback_targets = self._pages(
                "list_pipeline_executions",
                "pipelineExecutionSummaries",
                EXECUTIONS,
                pipelineName=self._settings.name,
                filter={"succeededInStage": {"stageName": stage}},
            )
        latest = self._states.get(stage, {}).get("latestExecution", {})
        return History(
            environment=environment,
            account=own.account,
            stage=stage,
            releases=releases,
            serving=serving,
            since=last["lastUpdateTime"] if last else None,
            migrated=_leading_to_now(migrated),
            targets={
                self.commit(execution): execution["pipelineExecutionId"]
                for execution in reversed(rollback_targets)
                if execution.get("executionType") != "ROLLBACK"
            },
            running=latest.get("pipelineExecutionId") if latest.get("status") == "InProgress" else None,
        )

    def commit(self, execution: dict[str, Any]) -> str:
        """The commit of an execution; of a rollback, that of the execution that it goes back to."""
        return str(self._source(execution).get("revisionId", "unknown"))

    def in_progress(self) -> str | None:
        """The newest execution that is not at its end."""
        return next(
            (e["pipelineExecutionId"] for e in self.executions if e["status"] in ("InProgress", "Stopping")),
            None,
        )

    def _release(self, execution: dict[str, Any], stage: str, migrated: list[Migrated]) -> Release:
        id_, commit = execution["pipelineExecutionId"], self.commit(execution)
        records = [r for r in migrated if r.execution == id_] or [r for r in migrated if r.commit == commit]
        return Release(
            execution=id_,
            commit=commit,
            subject=_subject(self._source(execution).get("revisionSummary", "")),
            started=execution["startTime"],
            status=self._status(execution, stage),
            by=self._by(execution, stage),
            is_rollback=execution.get("executionType") == "ROLLBACK",
            migrated=records[-1] if records else None,
        )

    def _source(self, execution: dict[str, Any]) -> dict[str, Any]:
        target = execution.get("rollbackMetadata", {}).get("rollbackTargetPipelineExecutionId")
        revisions = self._by_id.get(target, {}) if target else execution
        return next(iter(revisions.get("sourceRevisions", [])), {})

    def _in(self, execution: str, *stages: str) -> list[dict[str, Any]]:
        """The newest run of each action that an execution ran in stages."""
        newest: dict[tuple[str, str], dict[str, Any]] = {}
        for action in self.actions:
            key = (action["stageName"], action["actionName"])
            if action["pipelineExecutionId"] == execution and action["stageName"] in stages:
                other = newest.get(key)
                if other is None or other["startTime"] < action["startTime"]:
                    newest[key] = action
        return sorted(newest.values(), key=lambda action: action["startTime"])

    def _status(self, execution: dict[str, Any], stage: str) -> str:
        actions = self._in(execution["pipelineExecutionId"], stage)
        for word, said in (("Failed", "failed at"), ("InProgress", "runs"), ("Abandoned", "stopped at")):
            for action in actions:
                if action["status"] == word:
                    return f"{said} {action['actionName']}"
        later = list(self.stages)[list(self.stages).index(stage) + 1 :]
        if execution["status"] == "Succeeded" or any(self._in(execution["pipelineExecutionId"], *later)):
            return "succeeded"
        whole = {action["name"] for action in self.stages[stage]} <= {a["actionName"] for a in actions}
        return "succeeded" if whole else "runs" if execution["status"] == "InProgress" else "stopped"

    def _by(self, execution: dict[str, Any], stage: str) -> str:
        """Who let it in: who approved it on the way, or who asked for the rollback."""
        trigger = execution.get("trigger", {})
        if trigger.get("triggerType") == "AutomatedRollback":
            return "automatic rollback"
        if trigger.get("triggerType") == "ManualRollback":
            return f"rollback by {_person(trigger.get('triggerDetail', ''))}"
        before = list(self.stages)[: list(self.stages).index(stage)]
        approvals = [
            action
            for action in self._in(execution["pipelineExecutionId"], *before)
            if action.get("input", {}).get("actionTypeId", {}).get("category") == "Approval"
            and action["status"] == "Succeeded"
        ]
        return ", ".join(_person(action.get("updatedBy", "")) for action in approvals)

    def _pages(self, operation: str, key: str, limit: int, **arguments: Any) -> list[dict[str, Any]]:
        pages = self.client.get_paginator(operation).paginate(
            **arguments, PaginationConfig={"MaxItems": limit}
        )
        return [item for page in pages for item in page.get(key, [])]


def show(history: History) -> str:
    """An environment's releases as a table."""
    head = f"{history.environment} (account {history.account}): "
    if history.serving is None:
        return f"{head}nothing was released yet, or not in the pipeline's last {EXECUTIONS} executions"
    head += f"{history.serving.commit[:12]} serves since {_time(history.since)}"
    rows = [("commit", "subject", "image", "schema", "released (UTC)", "approved by", "status", "go back")]
    for release in history.releases:
        record = release.migrated
        rows.append(
            (
                release.commit[:12],
                _shortened(release.subject, 34),
                record.image_digest.removeprefix("sha256:")[:12] if record else "-",
                _schema(record) if record else "-",
                _time(release.started),
                release.by or "-",
                release.status,
                _go_back(history, release),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([head, *(f"  {line}".rstrip() for line in lines)])


def _schema(record: Migrated) -> str:
    migrated = record.kind in ("additive", "breaking")
    return f"{record.revision[:12]}{f' ({record.kind})' if migrated else ''}"


def _go_back(history: History, release: Release) -> str:
    assert history.serving is not None
    if release.execution == history.serving.execution:
        return "serves now"
    if release.commit == history.serving.commit:
        return "-"
    if not history.succeeded(release.commit):
        return "no: never succeeded here"
    if barrier := history.barrier(release.commit):
        return f"no: breaking migration in {barrier.commit[:12]}"
    return history.way_back(release.commit)


def _leading_to_now(migrated: list[Migrated]) -> list[Migrated]:
    """What made the database in use: without the record whose snapshot was restored, and those after it."""
    # Each database has a history of its own: the first one, and one for each snapshot that one was made from.
    histories: dict[str | None, list[Migrated]] = {}
    now: list[Migrated] = []
    for record in migrated:
        if record.restored_from not in histories:
            places = [place for place, old in enumerate(now) if old.snapshot == record.restored_from]
            histories[record.restored_from] = now[: places[-1]] if places else list(now)
        now = histories[record.restored_from]
        now.append(record)
    return now


def _migrated(text: str, parameter: str) -> Migrated:
    try:
        content = json.loads(text)
        return Migrated(**{key: content.get(key) for key in Migrated.__dataclass_fields__ if key in content})
    except (ValueError, TypeError, AttributeError) as error:
        raise CannotOperate(
            f"{parameter} has a version that is no release record ({error}); only the migrate step may write it"
        ) from None


def _subject(summary: str) -> str:
    """A commit's first line. A connection to GitHub gives the message inside a JSON object."""
    try:
        content = json.loads(summary)
        message = content["CommitMessage"] if isinstance(content, dict) else summary
    except (ValueError, KeyError):
        message = summary
    return str(message).partition("\n")[0]


def _person(arn: str) -> str:
    """The last part of an ARN: a user, or the session name of a role, which single sign-on makes the person's name."""
    return arn.rpartition("/")[2] or "unknown"


def _time(moment: datetime | None) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M") if moment else "-"


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
