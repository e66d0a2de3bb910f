"""One rehearsed environment without the pipeline around it: its network, its data, its tracking service.

The stacks are the synthesized Dev stage's, deployed as the pipeline deploys them. A release is the same template with
another image, so a drill of the service takes seconds where a whole rehearsal takes minutes. What the gates and the
pipeline do about a release is drilled elsewhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import psycopg
from psycopg import sql

from rehearsal.accounts import Accounts
from rehearsal.cloudformation import CloudFormation, Resource, Stack
from rehearsal.host import HostClient
from rehearsal.images import ImageStore
from rehearsal.postgres import Postgres
from rehearsal.processes import ProcessRegistry
from rehearsal.resources import providers
from rehearsal.resources.declared import Declared
from rehearsal.run import Rehearsal

from .client import Client, Failure
from .figures import Figures
from .workspace import REPOSITORY, Edit, borrow_layers, wait_until

PATIENT, IMPATIENT = 90, 10
"""Grace periods in seconds: for releases that must come up on a busy machine, and for those that never will."""

HEALTH_CHECK_SECONDS = 2
"""Interval and limit of the health check, in place of 10 and 5: it decides how long a drill takes, not how it ends."""

LOCKS = Path(__file__).with_name("locks")
"""What each old release of MLflow is installed from."""

ONE_REFUSAL_SECONDS = 1.0
"""Failures closer together than this belong to one refusal."""


class Service:
    """The environment. `deploy` releases an image; the other methods break or watch something."""

    def __init__(self, base: Path) -> None:
        self.state = base / ".rehearsal"
        self.state.mkdir()
        self._processes = ProcessRegistry(self.state / "processes")
        self._accounts = Accounts(self.state)
        self._cloudformation = CloudFormation(self.state, self._accounts, providers(), Declared())
        borrow_layers(self.state / "images")
        self._images = ImageStore(self.state / "images")
        self._assembly = _assembly(base)
        self._image = ""

    def start(self, mlflow: str) -> None:
        """Make the account, everything the tracking stack builds on, and the schema; then deploy this very image.

        `mlflow` is the release of MLflow in it, if not the pinned one.
        """
        self._accounts.start(self._processes)
        stage = next(self._assembly.glob("assembly-*-Dev"))
        artifacts = json.loads((stage / "manifest.json").read_text(encoding="utf-8"))["artifacts"]
        stacks = {
            name: artifact
            for name, artifact in artifacts.items()
            if artifact["type"] == "aws:cloudformation:stack"
        }
        tracking = next(
            name for name, a in stacks.items() if a["properties"]["stackName"].endswith("-tracking")
        )
        _, _, self.account, self.region = stacks[tracking]["environment"].replace("aws://", "//").split("/")
        self._accounts.enforce(False)
        self._deploy("CDKToolkit", _bootstrap(self.account))
        self._accounts.enforce(True)
        templates = {
            name: json.loads((stage / artifact["properties"]["templateFile"]).read_text(encoding="utf-8"))
            for name, artifact in stacks.items()
        }
        for name in _needed(stacks, tracking):
            if stacks[name]["properties"]["stackName"].endswith("-migration"):
                continue  # its task is started by the pipeline; here `migrate` runs the image's own command
            self._deploy(stacks[name]["properties"]["stackName"], templates[name])
        self._name, self._template = stacks[tracking]["properties"]["stackName"], templates[tracking]
        self.build("good", mlflow=mlflow)
        self.migrate("good")
        first = self._secret(self._own_secret_arn)["password"]
        self.deploy("good")
        # Rotated at once, which takes seconds: `migrate` below knows no secret and would give the user the first one again.
        wait_until(lambda: self._secret(self._own_secret_arn)["password"] != first, "the first rotation", 60)

    def build(self, image: str, *edits: Edit, mlflow: str = "") -> None:
        """Build the server's image, after edits of a copy of its folder, under the name `image`.

        `mlflow` is an old release of MLflow to put into it, one that has a lock in `locks/`.
        """
        with tempfile.TemporaryDirectory() as folder:
            context = Path(folder) / "mlflow_image"
            shutil.copytree(
                REPOSITORY / "mlflow_image", context, ignore=shutil.ignore_patterns("__pycache__")
            )
            if mlflow:
                shutil.copy(LOCKS / f"mlflow-{mlflow}.lock", context / "requirements.lock")
            for edit in edits:
                edit.apply(Path(folder))
            self._images.build(context, f"drill/mlflow:{image}")

    def deploy(
        self, image: str = "", *, tasks: int = 2, workers: int = 1, grace: int = PATIENT, force: str = ""
    ) -> None:
        """Deploy the tracking stack with an image that was built, and wait until the service is steady.

        Without `image` it stays the one before. `force` makes a new deployment of the same when it changes.

        Raises:
            StackFailed: the release did not get through; the service is as it was before.
        """
        template = json.loads(json.dumps(self._template))
        properties = {r["Type"].rpartition("::")[2]: r["Properties"] for r in template["Resources"].values()}
        container = properties["TaskDefinition"]["ContainerDefinitions"][0]
        container["Image"] = f"drill/mlflow:{image or self._image}"
        next(v for v in container["Environment"] if v["Name"] == "WORKERS")["Value"] = str(workers)
        properties["Service"] |= {"DesiredCount": tasks, "HealthCheckGracePeriodSeconds": grace}
        if force:
            properties["Service"]["ForceNewDeployment"] = {
                "EnableForceNewDeployment": True,
                "ForceNewDeploymentNonce": force,
            }
        properties["TargetGroup"] |= {
            "HealthCheckIntervalSeconds": HEALTH_CHECK_SECONDS,
            "HealthCheckTimeoutSeconds": HEALTH_CHECK_SECONDS,
        }
        self._deploy(self._name, template)
        self._image = image or self._image

    @property
    def url(self) -> str:
        """Where the load balancer answers."""
        return self._stack("tracking").outputs["Url"]

    def tasks(self) -> dict[str, dict[str, Any]]:
        """The running tasks by id, as the host describes them."""
        return {task["id"]: task for task in self._described() if task["status"] == "RUNNING"}

    def stopped(self) -> list[dict[str, Any]]:
        """The tasks that have stopped, the last one first."""
        return [task for task in self._described() if task["status"] == "STOPPED"]

    def healthy(self) -> set[str]:
        """The ids of the tasks that the load balancer sends requests to."""
        group = _only(self._stack("tracking"), "AWS::ElasticLoadBalancingV2::TargetGroup").physical.id
        targets = self._host.get("target-group", group)["targets"]
        return {target["id"] for target in targets if target["state"] == "healthy"}

    @property
    def postgres(self) -> Postgres:
        """The database's server."""
        instance = self._instance.physical.id
        return Postgres(self._directory / "databases" / instance, self._processes)

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement as the database's master user, and return its rows."""
        with self._connect() as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def rows(self) -> int:
        """How many rows all tables hold together."""
        with self._connect() as connection:
            tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
            counts = [sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(name)) for (name,) in tables]
            return sum(row[0] for query in counts for row in connection.execute(query))

    def rotate(self) -> None:
        """Rotate the password of the server's user now, as its schedule does, and return when that is done."""
        vault, arn = self._client("secretsmanager"), self._own_secret_arn
        made = vault.rotate_secret(SecretId=arn)["VersionId"]
        wait_until(lambda: vault.get_secret_value(SecretId=arn)["VersionId"] == made, "the new password", 60)

    @contextmanager
    def frozen(self, *names: str) -> Iterator[None]:
        """Freeze the processes that were started as `names` and all their children: they hang, and lose nothing."""
        recorded = [p for p in self._processes.alive() if p.name.startswith(names)]
        assert recorded, f"nothing called {names} runs"
        processes = [
            p for r in recorded for p in (psutil.Process(r.pid), *psutil.Process(r.pid).children(True))
        ]
        try:
            for process in processes:
                _signal(process, signal.SIGSTOP)
            yield
        finally:
            for process in processes:
                _signal(process, signal.SIGCONT)

    def down(self) -> None:
        """Stop everything and delete the account."""
        Rehearsal(self.state.parent, approve=True).down()

    def migrate(self, image: str) -> dict[str, Any]:
        """Migrate with the image's own command, as the release does before the service, and return what that told."""
        built = self._images.find(f"drill/mlflow:{image}")
        own, master = self._secret(self._own_secret_arn), self._secret(self._master_secret_arn)
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [*built.entrypoint, "migrate"],
                cwd=folder,
                env={
                    **built.environment,
                    **self._accounts.environment(self.region),
                    "PATH": os.environ["PATH"],
                    "HOME": folder,
                    "DATABASE_HOST": "127.0.0.1",
                    "DATABASE_PORT": str(self.postgres.port),
                    "DATABASE_NAME": self._instance.properties["DBName"],
                    "DATABASE_USER": own["username"],
                    "DATABASE_PASSWORD": own["password"],
                    "DATABASE_SETUP_USER": master["username"],
                    "DATABASE_SETUP_PASSWORD": master["password"],
                    "MIGRATE_WITHOUT_SNAPSHOT": "true",
                },
                capture_output=True,
                text=True,
                check=False,
            )
        assert done.returncode == 0, f"migrate failed with {done.returncode}\n{done.stdout}{done.stderr}"
        told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return told

    def _described(self) -> list[dict[str, Any]]:
        service = _only(self._stack("tracking"), "AWS::ECS::Service").physical.id
        return list(self._host.get("service", service)["tasks"])

    def _deploy(self, name: str, template: dict[str, Any]) -> None:
        self._cloudformation.deploy(self.account, self.region, name, template, lambda line: None)

    def _stack(self, part: str) -> Stack:
        return next(s for s in self._cloudformation.stacks() if s.name.endswith(f"-{part}"))

    @property
    def _instance(self) -> Resource:
        return _only(self._stack("data"), "AWS::RDS::DBInstance")

    @property
    def _master_secret_arn(self) -> str:
        return str(self._instance.physical.attributes["MasterUserSecret.SecretArn"])

    @property
    def _own_secret_arn(self) -> str:
        """Of the server's own user."""
        return _only(self._stack("data"), "AWS::SecretsManager::SecretTargetAttachment").physical.id

    def _secret(self, arn: str) -> dict[str, str]:
        answer = self._client("secretsmanager").get_secret_value(SecretId=arn)
        secret: dict[str, str] = json.loads(answer["SecretString"])
        return secret

    def _client(self, service: str) -> Any:
        return self._accounts.client(service, self.account, self.region)

    def _connect(self) -> psycopg.Connection:
        secret = self._secret(self._master_secret_arn)
        return psycopg.connect(
            host="127.0.0.1",
            port=self.postgres.port,
            user=secret["username"],
            password=secret["password"],
            dbname=self._instance.properties["DBName"],
            autocommit=True,
        )

    @property
    def _directory(self) -> Path:
        return self.state / "accounts" / f"{self.account}-{self.region}"

    @property
    def _host(self) -> HostClient:
        return HostClient(self._directory / "host")


@contextmanager
def running_service(mlflow: str = "") -> Iterator[Service]:
    """A service of its own, stopped and deleted at the end; `mlflow` is an old release of MLflow for it to begin with."""
    base = Path(tempfile.mkdtemp(prefix="mlflow service ")).resolve()
    base.chmod(0o755)  # root's PostgreSQL runs as nobody, who must get through here
    service = Service(base)
    try:
        service.start(mlflow)
        yield service
    finally:
        service.down()
        shutil.rmtree(base)


class Drill:
    """Clients on a service from the beginning of a `with` block until `stop`, and the line that says how it went."""

    def __init__(
        self, name: str, service: Service, *, clients: int = 2, client: type[Client] = Client
    ) -> None:
        self.name = name
        self._service = service
        self._clients = [client(service.url) for _ in range(clients)]
        self._running = contextlib.ExitStack()
        self._rows = (0, 0)
        self._note = ""

    def note(self, sentence: str) -> None:
        """What the line says of the result, besides that it is as it should be."""
        self._note = sentence

    def __enter__(self) -> Drill:
        self._rows = (self._service.rows(), 0)
        for client in self._clients:
            self._running.enter_context(client)
        try:
            self.go_on()
        except BaseException:
            self._running.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.stop()
        result = (self._note or "passed") if error is None else f"FAILED: {str(error).partition(chr(10))[0]}"
        Figures(self.name, result, self.requests, len(self.failures), self.refused, *self._rows).tell()

    def stop(self) -> None:
        """End the clients, once each has an answer to its last request."""
        if not self._rows[1]:
            self._running.close()
            self._rows = (self._rows[0], self._service.rows())

    def go_on(self, requests: int = 30) -> None:
        """Return when that many more requests have gone well."""
        wanted = self.succeeded + requests
        wait_until(lambda: self.succeeded >= wanted, f"{requests} more good requests", 120)

    @property
    def loops(self) -> int:
        """How many requests are in flight at most."""
        return sum(client.loops for client in self._clients)

    @property
    def requests(self) -> int:
        """Requests made so far."""
        return sum(client.requests for client in self._clients)

    @property
    def succeeded(self) -> int:
        """Requests that went well so far."""
        return sum(client.succeeded for client in self._clients)

    @property
    def failures(self) -> list[Failure]:
        """Requests that did not, in the order in which they began."""
        failures = [failure for client in self._clients for failure in client.failures]
        return sorted(failures, key=lambda failure: failure.began)

    @property
    def refused(self) -> float:
        """Seconds in which requests failed."""
        seconds, end = 0.0, 0.0
        for failure in self.failures:
            from_ = end if failure.began - end < ONE_REFUSAL_SECONDS else failure.began
            seconds += max(0.0, failure.ended - from_)
            end = max(end, failure.ended)
        return seconds

    def lost(self) -> list[str]:
        """Everything that was acknowledged and is not there now, in sentences."""
        return [sentence for client in self._clients for sentence in client.lost()]

    def assert_nothing_failed(self) -> None:
        """No request failed, and nothing acknowledged is lost."""
        self.stop()
        told = [str(failure) for failure in self.failures]
        assert not told, f"{len(told)} of {self.requests} failed: {told[:5]}"
        assert self.lost() == []


def kill(task: dict[str, Any]) -> float:
    """SIGKILL a task's first process, and return when (monotonic clock)."""
    now = time.monotonic()
    for pid in task["pids"]:
        os.kill(pid, signal.SIGKILL)
    return now


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):  # connections of PostgreSQL come and go
        process.send_signal(number)


def _assembly(base: Path) -> Path:
    """What `make synth` wrote a moment ago, if ASSEMBLY says where; else synthesized here."""
    if given := os.environ.get("ASSEMBLY"):
        return (REPOSITORY / given).resolve()
    assembly = base / "cdk.out"
    subprocess.run(
        [_cdk(), "synth", "--quiet", "--output", str(assembly), "--app", f"{sys.executable} pipeline_app.py"],
        cwd=REPOSITORY,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return assembly


def _bootstrap(account: str) -> dict[str, Any]:
    """The CDK's own bootstrap template, as a person deploys it."""
    done = subprocess.run(
        [_cdk(), "bootstrap", "--show-template", "--json"], cwd=REPOSITORY, check=True, stdout=subprocess.PIPE
    )
    template: dict[str, Any] = json.loads(done.stdout)
    parameters = template["Parameters"]
    parameters["TrustedAccounts"]["Default"] = parameters["TrustedAccountsForLookup"]["Default"] = [account]
    parameters["CloudFormationExecutionPolicies"]["Default"] = ["arn:aws:iam::aws:policy/AdministratorAccess"]
    return template


def _cdk() -> str:
    return str(REPOSITORY / "node_modules" / ".bin" / "cdk")


def _needed(stacks: dict[str, Any], wanted: str) -> list[str]:
    """The stacks that `wanted` builds on, each after those that it needs itself."""
    order: list[str] = []
    for name in stacks[wanted].get("dependencies", ()):
        if name in stacks:
            order += [other for other in (*_needed(stacks, name), name) if other not in order]
    return order


def _only(stack: Stack, type_: str) -> Resource:
    return next(resource for resource in stack.resources.values() if resource.type == type_)
