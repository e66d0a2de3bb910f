"""The database servers of a rehearsal, by the name that RDS has for their engine."""

from __future__ import annotations

from pathlib import Path

from rehearsal.database_server import DatabaseServer, engine_of
from rehearsal.mariadb import MariaDB
from rehearsal.postgres import Postgres
from rehearsal.processes import ProcessRegistry

ENGINES: dict[str, type[DatabaseServer]] = {server.engine: server for server in (Postgres, MariaDB)}


def opened(directory: Path, processes: ProcessRegistry) -> DatabaseServer:
    """The server that was made in a folder."""
    return ENGINES[engine_of(directory)](directory, processes)
