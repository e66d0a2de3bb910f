"""What a client is told when the database fails: a plain sentence and a request's id; the log has the rest under that id.

MLflow answers with SQLAlchemy's own text, which names the database's host, port, user and name, and quotes the SQL with
its values. Here the text is replaced where it arises, by SQLAlchemy's event for errors, so that no way to a client is
left out. The kind of the exception stays, and the driver's own one is still in `orig`: MLflow decides by them.
"""

import logging
import secrets
from contextvars import ContextVar
from typing import Any

from database import codes
from sqlalchemy import event
from sqlalchemy.engine import Engine, ExceptionContext
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, OperationalError, StatementError

log = logging.getLogger("uvicorn.error")

AWAY = "The database does not answer at the moment; try again later."
TOO_LONG = "The database did not finish this request in the time it has; ask for less, or try again later."
# MLflow tries a write again by itself when it reads the word "deadlock".
DEADLOCK = "The database ended this request because of a deadlock with another one; try again."
BUSY = "Another request was changing the same; try again."
CONFLICT = "The database refused this request: it contradicts what is stored already."
BAD_VALUE = (
    "The database refused a value of this request: it is too long, out of range, or of the wrong kind."
)
OTHER = "The database could not carry out this request."

# SQLSTATE (PostgreSQL, the first two letters for a whole class) or error number (MySQL, MariaDB): what became of it.
CANCELLED = {"57014", 1969, 3024}
DEADLOCKS = {"40P01", 1213}
CONFLICTS_IN_TIME = {"40", "55", 1205}
# The server's or the connection's trouble, whatever class of exception the driver makes of it.
UNAVAILABLE = {"08", "53", "57", "58", "XX", 0, 1040, 1053, 1290, 1836, 2003, 2006, 2013, 2055}

_request: ContextVar[tuple[str, str]] = ContextVar("_request", default=("none", "outside of a request"))


class Requests:
    """ASGI middleware that gives each request an id."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            # repr, because a path may hold line feeds that would forge a line of the log.
            _request.set((secrets.token_hex(8), f"{scope['method']} {scope['path']!r}"))
        await self._app(scope, receive, send)


def hide_details() -> None:
    """Make every database error of this process carry a sentence that tells a client no more than it may know."""

    @event.listens_for(Engine, "handle_error")
    def handle(context: ExceptionContext) -> StatementError | None:
        error = context.sqlalchemy_exception
        # A connection that turns out to be stale before its use is replaced; nobody sees that error.
        if error is None or (context.is_pre_ping and context.is_disconnect):
            return None
        if context.is_disconnect or (isinstance(error, DBAPIError) and _classes(error) & UNAVAILABLE):
            error = _operational(error)
        return plain(error, f"{context.original_exception} [SQL: {context.statement}]")


def answer(application: Any, flask: Any) -> None:
    """Answer 503 to what MLflow would leave to its frameworks as a 500, and give each request its id."""
    from flask import jsonify
    from starlette.responses import JSONResponse

    def told(error: Exception) -> dict[str, str]:
        return {"error_code": "TEMPORARILY_UNAVAILABLE", "message": str(error)}

    async def by_starlette(_: Any, error: Exception) -> JSONResponse:
        return JSONResponse(told(error), 503)

    application.add_exception_handler(OperationalError, by_starlette)
    flask.register_error_handler(OperationalError, lambda error: (jsonify(told(error)), 503))
    application.add_middleware(Requests)


def plain(error: StatementError, details: str) -> StatementError:
    """Put a sentence in the place of the error's text, and the details into the log."""
    request, what = _request.get()
    # One line, so that whoever looks for the id finds all of it. The statement's values are not logged.
    kind = type(error.orig).__name__
    log.error("Request %s (%s): %s: %s", request, what, kind, " ".join(details.split())[:4000])
    error.args = (f"{_sentence(error)} The server's log has the details of request {request}.",)
    error.statement, error.params, error.code = None, None, None
    return error


def _operational(error: StatementError) -> StatementError:
    """The error as the kind for which MLflow answers 503; some drivers call a lost connection otherwise."""
    if isinstance(error, OperationalError):
        return error
    lost = error.connection_invalidated
    return OperationalError(error.statement, error.params, error.orig or error, connection_invalidated=lost)


def _sentence(error: StatementError) -> str:
    found = _classes(error) if isinstance(error, DBAPIError) else set()
    if found & CANCELLED:
        return TOO_LONG
    if found & DEADLOCKS:
        return DEADLOCK
    if found & CONFLICTS_IN_TIME:
        return BUSY
    if isinstance(error, OperationalError):
        return AWAY
    if isinstance(error, IntegrityError):
        return CONFLICT
    return BAD_VALUE if isinstance(error, DataError) else OTHER


def _classes(error: DBAPIError) -> set[object]:
    found = codes(error)
    return found | {code[:2] for code in found if isinstance(code, str) and len(code) == 5}
