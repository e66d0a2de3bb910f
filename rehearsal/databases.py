"""The database servers of a rehearsal, by the name that RDS has for their engine."""

from __future__ import annotations

from pathlib import Path

from rehearsal.certificates import AUTHORITY
from rehearsal.database_server import CERTIFICATES, DatabaseServer, engine_of
from rehearsal.iam_postgres import beside
from rehearsal.mariadb import MariaDB
from rehearsal.postgres import Postgres
from rehearsal.processes import ProcessRegistry
from rehearsal.task_roles import CannotStartError

ENGINES: dict[str, type[DatabaseServer]] = {server.engine: server for server in (Postgres, MariaDB)}


def authority(account_directory: Path) -> Path:
    """The file that vouches for the database servers of an account."""
    return account_directory / "databases" / CERTIFICATES / AUTHORITY


def introduce(environment: dict[str, str], authority: Path) -> list[Path]:
    """Tell a task whom to believe that it is its database, and return the files that it reads for that.

    What it has of its own vouches for RDS. The wheel's PostgreSQL is built without TLS: who signs in with a password does
    without, and who signs in with a token goes to the proxy that has it.
    """
    match environment.get("DATABASE_ENGINE"), environment.get("DATABASE_SIGN_IN"):
        case "postgresql", "iam":
            port = _port_for_tokens(authority.parent.parent, environment["DATABASE_PORT"])
            environment |= {"DATABASE_PORT": str(port), "DATABASE_SSLROOTCERT": str(authority)}
        case "mysql", _:
            environment["DATABASE_SSLROOTCERT"] = str(authority)
        case "postgresql", _:
            environment.pop("DATABASE_SSLMODE", None)
            return []
        case _:
            return []
    return [authority]


def _port_for_tokens(databases: Path, port: str) -> int:
    for file in databases.glob("*/port"):
        if file.read_text(encoding="utf-8") == port and (told := beside(file.parent)):
            return told.port
    raise CannotStartError(
        f"the database at port {port} takes no tokens: its EnableIAMDatabaseAuthentication is off, or an older rehearsal"
        " made it; run `make down` and rehearse again"
    )


def opened(directory: Path, processes: ProcessRegistry) -> DatabaseServer:
    """The server that was made in a folder."""
    return ENGINES[engine_of(directory)](directory, processes)
