"""What all smoke tests share: the server under test, checked once, and a client that does not retry.

    MLFLOW_TRACKING_URI=http://127.0.0.1:5000 SMOKE_DEMO=true python -m pytest smoke_tests

MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, all MLflow's own variables, are honoured
by the client and by the plain requests alike.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

# Before anything imports mlflow, which reads some of these once. A gate must not talk to anybody but the
# server, and must not hide a failed request behind a second try.
os.environ.update(
    {
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }
)

import pytest
import requests

from load_tests.api import Api, Authorization, authorization

LOCK_FILE = Path(__file__).parents[1] / "mlflow_image" / "requirements.lock"
REQUEST_SECONDS = 20

Get = Callable[[str], requests.Response]


def pytest_configure(config: pytest.Config) -> None:
    """Refuse settings that no test could work with, in one sentence each."""
    problems = []
    url = os.environ.get("MLFLOW_TRACKING_URI", "").strip().rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        problems.append(
            f"MLFLOW_TRACKING_URI={url or '(not set)'} is not an http or https URL:"
            " set it to the environment's URL, such as http://127.0.0.1:5000."
        )
    demo = os.environ.get("SMOKE_DEMO", "")
    if demo not in ("true", "false"):
        problems.append(
            f"SMOKE_DEMO={demo or '(not set)'} is neither true nor false: set it to true to run `mlflow demo`"
            " on the server, or to false where its demo experiment must not be left behind."
        )
    if problems:
        raise pytest.UsageError("\n".join(problems))
    os.environ["MLFLOW_TRACKING_URI"] = url


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The demo takes longest, so it comes last: what fails elsewhere is known within seconds."""
    items.sort(key=lambda item: item.path.name == "test_demo.py")


@pytest.fixture(scope="session")
def url() -> str:
    """The server under test, without a trailing slash."""
    return os.environ["MLFLOW_TRACKING_URI"]


@pytest.fixture(scope="session")
def pinned_version() -> str:
    """The MLflow version that the image is locked to."""
    found = re.search(r"^mlflow==([^\s;\\]+)", LOCK_FILE.read_text(), re.MULTILINE)
    assert found, f"{LOCK_FILE} has no line that begins with mlflow==: lock the image's requirements again"
    return found[1]


@pytest.fixture(scope="session")
def get(url: str) -> Get:
    """GET a path of the server, signed in if there is something to sign in with, and with a time limit."""
    session = requests.Session()
    if header := authorization(os.environ):
        session.auth = Authorization(header)
    return lambda path: session.get(url + path, timeout=REQUEST_SECONDS)


@pytest.fixture(scope="session")
def api(url: str) -> Api:
    """MLflow's REST API, for what its client has no call for."""
    return Api(url, authorization(os.environ))


@pytest.fixture(scope="session", autouse=True)
def reachable(url: str, get: Get, request: pytest.FixtureRequest) -> None:
    """Stop after one sentence, instead of one traceback per test, when there is no healthy server."""
    try:
        response = get("/health")
    except requests.RequestException as error:
        sentence = f"No MLflow server answers at {url}: {error}"
    else:
        if response.status_code == 200:
            return
        text = " ".join(response.text.split())[:200]
        sentence = f"{url}/health answered {response.status_code} and not 200: {text}"
    sentence += ". Look at the service's events and its tasks' logs."
    request.session.shouldfail = sentence
    pytest.fail(sentence, pytrace=False)
