"""`make rollback`: shows, checks, asks, does, follows. Against a small pipeline that is really rehearsed."""

from __future__ import annotations

import pytest

from operations.__main__ import CANNOT, main
from operations.rollback import FAILED, REFUSED
from rehearsal.executions import PUSH, ROLLBACK, now

from .small_pipeline import Small


def roll_back(small: Small, *arguments: str, environment: str = "prod", approve: bool = True) -> int:
    """`make rollback ENV=... ON=rehearsal`."""
    return small.rehearsal(approve=approve).operate(["rollback", "--environment", environment, *arguments])


def test_prod_goes_back_alone_and_without_an_approval(
    small: Small, capfd: pytest.CaptureFixture[str]
) -> None:
    one = small.release("1")
    first = small.newest()
    small.migrated("prod", one)
    small.migrated("prod", small.release("2"), "additive")
    assert roll_back(small, "--yes", approve=False) == 0
    assert (small.served("dev"), small.served("prod")) == (["1", "2"], ["1", "2", "1"])
    record = small.newest()
    assert (record.trigger, record.rollback_stage, record.rollback_target) == (ROLLBACK, "Prod", first.id)
    assert (record.status, record.commit, record.approvals) == ("Succeeded", one, [])
    said = capfd.readouterr().out
    assert "stage rollback: Prod alone" in said
    assert "✓ Prod / mlflow-prod-tracking.Deploy" in said
    assert f"prod serves {one[:12]} again." in said


def test_a_commit_can_be_named_by_its_first_digits(small: Small) -> None:
    one = small.release("1")
    small.release("2")
    small.release("3")
    assert roll_back(small, "--to", one[:7].upper(), "--yes") == 0
    assert small.served("prod") == ["1", "2", "3", "1"]


def test_a_breaking_migration_forbids_it(small: Small, capfd: pytest.CaptureFixture[str]) -> None:
    one = small.release("1")
    small.migrated("prod", one)
    two = small.release("2")
    small.migrated("prod", two, "breaking", snapshot="before-2", at="2026-11-21T06:30:00+00:00")
    before = small.executions.all()
    assert roll_back(small, "--yes") == REFUSED
    assert small.executions.all() == before
    said = capfd.readouterr().err
    assert f"prod cannot go back to {one[:12]}: release {two[:12]} of 2026-11-21T06:30:00+00:00" in said
    assert "make restore ENV=prod SNAPSHOT=before-2" in said
    assert "lose all that was written to prod since 2026-11-21T06:30:00+00:00" in said


def test_a_breaking_migration_elsewhere_forbids_nothing(small: Small) -> None:
    one = small.release("1")
    two = small.release("2")
    for environment in ("dev", "prod"):
        small.migrated(environment, one)
    small.migrated("dev", two, "breaking", snapshot="before-2")
    assert roll_back(small, "--yes") == 0


def test_without_a_terminal_nothing_is_done_unasked(small: Small, capfd: pytest.CaptureFixture[str]) -> None:
    small.release("1")
    small.release("2")
    before = small.executions.all()
    assert roll_back(small) == CANNOT
    assert small.executions.all() == before
    assert "Nobody is there to ask" in capfd.readouterr().err


def test_a_rollback_that_fails_says_what_serves(small: Small, capfd: pytest.CaptureFixture[str]) -> None:
    small.release("1", check='[ ! -e "$REHEARSAL_STATE/served-hold-broken" ]')
    two = small.release("2")
    small.hold("broken")
    assert roll_back(small, "--yes", environment="dev") == FAILED
    said = capfd.readouterr().out
    assert "✗ Dev / Smoke" in said
    assert f"{small.executions.folder(small.newest())}/logs/Dev-Smoke.log" in said
    assert small.served("dev") == ["1", "2", "1"], "and it is not taken back in its turn"
    assert "did not succeed" in said
    assert two[:12] not in said.partition("did not succeed")[2], "1 was deployed, then its check failed"


def test_after_the_pipeline_changed_the_commit_is_run_again(
    small: Small, capfd: pytest.CaptureFixture[str]
) -> None:
    """The re-run changes the pipeline back, which restarts it with the newest commit; that one is stopped."""
    one = small.release("1")
    two = small.release("2", stage="Another")
    small.hold("2")
    assert roll_back(small, "--yes") == 0
    again, head, cancelled = small.executions.all()[:3]
    assert (cancelled.commit, cancelled.status) == (one, "Cancelled")
    assert (head.commit, head.status) == (two, "Stopped")
    assert (again.commit, again.status) == (one, "Succeeded")
    assert (small.served("dev"), small.served("prod")) == (["1", "2", "1"], ["1", "2", "1"])
    said = capfd.readouterr().out
    assert "re-run of that commit through the whole pipeline" in said
    assert "The pipeline took on that commit's definition" in said


def test_a_re_run_asks_for_approval_again(small: Small) -> None:
    small.release("1")
    small.release("2", stage="Another")
    small.hold("2")
    assert roll_back(small, "--yes", approve=False) == FAILED
    assert (small.served("dev"), small.served("prod")) == (["1", "2", "1"], ["1", "2"])


@pytest.mark.parametrize(
    ("to", "said"),
    [
        ("0123", "give at least 7 digits"),
        ("0123456", "0123456: was not released there; `make releases ENV=prod` lists them"),
        ("serving", "serves in prod already"),
        ("failed", "never succeeded in prod"),
    ],
)
def test_what_cannot_be_gone_back_to(
    small: Small, capfd: pytest.CaptureFixture[str], to: str, said: str
) -> None:
    serving = small.release("1")
    failed = small.release("2", check='[ "$ENVIRONMENT" != prod ]')
    named = {"serving": serving, "failed": failed}.get(to, to)
    before = small.executions.all()
    assert roll_back(small, "--to", named, "--yes") == CANNOT
    assert said in capfd.readouterr().err
    assert small.executions.all() == before


def test_the_first_release_has_none_before_it(small: Small, capfd: pytest.CaptureFixture[str]) -> None:
    assert roll_back(small, "--yes") == CANNOT
    assert "nothing was released to prod yet" in capfd.readouterr().err
    small.release("1")
    assert roll_back(small, "--yes") == CANNOT
    assert "there is none before it" in capfd.readouterr().err


@pytest.mark.usefixtures("credentials")
def test_a_stage_that_is_busy_is_left_alone(
    small: Small, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small.release("1")
    small.release("2")
    tooling = small.settings.tooling
    stack = small.rehearsal().cloudformation.stack(tooling.account, tooling.region, "small-pipeline")
    assert stack is not None
    running = small.executions.begin(
        stack.resources["Pipeline"], commit="3", subject="", trigger=PUSH, who=""
    )
    deploy = next(stage for stage in running.stages if stage.name == "Prod").actions[0]
    deploy.status, deploy.started = "running", now()
    small.executions.save(running)
    monkeypatch.setattr("sys.argv", ["operations", "rollback", "--environment", "prod", "--yes"])
    assert main() == CANNOT
    assert f"execution {running.id} is in Prod now" in capsys.readouterr().err
