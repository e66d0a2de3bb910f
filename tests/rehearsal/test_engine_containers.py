"""The rehearsed ECS with tasks that are containers: what a process shows only in part, on a real engine."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from operations.containers import Engine, NoEngine
from rehearsal.engine import LABEL, choose, remove_labelled, usable_engine
from rehearsal.host import start_host
from rehearsal.images import ImageStore
from rehearsal.processes import ProcessRegistry
from rehearsal.run import DOCKERFILE, Rehearsal

from .test_ecs import SERVER, SERVICE, Account, Client, until

REPOSITORY = Path(__file__).resolve().parents[2]
SECRET = "not-for-everybody\nwho lists processes"
AUTHORITY = "of the rehearsed database"
PATIENCE = 120
"""Seconds for what takes two; other work may have the machine."""

pytestmark = pytest.mark.container


@pytest.fixture(scope="module")
def engine() -> Engine:
    try:
        return usable_engine(REPOSITORY / DOCKERFILE)
    except NoEngine as none:
        pytest.skip(str(none))


@pytest.fixture(scope="module")
def image(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The tests' server on the base of the real image, with what hardens that one."""
    context = tmp_path_factory.mktemp("image")
    shutil.copy(SERVER, context / "server.py")
    base = (REPOSITORY / DOCKERFILE).read_text(encoding="utf-8").split("PYTHON_IMAGE=")[1].split()[0]
    (context / "Dockerfile").write_text(
        f"FROM {base}\nCOPY server.py /server.py\nVOLUME /tmp\nWORKDIR /tmp\nUSER 10001:10001\n"
        'ENTRYPOINT ["python", "/server.py"]\n',
        encoding="utf-8",
    )
    store = ImageStore(tmp_path_factory.mktemp("store"))
    return asdict(store.build_with(engine, context, "localhost/rehearsal-test:latest", {}))


@pytest.fixture
def account(
    tmp_path: Path, engine: Engine, image: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Account]:
    """A host whose tasks are containers. What it tells the engine is written to the file `told`."""
    real = shutil.which(engine.program)
    tools = tmp_path / "tools"
    tools.mkdir()
    spy = tools / engine.program
    spy.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$*" >> "{tmp_path}/told"\nexec "{real}" "$@"\n', encoding="utf-8"
    )
    spy.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    registry = ProcessRegistry(tmp_path / "host" / "processes")
    try:
        account = Account(tmp_path)
        account.image = image
        yield account
    finally:
        registry.stop_all(10)
        remove_labelled(engine, tmp_path / "host")
    assert not registry.alive()


def containers(engine: Engine, account: Account) -> list[str]:
    """The ids of those that the account's host has made, whether they run or not."""
    asked = [
        engine.program,
        "ps",
        "--all",
        "--quiet",
        "--no-trunc",
        f"--filter=label={LABEL}={account.state}",
    ]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()


def serve(account: Account, definition: str, tasks: int = 2) -> None:
    """Only what a container does decides, not how soon a busy machine lets it answer a health check."""
    account.serve(definition, DesiredCount=tasks, HealthCheckGracePeriodSeconds=PATIENCE)


def steady(account: Account, tasks: int = 2) -> list[dict[str, Any]]:
    until(lambda: account.service()["stable"] and len(account.running()) == tasks, PATIENCE)
    return account.running()


def stopped(account: Account) -> list[dict[str, Any]]:
    return [task for task in account.service()["tasks"] if task["status"] == "STOPPED"]


def defined(account: Account, revision: str, behaviour: str = "well", **container: Any) -> str:
    mounts = [{"SourceVolume": "tmp", "ContainerPath": "/tmp"}]
    return account.define(
        revision, behaviour, Volumes=[{"Name": "tmp"}], container={"MountPoints": mounts, **container}
    )


def test_a_task_is_held_to_its_definition_and_no_value_is_in_a_command_line(
    account: Account, engine: Engine, tmp_path: Path
) -> None:
    probe = (
        "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ[\"MLFLOW_PORT\"]}/health');"
        f"assert open(os.environ['DATABASE_SSLROOTCERT']).read() == {AUTHORITY!r}"
    )
    (tmp_path / "authority.pem").write_text(AUTHORITY, encoding="utf-8")
    check = {"Command": ["CMD", "python", "-c", probe], "Interval": 0.5, "Timeout": 30}
    variables = [
        {"Name": "REVISION", "Value": "one"},
        {"Name": "PASSPHRASE", "Value": SECRET},
        {"Name": "DATABASE_ENGINE", "Value": "mysql"},
    ]
    serve(account, defined(account, "one", HealthCheck=check, Environment=variables))
    tasks = steady(account)
    assert [task["health"] for task in tasks] == ["HEALTHY"] * 2
    assert json.loads(account.ask("/confinement")) == {
        "uid": 10001,
        "capabilities": [0, 0, 0],
        "no_new_privileges": 1,
        "writable": ["/tmp"],
    }
    seen = json.loads(account.ask("/environment"))
    assert seen["PASSPHRASE"] == SECRET
    assert seen["MLFLOW_HOST"] == "127.0.0.1"
    told = (tmp_path / "told").read_text(encoding="utf-8")
    assert "--env=PASSPHRASE" in told
    assert "who lists processes" not in told
    assert len(containers(engine, account)) == 2
    assert "serving revision one" in Path(tasks[0]["logs"]["server"]).read_text(encoding="utf-8")
    account.client.delete("service", SERVICE)
    assert containers(engine, account) == []


def test_a_rolling_update_fails_no_request(account: Account, engine: Engine) -> None:
    serve(account, defined(account, "one"))
    steady(account)
    with Client(account.url, connections=2) as client:
        serve(account, defined(account, "two"))
        until(lambda: account.ask("/") == b"two" and account.service()["stable"], PATIENCE)
    assert {status for status, _ in client.answers} == {200}
    assert {body for _, body in client.answers} == {"one", "two"}
    assert len(containers(engine, account)) == 2
    assert {task["exit_codes"]["server"] for task in stopped(account)} == {0}, (
        "they end by themselves on SIGTERM"
    )


def test_a_task_that_takes_more_than_its_memory_is_killed_and_replaced(account: Account) -> None:
    serve(account, defined(account, "one"), 1)
    (victim,) = steady(account, 1)
    # It takes 120 MiB each time, and has 256.
    with contextlib.suppress(OSError, http.client.HTTPException):
        for _ in range(3):
            urllib.request.urlopen(f"http://127.0.0.1:{victim['port']}/leak", timeout=PATIENCE).close()
    until(lambda: stopped(account), PATIENCE)
    (dead,) = stopped(account)
    assert dead["id"] == victim["id"]
    assert dead["stopped_reason"] == "OutOfMemoryError: container killed due to memory usage"
    assert dead["exit_codes"] == {"server": 137}
    (heir,) = steady(account, 1)
    assert heir["id"] != victim["id"]


def test_requests_in_flight_are_answered_and_who_does_not_listen_is_killed(account: Account) -> None:
    serve(account, defined(account, "deaf", "stubborn"), 1)
    steady(account, 1)
    answers: list[bytes] = []
    asking = threading.Thread(target=lambda: answers.append(account.ask("/slow?seconds=3")))
    asking.start()
    (leaving,) = account.running()
    log = Path(leaving["logs"]["server"])
    until(lambda: "slow" in log.read_text(encoding="utf-8"), PATIENCE)
    serve(account, defined(account, "well"), 1)
    until(lambda: stopped(account), PATIENCE)
    asking.join()
    assert answers == [b"deaf"]
    (dead,) = stopped(account)
    assert dead["id"] == leaving["id"]
    assert dead["exit_codes"] == {"server": 137}
    assert dead["stopped_reason"].startswith("Scaling activity")


def test_what_cannot_be_executed_says_so(account: Account, engine: Engine) -> None:
    serve(account, defined(account, "one", EntryPoint=["/nowhere"], Command=[]), 1)
    until(lambda: account.service()["deployments"][0]["rollout_state"] == "FAILED", PATIENCE)
    until(lambda: not account.running() and containers(engine, account) == [], PATIENCE)
    dead = stopped(account)[0]
    assert dead["stopped_reason"].startswith("CannotStartContainerError: ")
    assert "/nowhere" in dead["stopped_reason"]


def test_containers_of_a_host_that_was_killed_are_removed_by_the_next_one(
    account: Account, engine: Engine
) -> None:
    serve(account, defined(account, "one"))
    steady(account)
    left = containers(engine, account)
    (host,) = (p for p in ProcessRegistry(account.state / "processes").alive() if p.name == "host")
    os.kill(host.pid, signal.SIGKILL)
    until(lambda: not account.client.answers(), PATIENCE)
    assert containers(engine, account) == left, "nobody is there to remove them"
    start_host(account.state, account.folder / "again.log")
    steady(account)
    now = containers(engine, account)
    assert len(now) == 2
    assert not set(now) & set(left)


def test_down_removes_what_a_killed_host_left(account: Account, engine: Engine) -> None:
    """`make down` looks for the label, so that it needs neither the host nor its records."""
    state = account.folder / ".rehearsal"
    place = state / "accounts" / "222222222222-eu-west-1"
    serve(account, defined(account, "one"), 1)
    steady(account, 1)
    account.client.stop()
    place.mkdir(parents=True)
    shutil.move(account.state, place / "host")
    account.state = place / "host"
    account.client = start_host(account.state, account.folder / "moved.log")
    steady(account, 1)
    (host,) = (p for p in ProcessRegistry(account.state / "processes").alive() if p.name == "host")
    os.kill(host.pid, signal.SIGKILL)
    choose(state, engine)
    assert len(containers(engine, account)) == 1
    Rehearsal(account.folder, approve=None).down()
    assert containers(engine, account) == []
