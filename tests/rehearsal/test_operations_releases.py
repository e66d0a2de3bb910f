"""`make releases`: what each environment runs, ran, and can go back to, from CodePipeline's API and release records."""

from __future__ import annotations

from pathlib import Path

import pytest

import operations.__main__ as operations
from operations.releases import Pipeline, _subject
from rehearsal.run import CannotRehearse, Rehearsal
from stages.settings import Settings

from .small_pipeline import Small


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def listed(small: Small, capfd: pytest.CaptureFixture[str], environment: str) -> list[list[str]]:
    """The lines that `make releases ENV=... ON=rehearsal` prints, by their columns."""
    capfd.readouterr()
    assert small.rehearsal().operate(["releases", "--environment", environment]) == 0
    return [cells(line) for line in capfd.readouterr().out.splitlines()]


def test_what_serves_and_what_can_be_gone_back_to(small: Small, capfd: pytest.CaptureFixture[str]) -> None:
    one = small.release("1")
    small.migrated("prod", one)
    two = small.release("2")
    small.migrated("prod", two, "additive")
    head, columns, newest, oldest = listed(small, capfd, "prod")
    assert head[0].startswith(f"prod (account 444444444444): {two[:12]} serves since 20")
    assert columns[0] == "commit"
    assert newest[:4] == [two[:12], "Version 2", (two[:6] * 10)[:12], f"rev{two[:8]} (additive)"]
    assert newest[5:] == ["APPROVE", "succeeded", "serves now"]
    assert oldest[:4] == [one[:12], "Version 1", (one[:6] * 10)[:12], f"rev{one[:8]}"]
    assert oldest[5:] == ["APPROVE", "succeeded", "stage rollback"]


def test_all_environments_are_listed(small: Small, capfd: pytest.CaptureFixture[str]) -> None:
    small.release("1", approve=False)
    capfd.readouterr()
    assert small.rehearsal().operate(["releases"]) == 0
    said = capfd.readouterr().out
    assert "dev (account 222222222222): " in said
    assert "prod (account 444444444444): nothing was released yet" in said


def test_a_release_that_failed_and_its_rollback(small: Small, capfd: pytest.CaptureFixture[str]) -> None:
    good = small.release("1")
    bad = small.release("2", check="false")
    head, _, rollback, failed, first = listed(small, capfd, "dev")
    assert f"{good[:12]} serves" in head[0]
    assert (rollback[0], rollback[1], rollback[5:]) == (
        good[:12],
        "Version 1",
        ["automatic rollback", "succeeded", "serves now"],
    )
    assert (failed[0], failed[-2:]) == (bad[:12], ["failed at Smoke", "no: never succeeded here"])
    assert (first[0], first[-2:]) == (good[:12], ["succeeded", "-"])


def test_a_release_before_the_pipeline_changed_is_run_again(
    small: Small, capfd: pytest.CaptureFixture[str]
) -> None:
    small.release("1")
    small.release("2", stage="Another")
    *_, oldest = listed(small, capfd, "prod")
    assert oldest[-1] == "re-run"


def test_a_breaking_migration_bars_the_way_back(small: Small, capfd: pytest.CaptureFixture[str]) -> None:
    for version, kind in (("1", "none"), ("2", "breaking"), ("3", "additive")):
        small.migrated("prod", small.release(version), kind, snapshot=f"before-{version}")
    _, _, three, two, one = listed(small, capfd, "prod")
    assert three[-1] == "serves now"
    assert two[-1] == "stage rollback"
    assert one[-1] == f"no: breaking migration in {two[0]}"


@pytest.mark.usefixtures("credentials")
def test_a_restored_snapshot_takes_its_migration_back(small: Small) -> None:
    one = small.release("1")
    small.migrated("prod", one)
    two = small.release("2")
    small.migrated("prod", two, "breaking", snapshot="before-2")
    assert Pipeline(small.settings).history("prod").barrier(one) is not None
    small.migrated("prod", small.release("3"), "none", restored_from="before-2")
    assert Pipeline(small.settings).history("prod").barrier(one) is None


@pytest.mark.usefixtures("credentials")
def test_going_back_twice_goes_further_back_and_not_forth(small: Small) -> None:
    one, two, three = (small.release(version) for version in "123")
    assert Pipeline(small.settings).history("prod").before_this() == two
    assert small.rehearsal().operate(["rollback", "--environment", "prod", "--yes"]) == 0
    assert Pipeline(small.settings).history("prod").before_this() == one
    assert small.rehearsal().operate(["rollback", "--environment", "prod", "--to", three, "--yes"]) == 0
    assert Pipeline(small.settings).history("prod").before_this() == two


@pytest.mark.usefixtures("credentials")
def test_a_record_that_is_none_is_named(
    small: Small, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small.release("1")
    own = small.settings.environments.dev
    ssm = small.accounts.client("ssm", own.account, own.region)
    ssm.put_parameter(Name="/mlflow-dev/release", Value="latest", Type="String")
    monkeypatch.setattr("sys.argv", ["operations", "releases", "--environment", "dev"])
    assert operations.main() == operations.CANNOT
    assert "/mlflow-dev/release has a version that is no release record" in capsys.readouterr().err


@pytest.mark.usefixtures("credentials")
def test_another_accounts_credentials_are_told_so(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = settings.model_copy(update={"name": "elsewhere"})
    monkeypatch.setattr(operations, "load_settings", lambda: other)
    monkeypatch.setattr("sys.argv", ["operations", "releases"])
    assert operations.main() == operations.CANNOT
    assert "there is no pipeline elsewhere in eu-west-1" in capsys.readouterr().err


def test_without_credentials_it_says_how_to_get_some(
    small: Small, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in small.accounts.environment("eu-west-1").items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)  # it keeps the credentials that it found first
    monkeypatch.setattr("sys.argv", ["operations", "releases"])
    assert operations.main() == operations.CANNOT
    assert "there are no AWS credentials; sign in to the tooling account" in capsys.readouterr().err


def test_without_a_rehearsed_pipeline_there_is_nothing_to_operate(tmp_path: Path) -> None:
    with pytest.raises(CannotRehearse, match="run `make rehearse` first"):
        Rehearsal(tmp_path, approve=None).operate(["releases"])


@pytest.mark.parametrize(
    ("summary", "subject"),
    [
        ("Mend the sizes\n\nThey were too small.", "Mend the sizes"),
        ('{"ProviderType":"GitHub","CommitMessage":"Mend the sizes\\n\\nBody"}', "Mend the sizes"),
        ('{"ProviderType":"GitHub"}', '{"ProviderType":"GitHub"}'),
        ("42", "42"),
        ("", ""),
    ],
)
def test_a_commits_first_line(summary: str, subject: str) -> None:
    assert _subject(summary) == subject
