"""Keeps the server's hands in the platform's own bucket.

Clients name places: where an experiment keeps its artifacts, what a model version was made from, where a trace has its
spans. MLflow checks some of these in some routes, refuses hosts that are not its own, and opens the rest, local files
included. Here the one function that opens a place asks first, whichever route it was called for; and a place that would be
refused later is refused when it is named.
"""

import os
import posixpath
from typing import Any
from urllib.parse import unquote, urlsplit

from mlflow.exceptions import MlflowException

DESTINATION = "_MLFLOW_SERVER_ARTIFACT_DESTINATION"
# Names of artifacts that MLflow resolves, and then opens by the place that comes out.
NAMES = ("runs", "models")
# What names a place in a request, and in which field.
NAMING = {"CreateExperiment": "artifact_location", "CreateModelVersion": "source"}


def keep_to_it() -> None:
    """Refuse every place outside the bucket, in this process."""
    from mlflow.server import handlers
    from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry as registry

    open_place, read_message = registry.get_artifact_repository, handlers._get_request_message

    def open_own_place(artifact_uri: str, *arguments: Any, **named: Any) -> Any:
        _check(artifact_uri)
        return open_place(_in_bucket(artifact_uri), *arguments, **named)

    def read_own_place(request_message: Any, *arguments: Any, **named: Any) -> Any:
        message = read_message(request_message, *arguments, **named)
        place = getattr(message, NAMING.get(message.DESCRIPTOR.name, ""), "")
        # A prompt has a word for a source. MLflow itself refuses a local path there.
        if place and (urlsplit(place).scheme or message.DESCRIPTOR.name == "CreateExperiment"):
            _check(place)
        return message

    registry.get_artifact_repository = open_own_place
    handlers._get_request_message = read_own_place


def is_own(place: str, destination: str) -> bool:
    """Whether `place` lies within `destination`, the s3:// URI of the platform's artifacts."""
    while (plain := unquote(place)) != place:
        place = plain
    if "\\" in place or "\0" in place or ".." in place.split("/"):
        return False
    parsed = urlsplit(place)
    if parsed.scheme in NAMES:
        return True
    if parsed.scheme == "mlflow-artifacts":
        return not parsed.netloc  # with a host it is another server's
    own = urlsplit(destination)
    prefix = own.path.strip("/")
    return (parsed.scheme, parsed.netloc) == (own.scheme, own.netloc) and (
        not prefix or f"{parsed.path.strip('/')}/".startswith(f"{prefix}/")
    )


def _in_bucket(place: str) -> str:
    """Where a place is that clients reach through the server.

    The server would ask itself over HTTP, at an address that it does not know: a model version made from a run answers 500,
    with the database's address in the body.
    """
    if urlsplit(place).scheme != "mlflow-artifacts":
        return place
    return posixpath.join(os.environ[DESTINATION], urlsplit(place).path.lstrip("/"))


def _check(place: str) -> None:
    if not is_own(place, os.environ[DESTINATION]):
        raise MlflowException.invalid_parameter_value(
            f"The place {place[:200]!r} is not in this platform's artifact store. Leave the experiment's artifact location "
            "out, log the files to a run, and name them as runs:/ or models:/."
        )
