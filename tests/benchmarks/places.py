"""Where both sides keep their data: one PostgreSQL server, and one S3 server in a process of its own."""

from __future__ import annotations

import secrets
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import LiteralString

import boto3
from psycopg import sql

from rehearsal.ports import free_port
from rehearsal.postgres import Postgres
from rehearsal.processes import ProcessRegistry
from tests.drills.old_versions import Program, Release
from tests.drills.places import KEY, Place

BUCKET = "benchmark"
START_SECONDS = 60

S3 = """
import socket
import sys
from gevent.pywsgi import WSGIServer
from moto.server import DomainDispatcherApplication, create_backend_app

server = WSGIServer(("127.0.0.1", int(sys.argv[1])), DomainDispatcherApplication(create_backend_app), log=None)
server.init_socket()
server.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
server.serve_forever()
"""
"""moto behind a server that keeps connections and sends an answer's head and body at once, as S3 does. Under moto's own
each request would first connect, and each body would wait 40 ms for the client's acknowledgement of the head: both would
hide what is measured."""


class BenchmarkFailed(Exception):
    """The benchmark cannot go on; the message is a sentence that says why."""


class Places:
    """The two servers, with databases that are copied from one another."""

    def __init__(self, folder: Path) -> None:
        self._password = secrets.token_urlsafe(16)
        self.postgres = Postgres(folder / "postgres", ProcessRegistry(folder / "processes"))
        self.postgres.create(user="drill", password=self._password, database="first", superuser=True)
        port = free_port()
        self._endpoint = f"http://127.0.0.1:{port}"
        self._s3 = Program([sys.executable, "-c", S3, str(port)], {})
        deadline = time.monotonic() + START_SECONDS
        while not _listens(port):
            if self._s3.process.poll() is not None or time.monotonic() > deadline:
                raise BenchmarkFailed(f"the S3 server did not start:\n{self._s3.output}")
            time.sleep(0.1)
        s3 = boto3.client(
            "s3",
            endpoint_url=self._endpoint,
            region_name=KEY["AWS_DEFAULT_REGION"],
            aws_access_key_id=KEY["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEY["AWS_SECRET_ACCESS_KEY"],
        )
        s3.create_bucket(Bucket=BUCKET)

    def create(self, name: str, like: str = "template1") -> Place:
        """A database, empty or a copy of another one that nobody is connected to."""
        self._admin("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY", name, like)
        return self._place(name)

    def drop(self, place: Place) -> None:
        """Delete a database; whoever is connected to it is cut off."""
        self._admin("DROP DATABASE {} WITH (FORCE)", place.name)

    def remove(self) -> None:
        """Stop both servers, and delete what they hold."""
        self._s3.kill()
        self.postgres.remove()

    @contextmanager
    def statements(self, place: Place) -> Iterator[list[float]]:
        """Collects the milliseconds of each statement that PostgreSQL carries out meanwhile, in order, as it logs them."""
        milliseconds: list[float] = []
        begin = self.postgres.log.stat().st_size
        self._log_statements(place, "0")
        try:
            yield milliseconds
        finally:
            self._log_statements(place, "-1")
        with self.postgres.log.open("rb") as log:
            log.seek(begin)
            lines = log.read().decode(errors="replace").splitlines()
        milliseconds += [
            float(line.split("duration: ")[1].split(" ms")[0]) for line in lines if "LOG:  duration: " in line
        ]

    def _log_statements(self, place: Place, least_milliseconds: LiteralString) -> None:
        with place.connect() as connection:
            connection.execute(f"ALTER SYSTEM SET log_min_duration_statement = {least_milliseconds}")
            connection.execute("SELECT pg_reload_conf()")
        # Each process of PostgreSQL reads its settings anew between two statements, once it has had the signal.
        time.sleep(0.5)

    def _admin(self, statement: LiteralString, *names: str) -> None:
        with self._place("postgres").connect() as connection:
            connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))

    def _place(self, name: str) -> Place:
        variables = {
            "DATABASE_HOST": "127.0.0.1",
            "DATABASE_PORT": str(self.postgres.port),
            "DATABASE_NAME": name,
            "DATABASE_USER": "drill",
            "DATABASE_PASSWORD": self._password,
            "ARTIFACTS_DESTINATION": f"s3://{BUCKET}/{name}",
            "AWS_ENDPOINT_URL": self._endpoint,
            **KEY,
        }
        return Place(name, variables)


def stock_uri(place: Place) -> str:
    """The database as `mlflow server` is told of it; libpq finds the password in PGPASSWORD."""
    where = "{DATABASE_USER}@{DATABASE_HOST}:{DATABASE_PORT}/{DATABASE_NAME}".format_map(place.variables)
    return f"postgresql+psycopg2://{where}"


def make_schema(stock: Release, place: Place) -> None:
    """The schema as stock MLflow makes it.

    Raises:
        BenchmarkFailed: It could not.
    """
    ended = Program(
        [str(stock.python), "-m", "mlflow", "db", "upgrade", stock_uri(place)],
        stock_variables(place.variables),
    ).wait()
    if ended.status:
        raise BenchmarkFailed(f"mlflow db upgrade failed:\n{ended.output}")


def stock_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """What stock MLflow finds in its environment."""
    aws = {name: value for name, value in variables.items() if name.startswith("AWS_")}
    return {"PGPASSWORD": variables["DATABASE_PASSWORD"], "MLFLOW_DISABLE_TELEMETRY": "true", **aws}


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
