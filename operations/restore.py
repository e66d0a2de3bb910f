"""Restore an environment's database from a snapshot: prepare the release that does it.

A restore is a release like any other, so that it is reviewed, recorded and can be taken back: `restore_from` in
`platform.toml` makes a new database from the snapshot, beside the one in use. The release's Migrate action compares the
restored database with what the snapshot is known to hold, and only then the service is switched to it. The database of
before stays as it is.
"""

from __future__ import annotations

import re
import subprocess
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from operations.aws import CannotOperate, environment_client, sentences
from operations.confirm import confirmed
from stages.settings import SettingsError, load_settings


def restore(settings_file: Path, environment: str, snapshot: str, *, yes: bool) -> None:
    """Write `restore_from` into the settings and commit it; releasing that commit restores.

    Raises:
        CannotOperate: there is no such snapshot, or the settings cannot be changed. Nothing was changed.
    """
    settings = load_settings(settings_file)
    own = dict(settings.environments.items())[environment]
    rds = environment_client(settings, own, "rds")
    describe = _describe_of_cluster if own.database.engine.startswith("aurora-") else _describe
    with sentences(f"reading the snapshots of {environment}"):
        _show(describe(rds, snapshot), environment)
    if not confirmed(f"Make a release that switches {environment} to a database made from it?", yes=yes):
        print("Nothing was changed.")
        return
    _commit(settings_file, environment, snapshot)
    print(
        "Release it: `git push` on AWS, `make rehearse` in a rehearsal. Its Migrate action compares the restored database"
        f" with the snapshot; only then {environment} is switched to it. Keep the setting: it names the database in use."
    )


def _describe(rds: Any, snapshot: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = rds.describe_db_snapshots(DBSnapshotIdentifier=snapshot)["DBSnapshots"][0]
    except rds.exceptions.DBSnapshotNotFoundFault:
        known = sorted(one["DBSnapshotIdentifier"] for one in rds.describe_db_snapshots()["DBSnapshots"])
        listed = "\n".join(f"  {name}" for name in known) or "  none"
        raise CannotOperate(f"There is no snapshot {snapshot} in this account; it has:\n{listed}") from None
    return _available(snapshot, found)


def _describe_of_cluster(rds: Any, snapshot: str) -> dict[str, Any]:
    """The same for Aurora; what RDS calls otherwise there is called as for an instance."""
    try:
        found = rds.describe_db_cluster_snapshots(DBClusterSnapshotIdentifier=snapshot)["DBClusterSnapshots"][
            0
        ]
    except rds.exceptions.DBClusterSnapshotNotFoundFault:
        answer = rds.describe_db_cluster_snapshots()["DBClusterSnapshots"]
        listed = "\n".join(sorted(f"  {one['DBClusterSnapshotIdentifier']}" for one in answer)) or "  none"
        raise CannotOperate(f"There is no snapshot {snapshot} in this account; it has:\n{listed}") from None
    names = {"DBSnapshotIdentifier": snapshot, "DBInstanceIdentifier": found["DBClusterIdentifier"]}
    return _available(snapshot, {**found, **names})


def _available(snapshot: str, found: dict[str, Any]) -> dict[str, Any]:
    if found["Status"] != "available":
        raise CannotOperate(
            f"The snapshot {snapshot} is {found['Status']}; wait until it is available, and try again."
        )
    return found


def _show(snapshot: dict[str, Any], environment: str) -> None:
    taken = snapshot["SnapshotCreateTime"].astimezone(UTC)
    age = datetime.now(UTC) - taken
    print(f"Snapshot {snapshot['DBSnapshotIdentifier']} of {snapshot['DBInstanceIdentifier']}")
    print(f"  taken    {taken:%Y-%m-%d %H:%M:%S} UTC, {age.total_seconds() / 3600:.1f} hours ago")
    for tag in sorted(snapshot.get("TagList", []), key=lambda tag: str(tag["Key"])):
        print(f"  {tag['Key']:<22} {tag['Value']}")
    print(
        f"What {environment} was given after that moment will not be in the restored database. It stays in the database"
        " in use now, which is kept."
    )


def _commit(settings_file: Path, environment: str, snapshot: str) -> None:
    before = settings_file.read_text(encoding="utf-8")
    after = with_restore(before, environment, snapshot)
    if after == before:
        raise CannotOperate(
            f"{settings_file.name} restores {environment} from {snapshot} already: release it."
        )
    repository = settings_file.parent
    if _git(repository, "status", "--porcelain", "--", settings_file.name):
        raise CannotOperate(f"{settings_file.name} has changes that are not committed; commit them first.")
    settings_file.write_text(after, encoding="utf-8")
    try:
        load_settings(settings_file)
    except SettingsError as error:
        settings_file.write_text(before, encoding="utf-8")
        raise CannotOperate(str(error)) from None
    _git(
        repository,
        "commit",
        "--quiet",
        "--message",
        f"Restore {environment} from {snapshot}",
        "--",
        settings_file.name,
    )
    print(
        f'Committed to {settings_file.name}: environments.{environment}.database.restore_from = "{snapshot}"'
    )


def with_restore(text: str, environment: str, snapshot: str) -> str:
    """The settings' text with `restore_from` in the environment's database; everything else as it is.

    Raises:
        CannotOperate: the text does not name the database in one of the two ways that TOML is usually written.
    """
    text = text if text.endswith("\n") else f"{text}\n"
    line = f'restore_from = "{snapshot}"'
    section = re.search(rf"^\[environments\.{environment}\].*\n(?:(?!\[).*\n)*", text, re.MULTILINE)
    inline = section and re.search(r"^(database = \{)(.*)(\})(.*)$", section[0], re.MULTILINE)
    own = re.search(rf"^\[environments\.{environment}\.database\].*\n(?:(?!\[).*\n)*", text, re.MULTILINE)
    if section and inline:
        keys = re.sub(r',? *restore_from = "[^"]*"', "", inline[2]).strip().lstrip(", ")
        changed = f"{inline[1]} {keys}, {line} {inline[3]}{inline[4]}"
        start = section.start() + inline.start()
        result = text[:start] + changed + text[section.start() + inline.end() :]
    elif own:
        keys = re.sub(r"^restore_from = .*\n", "", own[0], flags=re.MULTILINE)
        heading, _, rest = keys.partition("\n")
        result = text[: own.start()] + f"{heading}\n{line}\n{rest}" + text[own.end() :]
    else:
        result = ""
    try:
        named = tomllib.loads(result)["environments"][environment]["database"]["restore_from"]
    except (tomllib.TOMLDecodeError, KeyError):
        named = None
    if named != snapshot:
        raise CannotOperate(
            f"The database of {environment} could not be found in platform.toml: write {line} into"
            f" environments.{environment}.database, commit that, and release it."
        )
    return result


def _git(repository: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(repository), *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise CannotOperate(f"git {arguments[0]} failed: {done.stderr.strip()}")
    return done.stdout.strip()
