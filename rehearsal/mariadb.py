"""A real MariaDB server in a folder of its own, with TLS: what stands in for MySQL in a rehearsal, where it is installed.

It is no MySQL: the two parted in 2010. What MLflow and its migrations ask of the one, the other answers alike.
"""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import ssl
from pathlib import Path

import pymysql

from rehearsal.database_server import DatabaseServer, DatabaseServerError, account, give, home
from rehearsal.ports import LOOPBACK

PROGRAMS = ("mariadbd", "mariadb-install-db", "my_print_defaults", "mariadb-backup")
INSTALL = (
    "install MariaDB (Debian: apt-get install mariadb-server-core mariadb-client-core mariadb-backup; macOS:"
    " brew install mariadb)"
)
WHERE = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/libexec"

SERVER_SETTINGS = {
    "bind-address": LOOPBACK,
    "character-set-server": "utf8mb4",
    "innodb-buffer-pool-size": "64M",
    "max-connections": "200",
    "require-secure-transport": "ON",
    "skip-name-resolve": "ON",
    # Who asks whether the server is there yet hangs up without signing in; after 100 times it would be shut out.
    "max-connect-errors": "1000000",
}
MASTER_RIGHTS = (
    "SELECT, INSERT, UPDATE, DELETE, CREATE, DROP, RELOAD, PROCESS, REFERENCES, INDEX, ALTER, SHOW DATABASES, "
    "CREATE TEMPORARY TABLES, LOCK TABLES, EXECUTE, CREATE VIEW, SHOW VIEW, CREATE ROUTINE, ALTER ROUTINE, CREATE USER, "
    "EVENT, TRIGGER"
)
"""Those of RDS's master user that MariaDB knows, too; replication is left out."""


def missing() -> str:
    """Which of its programs this machine lacks; empty if none."""
    return " and ".join(name for name in PROGRAMS if not shutil.which(name, path=WHERE))


def connect(port: int, user: str, password: str, database: str | None = None) -> pymysql.Connection:
    """A connection that commits each statement, by TLS, whose certificate only the server's own machine knows."""
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    return pymysql.connect(
        host=LOOPBACK,
        port=port,
        user=user,
        password=password.encode(),  # PyMySQL would encode it as Latin-1
        database=database,
        autocommit=True,
        charset="utf8mb4",
        ssl=trusting,
    )


class MariaDB(DatabaseServer):
    """MariaDB as the machine has it."""

    engine = "mysql"
    program = "mariadbd"
    stop_signal = signal.SIGTERM

    def create(self, *, user: str, password: str, database: str, superuser: bool = False) -> None:
        """Make it. Its superuser is the account that it runs as, which signs in through the socket alone."""
        _look()
        self._begin()
        self._data.mkdir()
        give(self._data)
        self._run([
            _program("mariadb-install-db"), "--no-defaults", f"--datadir={self._data}", "--skip-test-db",
            "--auth-root-authentication-method=socket", f"--auth-root-socket-user={_owner()}",
        ])  # fmt: skip
        self._issue_certificate()
        rights = "ALL" if superuser else MASTER_RIGHTS
        self._start_with(
            f"CREATE USER {_text(user)}@'%' IDENTIFIED BY {_text(password)};\n"
            f"GRANT {rights} ON *.* TO {_text(user)}@'%' WITH GRANT OPTION;\n"
            f"CREATE DATABASE `{database}`;\n"
        )

    def copy_to(self, directory: Path, *, user: str, password: str) -> None:
        """Copy its files while it serves. Nobody has to sign in: this is the account that the server runs as."""
        there = home(directory)
        there.mkdir(parents=True, exist_ok=True)
        give(there)
        target = f"--target-dir={there / 'data'}"
        self._run([
            _program("mariadb-backup"), "--no-defaults", "--backup", target, f"--datadir={self._data}",
            f"--socket={self._socket}", f"--user={_owner()}",
        ])  # fmt: skip
        self._run([_program("mariadb-backup"), "--no-defaults", "--prepare", target])

    def restore(self, directory: Path, *, user: str, password: str) -> None:
        """Start it from a copy, with a password that only the server is told."""
        _look()
        self._copied(directory)
        self._issue_certificate()
        self._start_with(f"ALTER USER {_text(user)}@'%' IDENTIFIED BY {_text(password)};\n")

    @property
    def _socket(self) -> Path:
        return self._home / "socket"

    def _start_with(self, statements: str) -> None:
        """Start it, and let it run these before anybody can sign in."""
        file = self._secret_file("first.sql", statements)
        try:
            self._start([*self._command(), f"--init-file={file}"])
        finally:
            file.unlink()

    def _command(self) -> list[str]:
        settings = {
            **SERVER_SETTINGS,
            "datadir": self._data,
            "port": self.port,
            "socket": self._socket,
            "pid-file": self._pid_file(),
            "ssl-cert": self._home / "certificate.pem",
            "ssl-key": self._home / "key.pem",
        }
        return [
            _program("mariadbd"),
            "--no-defaults",
            *(f"--{name}={told}" for name, told in settings.items()),
        ]

    def _pid_file(self) -> Path:
        return self._home / "pid"

    def _is_ready(self, connection: socket.socket) -> bool:
        # Its greeting has a 10 after the length and the number of the packet; an error has 255.
        return connection.recv(5)[4:] == b"\n"


def _look() -> None:
    if lacking := missing():
        raise DatabaseServerError(f'{lacking} is missing: {INSTALL}, or rehearse with engine = "postgres"')


def _program(name: str) -> str:
    found = shutil.which(name, path=WHERE)
    assert found
    return found


def _owner() -> str:
    return account() or getpass.getuser()


def _text(value: str) -> str:
    """As a string in SQL."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
