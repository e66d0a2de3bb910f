"""A real database server in a folder of its own: what an RDS instance is in a rehearsal, whichever its engine."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

import psutil

from rehearsal.certificates import Certificates
from rehearsal.ports import LOOPBACK, free_port
from rehearsal.processes import ProcessRegistry, came_up

START_SECONDS = 60
CERTIFICATES = "certificates"
"""The folder of the authority, beside those of the servers that it vouches for."""


class DatabaseServerError(Exception):
    """The server did not start, stop or answer; the message names its log."""


class DatabaseServer(ABC):
    """One server: made once, then started and stopped at will. Its port stays the same."""

    engine: ClassVar[str]
    """How RDS calls it."""
    program: ClassVar[str]
    """Its process."""
    stop_signal: ClassVar[signal.Signals]
    """Cuts connections, and loses nothing that was committed."""

    def __init__(self, directory: Path, processes: ProcessRegistry) -> None:
        self._directory = directory
        self._processes = processes
        self._home = home(directory)
        self._data = self._home / "data"
        self.log = directory / "server.log"

    @abstractmethod
    def create(self, *, user: str, password: str, database: str, superuser: bool = False) -> None:
        """Make the server's files, start it, and make a user and a database of its own.

        The user has the rights of RDS's master user; who measures the server itself asks for a superuser.

        Raises:
            DatabaseServerError: there is one already, or it did not start.
        """

    @abstractmethod
    def copy_to(self, directory: Path, *, user: str, password: str) -> None:
        """Copy the running server's files, as of one moment, for `restore` to start another server from.

        Raises:
            DatabaseServerError: the copy failed.
        """

    @abstractmethod
    def restore(self, directory: Path, *, user: str, password: str) -> None:
        """Make the server's files from a copy, give that user another password, and start it.

        Raises:
            DatabaseServerError: there is no such copy, or the server did not start.
        """

    @abstractmethod
    def _command(self) -> list[str]:
        """What starts the server."""

    @abstractmethod
    def _pid_file(self) -> Path:
        """Its first line is the server's process id."""

    @abstractmethod
    def _is_ready(self, connection: socket.socket) -> bool:
        """Whether who has just connected could sign in."""

    @property
    def port(self) -> int:
        """Where it listens on 127.0.0.1."""
        return int((self._directory / "port").read_text(encoding="utf-8"))

    @property
    def running(self) -> bool:
        """Whether its process is alive."""
        return self.pid is not None

    @property
    def pid(self) -> int | None:
        """Its process, if it is alive."""
        with contextlib.suppress(OSError, ValueError, IndexError, psutil.Error):
            pid = int(self._pid_file().read_text(encoding="utf-8").splitlines()[0])
            if self.program in psutil.Process(pid).name():
                return pid
        return None

    def start(self) -> None:
        """Start the server and return when it accepts connections.

        Raises:
            DatabaseServerError: it ended or did not answer in a minute.
        """
        self._start(self._command())

    def stop(self) -> None:
        """Stop the server as RDS does: connections are cut, nothing that was committed is lost.

        Raises:
            DatabaseServerError: it is still there after a minute.
        """
        pid = self.pid
        if pid is None:
            return
        process = psutil.Process(pid)
        process.send_signal(self.stop_signal)
        try:
            process.wait(timeout=START_SECONDS)
        except psutil.TimeoutExpired:
            raise DatabaseServerError(
                f"{self.program} (process {pid}) did not stop; read {self.log}"
            ) from None

    def remove(self) -> None:
        """Stop the server and delete its files."""
        self.stop()
        remove_files(self._directory)

    def _begin(self) -> None:
        """The folders of a new server, and its port."""
        if self._data.exists():
            raise DatabaseServerError(
                f"{self._data} exists already: a server was made here; run `make down` first"
            )
        self._directory.mkdir(parents=True, exist_ok=True)
        self._home.mkdir(parents=True, exist_ok=True)
        give(self._home)
        (self._directory / "engine").write_text(self.engine, encoding="utf-8")
        (self._directory / "port").write_text(str(free_port()), encoding="utf-8")

    def _copied(self, directory: Path) -> None:
        """Begin with the files of a copy."""
        copy = home(directory) / "data"
        if not copy.exists():
            raise DatabaseServerError(f"{directory} holds no copy of a server; take a snapshot first")
        self._begin()
        self._run(["cp", "-a", str(copy), str(self._data)])

    def _start(self, command: list[str]) -> None:
        with self.log.open("ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self._home,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
                start_new_session=True,
                user=account(),
            )
        self._processes.record(f"database-{self._directory.name}", process.pid, self.program)
        if not came_up(self._accepts, process, START_SECONDS):
            raise DatabaseServerError(f"{self.program} did not start; read {self.log}")

    def _accepts(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, self.port), timeout=1) as it:
            return self._is_ready(it)
        return False

    def _issue_certificate(self) -> tuple[Path, Path]:
        """A certificate for loopback, and its key."""
        # All servers of an account have one authority, as all of a region have on RDS.
        issued = Certificates(self._directory.parent / CERTIFICATES).issue(LOOPBACK)
        chain = "".join(part.bytes().decode() for part in issued.cert_chain_pems)
        return (
            self._secret_file("certificate.pem", chain),
            self._secret_file("key.pem", issued.private_key_pem.bytes().decode()),
        )

    def _secret_file(self, name: str, text: str) -> Path:
        """A file that the server alone can read. Who makes it deletes it."""
        file = self._home / name
        file.touch(mode=0o600)
        file.write_text(text, encoding="utf-8")
        give(file)
        return file

    def _run(self, command: list[str], text: str = "", **variables: str) -> None:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            cwd=self._home,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C", **variables},
            user=account(),
            check=False,
        )
        if done.returncode != 0:
            program = Path(command[0]).name
            raise DatabaseServerError(
                f"{program} failed in {self._home}: {(done.stderr or done.stdout).strip()}"
            )


def engine_of(directory: Path) -> str:
    """The engine of the server that was made in a folder, as RDS calls it."""
    return (directory / "engine").read_text(encoding="utf-8")


def remove_files(directory: Path) -> None:
    """Delete what is left of a server that runs no more, or of a copy."""
    for folder in (_short(directory), directory):
        shutil.rmtree(folder, ignore_errors=True)


def account() -> str | None:
    """No database server agrees to run as root; then it runs as nobody."""
    return "nobody" if os.geteuid() == 0 else None


def home(directory: Path) -> Path:
    """Where a server's files are: beside its log, or, for root, where nobody may reach them."""
    return directory if os.geteuid() != 0 else _short(directory)


def socket_folder(directory: Path) -> Path:
    """Where a server's socket is. Its path has room for some hundred characters, whatever the folder's own has."""
    folder = _short(directory)
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _short(directory: Path) -> Path:
    digest = hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:12]
    # Not TMPDIR: every process must find the same server, and the accounts' server has a TMPDIR of its own.
    return Path("/tmp") / f"rehearsal-database-{digest}"  # noqa: S108


def give(path: Path) -> None:
    """Let the server have it."""
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
