"""CodePipeline's history: one record for each execution, in a folder with its artifacts, logs and reports.

A record is written whole after each change. Times are UTC in ISO 8601; statuses and triggers are CodePipeline's own
words. An execution that was asked for through CodePipeline's API waits as a record that is `queued`.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rehearsal.cloudformation import Resource

KEPT = 20
"""Executions whose records and artifacts are kept. AWS keeps the history of twelve months."""

PUSH = "WebhookV2"
START = "StartPipelineExecution"
ROLLBACK = "ManualRollback"
AUTOMATED_ROLLBACK = "AutomatedRollback"


@dataclass
class Action:
    """What happened to one action of a stage."""

    name: str
    provider: str
    status: str = "not run"
    seconds: float = 0.0
    summary: str = ""
    log: str | None = None
    reports: str | None = None
    started: str | None = None


@dataclass
class StageRun:
    """What happened to one stage; `status` is succeeded, failed, rejected or not run."""

    name: str
    status: str = "not run"
    seconds: float = 0.0
    actions: list[Action] = field(default_factory=list)


@dataclass
class Approval:
    """What a person answered; `who` is APPROVE if it was answered beforehand."""

    stage: str
    action: str
    who: str
    at: str
    answer: str


@dataclass
class Record:
    """One execution. `artifacts` are paths below its folder; `who` started it."""

    number: int
    id: str
    commit: str
    subject: str
    pipeline: str
    pipeline_version: int
    trigger: str
    who: str
    status: str
    started: str
    stages: list[StageRun]
    queued: bool = False
    rollback_target: str | None = None
    rollback_stage: str | None = None
    ended: str | None = None
    approvals: list[Approval] = field(default_factory=list)
    artifacts: dict[str, str] = field(default_factory=dict)

    @property
    def is_rollback(self) -> bool:
        """Whether it only rolls a stage back."""
        return self.rollback_target is not None

    def succeeded_in(self, stage: str) -> bool:
        """Whether it went through a stage."""
        return any(run.name == stage and run.status == "succeeded" for run in self.stages)


class Executions:
    """The executions of a rehearsal's pipeline; any process may read them while another writes."""

    def __init__(self, state: Path) -> None:
        self._folder = state / "executions"

    def all(self) -> list[Record]:
        """Every record, the newest first."""
        files = self._folder.glob("*/execution.json")
        return sorted(map(_load, files), key=lambda record: record.number, reverse=True)

    def get(self, id_: str) -> Record | None:
        """The record of this id, or None."""
        return next((record for record in self.all() if record.id == id_), None)

    def folder(self, record: Record) -> Path:
        """Where an execution's artifacts, logs and reports are."""
        return self._folder / str(record.number)

    def target(self, stage: str, version: int) -> Record | None:
        """What an automatic rollback of a stage goes back to: the newest execution that succeeded in it.

        It must have been started in this structure version of the pipeline, and not be a rollback itself.
        https://docs.aws.amazon.com/codepipeline/latest/userguide/stage-rollback.html
        """
        return next((r for r in self.all() if is_target(r, stage, version)), None)

    def deployer(self, stack: str) -> Record | None:
        """The execution whose deployment of a stack was the last to succeed, or None."""
        deployed = [
            (action.started or "", record)
            for record in self.all()
            for run in record.stages
            for action in run.actions
            if (action.name, action.status) == (f"{stack}.Deploy", "succeeded")
        ]
        return max(deployed, key=lambda found: found[0])[1] if deployed else None

    def begin(
        self,
        pipeline: Resource,
        *,
        commit: str,
        subject: str,
        trigger: str,
        who: str,
        queued: bool = False,
        target: Record | None = None,
        stage: str | None = None,
    ) -> Record:
        """A new execution of the deployed pipeline; with `target` and `stage`, a rollback of that stage to it."""
        with self._counting():
            counter = self._folder / "last"
            number = int(counter.read_text(encoding="utf-8")) + 1 if counter.exists() else 1
            counter.write_text(str(number), encoding="utf-8")
            shutil.rmtree(self._folder / str(number), ignore_errors=True)
            record = Record(
                number=number,
                id=str(uuid.uuid4()),
                commit=commit,
                subject=subject,
                pipeline=pipeline.physical.id,
                pipeline_version=structure_version(pipeline),
                trigger=trigger,
                who=who,
                status="InProgress",
                started=now(),
                queued=queued,
                rollback_target=target.id if target else None,
                rollback_stage=stage,
                stages=[
                    StageRun(
                        declared["Name"],
                        actions=[
                            Action(action["Name"], action["ActionTypeId"]["Provider"])
                            for action in in_order(declared)
                        ],
                    )
                    for declared in pipeline.properties["Stages"]
                    if stage in (None, declared["Name"])
                ],
            )
            self.save(record)
            self._prune(number)
        return record

    def save(self, record: Record) -> None:
        """Write a record, whole or not at all."""
        folder = self.folder(record)
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / "execution.draft"
        draft.write_text(json.dumps(asdict(record), indent=1), encoding="utf-8")
        draft.replace(folder / "execution.json")

    def ask_to_stop(self, record: Record) -> None:
        """Have whoever runs an execution stop it; one that has not begun is stopped at once."""
        (self.folder(record) / "stop").touch()
        if record.queued:
            record.status, record.queued, record.ended = "Stopped", False, now()
            self.save(record)

    def stop_asked(self, record: Record) -> bool:
        """Whether `ask_to_stop` was called."""
        return (self.folder(record) / "stop").exists()

    def give_up_unfinished(self) -> None:
        """Call while no other execution can run: what is still in progress was killed, or never begun."""
        for record in self.all():
            if record.status == "InProgress":
                record.status, record.queued, record.ended = "Stopped", False, now()
                self.save(record)

    def forget(self) -> None:
        """The pipeline is gone, and its history with it; logs and reports stay to be read."""
        for file in self._folder.glob("*/execution.json"):
            file.unlink()

    def _prune(self, number: int) -> None:
        records = self.all()
        kept = {record.number for record in records if record.status == "InProgress"}
        for stage in {run.name for record in records for run in record.stages}:
            successes = (r.number for r in records if r.succeeded_in(stage) and not r.is_rollback)
            kept |= {next(successes, number)}
        for folder in self._folder.iterdir():
            if folder.name.isdigit() and int(folder.name) <= number - KEPT and int(folder.name) not in kept:
                shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _counting(self) -> Iterator[None]:
        """One process at a time takes a number."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "lock").open("w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def is_target(record: Record, stage: str, version: int) -> bool:
    """Whether CodePipeline lets a stage of a pipeline in this structure version be rolled back to an execution."""
    return not record.is_rollback and record.pipeline_version == version and record.succeeded_in(stage)


def structure_version(pipeline: Resource) -> int:
    """A number that grows with each change of the pipeline's definition."""
    return int(pipeline.physical.attributes["Version"])


def in_order(stage: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A declared stage's actions by their run order."""
    return sorted(stage["Actions"], key=lambda action: int(action.get("RunOrder", 1)))


def now() -> str:
    """The time, as records have it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _load(file: Path) -> Record:
    content = json.loads(file.read_text(encoding="utf-8"))
    content["stages"] = [
        StageRun(**{**stage, "actions": [Action(**action) for action in stage["actions"]]})
        for stage in content["stages"]
    ]
    content["approvals"] = [Approval(**approval) for approval in content["approvals"]]
    return Record(**content)
