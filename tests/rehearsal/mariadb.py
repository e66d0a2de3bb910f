"""A real MariaDB server of its own on a loopback port, for the tests of what MySQL does differently."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pymysql

from .test_image_entrypoint import KEYS

PASSWORD = "p@:/%w'\" ü#?&$;="
PROGRAM = shutil.which("mariadbd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/libexec")
RIGHTS_OF_RDS_MASTER = (
    "SELECT, INSERT, UPDATE, DELETE, CREATE, DROP, RELOAD, PROCESS, REFERENCES, INDEX, ALTER, SHOW DATABASES, "
    "CREATE TEMPORARY TABLES, LOCK TABLES, EXECUTE, CREATE VIEW, SHOW VIEW, CREATE ROUTINE, ALTER ROUTINE, CREATE USER, "
    "EVENT, TRIGGER"
)
"""Those of MySQL on RDS that MariaDB knows, too; replication is left out."""
INSTALL = shutil.which("mariadb-install-db", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


class MariaDB:
    """Started when made; `stop` ends it and deletes its files."""

    def __init__(self) -> None:
        assert PROGRAM
        assert INSTALL
        # Not a test's folder: its parents are closed to the account that the server runs as.
        self.folder = Path(tempfile.mkdtemp(prefix="image-mariadb-"))
        self.folder.chmod(0o755)
        # MariaDB refuses to run as root.
        self.user = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        data = self.folder / "data"
        data.mkdir()
        if os.geteuid() == 0:
            shutil.chown(data, self.user)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        base = ["--no-defaults", f"--datadir={data}"]  # the first must come first
        self._run([INSTALL, *base, "--auth-root-authentication-method=normal", "--skip-test-db"])
        start = self.folder / "start.sql"
        password = PASSWORD.replace("\\", "\\\\").replace("'", "\\'")
        start.write_text(
            f"CREATE USER 'mlflow'@'%' IDENTIFIED BY '{password}';\nGRANT ALL ON *.* TO 'mlflow'@'%';\n"
            f"CREATE USER 'master'@'%' IDENTIFIED BY '{password}';\n"
            f"GRANT {RIGHTS_OF_RDS_MASTER} ON *.* TO 'master'@'%' WITH GRANT OPTION;\n"
        )
        self.process = subprocess.Popen(
            [
                PROGRAM,
                *base,
                "--bind-address=127.0.0.1",
                f"--port={self.port}",
                f"--socket={data}/socket",
                f"--init-file={start}",
                f"--pid-file={data}/pid",
                "--innodb-flush-log-at-trx-commit=0",
                "--innodb-buffer-pool-size=64M",
                "--character-set-server=utf8mb4",
            ],
            user=self.user if os.geteuid() == 0 else None,
            cwd=data,
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / "log").open("wb"),
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                self.connect().close()
                return
            except pymysql.err.OperationalError:
                assert self.process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < deadline, (self.folder / "log").read_text()[-2000:]
                time.sleep(0.1)

    def _run(self, command: list[str]) -> None:
        done = subprocess.run(
            command,
            user=self.user if os.geteuid() == 0 else None,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, f"{' '.join(command)}: status {done.returncode}\n{done.stdout}"

    def connect(self, name: str | None = None) -> Any:
        return pymysql.connect(
            host="127.0.0.1",
            port=self.port,
            user="mlflow",
            password=PASSWORD.encode(),  # PyMySQL would encode it as Latin-1
            database=name,
            autocommit=True,
            charset="utf8mb4",
        )

    def create(self, name: str) -> str:
        with self.connect() as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4")
        return name

    def variables(self, name: str) -> dict[str, str]:
        return {
            "DATABASE_ENGINE": "mysql",
            "DATABASE_HOST": "127.0.0.1",
            "DATABASE_PORT": str(self.port),
            "DATABASE_NAME": name,
            "DATABASE_USER": "mlflow",
            "DATABASE_PASSWORD": PASSWORD,
            **KEYS,
        }

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)
        shutil.rmtree(self.folder, ignore_errors=True)
