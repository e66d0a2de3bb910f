"""The container's command: `entrypoint.py serve` (also without argument) or `entrypoint.py migrate`.

`serve` runs the server in this process; it never makes or changes the schema. `migrate` brings the schema to this
image's revision, and its last line is a JSON object that says what it did. `settings.py` lists the environment
variables.

Exit status: 0 done, or stopped by SIGTERM while serving; 1 the database cannot be used, or a stuck request
had to be cut off; 2 wrong settings or arguments; 3 a person has to decide first: a breaking migration is pending, or
the schema is newer and not fit for this image; 143 stopped by SIGTERM before serving, or while migrating.
"""

import json
import os
import signal
import sys
import time

import settings
import withheld

if __name__ == "__main__":
    withheld.start_anew()

# What takes long to import is imported once, after that.
import database
import history
import server
from sqlalchemy.exc import DBAPIError


def main(arguments: list[str]) -> int:
    # The first process of a container ignores SIGTERM unless it has a handler.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    withheld.take(os.environ)
    for name, value in settings.PROCESS_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    match arguments:
        case [] | ["serve"]:
            command = serve
        case ["migrate"]:
            command = migrate
        case _:
            print(f"Unknown arguments {arguments}: give serve or migrate.", file=sys.stderr)
            return 2
    try:
        command()
    except settings.SettingsError as error:
        return _failed(command is migrate, str(error), 2)
    except database.RefusedError as error:
        return _failed(command is migrate, str(error), 3)
    except database.DatabaseError as error:
        return _failed(command is migrate, str(error), 1)
    except DBAPIError as error:
        return _failed(
            command is migrate, f"The database refused or broke off: {database.explain(error)}.", 1
        )
    except SystemExit:
        if command is migrate:
            sentence = (
                "Stopped by SIGTERM. The migration that ran was undone; a new start goes on from there."
            )
            _failed(True, sentence, 128 + signal.SIGTERM)
        raise
    return 0


def serve() -> None:
    where, how = settings.read({**os.environ, **withheld.secrets})
    database.sign_in()
    image = database.image_revision()
    with database.connect(where) as connection:
        found = database.current_revision(connection)
        between = history.check_servable(connection, where, image, found)
        if how.sign_in:
            import own_users  # it takes werkzeug along, for nothing where nobody signs in

            own_users.keep(connection, where, how.sign_in)
    for name in settings.USER_PASSWORDS.values():  # no worker needs them
        withheld.secrets.pop(name, None)
    if between:
        print(
            f"WARNING: the schema of {where} is at revision {found}, newer than this image's {image} by "
            f"{len(between)} additive migration(s); serving it as it is.",
            flush=True,
        )
    migrations = [{"revision": entry.revision, "applied_at": entry.applied_at} for entry in between]
    server.run(
        where, how, {"image": image, "database": found, "newer_by": len(between), "migrations": migrations}
    )


def migrate() -> None:
    begin = time.monotonic()
    where, how = settings.read_migration({**os.environ, **withheld.secrets})
    database.sign_in()
    # alembic and boto3 are for this command only; a server starts faster without them.
    import migration

    outcome = migration.migrate(where, how)
    print(f"Schema of {where}: revision {outcome.before or 'none'} before, {outcome.after} now.", flush=True)
    applied = [
        {"revision": entry.revision, "kind": kind, "reasons": entry.reasons}
        for entry, kind in outcome.applied
    ]
    told = {
        "before": outcome.before,
        "after": outcome.after,
        "applied": applied,
        "snapshot": outcome.snapshot.name,
        "kind": outcome.kind,
        "indexes": outcome.indexes,
        "seconds": round(time.monotonic() - begin, 1),
    }
    print(json.dumps(told), flush=True)


def _failed(migrating: bool, sentence: str, status: int) -> int:
    """Say why, and as the last line of `migrate`'s output for whoever reads that."""
    print(sentence, file=sys.stderr, flush=True)
    if migrating:
        print(json.dumps({"error": " ".join(sentence.split())}), flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
