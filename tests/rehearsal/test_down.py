"""`make down` leaves nothing of an account behind, wherever its files are."""

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
