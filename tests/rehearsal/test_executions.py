"""Executions as CodePipeline has them: recorded, restarted when the pipeline changes itself, rolled back by stage."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from rehearsal.executions import AUTOMATED_ROLLBACK, KEPT, PUSH, START, Record

from .small_pipeline import Small

FAILS_IN_DEV = '[ "$ENVIRONMENT" != dev ]'


def report(small: Small) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((small.state / "report.json").read_text(encoding="utf-8"))
    return content


def statuses(record: Record) -> dict[str, str]:
    return {stage.name: stage.status for stage in record.stages}


def test_a_release_is_recorded(small: Small) -> None:
    commit = small.release("1")
    (record,) = small.executions.all()
    assert (record.number, record.commit, record.subject) == (1, commit, "Version 1")
    assert (record.status, record.trigger, record.pipeline_version) == ("Succeeded", PUSH, 1)
    assert set(statuses(record).values()) == {"succeeded"}
    assert all(action.started for stage in record.stages for action in stage.actions)
    (approval,) = record.approvals
    assert (approval.stage, approval.action, approval.who, approval.answer) == (
        "Promote",
        "Approve",
        "APPROVE",
        "yes",
    )
    source = small.executions.folder(record) / record.artifacts["Source"]
    assert (source / "version").read_text(encoding="utf-8") == "1\n"


def test_a_stage_that_fails_is_rolled_back_with_the_artifacts_of_the_last_success(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    good = small.release("1")
    (first,) = small.executions.all()
    small.release("2", check=FAILS_IN_DEV)
    rollback, failed, _ = small.executions.all()
    assert failed.status == "Failed"
    assert statuses(failed)["Dev"] == "failed"
    assert (rollback.commit, rollback.trigger, rollback.status) == (good, AUTOMATED_ROLLBACK, "Succeeded")
    assert (rollback.rollback_target, rollback.rollback_stage) == (first.id, "Dev")
    assert statuses(rollback) == {"Dev": "succeeded"}
    assert small.served("dev") == ["1", "2", "1"]
    assert small.served("prod") == ["1"]
    said = capsys.readouterr().out
    assert f"Dev failed; rolling the stage back to execution 1 (commit {good[:12]}, Version 1)" in said
    content = report(small)
    assert (content["status"], content["rollback"]["status"]) == ("failed", "Succeeded")
    page = (small.state / "report.html").read_text(encoding="utf-8")
    assert re.search(rf"Rollback of Dev to commit <code>{good[:12]}", page)


def test_a_release_that_fails_is_no_success_even_when_it_was_rolled_back(small: Small) -> None:
    small.release("1")
    small.git("commit", "--quiet", "--allow-empty", "--message", "x")
    (small.root / "check").write_text("false\n", encoding="utf-8")
    small.git("commit", "--quiet", "--all", "--message", "Fails")
    assert small.rehearsal().run() == 1


def test_a_first_release_that_fails_has_nothing_to_be_rolled_back_to(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    small.release("1", check="false")
    (record,) = small.executions.all()
    assert record.status == "Failed"
    assert "Nothing to roll it back to" in capsys.readouterr().out


def test_a_rollback_that_fails_is_not_rolled_back_again(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    """The check of the first release passes once: something outside the release has changed since."""
    passes_once = 'mkdir "$REHEARSAL_STATE/served-once-$ENVIRONMENT"'
    try:
        small.release("1", check=passes_once)
        small.release("2", check="false")
    finally:
        for mark in small.state.glob("served-once-*"):
            mark.rmdir()
    rollback, failed, _ = small.executions.all()
    assert (failed.status, rollback.status, rollback.trigger) == ("Failed", "Failed", AUTOMATED_ROLLBACK)
    assert "That is not tried again" in capsys.readouterr().out


def test_a_rejected_release_rolls_nothing_back(small: Small) -> None:
    small.release("1")
    small.release("2", approve=False)
    newest, _ = small.executions.all()
    assert (newest.status, statuses(newest)["Promote"], statuses(newest)["Prod"]) == (
        "Failed",
        "rejected",
        "not run",
    )
    assert newest.approvals[0].answer == "no"


def test_nothing_from_before_the_pipeline_changed_is_rolled_back_to(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    small.release("1")
    small.release("2", check=FAILS_IN_DEV, stage="Another")
    failed, cancelled, _ = small.executions.all()
    assert (cancelled.status, cancelled.pipeline_version) == ("Cancelled", 1)
    assert (failed.status, failed.pipeline_version, failed.trigger) == ("Failed", 2, START)
    assert "Nothing to roll it back to" in capsys.readouterr().out


def test_the_newest_success_is_gone_back_to_and_never_a_rollback(small: Small) -> None:
    small.release("1")
    small.release("2")
    for version in ("3", "4"):
        small.release(version, check=FAILS_IN_DEV)
    assert small.served("dev") == ["1", "2", "3", "2", "4", "2"]
    rollbacks = [record for record in small.executions.all() if record.is_rollback]
    assert len({rollback.rollback_target for rollback in rollbacks}) == 1


def test_old_executions_go_but_not_what_a_stage_would_be_rolled_back_to(small: Small) -> None:
    small.release("1")
    small.release("2", approve=False)
    for number in range(3, KEPT + 5):
        record = small.executions.begin(
            _pipeline(small), commit=f"{number}", subject="", trigger=PUSH, who=""
        )
        record.status = "Failed"
        small.executions.save(record)
    numbers = [record.number for record in small.executions.all()]
    assert numbers == [*range(KEPT + 4, 4, -1), 2, 1], "1 is prod's newest success, 2 is dev's"
    target = small.executions.target("Prod", 1)
    assert target is not None
    assert (small.executions.folder(target) / target.artifacts["Source"] / "version").exists()


def test_an_execution_that_was_killed_is_not_in_progress_for_ever(small: Small) -> None:
    small.release("1")
    record = small.executions.begin(_pipeline(small), commit="x", subject="", trigger=PUSH, who="")
    small.release("2")
    killed = small.executions.get(record.id)
    assert killed is not None
    assert killed.status == "Stopped"


def _pipeline(small: Small) -> Any:
    tooling = small.settings.tooling
    stack = small.rehearsal().cloudformation.stack(tooling.account, tooling.region, "small-pipeline")
    assert stack is not None
    return stack.resources["Pipeline"]
