"""Where the snapshots of a rehearsed account are.

A snapshot is a folder: `snapshot.json`, which says what it is of, and the files of the server, which a later instance
with `DBSnapshotIdentifier` starts from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def managed_secret(instance: str) -> str:
    """Name of the secret in which RDS keeps the master password of an instance."""
    return f"rds!db-{instance}"


def snapshot_files(account: Path, snapshot: str) -> Path:
    """Where the files of an account's snapshot are."""
    return account / "snapshots" / snapshot


def describe(account: Path, snapshot: str) -> dict[str, Any] | None:
    """What is known of a snapshot: the answer of RDS, and the master user under `MasterUsername`."""
    file = snapshot_files(account, snapshot) / "snapshot.json"
    if not file.exists():
        return None
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def write(files: Path, entry: dict[str, Any]) -> None:
    """Note what is known of a snapshot, whole or not at all."""
    draft = files / "snapshot.draft"
    draft.write_text(json.dumps(entry, indent=1), encoding="utf-8")
    draft.replace(files / "snapshot.json")
