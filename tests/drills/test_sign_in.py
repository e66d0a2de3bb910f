"""Dev alone under a name of its own, with a user pool: its gates ask for that name, and sign in as on AWS.

What MLflow's own users may do is tested on real tasks in tests/rehearsal/basic_auth.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rehearsal.names import Named, variables

from .conftest import QUICK, a_workspace, alone
from .workspace import Edit, Workspace

pytestmark = pytest.mark.drill

NAME = "mlflow.example.com"
WITH_A_USER_POOL = Edit(
    "platform.toml",
    'auth = "none"                   # who signs in',
    f"""\
host_name = "{NAME}"
certificate_arn = "arn:aws:acm:eu-west-1:222222222222:certificate/00000000-0000-4000-8000-000000000000"
auth = "cognito"                # who signs in""",
)


@pytest.fixture(scope="module")
def workspace(request: pytest.FixtureRequest) -> Iterator[Workspace]:
    edits = (*QUICK, *alone("dev"), WITH_A_USER_POOL)
    with a_workspace(request, "dev alone, with sign-in", *edits) as workspace:
        yield workspace


def asked(told: dict[str, str], path: str) -> str:
    """What a program is answered that has these variables besides its own, or why not."""
    program = f"import requests; it = requests.get('https://{NAME}{path}', timeout=60); print(it.status_code, it.text)"
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, env={**os.environ, **told}, capture_output=True, text=True, timeout=120)
    return ran.stdout or ran.stderr


def test_the_gates_sign_in_and_nobody_else_gets_in(workspace: Workspace) -> None:
    release = workspace.rehearse("The first release", approve=True)
    assert release.status == 0, release.output
    dev = release.environments["dev"]
    assert dev["url"] == f"https://{NAME}"
    words = shlex.split(dev["ask"])  # for people: curl, which need not be here
    place, authority = words[words.index("--connect-to") + 1], words[words.index("--cacert") + 1]
    told = variables([Named(NAME, int(place.rpartition(":")[2]), Path(authority))])
    assert asked(told, "/health") == "200 OK\n"
    assert asked(told, "/version").startswith("401 ")
    assert "CERTIFICATE_VERIFY_FAILED" in asked({**told, "REQUESTS_CA_BUNDLE": ""}, "/health")
