"""What was done to the schema, written down in the database itself.

An image knows its own migrations only. One that is put back onto a database which a later release migrated learns
here what lies between. As the history is part of the database, a snapshot takes it along.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa
from classification import Classification
from database import SCHEMA, DatabaseError, Line, RefusedError, image_revisions
from sqlalchemy.engine import Connection

TABLE = sa.Table(
    "platform_migrations",
    sa.MetaData(),
    sa.Column("revision", sa.String(32), primary_key=True),
    sa.Column("down_revision", sa.String(32)),
    sa.Column("kind", sa.String(16), nullable=False),  # towards the release just before it
    sa.Column("reasons", sa.Text, nullable=False),  # a JSON list of sentences
    sa.Column("tables", sa.Text, nullable=False),  # JSON: {"created": [...], "breaks": [...]}
    sa.Column("applied_at", sa.DateTime, nullable=False),  # UTC
    sa.Column("image", sa.String(512), nullable=False),
    sa.Column("commit_id", sa.String(64), nullable=False),
    sa.Column("snapshot", sa.String(255), nullable=False),  # taken before it; "" if there was nothing to lose
    sa.Column("snapshot_at", sa.DateTime),  # UTC; what was written later is not in it
)

# A restored database is compared with its snapshot once: later its users may rightly have deleted something.
RESTORES = sa.Table(
    "platform_restores",
    sa.MetaData(),
    sa.Column("snapshot", sa.String(255), primary_key=True),
    sa.Column("checked_at", sa.DateTime, nullable=False),  # UTC
)


@dataclass(frozen=True)
class Entry:
    """One migration: what it does, and, once it was applied, when and by which release."""

    revision: str
    down_revision: str | None
    created: frozenset[str]
    breaks: frozenset[str]
    reasons: tuple[str, ...]
    applied_at: str = ""
    image: str = ""
    commit: str = ""
    snapshot: str = ""
    snapshot_at: str = ""


def kinds(entries: Iterable[Entry]) -> list[tuple[Entry, str]]:
    """Each entry and what it is to a server of the revision that the first of them builds on.

    What happens to a table that such a server does not know yet is additive to it.
    """
    new: set[str] = set()
    result = []
    for entry in entries:
        result.append((entry, "breaking" if entry.breaks - new else "additive"))
        new |= entry.created
    return result


def record(
    connection: Connection,
    entry: Entry,
    *,
    image: str,
    commit: str,
    snapshot: str,
    snapshot_at: datetime | None,
) -> None:
    """Write one applied migration down, in the transaction that the connection is in. TABLE must be there."""
    # A half-done migration that is run again, and one that was applied before a downgrade, are there already.
    connection.execute(TABLE.delete().where(TABLE.c.revision == entry.revision))
    connection.execute(
        TABLE.insert().values(
            revision=entry.revision,
            down_revision=entry.down_revision,
            kind="breaking" if entry.breaks else "additive",
            reasons=json.dumps(entry.reasons),
            tables=json.dumps({"created": sorted(entry.created), "breaks": sorted(entry.breaks)}),
            applied_at=datetime.now(UTC).replace(tzinfo=None, microsecond=0),
            image=image,
            commit_id=commit,
            snapshot=snapshot,
            snapshot_at=snapshot_at,
        )
    )


def entry(revision: str, down_revision: str | None, found: Classification) -> Entry:
    """An entry for a migration that was judged and not applied yet."""
    return Entry(
        revision, down_revision, frozenset(found.created), frozenset(found.breaks), tuple(found.reasons)
    )


def since(connection: Connection, head: str, found: str, line: Line = SCHEMA) -> list[Entry]:
    """What was applied after `head` up to `found`, oldest first. Raises RefusedError if that is not known."""
    with connection.begin():
        rows = {}
        if sa.inspect(connection).has_table(TABLE.name):
            rows = {row.revision: row for row in connection.execute(sa.select(TABLE))}
    path: list[Entry] = []
    revision: str | None = found
    while revision != head:
        row = rows.get(revision)
        if row is None:
            raise RefusedError(
                f"The database's {line.name} is at revision {found}, which this image (revision {head}) does not know, and "
                f"the history in its table {TABLE.name} does not lead from there to {head}: a newer release, or "
                "another branch, made it. Deploy that release or a later one, or restore an earlier snapshot."
            )
        tables = json.loads(row.tables)
        path.append(
            Entry(
                row.revision,
                row.down_revision,
                frozenset(tables["created"]),
                frozenset(tables["breaks"]),
                tuple(json.loads(row.reasons)),
                _utc(row.applied_at),
                row.image,
                row.commit_id,
                row.snapshot,
                _utc(row.snapshot_at),
            )
        )
        revision = row.down_revision
    return path[::-1]


def check_servable(
    connection: Connection, database: object, head: str, found: str | None, line: Line = SCHEMA
) -> list[Entry]:
    """What separates an image of revision `head` from the database's newer schema, oldest first.

    Raises DatabaseError if the schema is older than the image or not there, and RefusedError with the mend if a
    migration in between broke what the image expects, or is not known.
    """
    if found is None:
        raise DatabaseError(f"The database {database} has no {line.name}: run `entrypoint.py migrate` first.")
    if found == head:
        return []
    if not is_newer(found, line):
        raise DatabaseError(
            f"The {line.name} of {database} is at revision {found}, but this image needs {head}: "
            "run `entrypoint.py migrate` with this image first."
        )
    between = since(connection, head, found, line)
    broke = [entry for entry, kind in kinds(between) if kind == "breaking"]
    if broke:
        raise RefusedError(_mend(head, found, broke))
    return between


def is_newer(found: str | None, line: Line = SCHEMA) -> bool:
    """Whether a release later than this image made the schema."""
    return found is not None and found not in image_revisions(line)


def restore_checked(connection: Connection, snapshot: str) -> bool:
    """Whether this database was compared with that snapshot already."""
    with connection.begin():
        if not sa.inspect(connection).has_table(RESTORES.name):
            return False
        return (
            connection.execute(sa.select(RESTORES).where(RESTORES.c.snapshot == snapshot)).first() is not None
        )


def record_restore(connection: Connection, snapshot: str) -> None:
    """Remember that this database was compared with that snapshot."""
    with connection.begin():
        RESTORES.create(connection, checkfirst=True)
        now = datetime.now(UTC).replace(tzinfo=None, microsecond=0)
        connection.execute(RESTORES.insert().values(snapshot=snapshot, checked_at=now))


def _mend(head: str, found: str, broke: list[Entry]) -> str:
    first = broke[0]
    by = f" by commit {first.commit}" if first.commit else ""
    sentences = [
        f"This image (revision {head}) cannot serve the database (revision {found}): migration {first.revision}, "
        f"applied {first.applied_at} UTC{by}, is breaking ({'; '.join(first.reasons)})."
    ]
    if len(broke) > 1:
        sentences.append(f"So is {', '.join(entry.revision for entry in broke[1:])}.")
    if first.snapshot:
        sentences.append(
            "To go back, revert the release that migrated, and set "
            f'restore_from = "{first.snapshot}" in this environment\'s database settings in '
            f"platform.toml (`make restore ENV=... SNAPSHOT={first.snapshot}`): a new database is made from the "
            f"snapshot taken before it, and everything written since {first.snapshot_at} UTC is only in the old one, "
            "which is kept."
        )
    else:
        sentences.append(
            "No snapshot was taken before it: restore the database to a time before that (RDS point-in-time recovery)."
        )
    sentences.append("To lose nothing, deploy the newer release again.")
    return " ".join(sentences)


def _utc(moment: datetime | None) -> str:
    return moment.isoformat(" ", "seconds") if moment else ""
