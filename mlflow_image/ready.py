"""`GET /health/ready`: whether the database and the bucket answer, for people and for monitoring.

It is not the load balancer's check. That is `/health`, which asks nobody: a database that is away for a moment would else
have every task replaced, when none of them can do anything about it.
"""

import asyncio
import functools
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import boto3
import sqlalchemy as sa
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

log = logging.getLogger("uvicorn.error")

ANSWER_SECONDS = 3.0  # how long a caller waits at most; a check that takes longer counts as no answer
CACHE_SECONDS = 1.0  # however many ask, each part is asked once in this time by each worker


def add(application: Any, database_uri: str, artifacts: str) -> None:
    """Add the endpoint. `artifacts` is the bucket as s3://bucket/prefix."""
    # Connections of its own, which are not in the way of requests, nor they in its.
    engine = sa.create_engine(database_uri, poolclass=NullPool)
    parts = {
        "database": _Part("database", lambda: _ask_database(engine)),
        "bucket": _Part("bucket", lambda: _ask_bucket(artifacts)),
    }

    async def answer(_: Request) -> JSONResponse:
        found = dict(
            zip(parts, await asyncio.gather(*(part.answers() for part in parts.values())), strict=True)
        )
        told = {name: "OK" if well else "no answer" for name, well in found.items()}
        well = all(found.values())
        return JSONResponse({"status": "OK" if well else "UNAVAILABLE", **told}, 200 if well else 503)

    application.router.routes.insert(0, Route("/health/ready", answer))


class _Part:
    """One thing that is asked, by a thread of its own: the server's may all be waiting for that very thing."""

    def __init__(self, name: str, ask: Callable[[], None]) -> None:
        self._name = name
        self._ask = ask
        self._thread = ThreadPoolExecutor(1, f"ready-{name}")
        self._running: asyncio.Future[bool] | None = None
        self._ended = 0.0
        self._well = True

    async def answers(self) -> bool:
        """Whether it answered, now or within CACHE_SECONDS. A check that is under way is not begun twice."""
        running = self._running
        if running is None or (running.done() and time.monotonic() - self._ended > CACHE_SECONDS):
            running = asyncio.get_running_loop().run_in_executor(self._thread, self._check)
            self._running = running
        try:
            return await asyncio.wait_for(asyncio.shield(running), ANSWER_SECONDS)
        except TimeoutError:
            return False

    def _check(self) -> bool:
        why = ""
        try:
            self._ask()
        except (SQLAlchemyError, BotoCoreError, ClientError) as error:
            why = " ".join(str(error).split())
        if (not why) != self._well:  # in the log once, not each second
            self._well = not why
            log.info("The %s %s", self._name, f"does not answer: {why}" if why else "answers again")
        self._ended = time.monotonic()
        return not why


def _ask_database(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")


def _ask_bucket(artifacts: str) -> None:
    where = urlsplit(artifacts)
    _s3().list_objects_v2(Bucket=where.netloc, Prefix=where.path.lstrip("/"), MaxKeys=1)


@functools.cache
def _s3() -> Any:
    limits = Config(connect_timeout=2, read_timeout=2, retries={"total_max_attempts": 1})
    return boto3.client("s3", config=limits, endpoint_url=os.environ.get("MLFLOW_S3_ENDPOINT_URL"))
