"""Snapshots of the database by RDS: one before anything changes, and the check of a database made from one.

A snapshot carries, as tags, the schema's revision and a census of what was in the database. So it can be told from
outside what would be lost by going back to it, and a database made from it can be compared with what it was.
"""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import boto3
import sqlalchemy as sa
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from database import DatabaseError, say
from sqlalchemy.engine import Connection

SNAPSHOT_SECONDS = 3600.0  # the first snapshot of an instance copies all of it; later ones copy what changed
PROGRESS_SECONDS = 30.0
POLL_SECONDS = 5.0

# What is counted, and under which name. KEPT only grows in normal use: runs and experiments are deleted softly. The rest
# can be deleted between the count and the snapshot, so that less of it in a restored database proves nothing.
COUNTED = {
    "experiments": "experiments",
    "runs": "runs",
    "params": "params",
    "metrics": "metrics",
    "tags": "tags",
    "registered-models": "registered_models",
    "model-versions": "model_versions",
    "traces": "trace_info",
}
KEPT = {"experiments", "runs", "params", "metrics"}
NEWEST_RUN = "newest-run"  # its start, in milliseconds since 1970; "none" without runs


@dataclass(frozen=True)
class Kind:
    """How RDS names what a snapshot is taken of: an instance, or an Aurora cluster. Its calls and errors follow from it."""

    name: str  # as in DBInstance
    snapshot: str  # as in DBSnapshot
    action: str  # as in create_db_snapshot

    def create(self, name: str, source: str, tags: list[dict[str, str]]) -> None:
        call = getattr(_rds(), f"create_{self.action}")
        call(**{f"{self.snapshot}Identifier": name, f"{self.name}Identifier": source, "Tags": tags})

    def describe(self, name: str) -> list[dict[str, Any]]:
        answer = getattr(_rds(), f"describe_{self.action}s")(**{f"{self.snapshot}Identifier": name})
        found: list[dict[str, Any]] = answer[f"{self.snapshot}s"]
        return found


INSTANCE = Kind("DBInstance", "DBSnapshot", "db_snapshot")
CLUSTER = Kind("DBCluster", "DBClusterSnapshot", "db_cluster_snapshot")


@dataclass(frozen=True)
class Snapshot:
    """A snapshot that is there; `started` is in UTC, without time zone."""

    name: str
    started: datetime | None


NONE = Snapshot("", None)


def census(connection: Connection) -> dict[str, str]:
    """Count what is in the database, at one moment. Tables that the schema does not have yet are left out."""
    with connection.begin():
        there = set(sa.inspect(connection).get_table_names())
        counts = {name: table for name, table in COUNTED.items() if table in there}
        columns = [sa.text(f"(SELECT count(*) FROM {table})") for table in counts.values()]  # noqa: S608  names from above
        columns.append(sa.text("(SELECT max(start_time) FROM runs)"))
        *found, newest = connection.execute(sa.select(*columns)).one()
    told = {name: str(count) for name, count in zip(counts, found, strict=True)}
    return {**told, NEWEST_RUN: "none" if newest is None else str(newest)}


def take(connection: Connection, kind: Kind, source: str, revision: str | None, commit: str) -> Snapshot:
    """Take a snapshot of the instance or cluster and return once it is available.

    Raises DatabaseError when RDS refuses, reports a failure, or is not done within SNAPSHOT_SECONDS.
    """
    begin = time.monotonic()
    counted = census(connection)
    started = datetime.now(UTC).replace(tzinfo=None, microsecond=0)
    name = f"{source}-{revision or 'base'}-{started:%Y%m%d-%H%M%S}"
    tags = {"schema-revision": revision or "none", "commit": commit or "none", **counted}
    say(f"Taking snapshot {name} of {source}: {_line(counted)}.")
    while True:
        try:
            kind.create(name, source, [{"Key": key, "Value": told} for key, told in tags.items()])
            break
        except ClientError as error:
            code = error.response["Error"]["Code"].removesuffix("Fault")
            if code == f"{kind.snapshot}AlreadyExists":
                break  # a first call that was not answered in time: nothing else makes a snapshot of this name
            # What is being changed or backed up takes no snapshot until that is done.
            if code != f"Invalid{kind.name}State":
                raise DatabaseError(_refused(kind, "create a snapshot of", source, error)) from None
            _wait(begin, f"for {source} to be available", name)
        except BotoCoreError as error:
            raise DatabaseError(_refused(kind, "create a snapshot of", source, error)) from None
    told_at = time.monotonic()
    while (status := _describe(kind, name)["Status"]) != "available":
        if status in ("failed", "incompatible-restore"):
            raise DatabaseError(
                f"RDS reports snapshot {name} as {status}; nothing was changed. Read the events of {source} "
                "in the RDS console, mend what they name, and start again."
            )
        if time.monotonic() - told_at >= PROGRESS_SECONDS:
            told_at = time.monotonic()
            say(f"Snapshot {name} is {status} since {told_at - begin:.0f} s.")
        _wait(begin, "for it to be available", name)
    say(f"Snapshot {name} is available after {time.monotonic() - begin:.0f} s.")
    return Snapshot(name, started)


def check_restored(connection: Connection, kind: Kind, snapshot: str) -> None:
    """Compare the database with the census of the snapshot it was made from.

    Raises DatabaseError if there is less than the snapshot had, or no such snapshot.
    """
    tags = {tag["Key"]: tag["Value"] for tag in _describe(kind, snapshot).get("TagList", [])}
    expected = {name: told for name, told in tags.items() if name in COUNTED or name == NEWEST_RUN}
    if not expected:
        say(f"Snapshot {snapshot} carries no counts (`migrate` did not take it), so nothing can be compared.")
        return
    found = census(connection)
    say(f"Snapshot {snapshot} had: {_line(expected)}.")
    say(f"The database has:{' ' * (len(snapshot) - 2)} {_line(found)}.")
    less = [
        f"{name} ({found.get(name, 'none')} instead of {told})"
        for name, told in expected.items()
        if name in KEPT and _number(found.get(name, "none")) < _number(told)
    ]
    if less:
        raise DatabaseError(
            f"The database has less than snapshot {snapshot}, from which it was made, in: {', '.join(less)}. Nothing "
            "was changed. Check that the service still points to the old database, and restore the snapshot again."
        )


def _describe(kind: Kind, name: str) -> dict[str, Any]:
    try:
        found = kind.describe(name)
    except (ClientError, BotoCoreError) as error:
        raise DatabaseError(_refused(kind, "describe snapshot", name, error)) from None
    if not found:
        raise DatabaseError(
            f"There is no snapshot {name}: check its name with `aws rds describe-{kind.action.replace('_', '-')}s`."
        )
    return found[0]


def _rds() -> Any:
    return boto3.client(
        "rds", config=Config(connect_timeout=5, read_timeout=20, retries={"total_max_attempts": 4})
    )


def _wait(begin: float, what: str, name: str) -> None:
    if time.monotonic() - begin > SNAPSHOT_SECONDS:
        raise DatabaseError(
            f"Snapshot {name}: waited {SNAPSHOT_SECONDS:.0f} s {what}; nothing was changed. Look at it in the RDS "
            "console; when it is available, start again."
        )
    time.sleep(POLL_SECONDS)


def _refused(kind: Kind, what: str, name: str, error: Exception) -> str:
    said = " ".join(str(error).split())
    return (
        f"RDS did not {what} {name} ({said}); nothing was changed. Check that the name is right, and that the task's "
        f"role may call rds:Create{kind.snapshot}, rds:Describe{kind.snapshot}s and rds:AddTagsToResource and reaches RDS."
    )


def _number(told: str) -> int:
    return -1 if told == "none" else int(told)


def _line(counted: dict[str, str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counted.items())
