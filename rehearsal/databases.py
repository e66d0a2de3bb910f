"""The database servers of a rehearsal, by the name that RDS has for their engine."""

from __future__ import annotations

from pathlib import Path

from rehearsal.certificates import AUTHORITY
from rehearsal.database_server import DatabaseServer, engine_of
from rehearsal.mariadb import CERTIFICATES, MariaDB
from rehearsal.postgres import Postgres
from rehearsal.processes import ProcessRegistry

ENGINES: dict[str, type[DatabaseServer]] = {server.engine: server for server in (Postgres, MariaDB)}


def authority(account_directory: Path) -> Path:
    """The file that vouches for the database servers of an account."""
    return account_directory / "databases" / CERTIFICATES / AUTHORITY


def introduce(environment: dict[str, str], authority: Path) -> list[Path]:
    """Tell a task whom to believe that it is its database, and return the files that it reads for that.

    What it has of its own vouches for RDS. The wheel's PostgreSQL is built without TLS.
    """
    match environment.get("DATABASE_ENGINE"):
        case "postgresql":
            environment.pop("DATABASE_SSLMODE", None)
        case "mysql":
            environment["DATABASE_SSLROOTCERT"] = str(authority)
            return [authority]
    return []


def opened(directory: Path, processes: ProcessRegistry) -> DatabaseServer:
    """The server that was made in a folder."""
    return ENGINES[engine_of(directory)](directory, processes)
