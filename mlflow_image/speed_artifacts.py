"""Answers a small artifact out of memory.

For each download MLflow lists the bucket (is it a folder?), asks for the object's size, fetches it with a transfer
manager's threads into a temporary folder, and reads it from there. One request to S3 is enough. It is signed and sent by
botocore, with the client's credentials, connections and checksums; what boto3 does around that for each call (it looks up
the endpoint anew and makes a dictionary of an answer of which only the body is used) takes longer than the rest. Whatever
is not plainly a small object, an error too, is left to MLflow's own way, so that its answer stays what it is.
"""

import posixpath
from collections.abc import Awaitable, Callable, MutableMapping
from functools import lru_cache
from typing import Any

import anyio.to_thread
from botocore.awsrequest import AWSRequest
from botocore.exceptions import BotoCoreError, ClientError
from botocore.httpchecksum import _CHECKSUM_CLS as CHECKSUMS
from botocore.utils import percent_encode
from limits import ARTIFACTS
from mlflow.exceptions import MlflowException
from mlflow.server import artifact_router
from mlflow.store.artifact import s3_artifact_repo
from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository
from mlflow.utils.mime_type_utils import _guess_mime_type
from mlflow.utils.uri import validate_path_is_safe
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from urllib3.exceptions import HTTPError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

# In memory for each request of which forty run at once. A larger one is worth a transfer manager.
SMALL = 2 << 20


def apply(application: Any) -> None:
    application.router.routes.insert(0, _Download())
    # MLflow makes a new client every five minutes and keeps 64 of them, some two megabytes each, for nothing.
    make_client = s3_artifact_repo._cached_get_s3_client.__wrapped__
    s3_artifact_repo._cached_get_s3_client = lru_cache(maxsize=2)(make_client)


class _Download(BaseRoute):
    """The route of downloads, before MLflow's own."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] == "http" and scope["method"] == "GET" and not scope["path"].endswith("/"):
            path = scope["path"]
            for prefix in ARTIFACTS:
                if path.startswith(prefix):
                    return Match.FULL, {"path_params": {"artifact_path": path.removeprefix(prefix)}}
        return Match.NONE, {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path_params"]["artifact_path"]
        response = await _small(path) or await artifact_router.download_artifact(path)
        await response(scope, receive, send)


async def _small(artifact_path: str) -> Response | None:
    """The answer with the object that the path names; None if MLflow's own way has to be gone."""
    if not artifact_router._is_serving_proxied_artifacts():
        return None
    try:
        path = artifact_router._get_workspace_scoped_path(validate_path_is_safe(artifact_path))
        repository = artifact_router._get_artifact_repo()
        if type(repository) is not S3ArtifactRepository:
            return None
        content = await anyio.to_thread.run_sync(_read, repository, path)
    except (MlflowException, HTTPException, BotoCoreError, ClientError, HTTPError):
        return None
    if content is None:
        return None
    headers = {
        "Content-Type": _guess_mime_type(path),
        "Content-Disposition": artifact_router._content_disposition(posixpath.basename(path)),
        "X-Content-Type-Options": "nosniff",
    }
    response = Response(content, headers=headers)
    del response.headers["content-length"]  # MLflow's answer has none
    return response


def _read(repository: S3ArtifactRepository, path: str) -> bytes | None:
    """The whole object; None if it is large, or S3 does not plainly give it.

    Raises:
        BotoCoreError: No credentials, or no answer.
        ClientError: New credentials were refused.
        HTTPError: The answer broke off.
    """
    bucket, root = repository.parse_s3_compliant_uri(repository.artifact_uri)
    client = repository._get_s3_client()
    folder, region = _folder(client, bucket)
    if not region:
        return None
    key = posixpath.join(root, path)
    headers = {"User-Agent": client.meta.config.user_agent, "x-amz-checksum-mode": "ENABLED"}
    if owner := repository._bucket_owner_params.get("ExpectedBucketOwner"):
        headers["x-amz-expected-bucket-owner"] = owner
    request = AWSRequest("GET", folder + percent_encode(key, safe="/~"), headers, stream_output=True)
    client._request_signer.get_auth_instance("s3", region).add_auth(request)
    answer = client._endpoint.http_session.send(request.prepare())
    size = answer.headers.get("Content-Length", "")
    if answer.status_code != 200 or not size.isdecimal() or int(size) > SMALL:
        answer.raw.close()
        return None
    content: bytes = answer.raw.read()
    return content if _as_stored(content, answer.headers) else None


@lru_cache(maxsize=2)
def _folder(client: Any, bucket: str) -> tuple[str, str]:
    """The URL that an object's key in the bucket follows, and the region to sign for; "" if it takes another signature.

    Both depend on settings, region and the bucket's name.
    """
    get_object = client.meta.service_model.operation_model("GetObject")
    told: dict[str, Any] = {}
    url, _, _ = client._resolve_endpoint_ruleset(get_object, {"Bucket": bucket, "Key": "key"}, told)
    return f"{url}/", told["signing"]["region"] if told["auth_type"] == "s3v4" else ""


def _as_stored(content: bytes, headers: Any) -> bool:
    """Whether the checksums agree that S3 was given with the object; those of an object's parts have a dash."""
    for algorithm, checksum in CHECKSUMS.items():
        told = headers.get(f"x-amz-checksum-{algorithm}")
        if told and "-" not in told and checksum().handle(content) != told:
            return False
    return True
