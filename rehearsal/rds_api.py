"""RDS snapshots: a real copy of a rehearsed instance's files, taken while it serves.

moto's own RDS only remembers what it is told. Its request parsing and its IAM stay in front.
"""

from __future__ import annotations

import json
import logging
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from moto.core.responses import ActionResult
from moto.rds.exceptions import (
    DBInstanceNotFoundError,
    DBSnapshotAlreadyExistsError,
    DBSnapshotNotFoundFault,
)
from moto.rds.responses import RDSResponse
from moto.secretsmanager.models import secretsmanager_backends

from rehearsal.accounts import account_directory
from rehearsal.database_server import DatabaseServerError
from rehearsal.databases import opened
from rehearsal.processes import ProcessRegistry
from rehearsal.snapshots import describe, managed_secret, snapshot_files, write

log = logging.getLogger(__name__)


def answer_rds(state: Path) -> None:
    """Teach moto's RDS to take snapshots of the instances in `state`."""

    def directory(call: Any) -> Path:
        return account_directory(state, call.current_account, call.region)

    def create_db_snapshot(self: Any) -> ActionResult:
        wanted, instance = self.params["DBSnapshotIdentifier"], self.params["DBInstanceIdentifier"]
        account = directory(self)
        files = account / "databases" / instance
        if not files.exists():
            raise DBInstanceNotFoundError(instance)
        server = opened(files, ProcessRegistry(state / "processes"))
        if not server.running:
            raise DBInstanceNotFoundError(instance)
        if describe(account, wanted):
            raise DBSnapshotAlreadyExistsError(wanted)
        backend = secretsmanager_backends[self.current_account][self.region]
        secret = json.loads(backend.get_secret_value(managed_secret(instance), "", "")["SecretString"])
        entry = {
            "DBSnapshotIdentifier": wanted,
            "DBSnapshotArn": f"arn:aws:rds:{self.region}:{self.current_account}:snapshot:{wanted}",
            "DBInstanceIdentifier": instance,
            "Engine": server.engine,
            "MasterUsername": secret["username"],
            "SnapshotType": "manual",
            "SnapshotCreateTime": datetime.now(UTC).isoformat(),
            "Status": "creating",
            "TagList": [{"Key": tag["Key"], "Value": tag["Value"]} for tag in self.params.get("Tags", [])],
        }
        files = snapshot_files(account, wanted)
        files.mkdir(parents=True)
        write(files, entry)

        def copy() -> None:
            try:
                server.copy_to(files, user=secret["username"], password=secret["password"])
                entry["Status"] = "available"
            except DatabaseServerError:
                log.exception("snapshot %s of %s failed", wanted, instance)
                entry["Status"] = "failed"
            write(files, entry)

        threading.Thread(target=copy).start()
        return ActionResult({"DBSnapshot": _answer(entry)})

    def describe_db_snapshots(self: Any) -> ActionResult:
        wanted, instance = self.params.get("DBSnapshotIdentifier"), self.params.get("DBInstanceIdentifier")
        names = [wanted] if wanted else sorted(f.name for f in (directory(self) / "snapshots").glob("*"))
        found = [entry for name in names if (entry := describe(directory(self), name))]
        if wanted and not found:
            raise DBSnapshotNotFoundFault(wanted)
        kept = [_answer(e) for e in found if instance in (None, e["DBInstanceIdentifier"])]
        return ActionResult({"DBSnapshots": kept})

    RDSResponse.create_db_snapshot = create_db_snapshot
    RDSResponse.describe_db_snapshots = describe_db_snapshots
    RDSResponse._determine_resource = _resource


def _answer(entry: dict[str, Any]) -> dict[str, Any]:
    return {**entry, "SnapshotCreateTime": datetime.fromisoformat(entry["SnapshotCreateTime"])}


def _resource(self: Any) -> str:
    name = self.params.get("DBSnapshotIdentifier")
    return f"arn:aws:rds:{self.region}:{self.current_account}:snapshot:{name}" if name else "*"
