"""Where the upgrade drills keep their data: a PostgreSQL server, and a bucket that can be out of reach for a while."""

from __future__ import annotations

import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString

import boto3
import psycopg
from psycopg import sql

from rehearsal.ports import free_port
from rehearsal.postgres import Postgres
from rehearsal.processes import ProcessRegistry

from . import census
from .old_versions import Program

BUCKET = "artifacts-of-the-upgrade-drills"
START_SECONDS = 60
KEY = {"AWS_ACCESS_KEY_ID": "drill", "AWS_SECRET_ACCESS_KEY": "drill", "AWS_DEFAULT_REGION": "us-east-1"}

ROAD = """
import asyncio, sys

async def carry(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()

async def connected(reader, writer):
    there = await asyncio.open_connection("127.0.0.1", int(sys.argv[2]))
    await asyncio.gather(carry(reader, there[1]), carry(there[0], writer))

async def main():
    server = await asyncio.start_server(connected, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()

asyncio.run(main())
"""
"""Carries connections to moto. moto keeps everything in memory, so it is this that is stopped and started again."""


@dataclass(frozen=True)
class Place:
    """A database and a folder in the bucket, as one environment has them."""

    name: str
    variables: dict[str, str]
    """What leads the image there."""

    def connect(self) -> psycopg.Connection[Any]:
        """A connection to the database, in autocommit mode."""
        return psycopg.connect(
            host=self.variables["DATABASE_HOST"],
            port=self.variables["DATABASE_PORT"],
            user=self.variables["DATABASE_USER"],
            password=self.variables["DATABASE_PASSWORD"],
            dbname=self.name,
            autocommit=True,
        )

    def query(self, text: LiteralString) -> list[tuple[Any, ...]]:
        """What the database answers."""
        with self.connect() as connection:
            return connection.execute(text).fetchall()

    def census(self, url: str) -> census.Census:
        """What is here, read through the server at `url`."""
        with self.connect() as connection:
            return census.take(connection, url)

    def rows(self) -> dict[str, int]:
        """The number of rows of each table."""
        with self.connect() as connection:
            return census.count_rows(connection)


class Places:
    """One PostgreSQL server, and one moto server behind a road that can be closed."""

    def __init__(self, folder: Path) -> None:
        self.postgres = Postgres(folder / "postgres", ProcessRegistry(folder / "processes"))
        self._password = secrets.token_urlsafe(16)
        self.postgres.create(user="drill", password=self._password, database="first")
        self._moto_port, self._port = free_port(), free_port()
        command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(self._moto_port)]
        self._moto = Program(command, {})
        _wait_for_port(self._moto_port, self._moto)
        self.open_road()
        self.client("s3").create_bucket(Bucket=BUCKET)

    def create(self, name: str, like: Place | None = None) -> Place:
        """A place that is empty, or has all that another one has. Nobody may be connected to that."""
        first = self._place("first")
        with first.connect() as connection:
            template = sql.Identifier(like.name if like else "template1")
            statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), template)
            connection.execute(statement)
        if like:
            s3 = self.client("s3")
            for page in s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{like.name}/"):
                for found in page.get("Contents", []):
                    key = found["Key"]
                    copy = f"{name}/{key.removeprefix(f'{like.name}/')}"
                    s3.copy_object(Bucket=BUCKET, Key=copy, CopySource={"Bucket": BUCKET, "Key": key})
        return self._place(name)

    def client(self, service: str) -> Any:
        """A client of the rehearsed AWS, on a road of its own."""
        return boto3.client(
            service,
            endpoint_url=f"http://127.0.0.1:{self._moto_port}",
            region_name=KEY["AWS_DEFAULT_REGION"],
            aws_access_key_id=KEY["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEY["AWS_SECRET_ACCESS_KEY"],
        )

    def open_road(self) -> None:
        """Let connections through to the bucket."""
        self._road = Program([sys.executable, "-c", ROAD, str(self._port), str(self._moto_port)], {})
        _wait_for_port(self._port, self._road)

    def close_road(self) -> None:
        """Cut all connections to the bucket, and refuse new ones."""
        self._road.kill()

    def remove(self) -> None:
        """Stop and delete it all."""
        self._road.kill()
        self._moto.kill()
        self.postgres.remove()

    def _place(self, name: str) -> Place:
        database = {
            "DATABASE_HOST": "127.0.0.1",
            "DATABASE_PORT": str(self.postgres.port),
            "DATABASE_NAME": name,
            "DATABASE_USER": "drill",
            "DATABASE_PASSWORD": self._password,
        }
        road = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}"}
        return Place(name, {**database, **KEY, **road, "ARTIFACTS_DESTINATION": f"s3://{BUCKET}/{name}"})


@contextmanager
def folder() -> Iterator[Path]:
    """A folder that PostgreSQL's user, who is not root, gets through."""
    with tempfile.TemporaryDirectory(prefix="mlflow-upgrades-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


def _wait_for_port(port: int, program: Program) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _listens(port):
        assert program.process.poll() is None, program.output
        assert time.monotonic() < deadline, f"nothing listens on port {port}\n{program.output}"
        time.sleep(0.1)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
