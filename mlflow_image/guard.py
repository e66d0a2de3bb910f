"""Lets an image serve a newer schema, exactly as far as the database's history says that it can.

MLflow refuses every revision but its own, and makes or upgrades a schema in which it misses a table. The first is
relaxed here for the revisions that only additive migrations separate from this image, each time that MLflow asks. The
second is switched off.
"""

import json
import os
from typing import Any

import database
import history
import mlflow
from mlflow.exceptions import MlflowException
from mlflow.store.db import utils
from mlflow.store.model_registry import sqlalchemy_store as registry
from server import SCHEMA_VARIABLE
from sqlalchemy.engine import Engine
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


def relax() -> None:
    """Put our checks in the place of MLflow's, in this process."""
    utils._verify_schema = check
    # The registry's store has it under a name of its own.
    utils._initialize_tables = registry._initialize_tables = _refuse_to_create


def add_details(application: Any) -> None:
    """Answer `GET /health/details`: which schema this image was made for, and which one it serves."""
    details = {
        "status": "OK",
        "mlflow": mlflow.__version__,
        "schema": json.loads(os.environ[SCHEMA_VARIABLE]),
    }

    async def answer(_: Request) -> JSONResponse:
        return JSONResponse(details)

    # First, because MLflow's own last route takes every path.
    application.router.routes.insert(0, Route("/health/details", answer))


def check(engine: Engine, line: database.Line = database.SCHEMA) -> None:
    """Raise MlflowException if this image cannot serve what the database has of that line."""
    head = database.image_revision(line)
    with engine.connect() as connection:
        found = database.current_revision(connection, line)
        try:
            history.check_servable(connection, engine.url.database, head, found, line)
        except database.DatabaseError as error:
            raise MlflowException(str(error)) from None


def _refuse_to_create(engine: Engine) -> None:
    raise MlflowException(
        f"The database {engine.url.database} lacks tables of MLflow's: run `entrypoint.py migrate`; a server makes none."
    )
