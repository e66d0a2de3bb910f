"""MLflow's own users (SIGN_IN=basic): its basic auth, with the doors that it leaves open closed, and fast.

What is MLflow's: users, roles and permissions, and which of them each route asks for. What is done here, and why:

- One gate in front of everything. MLflow authenticates where each of its two frameworks checks permissions, so a route that
  is checked nowhere is open to everybody (CVE-2026-0545, CVE-2026-2652). Here nobody gets past the gate without a password,
  to whatever path, but for `GET /health`, which the load balancer asks.
- Who has no grant may do nothing: MLflow's default lets each user read everything. A route for which MLflow names no rule
  is its administrators' alone, as is its default since CVE-2025-15381; here no variable of a task turns that off.
- A password that was right is not hashed again for a minute. MLflow hashes it two or three times in each request, some
  0.1 s. What is remembered is a hash of user, password and the stored hash, under a key that only this process has; the
  stored hash is read with each request. So a changed password, and a user who is gone, are refused at once, by every task.
- Few passwords are hashed at once, because each takes 32 MB while it is: strangers could have the task killed.
- The users are in the platform's database, over the connections of the runs. `migrate` makes their tables, no server does.
- What is asked of the database goes to a thread. MLflow asks in its event loop, and a frozen database would stop all of it.
"""

import asyncio
import base64
import binascii
import hmac
import logging
import os
import re
import secrets
import threading
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import anyio.to_thread
import database
import guard
import passwords
from cachetools import TTLCache
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, UNAUTHENTICATED, ErrorCode
from mlflow.server import auth
from mlflow.server.auth.entities import User
from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore
from mlflow.server.handlers import _get_tracking_store
from speed_requests import beginnings
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send
from werkzeug.datastructures import Authorization
from werkzeug.security import check_password_hash, generate_password_hash

log = logging.getLogger("uvicorn.error")

HASHES_AT_ONCE = 2
REMEMBERED = 10_000  # pairs of user and password
ANYBODY = ("/health",)
# MLflow lets each user do these: list everybody's name and who administers, have the server make demo data for half a
# minute, set its assistant up, read what the gateway may spend.
ADMINISTRATORS = re.compile(
    r"/(ajax-)?api/\d+\.\d+/mlflow/(users/list$|demo/|assistant(/|$)|gateway/budgets/)", re.ASCII
)
CHALLENGE = {"WWW-Authenticate": 'Basic realm="mlflow", charset="UTF-8"'}
REFUSAL = (
    "Sign in with your MLflow user and password: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
)

_hashing = threading.Semaphore(HASHES_AT_ONCE)
_signed_in: ContextVar[User | None] = ContextVar("_signed_in", default=None)


def application(flask: Any, seconds: int) -> Any:
    """MLflow's application with its basic auth, behind the gate. The database must have the users' tables."""
    os.environ["MLFLOW_BASIC_AUTH_FAIL_CLOSED"] = "true"
    os.environ["_MLFLOW_AUTH_ADMIN_BOOTSTRAPPED"] = "true"  # `own_users.py` has done it
    auth.auth_config = auth.auth_config._replace(default_permission="NO_PERMISSIONS")
    auth.store = Store()
    # The gate has asked already. Flask's part looks its function up by name, FastAPI's calls it.
    auth.authenticate_request_basic_auth = lambda: Authorization("basic", {"username": _user().username})
    auth._authenticate_fastapi_request = lambda _request: _user()
    auth._find_fastapi_validator = _in_a_thread(auth._find_fastapi_validator)
    application = auth.create_app(flask)
    _pass_by_for_flask(application)
    application.add_middleware(Gate, verified=Verifier(auth.store.find_user, seconds).user)
    return application


def _user() -> User:
    user = _signed_in.get()
    if user is None:
        # Not a RuntimeError: where MLflow filters a search, it takes one to mean that nobody has to sign in.
        raise MlflowException("Nobody is signed in.", UNAUTHENTICATED)
    return user


class Store(SqlAlchemyStore):  # type: ignore[misc]  # MLflow declares no types
    """MLflow's users, over the connections of its runs, with rules for passwords."""

    def init_db(self, db_uri: str, read_db_uri: str | None = None) -> None:
        tracking = _get_tracking_store()
        self.db_uri, self.db_type = tracking.db_uri, tracking.db_type
        self.engine, self.read_engine = tracking.engine, None
        self.ManagedSessionMaker = tracking.ManagedSessionMaker
        guard.check(self.engine, database.USERS)

    def get_user(self, username: str) -> User:
        user = _signed_in.get()
        return user if user and user.username == username else super().get_user(username)

    def find_user(self, username: str) -> User | None:
        """The user as the database has it now."""
        try:
            return super().get_user(username)
        except MlflowException as error:
            if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                return None
            raise

    def authenticate_user(self, username: str, password: str, *, use_primary: bool = False) -> bool:
        with _hashing:
            return bool(super().authenticate_user(username, password, use_primary=use_primary))

    def create_user(self, username: str, password: str, is_admin: bool = False) -> User:
        if not isinstance(username, str) or not username.isprintable() or ":" in username:
            raise MlflowException.invalid_parameter_value(
                "The user name holds a colon or something invisible: with it nobody could sign in."
            )
        _check(username, password)
        with _hashing:
            return super().create_user(username, password, is_admin)

    def update_user(self, username: str, password: str | None = None, is_admin: bool | None = None) -> User:
        if password is not None:
            _check(username, password)
        with _hashing:
            return super().update_user(username, password, is_admin)


def _check(username: str, password: object) -> None:
    problem = passwords.problem(username, password) if isinstance(password, str) else "it is no text"
    if problem:
        raise MlflowException.invalid_parameter_value(f"Choose another password: {problem}.")


class Verifier:
    """Knows who somebody with a user name and a password is."""

    def __init__(self, find: Callable[[str], User | None], seconds: int) -> None:
        self._find = find
        self._key = secrets.token_bytes(32)
        self._right: TTLCache[bytes, bool] = TTLCache(REMEMBERED, seconds)
        self._lock = threading.Lock()
        # What a user who is not there is compared with, so that it takes as long.
        self._nobody = generate_password_hash(secrets.token_urlsafe())

    def user(self, username: str, password: str) -> User | None:
        """The user, or None if there is none of that name or the password is another."""
        user = self._find(username)
        stored = user.password_hash if user else self._nobody
        mark = hmac.digest(self._key, repr((username, password, stored)).encode(), "sha256")
        with self._lock:
            right = mark in self._right
        if not right:
            with _hashing:
                right = check_password_hash(stored, password)
            if user is None or not right or auth._is_disabled_legacy_admin_login(username, password, user):
                return None
            with self._lock:
                self._right[mark] = True
        return user


class Gate:
    """ASGI middleware that lets nobody in without a password, and tells all that comes after it who it is."""

    def __init__(self, app: ASGIApp, verified: Callable[[str, str], User | None]) -> None:
        self._app = app
        self._verified = verified

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] == "http" and not (scope["path"] in ANYBODY and scope["method"] in ("GET", "HEAD")):
            try:
                user = await self._ask(_credentials(scope))
            except MlflowException as error:
                await Response(
                    error.serialize_as_json(), error.get_http_status_code(), media_type="application/json"
                )(scope, receive, send)
                return
            if user is None:
                # A body that nobody has read would be taken for the next request.
                rest = {} if scope["method"] == "GET" else {"Connection": "close"}
                await PlainTextResponse(REFUSAL, 401, {**CHALLENGE, **rest})(scope, receive, send)
                return
            if not user.is_admin and ADMINISTRATORS.match(scope["path"]):
                await PlainTextResponse("Permission denied", 403)(scope, receive, send)
                return
            _signed_in.set(user)
        await self._app(scope, receive, send)

    async def _ask(self, credentials: tuple[str, str] | None) -> User | None:
        return await anyio.to_thread.run_sync(self._verified, *credentials) if credentials else None


def _credentials(scope: Scope) -> tuple[str, str] | None:
    """User name and password of a request, from the very header that MLflow would read."""
    headers = dict(reversed(scope["headers"]))  # the first one of a name counts
    header = headers.get(b"authorization", b"")
    # A client of the gateway has its provider's key there.
    if scope["path"].startswith("/gateway/"):
        header = headers.get(auth.MLFLOW_GATEWAY_AUTH_HEADER.lower().encode()) or header
    scheme, _, encoded = header.partition(b" ")
    if scheme.lower() != b"basic":
        return None
    try:
        name, colon, password = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    # No database takes a NUL.
    known = bool(colon) and "\0" not in name and len(password) <= passwords.LONGEST
    return (name, password) if known else None


Validator = Callable[[str, Any], Awaitable[bool]]


def _in_a_thread(find: Callable[[str, str], Validator | None]) -> Callable[[str, str], Validator | None]:
    """MLflow's rules for FastAPI's routes, each asked in a thread; that of artifacts goes to one by itself."""

    def found(path: str, method: str) -> Validator | None:
        validator = find(path, method)
        if validator is None or auth._is_native_fastapi_proxy_artifact_path(path, method):
            return validator

        async def validate(username: str, request: Any) -> bool:
            await request.body()  # of which it may want to see something
            return await anyio.to_thread.run_sync(lambda: asyncio.run(_asked(validator, username, request)))

        return validate

    return found


async def _asked(validator: Validator, username: str, request: Any) -> bool:
    return await validator(username, request)


def _pass_by_for_flask(application: Any) -> None:
    """Take MLflow's middleware for FastAPI's routes out of the way of the others, whose rules Flask asks for."""
    [middleware] = [
        one
        for one in application.user_middleware
        if getattr(one.kwargs.get("dispatch"), "__name__", "") == "fastapi_permission_middleware"
    ]
    middleware.cls = _Permissions
    middleware.kwargs["native"] = tuple(beginnings(auth._native_fastapi_routes(application)))


class _Permissions:
    """MLflow's middleware for the paths that one of FastAPI's routes may take."""

    def __init__(self, app: ASGIApp, dispatch: Any, native: tuple[str, ...]) -> None:
        self._app = app
        self._stock = BaseHTTPMiddleware(app, dispatch=dispatch)
        self._native = native

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        native = scope["type"] == "http" and scope["path"].startswith(self._native)
        await (self._stock if native else self._app)(scope, receive, send)
