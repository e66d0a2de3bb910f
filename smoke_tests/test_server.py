"""The server is there, is the version that was released, and serves its user interface."""

from __future__ import annotations

import base64
import os
from html.parser import HTMLParser

import requests

from load_tests.api import authorization
from smoke_tests.conftest import REQUEST_SECONDS, Get

CONTENT_TYPES = {
    "script": ("text/javascript", "application/javascript"),
    "stylesheet": ("text/css",),
}


class _Page(HTMLParser):
    """Collects the scripts and stylesheets that a page refers to, as (kind, path relative to the page)."""

    def __init__(self) -> None:
        super().__init__()
        self.assets: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag == "script" and (source := attributes.get("src")):
            self.assets.append(("script", source))
        if tag == "link" and attributes.get("rel") == "stylesheet" and (target := attributes.get("href")):
            self.assets.append(("stylesheet", target))


def test_health_says_ok(get: Get) -> None:
    assert get("/health").text == "OK"


def test_version_is_the_images(get: Get, pinned_version: str) -> None:
    response = get("/version")
    assert response.status_code == 200
    assert response.text == pinned_version, (
        f"the server runs MLflow {response.text}, this release pins {pinned_version} in"
        " mlflow_image/requirements.lock: its tasks were not replaced, or the URL is another server's"
    )


def test_whoever_does_not_sign_in_is_refused_where_others_do(url: str, get: Get) -> None:
    """The gate signs in, or nobody does: then whoever reaches the server is served."""
    path = "/api/2.0/mlflow/experiments/search?max_results=1"
    assert get(path).status_code == 200
    with requests.Session() as anonymous:
        anonymous.auth = lambda request: request  # nor with a password from ~/.netrc
        statuses = [
            anonymous.get(
                url + path, headers=headers, allow_redirects=False, timeout=REQUEST_SECONDS
            ).status_code
            for headers in (
                {},
                {"Authorization": "Bearer not-a-token"},
                {"Authorization": f"Basic {base64.b64encode(b'admin:password1234').decode()}"},
            )
        ]
    assert statuses == [401 if authorization(os.environ) else 200] * 3


def test_ui_loads_with_all_its_assets(get: Get) -> None:
    page = get("/")
    assert page.status_code == 200
    assert page.headers["Content-Type"].startswith("text/html")
    parser = _Page()
    parser.feed(page.text)
    assert {kind for kind, _ in parser.assets} == set(CONTENT_TYPES), (
        "the page lacks a script or a stylesheet"
    )
    for kind, path in parser.assets:
        asset = get("/" + path.removeprefix("./").lstrip("/"))
        what = f"{kind} {path} of the page"
        assert asset.status_code == 200, f"{what} answered {asset.status_code}"
        assert asset.headers["Content-Type"].startswith(CONTENT_TYPES[kind]), (
            f"{what} has the wrong content type"
        )
        assert asset.content, f"{what} is empty"
        assert not asset.content.lstrip().startswith(b"<"), f"{what} is a page instead"
