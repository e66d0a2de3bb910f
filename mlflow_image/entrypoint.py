"""The container's command: `entrypoint.py serve` (also without argument) or `entrypoint.py migrate`.

`serve` makes the schema if the database is empty, then runs the server in this process. `migrate` brings the
schema to this image's revision. `settings.py` lists the environment variables.

Exit status: 0 done, or stopped by SIGTERM while serving; 1 the database cannot be used, or a stuck request
had to be cut off; 2 wrong settings or arguments; 143 stopped by SIGTERM before serving.
"""

import os
import signal
import sys

import database
import psycopg
import server
import settings


def main(arguments: list[str]) -> int:
    # The first process of a container ignores SIGTERM unless it has a handler.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    for name, value in settings.PROCESS_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        match arguments:
            case [] | ["serve"]:
                serve()
            case ["migrate"]:
                migrate()
            case _:
                print(f"Unknown arguments {arguments}: give serve or migrate.", file=sys.stderr)
                return 2
    except settings.SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    except database.DatabaseError as error:
        print(error, file=sys.stderr)
        return 1
    except psycopg.Error as error:
        reason = " ".join(str(error).split())
        print(f"The database refused or broke off ({reason}): check DATABASE_USER's rights.", file=sys.stderr)
        return 1
    return 0


def serve() -> None:
    where, how = settings.read(os.environ)
    os.environ["PGPASSWORD"] = where.password
    database.ensure_schema(where)
    server.run(where, how)


def migrate() -> None:
    where = settings.read_database(os.environ)
    os.environ["PGPASSWORD"] = where.password
    before, after = database.migrate(where)
    print(f"Schema of {where}: revision {before or 'none'} before, {after} now.", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
