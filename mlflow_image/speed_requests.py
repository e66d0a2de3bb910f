"""Takes a request to MLflow's Flask application, and its answer back, with fewer steps between.

Most of MLflow's API is a Flask application inside a FastAPI one. For each of those requests two middlewares start a
task with two queues each, the router compares the path with every route of FastAPI's, and the bridge to Flask hands each
piece of the answer from thread to event loop through another task and queue.
"""

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

import anyio.from_thread
import anyio.to_thread
from mlflow.environment_variables import MLFLOW_ENABLE_WORKSPACES
from mlflow.server.fastapi_app import _EfficientWSGIMiddleware
from mlflow.server.handlers import _add_static_prefix
from mlflow.server.workspace_helpers import WORKSPACE_HEADER_NAME
from mlflow.utils.workspace_context import clear_server_request_workspace, set_server_request_workspace
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.wsgi import build_environ
from starlette.routing import BaseRoute, Match, Mount

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

# An answer up to this size leaves in one piece; a larger one is sent on as it is made.
IN_ONE_PIECE = 1 << 20


def apply(application: Any) -> None:
    for middleware in application.user_middleware:
        name = getattr(middleware.kwargs.get("dispatch"), "__name__", "")
        if middleware.cls is BaseHTTPMiddleware and name == "workspace_context_middleware":
            middleware.cls = _Workspace
        elif middleware.cls is BaseHTTPMiddleware and name == "gateway_timing_middleware":
            middleware.cls = _GatewayTiming
    [mount] = [route for route in application.router.routes if _is_flask(route)]
    mount.app = _Bridge(mount.app.app)
    application.router.routes.insert(0, _FlaskFirst(application, mount))


def _is_flask(route: BaseRoute) -> bool:
    return isinstance(route, Mount) and isinstance(route.app, _EfficientWSGIMiddleware)


class _Workspace:
    """MLflow's middleware for requests that may name a workspace; the others pass by it."""

    def __init__(self, app: Application, dispatch: Any) -> None:
        self._app = app
        self._stock = BaseHTTPMiddleware(app, dispatch=dispatch)
        self._header = WORKSPACE_HEADER_NAME.lower().encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] != "http"
            or MLFLOW_ENABLE_WORKSPACES.get()
            or any(name == self._header for name, _ in scope["headers"])
        ):
            await self._stock(scope, receive, send)
            return
        set_server_request_workspace(None)
        try:
            await self._app(scope, receive, send)
        finally:
            clear_server_request_workspace()


class _GatewayTiming:
    """MLflow's middleware for the gateway's paths; the others pass by it, as they do in it."""

    def __init__(self, app: Application, dispatch: Any) -> None:
        self._app = app
        self._stock = BaseHTTPMiddleware(app, dispatch=dispatch)
        self._prefix = _add_static_prefix("/gateway/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        timed = scope["type"] == "http" and scope["path"].startswith(self._prefix)
        await (self._stock if timed else self._app)(scope, receive, send)


class _FlaskFirst(BaseRoute):
    """A first route for each path that none of FastAPI's routes can match, as the text that they begin with tells."""

    def __init__(self, application: Any, mount: Mount) -> None:
        self._application = application
        self._mount = mount
        self._beginnings: tuple[str, ...] | None = None

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] != "http":
            return Match.NONE, {}
        if self._beginnings is None:  # now every module has added its routes
            routes = self._application.router.routes
            after = routes[routes.index(self) + 1 :]
            self._beginnings = tuple(beginnings(route for route in after if route is not self._mount))
        if scope["path"].startswith(self._beginnings):
            return Match.NONE, {}
        return self._mount.matches(scope)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._mount.handle(scope, receive, send)


def beginnings(routes: Iterable[Any]) -> set[str]:
    """What the routes' paths begin with, up to the first parameter; all begin with "", where a path is not known."""
    found: set[str] = set()
    for route in routes:
        if hasattr(route, "effective_candidates"):  # an included router
            found |= beginnings(route.effective_candidates())
            found |= beginnings(route.effective_low_priority_routes())
            continue
        path: str = getattr(route, "path", "") or getattr(getattr(route, "starlette_route", None), "path", "")
        found.add(path.partition("{")[0])
    return found


class _Bridge:
    """Runs the Flask application in a thread, as MLflow's bridge does, and sends its answer in one piece."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self.app = app
        self._stock = _EfficientWSGIMiddleware(app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._stock(scope, receive, send)
            return
        chunks: list[bytes] = []
        more = True
        while more:
            message = await receive()
            if chunk := message.get("body", b""):
                chunks.append(chunk)
            more = message.get("more_body", False)
        environ = build_environ(scope, b"".join(chunks))
        del chunks
        answer = _Answer(send)
        await anyio.to_thread.run_sync(answer.make, self.app, environ)
        await answer.finish()


class _Answer:
    """One answer of a WSGI application."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: dict[str, Any] | None = None
        self._started = False
        self._pieces: list[bytes] = []
        self._exc_info: Any = None

    def make(self, app: Callable[..., Iterable[bytes]], environ: dict[str, Any]) -> None:
        """Run the application, in a thread. What exceeds IN_ONE_PIECE is sent while it is made."""
        pieces = app(environ, self._start_response)
        waiting = 0
        try:
            for piece in pieces:
                self._pieces.append(piece)
                waiting += len(piece)
                if waiting > IN_ONE_PIECE:
                    anyio.from_thread.run(self._flush, True)
                    waiting = 0
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                close()

    async def finish(self) -> None:
        await self._flush(False)
        if self._exc_info is not None:
            raise self._exc_info[0].with_traceback(self._exc_info[1], self._exc_info[2])

    async def _flush(self, more: bool) -> None:
        if not self._started:
            assert self._start is not None, "the application did not start its answer"
            self._started = True
            await self._send(self._start)
        body = b"".join(self._pieces)
        self._pieces.clear()
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    def _start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
        self._exc_info = exc_info
        if self._start is None:
            self._start = {
                "type": "http.response.start",
                "status": int(status.split(" ", 1)[0]),
                "headers": [
                    (name.strip().encode("ascii").lower(), value.strip().encode("ascii"))
                    for name, value in headers
                ],
            }
