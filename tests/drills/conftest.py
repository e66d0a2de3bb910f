"""What the drills share: one workspace, and the releases that most of them start from."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import psutil
import pytest

from .client import Client
from .workspace import Edit, Release, Workspace

QUICK = (
    # What `make check` does on its own is rehearsed by `make rehearse` in CI; a drill needs the templates and cdk-nag.
    Edit("Makefile", "-j2 lint unit cfn-lint", "CDK_VALIDATION=false synth"),
    # Five builds of a release each install the same packages; these borrow the workspace's. `make rehearse` installs them.
    Edit(
        "Makefile",
        "venv: $(VENV)/.complete ##",
        'borrowed:\n\t@ln -sfn "$(REHEARSAL_STATE)/../.venv" "$(REHEARSAL_STATE)/../node_modules" .\n\n'
        "venv: $(if $(REHEARSAL_STATE),borrowed,$(VENV)/.complete) ##",
    ),
    Edit(
        "Makefile",
        "node: node_modules/.package-lock.json ##",
        "node: $(if $(REHEARSAL_STATE),borrowed,node_modules/.package-lock.json) ##",
    ),
    # Short loads with thresholds that say nothing about this machine: no drill is decided by how busy it is.
    Edit(
        "platform.toml",
        "load = { users = 4, spawn_rate = 4, seconds = 20, max_error_rate = 0.0,"
        " max_read_p95_ms = 2000, max_write_p95_ms = 2000, min_rps = 3.0, max_slowdown = 5.0 }",
        "load = { users = 4, spawn_rate = 4, seconds = 10, max_error_rate = 0.0,"
        " max_read_p95_ms = 60000, max_write_p95_ms = 60000, min_rps = 0.1, max_slowdown = 1000.0 }",
    ),
    Edit(
        "platform.toml",
        "load = { users = 8, spawn_rate = 4, seconds = 30, max_error_rate = 0.0,"
        " max_read_p95_ms = 1500, max_write_p95_ms = 1500, min_rps = 5.0, max_slowdown = 5.0 }",
        "load = { users = 4, spawn_rate = 4, seconds = 10, max_error_rate = 0.0,"
        " max_read_p95_ms = 60000, max_write_p95_ms = 60000, min_rps = 0.1, max_slowdown = 1000.0 }",
    ),
    Edit(
        "platform.toml",
        "load = { users = 2, spawn_rate = 2, seconds = 20, max_error_rate = 0.0,"
        " max_read_p95_ms = 1500, max_write_p95_ms = 1500, min_rps = 1.0, max_slowdown = 5.0 }",
        "load = { users = 4, spawn_rate = 4, seconds = 10, max_error_rate = 0.0,"
        " max_read_p95_ms = 60000, max_write_p95_ms = 60000, min_rps = 0.1, max_slowdown = 1000.0 }",
    ),
    # A new task is found healthy, and a bad one unhealthy, in half of the time.
    Edit(
        "stages/tracking.py",
        "interval=Duration.seconds(10),\n                timeout=Duration.seconds(5)",
        "interval=Duration.seconds(5),\n                timeout=Duration.seconds(4)",
    ),
    # MLflow's own demo takes half a minute; `make rehearse` in CI has it.
    Edit("platform.toml", "smoke_demo = true   ", "smoke_demo = false  "),
    Edit(
        "platform.toml",
        "cpu = 1024\nmemory = 2048\nworkers = 1\nsmoke_demo = true",
        "cpu = 1024\nmemory = 2048\nworkers = 1\nsmoke_demo = false",
    ),
)
"""Edits that make a rehearsal short without touching what is drilled."""

BEFORE_PROD = (
    Edit("pipeline_app.py", '        deploy("dev")\n        deploy("staging")\n', ""),
    # There is no environment before it to tell of.
    Edit("pipeline_app.py", """ ({exported(staging, LOAD, 'VERDICT')})""", ""),
    Edit("pipeline_app.py", """{exported(staging, MIGRATE, 'SCHEMA')}""", "not known."),
)
CLIENT_PAUSE_SECONDS = 1.0
"""Some ten requests a second: the pipeline builds and deploys on the same machine beside them."""

OVERLAP = Edit("platform.toml", 'cidr = "10.20.0.0/16"', 'cidr = "10.10.128.0/17"')


@dataclass(frozen=True)
class Interruption:
    """A rehearsal that Ctrl-C ended, and what was left of it."""

    release: Release
    builds: list[str]
    """Command lines of builds that went on."""


@dataclass(frozen=True)
class Interruptions:
    """Two in a row, one while a service was deployed and one while a gate ran, then `make down`."""

    deploying: Interruption
    testing: Interruption
    down: int
    left: list[str]


@dataclass(frozen=True)
class Rollover:
    """A release, and the clients that used environments all the while."""

    before: dict[str, set[str]]
    """Task ids of each environment, before."""
    release: Release
    clients: dict[str, Client]


def alone(environment: str) -> tuple[Edit, ...]:
    """The pipeline has this environment only, and the smoke tests that ask the server alone: who takes this has no use for
    the others."""
    stage = environment.title()
    without_prod = (
        Edit(
            "pipeline_app.py",
            '        deploy("dev")\n        deploy("staging")\n',
            f'        deploy("{environment}")\n',
        ),
        Edit("pipeline_app.py", '{settings.name}-staging"', f'{{settings.name}}-{environment}"'),
        Edit("pipeline_app.py", '        deploy("prod")\n', ""),
    )
    return (
        *(BEFORE_PROD if environment == "prod" else without_prod),
        Edit("pipeline_app.py", '("Dev", "Staging", "Prod")', f'("{stage}",)'),
        Edit("smoke_tests/buildspec.yml", "pytest smoke_tests ", "pytest smoke_tests/test_server.py "),
    )


@contextmanager
def a_workspace(request: pytest.FixtureRequest, title: str, *edits: Edit) -> Iterator[Workspace]:
    """A clone with rehearsed accounts of its own; whatever happens, they are stopped at the end."""
    # Tests that a script starts in the background ignore Ctrl-C, and so would all that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    workspace = Workspace()
    try:
        workspace.good = workspace.commit(title, *edits)
        yield workspace
    finally:
        down = workspace.make("down")
        left = [_shown(process) for process in workspace.processes()]
        if request.session.testsfailed:
            print(
                f"A drill failed: {workspace.base} is kept with its logs; delete it when you have read them."
            )
        else:
            workspace.remove()
    assert down.returncode == 0, f"make down failed\n{down.stdout}{down.stderr}"
    assert not left, f"make down left processes: {left}"


@pytest.fixture(scope="session")
def workspace(request: pytest.FixtureRequest) -> Iterator[Workspace]:
    """The one that most drills share."""
    with a_workspace(request, "Short loads", *QUICK) as workspace:
        yield workspace


@pytest.fixture(scope="session")
def refused(workspace: Workspace) -> Release:
    """The very first rehearsal: of settings in which two networks overlap."""
    return workspace.release("Overlapping networks", OVERLAP, approve=True)


@pytest.fixture(scope="session")
def interruptions(workspace: Workspace, refused: Release) -> Interruptions:
    """Ctrl-C while dev's service is deployed, and, after a second `make rehearse`, while dev's smoke tests run."""
    workspace.commit("As it was")
    deploying = _interrupt(workspace, "Dev-mlflow-dev-tracking.Deploy.log", "has started 2 tasks")
    testing = _interrupt(workspace, "Dev-Smoke.log", "test session starts")
    down = workspace.make("down")
    left = [_shown(process) for process in workspace.processes()]
    return Interruptions(deploying, testing, down.returncode, left)


@pytest.fixture(scope="session")
def base(workspace: Workspace, interruptions: Interruptions) -> Release:
    """The first release that goes through to prod. It follows two that were interrupted and a `make down`."""
    return workspace.release("As it was", approve=True, good=True)


@pytest.fixture(scope="session")
def rejected(workspace: Workspace, base: Release) -> Rollover:
    """A change of the image that a person does not let into prod, with clients everywhere."""
    change = Edit("mlflow_image/entrypoint.py", "import os\n", "# A new release.\nimport os\n")
    return _roll_over(workspace, base, "A new image", change, approve=False)


@pytest.fixture(scope="session")
def promoted(workspace: Workspace, base: Release, rejected: Rollover) -> Rollover:
    """A change of the pipeline on top of the rejected one, which is approved."""
    change = Edit("pipeline_app.py", "Approve it for prod?", "Shall prod run it, too?")
    rollover = _roll_over(
        workspace, base, "Another question", change, approve=True, on=rejected.release.commit
    )
    if rollover.release.status == 0:
        workspace.good = rollover.release.commit
    return rollover


def _interrupt(workspace: Workspace, log: str, sign: str) -> Interruption:
    with workspace.rehearsing(f"Ctrl-C at {log}", approve=True) as running:

        def begun() -> bool:
            logs = workspace.state.glob(f"executions/*/logs/{log}")
            return any(sign in file.read_text(encoding="utf-8", errors="replace") for file in logs)

        running.wait_until(begun, f"{sign!r} in {log}")
        running.interrupt()
        running.wait()
    builds = [shown for shown in map(_shown, workspace.processes()) if "/builds/" in shown]
    return Interruption(running.release(), builds)


def _roll_over(
    workspace: Workspace, base: Release, title: str, edit: Edit, *, approve: bool, on: str | None = None
) -> Rollover:
    before = {name: workspace.tasks(name) for name in base.environments}
    clients = {
        name: Client(environment["url"], pause=CLIENT_PAUSE_SECONDS)
        for name, environment in base.environments.items()
    }
    with ExitStack() as stack:
        for client in clients.values():
            stack.enter_context(client)
        release = workspace.release(title, edit, approve=approve, on=on)
    for name, client in clients.items():
        print(
            f"{name}: {client.requests} requests, {len(client.failures)} failed, {len(client.written)} runs"
        )
    return Rollover(before, release, clients)


def _shown(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {' '.join(process.cmdline())}"
    except psutil.Error:
        return f"{process.pid}"
