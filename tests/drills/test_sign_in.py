"""Dev alone under a name of its own, with a user pool: its gates ask for that name, and sign in as on AWS.

It costs little, too: one task, which is replaced when it ends. What MLflow's own users may do is tested on real tasks in tests/rehearsal/basic_auth.
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
from .service import kill
from .workspace import Edit, Workspace, wait_until

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
COSTS_LITTLE = (
    Edit(
        "platform.toml",
        """\
tasks = 2                       # server tasks to start with; scaling keeps between this and max_tasks
max_tasks = 4
cpu = 512                       # Fargate CPU units per task, 1024 = 1 vCPU
memory = 1024                   # MiB per task
workers = 1                     # server processes per task
""",
        'profile = "cost"\n',
    ),
    Edit(
        "platform.toml",
        'database = { instance_class = "t4g.small", storage_gib = 20, multi_az = false, backup_days = 1,'
        " deletion_protection = false }\n",
        "",
    ),
    Edit(
        "platform.toml",
        """\
availability_zones = 2          # 2 or 3
nat_gateways = 1                # one for all zones, or as many as zones; 0: endpoints in place of NAT (docs/settings.md)
""",
        "",
    ),
)
"""The profile says all that these did."""

SECONDS = 120
"""A bound that only something that hangs can reach."""


@pytest.fixture(scope="module")
def workspace(request: pytest.FixtureRequest) -> Iterator[Workspace]:
    edits = (*QUICK, *alone("dev"), WITH_A_USER_POOL, *COSTS_LITTLE)
    with a_workspace(request, "dev alone, with sign-in", *edits) as workspace:
        yield workspace


@pytest.fixture(scope="module")
def told(workspace: Workspace) -> dict[str, str]:
    """Once it is released: what a program has to be told that wants to reach it."""
    release = workspace.rehearse("The first release", approve=True)
    assert release.status == 0, release.output
    dev = release.environments["dev"]
    assert dev["url"] == f"https://{NAME}"
    words = shlex.split(dev["ask"])  # for people: curl, which need not be here
    place, authority = words[words.index("--connect-to") + 1], words[words.index("--cacert") + 1]
    return variables([Named(NAME, int(place.rpartition(":")[2]), Path(authority))])


def asked(told: dict[str, str], path: str) -> str:
    """What a program is answered that has these variables besides its own, or why not."""
    program = f"import requests; it = requests.get('https://{NAME}{path}', timeout=60); print(it.status_code, it.text)"
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, env={**os.environ, **told}, capture_output=True, text=True, timeout=120)
    return ran.stdout or ran.stderr


def test_the_gates_sign_in_and_nobody_else_gets_in(told: dict[str, str]) -> None:
    assert asked(told, "/health") == "200 OK\n"
    assert asked(told, "/version").startswith("401 ")
    assert "CERTIFICATE_VERIFY_FAILED" in asked({**told, "REQUESTS_CA_BUNDLE": ""}, "/health")


def test_the_only_task_is_replaced_when_it_ends(workspace: Workspace, told: dict[str, str]) -> None:
    service = workspace.resource("dev", "tracking", "AWS::ECS::Service")
    tasks = workspace.host("dev").get("service", service)["tasks"]
    [task] = [task for task in tasks if task["status"] == "RUNNING"]
    kill(task)
    wait_until(lambda: workspace.tasks("dev").isdisjoint({task["id"]}), "the end of the task", SECONDS)
    wait_until(lambda: asked(told, "/health") == "200 OK\n", "another task", SECONDS)
    assert len(workspace.tasks("dev")) == 1
