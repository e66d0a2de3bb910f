"""`make down` leaves nothing of an account behind, wherever its files are, but what its tasks have said."""

from __future__ import annotations

from pathlib import Path

import pytest

from rehearsal.database_server import home
from rehearsal.run import Rehearsal


@pytest.mark.parametrize("kept", ["databases", "snapshots"])
def test_databases_and_snapshots_are_deleted(tmp_path: Path, kept: str) -> None:
    """For root, PostgreSQL's files are outside the state folder, which is deleted anyway."""
    directory = tmp_path / ".rehearsal" / "accounts" / "222222222222-eu-west-1" / kept / "one"
    directory.mkdir(parents=True)
    files = home(directory)
    (files / "data").mkdir(parents=True)
    Rehearsal(tmp_path, approve=None).down()
    assert not files.exists()
    assert not directory.exists()


def test_logs_stay_until_others_take_their_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also over a `make down` that finds nothing."""

    def down(*tasks: str) -> list[str]:
        for task in tasks:
            log = (
                tmp_path / ".rehearsal" / "accounts" / "222222222222-eu-west-1" / "logs" / "mlflow-dev" / task
            )
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text("its last words", encoding="utf-8")
        Rehearsal(tmp_path, approve=None).down()
        kept = tmp_path / ".rehearsal" / "last-logs"
        assert str(kept.relative_to(tmp_path)) in capsys.readouterr().out
        return sorted(str(file.relative_to(kept)) for file in kept.rglob("*.log"))

    assert down("one.log", "two.log") == [
        "222222222222-eu-west-1/mlflow-dev/one.log",
        "222222222222-eu-west-1/mlflow-dev/two.log",
    ]
    assert len(down()) == 2
    assert down("three.log") == ["222222222222-eu-west-1/mlflow-dev/three.log"]
