"""Dev alone under a name of its own, with a user pool: its gates ask for that name, and sign in as on AWS.

Its database knows no password of the server's user, and it costs little: one task, which is replaced when it ends.
What MLflow's own users may do is tested on real tasks in tests/rehearsal/basic_auth.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, LiteralString

import boto3
import psycopg
import pytest

from rehearsal import iam_postgres
from rehearsal.accounts import Accounts
from rehearsal.certificates import AUTHORITY
from rehearsal.database_server import CERTIFICATES
from rehearsal.iam_postgres import Beside
from rehearsal.names import Named, variables
from rehearsal.ports import LOOPBACK
from stages.database_server import DATABASE_NAME, TOKEN_USER, USER

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
        'database = { sign_in = "iam" }\n',
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


def database(workspace: Workspace) -> tuple[Path, Beside]:
    """The folder of dev's server, and what is in front of it."""
    [file] = (workspace.account("dev") / "databases").glob("*/port")
    beside = iam_postgres.beside(file.parent)
    assert beside
    return file.parent, beside


def rows(workspace: Workspace, query: LiteralString) -> set[tuple[Any, ...]]:
    """What the server tells its superuser."""
    folder, beside = database(workspace)
    port = int((folder / "port").read_text(encoding="utf-8"))
    with psycopg.connect(
        host=beside.socket, port=port, user=beside.superuser, dbname="postgres"
    ) as connection:
        return set(connection.execute(query).fetchall())


def signed_in(workspace: Workspace, token_of: str, *, user: str = TOKEN_USER) -> str:
    """Who somebody is to the database that signs in as that user with a token of a role; or why it is refused."""
    folder, beside = database(workspace)
    key = Accounts(workspace.state).assume(token_of, "drill")
    session = boto3.Session(
        key.access_key_id, key.secret_access_key, key.session_token, region_name=beside.region
    )
    try:
        with psycopg.connect(
            host=LOOPBACK,
            port=beside.port,
            dbname=DATABASE_NAME,
            user=user,
            password=session.client("rds").generate_db_auth_token(LOOPBACK, beside.port, user),
            sslmode="verify-full",
            sslrootcert=str(folder.parent / CERTIFICATES / AUTHORITY),
        ) as connection:
            return str(connection.execute("SELECT current_user").fetchall())
    except psycopg.OperationalError as error:
        return str(error)


@pytest.mark.usefixtures("told")
def test_the_server_signs_in_with_tokens_of_its_task_s_role_and_nobody_else_does(
    workspace: Workspace,
) -> None:
    """There is no password that it could have used."""
    users = rows(workspace, "SELECT rolname, rolpassword FROM pg_authid WHERE rolname LIKE 'mlflow_server%'")
    assert users == {(USER, None), (TOKEN_USER, None)}
    serving = (
        "SELECT usename FROM pg_stat_activity WHERE datname = 'mlflow' AND backend_type = 'client backend'"
    )
    assert rows(workspace, serving) == {(TOKEN_USER,)}
    [definition] = [
        resource["properties"]
        for resource in workspace.stack("dev", "tracking")["resources"].values()
        if resource["type"] == "AWS::ECS::TaskDefinition"
    ]
    assert signed_in(workspace, definition["TaskRoleArn"]) == f"[('{USER}',)]"
    assert "PAM authentication failed" in signed_in(workspace, definition["ExecutionRoleArn"])
    assert "password authentication failed" in signed_in(workspace, definition["TaskRoleArn"], user=USER)


def test_the_only_task_is_replaced_when_it_ends(workspace: Workspace, told: dict[str, str]) -> None:
    service = workspace.resource("dev", "tracking", "AWS::ECS::Service")
    tasks = workspace.host("dev").get("service", service)["tasks"]
    [task] = [task for task in tasks if task["status"] == "RUNNING"]
    kill(task)
    wait_until(lambda: task["id"] not in workspace.tasks("dev"), "the end of the task", SECONDS)
    wait_until(lambda: asked(told, "/health") == "200 OK\n", "another task", SECONDS)
    assert len(workspace.tasks("dev")) == 1
