"""MLflow's REST API for what surrounds the gates: making a place of their own, reading back, clearing up."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any

import requests

Query = Mapping[str, str | None]

TIMEOUT = 30
"""Seconds to wait for an answer; outside the measured load, slow is better than failed."""


class ApiError(Exception):
    """The server did not do what it was asked; the text names the request and what came of it."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class NoAnswerError(ApiError):
    """Nothing answered, or not in time."""


def authorization(environment: Mapping[str, str]) -> str | None:
    """The header with which MLflow's own client would sign in, by the same variables; None where it would not."""
    user, password = (environment.get(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "PASSWORD"))
    if user and password:
        return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"
    token = environment.get("MLFLOW_TRACKING_TOKEN")
    return f"Bearer {token}" if token else None


class Authorization(requests.auth.AuthBase):
    """Sends the header with every request. As a plain one it would lose to a password in ~/.netrc."""

    def __init__(self, header: str) -> None:
        self._header = header

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = self._header
        return request


class Api:
    """One keep-alive session with one MLflow server."""

    def __init__(self, url: str, authorization: str | None) -> None:
        self._url = url
        self._session = requests.Session()
        if authorization:
            self._session.auth = Authorization(authorization)

    def call(self, method: str, path: str, json: Any = None, params: Query | None = None) -> Any:
        """Send a request and return the decoded JSON answer.

        Raises:
            NoAnswerError: If nothing answered in time.
            ApiError: If the answer is not 200 with JSON.
        """
        try:
            return self._send(method, path, json=json, params=params).json()
        except requests.JSONDecodeError as error:
            raise ApiError(f"{method} {self._url}{path}: the answer is not JSON") from error

    def download(self, path: str) -> bytes:
        """The bytes of the artifact at `path`, relative to the server's artifact root."""
        return self._send("GET", artifact_path(path)).content

    def files(self, folder: str) -> Iterator[str]:
        """Paths of all artifacts in `folder` and below it, relative to the server's artifact root.

        Folders are looked into and not believed: a bucket may go on listing one whose objects are deleted.
        """
        listed = self.call("GET", artifact_path("").rstrip("/"), params={"path": folder})
        for entry in listed.get("files", []):
            path = f"{folder}/{entry['path']}"
            if entry.get("is_dir"):
                yield from self.files(path)
            else:
                yield path

    def _send(self, method: str, path: str, **arguments: Any) -> requests.Response:
        try:
            response = self._session.request(method, self._url + path, timeout=TIMEOUT, **arguments)
        except requests.RequestException as error:
            raise NoAnswerError(f"{method} {self._url}{path}: no answer ({type(error).__name__})") from error
        if response.status_code != 200:
            status, text = response.status_code, " ".join(response.text.split())[:200]
            raise ApiError(f"{method} {self._url}{path}: HTTP {status} {text}", status)
        return response


def artifact_path(path: str) -> str:
    """The path of the server's artifact API for an artifact relative to its artifact root."""
    return f"/api/2.0/mlflow-artifacts/artifacts/{path}"
