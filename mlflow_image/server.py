"""MLflow's web server, run in this very process.

`mlflow server` would do the same in two more steps: it imports MLflow, checks the stores, and then starts
uvicorn as a child that imports MLflow again, while the parent stays to pass signals on. Running uvicorn
here halves the time to the first answer, saves the parent's memory, and makes this process the one that
gets SIGTERM. The price is the handful of variables below, which `mlflow server` hands to uvicorn; a test
compares them with what it really hands over.
"""

import faulthandler
import json
import logging
import os
import signal
import sys
import uuid
from functools import partial
from importlib.util import find_spec
from types import FrameType
from typing import Any

import database
import deadlines
import failures
import uvicorn
import withheld
from settings import KEYS, Database, Server
from uvicorn.supervisors import Multiprocess

# A load balancer reuses a connection until it was idle for its own timeout, 60 s unless configured. Were the
# server the first to close it, the balancer could send a request into a closing connection and answer 502.
KEEP_ALIVE_SECONDS = 75
# Time for requests in flight once SIGTERM came. Both must lie within the task's stop timeout.
GRACEFUL_SECONDS = 25
FORCED_SECONDS = 30

# uvicorn kills a worker that does not answer its parent in this time, 5 s by default. On a busy machine the import of
# MLflow alone holds the interpreter for longer, and no worker would ever get through it. The parent does not hear SIGTERM
# while it waits, so this must leave most of the task's stop timeout to the requests in flight.
WORKER_SECONDS = 15

# Each worker has two pools (tracking, registry). MLflow's log-batch holds one connection while it takes a second: with no
# more connections than the 40 threads that requests run in, batches at once wait for one another until they fail. So
# 41, of which 5 are kept.
# A variable that is already set wins, so a task definition can differ.
POOLS = {
    "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "5",
    "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": "36",
    "MLFLOW_SQLALCHEMYSTORE_POOL_RECYCLE": "900",  # seconds
    "MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "QueuePool",  # by name, so that deadlines.py can put its own in its place
}

SIGN_IN_VARIABLE = (
    "PLATFORM_SIGN_IN"  # for the workers: empty, or for how many seconds a password is not hashed again
)
SCHEMA_VARIABLE = "PLATFORM_SCHEMA"  # what was found at the start, as JSON, for the workers

LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {"requests": {"()": "server.WithoutHealthChecks"}},
    "formatters": {
        "line": {"format": "%(asctime)s %(levelname)s %(message)s"},
        "access": {
            "()": "uvicorn.logging.AccessFormatter",
            "fmt": '%(asctime)s %(client_addr)s "%(request_line)s" %(status_code)s',
            "use_colors": False,
        },
    },
    "handlers": {
        "line": {"class": "logging.StreamHandler", "formatter": "line"},
        "access": {
            "class": "logging.StreamHandler",
            "formatter": "access",
            "filters": ["requests"],
            "stream": "ext://sys.stdout",
        },
    },
    "loggers": {
        "uvicorn": {"handlers": ["line"], "level": "INFO", "propagate": False},
        "uvicorn.access": {"handlers": ["access"], "level": "INFO", "propagate": False},
    },
}


class WithoutHealthChecks(logging.Filter):
    """Drops the access line of a health check that went well: two a second would bury the rest."""

    def filter(self, record: logging.LogRecord) -> bool:
        match record.args:
            case (_, _, "/health" | "/health/ready", _, 200):
                return False
        return True


def environment(where: Database, server: Server) -> dict[str, str]:
    """What uvicorn's workers must find in their environment: no secret, which `application` is given."""
    limits = " ".join(f"-c {name}={value}" for name, value in deadlines.POSTGRESQL.items())
    variables = {
        **{name: os.environ.get(name) or value for name, value in POOLS.items()},
        "PGOPTIONS": limits,
        "_MLFLOW_SERVER_FILE_STORE": where.uri(),
        "_MLFLOW_SERVER_REGISTRY_STORE": where.uri(),
        "_MLFLOW_SERVER_ARTIFACT_ROOT": database.ARTIFACT_ROOT,
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": server.artifacts_destination,
        "_MLFLOW_SERVER_BOOT_ID": uuid.uuid4().hex,
        "_MLFLOW_IN_JOB_EXECUTOR": "false",
        "_MLFLOW_SGI_NAME": "uvicorn",
        "MLFLOW_ENABLE_WORKSPACES": "false",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # its queue would be a file of this task
        SIGN_IN_VARIABLE: str(server.sign_in.seconds) if server.sign_in else "",
    }
    if server.allowed_hosts:
        variables["MLFLOW_SERVER_ALLOWED_HOSTS"] = ",".join(server.allowed_hosts)
    if server.allowed_origins:
        variables["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"] = ",".join(server.allowed_origins)
    return variables


def run(where: Database, server: Server, schema: dict[str, Any]) -> None:
    """Serve until SIGTERM or SIGINT; return once the requests in flight are answered.

    `schema` is what `GET /health/details` tells of the database's schema.
    """
    os.environ.update(environment(where, server))
    os.environ[SCHEMA_VARIABLE] = json.dumps(schema)
    config = uvicorn.Config(
        partial(application, withheld.secrets),
        factory=True,
        host=server.host,
        port=server.port,
        workers=server.workers,
        # With several workers asyncio leaves TCP_NODELAY off, which delays each keep-alive answer by 44 ms.
        loop="uvloop",
        http="httptools",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACEFUL_SECONDS,
        timeout_worker_healthcheck=WORKER_SECONDS,
        # MLflow lets a client on the loopback address do more (its assistant runs commands). Whoever may
        # name the client by X-Forwarded-For could claim to be there.
        forwarded_allow_ips="127.0.0.1",
        server_header=False,
        log_config=LOGGING,
    )
    if server.workers > 1:
        _Workers(config, sockets=[config.bind_socket()]).run()
        return
    # uvicorn raises the signal again after it has stopped. That it stopped as told is no failure.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    uvicorn.Server(config).run()


def application(secrets: dict[str, str]) -> Any:
    """Make the application, in each worker, with its stores open: no first request waits for them."""
    _bound_the_stop()
    withheld.secrets.update(secrets)
    # MLflow looks for these here. What is added to a running process's environment cannot be seen from outside.
    os.environ.update({name: secrets[name] for name in KEYS})
    import guard
    import inputs
    import limits
    import origins
    import own_bucket
    import ready
    import speed
    from mlflow.server import app as flask
    from mlflow.server.handlers import initialize_backend_stores

    # This is another process than the one that looked at the database, unless there is only one worker.
    database.sign_in()
    # What looks after connections comes first: with users, making the application opens one.
    failures.hide_details()
    deadlines.bound()
    _prepare_nothing()
    guard.relax()
    app = _signed_in(flask) if os.environ[SIGN_IN_VARIABLE] else _for_everybody()
    failures.answer(app, flask)
    guard.add_details(app)
    ready.add(app, os.environ["_MLFLOW_SERVER_FILE_STORE"], os.environ["_MLFLOW_SERVER_ARTIFACT_DESTINATION"])
    limits.bound(app)
    inputs.refuse_wrong_values(app)
    own_bucket.keep_to_it()
    origins.refuse_others_everywhere()
    initialize_backend_stores()
    # MLflow has it since 3.17.
    if find_spec("mlflow.tracing.trace_rollup_service"):
        from mlflow.tracing.trace_rollup_service import validate_sql_trace_rollup_startup

        validate_sql_trace_rollup_startup(os.environ["_MLFLOW_SERVER_FILE_STORE"])
    speed.apply(app)
    return app


def _signed_in(flask: Any) -> Any:
    import basic_auth

    return basic_auth.application(flask, int(os.environ[SIGN_IN_VARIABLE]))


def _for_everybody() -> Any:
    _without_basic_auth()
    from mlflow.server import fastapi_app

    return fastapi_app.app


def _without_basic_auth() -> None:
    """Make MLflow's import of its basic auth fail at once, where nobody signs in by it.

    Each search of runs imports it: at the first one, some seconds and tens of megabytes of work for nothing. Where something
    that it needs is missing, each search does so anew, and when two do at the same time, one may meet a module that is
    half there, so that its request fails.
    """
    sys.modules["mlflow.server.auth"] = None  # type: ignore[assignment]  # Python's own way to say: not there


def _prepare_nothing() -> None:
    """Keep psycopg from preparing statements on the server, which it does from a statement's sixth time on.

    PostgreSQL refuses a prepared statement once a migration has widened a column that it reads ("cached plan must not
    change result type"). Each open connection would fail one request after such a migration.
    """

    def change(dialect: Any, parameters: dict[str, Any]) -> None:
        if dialect.driver == "psycopg":
            parameters["prepare_threshold"] = None

    database.before_connecting(change)


class _Workers(Multiprocess):
    """uvicorn's parent of several workers, but one that closes the port before they stop.

    uvicorn's own keeps listening while they finish, so new connections hang and are then reset, not refused.
    """

    def terminate_all(self) -> None:
        for listening in self.sockets:
            listening.close()
        super().terminate_all()


def _bound_the_stop() -> None:
    """End this process FORCED_SECONDS after SIGTERM, whatever it does then.

    uvicorn bounds its own wait for requests, but a request that is stuck in a thread, say on a frozen
    database, cannot be cancelled and would keep the process. The forced end writes what each thread was
    doing.
    """
    graceful = signal.getsignal(signal.SIGTERM)

    def stop(signum: int, frame: FrameType | None) -> None:
        faulthandler.dump_traceback_later(FORCED_SECONDS, exit=True)
        if callable(graceful):
            graceful(signum, frame)

    signal.signal(signal.SIGTERM, stop)
