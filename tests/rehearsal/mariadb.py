"""A real MariaDB server of its own on a loopback port, for the tests of what MySQL does differently."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest

from rehearsal import mariadb
from rehearsal.certificates import AUTHORITY
from rehearsal.database_server import CERTIFICATES
from rehearsal.processes import ProcessRegistry

from .test_image_entrypoint import KEYS

PASSWORD = "p@:/%w'\" ü#?&$;="
USER, MASTER = "mlflow", "master"

MISSING = mariadb.missing()
NEEDS_MARIADB = pytest.mark.skipif(bool(MISSING), reason=f"{MISSING} is missing: {mariadb.INSTALL}")


class MariaDB:
    """Started when made; `stop` ends it and deletes its files. USER may do everything, MASTER what RDS's master may."""

    def __init__(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="image-mariadb-"))
        self.authority = folder / CERTIFICATES / AUTHORITY
        self.server = mariadb.MariaDB(folder / "server", ProcessRegistry(folder / "processes"))
        self.server.create(user=USER, password=PASSWORD, database="unused", superuser=True)
        with self.connect() as connection, connection.cursor() as cursor:
            cursor.execute("CREATE USER %s@'%%' IDENTIFIED BY %s", (MASTER, PASSWORD))
            cursor.execute(f"GRANT {mariadb.MASTER_RIGHTS} ON *.* TO %s@'%%' WITH GRANT OPTION", (MASTER,))

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def pid(self) -> int:
        found = self.server.pid
        assert found
        return found

    def connect(self, name: str | None = None) -> Any:
        return mariadb.connect(self.port, USER, PASSWORD, name)

    def create(self, name: str) -> str:
        with self.connect() as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE `{name}`")
        return name

    def variables(self, name: str) -> dict[str, str]:
        return {
            "DATABASE_ENGINE": "mysql",
            "DATABASE_HOST": "127.0.0.1",
            "DATABASE_PORT": str(self.port),
            "DATABASE_NAME": name,
            "DATABASE_USER": USER,
            "DATABASE_PASSWORD": PASSWORD,
            "DATABASE_SSLMODE": "verify-full",
            "DATABASE_SSLROOTCERT": str(self.authority),
            **KEYS,
        }

    def stop(self) -> None:
        self.server.remove()
