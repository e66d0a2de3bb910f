"""The real Dockerfile, built and run as on Fargate, with less: read-only, no capabilities, the memory of a task."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from operations import image as built
from operations.containers import Engine, NoEngine, find_engine
from stages.settings import Settings

from . import test_image_entrypoint as entrypoint
from .mariadb import NEEDS_MARIADB, MariaDB
from .test_image_entrypoint import PASSWORD, Postgres, Task, free_port

postgres, s3 = entrypoint.postgres, entrypoint.s3
ROOT = Path(__file__).resolve().parents[2]
TAG = "localhost/mlflow-platform-test:latest"
UID = 10001

ENGINE: Engine | None = None
WHY_NOT = ""
try:
    ENGINE = find_engine(to_run=True)
except NoEngine as none:
    WHY_NOT = str(none)

pytestmark = [pytest.mark.container, pytest.mark.skipif(ENGINE is None, reason=WHY_NOT)]

Run = Callable[..., Task]

LOOK = """
import importlib.util, json, os, pathlib, ssl
def writable(folder):
    try:
        pathlib.Path(folder, "probe").write_text("")
    except OSError:
        return False
    return True
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "uid": os.getuid(), "gid": os.getgid(), "groups": os.getgroups(),
    "capabilities": [int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")],
    "no_new_privileges": int(status["NoNewPrivs"]),
    "writable": [top for top in ("/", "/app", "/opt/venv", "/etc", "/run", "/var/tmp", "/dev/shm", "/tmp")
                 if pathlib.Path(top).is_dir() and writable(top)],
    "directory": os.getcwd(),
    "programs": sorted(
        str(path) for path in pathlib.Path("/").rglob("*")
        if not {"proc", "sys", "dev"} & set(path.parts) and path.is_file() and os.access(path, os.X_OK)
        and ".so" not in path.name and path.suffix != ".py" and ".dist-info" not in str(path)),
    "authorities": ssl.create_default_context().cert_store_stats()["x509_ca"] > 50,
    "pip": [name for name in ("pip", "setuptools", "ensurepip") if importlib.util.find_spec(name)],
}))
"""

LITTLE_MIB = 400
"""Less than any task has, so that there is less to carry: a server at rest takes about 200."""

THERE_AND_BACK = """
import filecmp, os, sys
from pathlib import Path
from mlflow import MlflowClient
block, size, folder = os.urandom(2**20), int(sys.argv[1]), Path(sys.argv[2])
sent, back = folder / "sent", folder / "back"
with sent.open("wb") as file:
    for number in range(size):
        file.write(number.to_bytes(4, "big") + block[4:])
back.mkdir()
client = MlflowClient()
run = client.create_run("0").info.run_id
client.log_artifact(run, str(sent))
assert filecmp.cmp(sent, client.download_artifacts(run, "sent", str(back)), shallow=False)
"""


@pytest.fixture(scope="module")
def engine() -> Engine:
    assert ENGINE is not None
    return ENGINE


@pytest.fixture(scope="module")
def image(engine: Engine) -> str:
    """The name of the image, built from what is checked out."""
    built.build(engine, tag=TAG)
    return TAG


@pytest.fixture
def run(engine: Engine, image: str, s3: dict[str, str], settings: Settings) -> Iterator[Run]:
    """Starts a container of the image with dev's memory, hardened, on this machine's own network."""
    tasks: list[Task] = []

    def run(variables: dict[str, str], *command: str, arguments: tuple[str, ...] = ()) -> Task:
        port = variables.get("MLFLOW_PORT") or str(free_port())
        inside = {"MLFLOW_HOST": "127.0.0.1", "MLFLOW_PORT": port, **s3, **variables}
        names = [f"--env={name}" for name in inside]  # the values are not for everybody who lists processes
        hardened = engine.hardened(settings.environments.dev.memory)
        argv = [
            engine.program,
            "run",
            "--rm",
            "--network=host",
            *hardened,
            *names,
            *arguments,
            image,
            *command,
        ]
        home = {"HOME": os.environ.get("HOME", "/"), "PATH": os.environ["PATH"]}
        tasks.append(Task({**inside, **home}, argv))
        return tasks[-1]

    yield run
    for task in tasks:
        task.stop()


def smoke(task: Task, *, demo: bool) -> None:
    """What the pipeline's Smoke runs, against that server."""
    variables = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{task.port}", "SMOKE_DEMO": str(demo).lower()}
    command = [sys.executable, "-m", "pytest", "smoke_tests", "-q", "-p", "no:cacheprovider"]
    ran = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **variables, "NOTHING_SKIPPED": ""},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, f"{ran.stdout[-4000:]}\n{task.output[-4000:]}"


def command_lines() -> str:
    """Those of every process of this machine, the containers' included."""
    return "\n".join(
        path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if path.exists()
    )


def test_it_can_do_next_to_nothing(run: Run) -> None:
    look = run({}, "-c", LOOK, arguments=("--entrypoint=/opt/venv/bin/python",))
    assert look.ends() == 0, look.output
    seen = json.loads(look.output)
    assert seen == {
        "uid": UID,
        "gid": UID,
        "groups": [UID],
        "capabilities": [0, 0, 0, 0, 0],
        "no_new_privileges": 1,
        "writable": ["/dev/shm", "/tmp"],
        "directory": "/tmp",
        # No shell, no package manager, no compiler: Python alone, and the link to it.
        "programs": ["/opt/venv/bin/python", seen["programs"][-1]],
        "authorities": True,
        "pip": [],
    }
    assert re.fullmatch(r"/usr/(local/)?bin/python3\.\d+", seen["programs"][-1])


def test_its_memory_is_the_task_s(run: Run, settings: Settings) -> None:
    """What takes more is killed: as on Fargate, and not at some other place."""
    mebibytes = settings.environments.dev.memory
    for share, status in ((0.5, 0), (1.5, 137)):
        program = f"x = bytearray({int(mebibytes * share)} * 2**20); x[::4096] = b'x' * len(x[::4096])"
        task = run({}, "-c", program, arguments=("--entrypoint=/opt/venv/bin/python",))
        assert task.ends() == status, task.output


def test_it_migrates_and_serves_postgresql(run: Run, postgres: Postgres) -> None:
    variables = postgres.variables(postgres.create("container"))
    migrated = run({**variables, "MIGRATE_WITHOUT_SNAPSHOT": "true"}, "migrate")
    assert migrated.ends(300) == 0, migrated.output
    server = run(variables).wait_healthy()
    assert PASSWORD not in command_lines()
    smoke(server, demo=True)
    server.process.terminate()
    assert server.ends() == 0, server.output
    assert PASSWORD not in migrated.output + server.output


@pytest.mark.parametrize(
    "way", [pytest.param("true", id="in-parts"), pytest.param("false", id="in-one-stream")]
)
def test_an_artifact_larger_than_its_memory(run: Run, postgres: Postgres, tmp_path: Path, way: str) -> None:
    """There and back with MLflow's client: in parts that go to the bucket by presigned URLs, and through the server."""
    variables = postgres.variables(postgres.create(f"large_{way}"))
    migrated = run({**variables, "MIGRATE_WITHOUT_SNAPSHOT": "true"}, "migrate")
    assert migrated.ends(300) == 0, migrated.output
    server = run(variables, arguments=(f"--memory={LITTLE_MIB}m",)).wait_healthy()
    command = [sys.executable, "-c", THERE_AND_BACK, str(LITTLE_MIB + 50), str(tmp_path)]
    multipart = {
        "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": way,
        "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": way,
        "MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE": str(LITTLE_MIB * 2**20),
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{server.port}",
    }
    carried = subprocess.run(
        command, env={**os.environ, **multipart}, capture_output=True, text=True, timeout=600
    )
    assert carried.returncode == 0, f"{carried.stdout}{carried.stderr}\n{server.output[-4000:]}"
    parts = "/mlflow-artifacts/mpu/complete/" in server.output
    assert parts == (way == "true"), server.output[-4000:]


@pytest.mark.mariadb
@NEEDS_MARIADB
def test_it_migrates_and_serves_mariadb(run: Run) -> None:
    mariadb = MariaDB()
    try:
        variables = mariadb.variables(mariadb.create("container"))
        file = mariadb.authority
        trusting = (f"--mount=type=bind,source={file},destination={file},readonly",)
        migrated = run({**variables, "MIGRATE_WITHOUT_SNAPSHOT": "true"}, "migrate", arguments=trusting)
        assert migrated.ends(300) == 0, migrated.output
        smoke(run(variables, arguments=trusting).wait_healthy(), demo=False)
    finally:
        mariadb.stop()


def test_its_own_health_check_asks_the_server(run: Run, engine: Engine, image: str) -> None:
    """Docker's: nothing serves here, so that it says no."""
    known = engine.inspect(image)
    check = known["Config"].get("Healthcheck") or known["Healthcheck"]  # where Docker has it, and Podman
    kind, program, *arguments = check["Test"]
    assert kind == "CMD"
    asked = run({}, *arguments, arguments=(f"--entrypoint={program}",))
    assert asked.ends() == 1
    assert "Connection refused" in asked.output
