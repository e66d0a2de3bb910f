"""Bounds the memory that one request can take.

MLflow reads every body whole, however long, and JSON takes about ten times its length once it is parsed: one request could
have the task killed. An artifact is the exception. It goes through a file and is as large as a model.

And bounds what one request can delete.
"""

import functools
import zlib
from typing import Any

from mlflow.exceptions import MlflowException
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# The largest that a client of MLflow sends is a batch of spans with images in them. MLflow bounds a batch of metrics to
# 1 MB, and what the UI uploads to 10 MB.
LARGEST_BODY = 32 * 2**20
ARTIFACTS = ("/api/2.0/mlflow-artifacts/artifacts/", "/ajax-api/2.0/mlflow-artifacts/artifacts/")
CHUNK = 2**20


def bound(application: Any) -> None:
    """Answer 413 to a body that is longer than LARGEST_BODY, as sent or as decompressed."""
    application.add_middleware(BoundedBodies)
    _download_one_file()
    _delete_what_is_named()
    from mlflow.server import otel_api

    # MLflow reads compressed spans since 3.6.
    if expand := getattr(otel_api, "decompress_otlp_body", None):

        def expand_within_bounds(body: bytes, encoding: str) -> Any:
            _check_expansion(body, encoding)
            return expand(body, encoding)

        otel_api.decompress_otlp_body = expand_within_bounds


class BoundedBodies:
    """Counts a body while it streams: its announced length is the sender's word, and chunks have none."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        uploads = scope["type"] == "http" and scope["method"] == "PUT" and scope["path"].startswith(ARTIFACTS)
        if scope["type"] != "http" or uploads:
            await self.app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > LARGEST_BODY:
            await _refuse(send)
            return
        seen, started = 0, False

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > LARGEST_BODY:
                raise _too_long()
            return message

        async def refused(message: Message) -> None:
            # What the application makes of the exception depends on how deep it was when it read.
            nonlocal started
            if seen <= LARGEST_BODY or started:
                started = True
                await send(message)

        try:
            await self.app(scope, counted, refused)
        except Exception:
            if seen <= LARGEST_BODY or started:
                raise
        if seen > LARGEST_BODY and not started:
            await _refuse(send)


def _too_long() -> HTTPException:
    return HTTPException(413, f"The body is longer than {LARGEST_BODY} bytes.")


async def _refuse(send: Send) -> None:
    refusal = _too_long()
    # Closed, because the rest of the body would be read as the next request.
    headers = [(b"content-type", b"text/plain"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": refusal.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": refusal.detail.encode()})


def _download_one_file() -> None:
    """A folder would be fetched whole to the task's disk, the empty path the whole bucket, and then be no file to send."""
    from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository

    download = S3ArtifactRepository.download_artifacts

    @functools.wraps(download)
    def download_file(repository: Any, artifact_path: Any, *arguments: Any, **named: Any) -> Any:
        if not str(artifact_path or "").strip("/."):
            raise MlflowException.invalid_parameter_value("Name one file: a folder is not sent.")
        return download(repository, artifact_path, *arguments, **named)

    S3ArtifactRepository.download_artifacts = download_file
    S3ArtifactRepository._is_directory = lambda _repository, _path: False


def _delete_what_is_named() -> None:
    """MLflow reads a path as a URL, in which " ", "%00", "#" and "?" are nothing, and would empty the artifact store."""
    from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository

    delete = S3ArtifactRepository.delete_artifacts

    @functools.wraps(delete)
    def delete_named(repository: Any, artifact_path: Any = None) -> Any:
        if not str(artifact_path or "").strip("/. "):
            raise MlflowException.invalid_parameter_value("Name what to delete: the whole store is not.")
        return delete(repository, artifact_path)

    S3ArtifactRepository.delete_artifacts = delete_named


def _check_expansion(body: bytes, encoding: str) -> None:
    """Raise if `body` expands beyond LARGEST_BODY. Not more than CHUNK of it is in memory at a time."""
    for bits in {"gzip": (31,), "deflate": (15, -15)}.get(encoding, ()):
        rest, size = body, 0
        try:
            while rest:
                stream = zlib.decompressobj(bits)
                while rest and not stream.eof:
                    size += len(stream.decompress(rest, CHUNK))
                    rest = stream.unconsumed_tail
                    if size > LARGEST_BODY:
                        raise _too_long()
                rest = stream.unused_data if encoding == "gzip" else b""  # gzip may go on with another member
        except zlib.error:
            continue  # MLflow answers 400 to what is no such stream
