"""A rehearsed ECS task: its definition, its containers as processes, its secrets and the keys of its role.

A container is a process group that runs the image's command; a task is its containers, one free loopback port
for each port mapping, and the credentials of its task role. What a process cannot be held to (a read-only
root, a user, CPU shares) is listed as `not_enforced`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import secrets
import shutil
import signal
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from pydantic import Field

from rehearsal.ports import LOOPBACK, PortError
from rehearsal.processes import ProcessRegistry, exact_session_memory, kill_session
from rehearsal.properties import Properties, RefusedError, parse
from rehearsal.target_group import Target, TargetGroup

if TYPE_CHECKING:
    from rehearsal.ecs import Cluster, Deployment, ServiceProperties

log = logging.getLogger(__name__)

# Docker's own default search path; the image's environment may set another.
BASE_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
}
# A process starts in milliseconds where Fargate takes half a minute. Without a health check to tell, a task
# counts as running well only after this many seconds; else an image that exits at once would pass.
SETTLE_SECONDS = 2.0
# Seconds to drain and to stop a task when the whole host stops.
HURRIED_DRAIN, HURRIED_STOP = 1.0, 10.0
# Task role credentials are renewed when they have less left than this (seconds).
CREDENTIALS_MARGIN = 300.0
NO_SECRETS = (
    "ResourceInitializationError: unable to pull secrets or registry auth: "
    "execution resource retrieval failed"
)


class EnvironmentEntry(Properties):
    """A variable of a container."""

    name: str
    value: str = ""


class SecretEntry(Properties):
    """A variable whose value is fetched when the task starts."""

    name: str
    value_from: str


class PortMapping(Properties):
    """A port the container serves."""

    container_port: int


class HealthCheck(Properties):
    """A command that tells whether a container works. Defaults are ECS's; times in seconds."""

    command: list[str]
    interval: float = 30
    timeout: float = 5
    retries: int = 3
    start_period: float = 0


class ContainerDefinition(Properties):
    """One container of a task definition."""

    name: str
    image: str = ""
    essential: bool = True
    entry_point: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    environment: tuple[EnvironmentEntry, ...] = ()
    secrets: tuple[SecretEntry, ...] = ()
    port_mappings: tuple[PortMapping, ...] = ()
    health_check: HealthCheck | None = None
    memory: int | None = None
    stop_timeout: float = 30  # seconds from SIGTERM to SIGKILL; 30 is the default on Fargate


class RehearsedContainer(Properties):
    """How a container's image runs as a process: the image's ENTRYPOINT, CMD, ENV and WORKDIR."""

    entrypoint: list[str] = Field(alias="entrypoint", default_factory=list)
    command: list[str] = Field(alias="command", default_factory=list)
    environment: dict[str, str] = Field(alias="environment", default_factory=dict)
    directory: str = Field(alias="directory")


class RehearsedImages(Properties):
    """The images of a task definition, by container name."""

    containers: dict[str, RehearsedContainer] = Field(alias="containers")


class TaskDefinitionProperties(Properties):
    """AWS::ECS::TaskDefinition. Memory is in MiB."""

    family: str = "task"
    memory: int | None = None
    task_role_arn: str | None = None
    execution_role_arn: str | None = None
    container_definitions: list[ContainerDefinition] = Field(min_length=1)
    rehearsal: RehearsedImages


class AdminKeys(Properties):
    """Keys that may assume the roles of the account."""

    access_key_id: str = Field(alias="access_key_id")
    secret_access_key: str = Field(alias="secret_access_key")
    session_token: str | None = Field(alias="session_token", default=None)


class AccountCredentials(Properties):
    """Where the account's AWS services answer, and the keys to assume its roles with."""

    endpoint: str = Field(alias="endpoint")
    region: str = Field(alias="region")
    admin: AdminKeys = Field(alias="admin")


class RehearsedService(Properties):
    """What a rehearsed service needs beyond its declaration."""

    credentials: AccountCredentials = Field(alias="credentials")
    log_dir: Path = Field(alias="log_dir")


class CannotStartError(Exception):
    """A task could not be started; the message is its stopped reason, worded as ECS words it."""


class Roles:
    """Assumes the roles of an account and fetches its secrets. Calls block: use it from a thread."""

    _session = boto3.session.Session()

    def __init__(self, account: AccountCredentials) -> None:
        self._account = account

    def assume(self, role_arn: str, session_name: str) -> dict[str, Any]:
        """Temporary keys of a role: AccessKeyId, SecretAccessKey, SessionToken, Expiration."""
        admin = self._account.admin
        sts = self._client("sts", admin.access_key_id, admin.secret_access_key, admin.session_token)
        keys: dict[str, Any] = sts.assume_role(RoleArn=role_arn, RoleSessionName=session_name)["Credentials"]
        return keys

    def fetch_secrets(self, role_arn: str, session_name: str, wanted: list[SecretEntry]) -> dict[str, str]:
        """The values of secrets, fetched with the execution role, so that its policies must allow it."""
        try:
            keys = self.assume(role_arn, session_name)
        except (ClientError, BotoCoreError) as error:
            raise CannotStartError(
                f"{NO_SECRETS}: unable to assume execution role {role_arn}: {_said(error)}"
            ) from error
        given = (keys["AccessKeyId"], keys["SecretAccessKey"], keys["SessionToken"])
        values = {}
        for entry in wanted:
            store = "asm" if ":secretsmanager:" in entry.value_from else "ssm"
            try:
                values[entry.name] = (
                    self._secret(entry.value_from, *given)
                    if store == "asm"
                    else self._parameter(entry.value_from, *given)
                )
            except (ClientError, BotoCoreError, LookupError, ValueError) as error:
                raise CannotStartError(
                    f"{NO_SECRETS}: unable to retrieve secret from {store}: failed to fetch "
                    f"{entry.value_from} for {entry.name} with execution role {role_arn}: {_said(error)}"
                ) from error
        return values

    def _secret(self, value_from: str, *keys: str) -> str:
        # arn:partition:secretsmanager:region:account:secret:name, then optionally
        # :json-key:version-stage:version-id
        parts = value_from.split(":")
        json_key, stage, version = (*parts[7:], "", "", "")[:3]
        request = {"SecretId": ":".join(parts[:7])}
        if stage:
            request["VersionStage"] = stage
        if version:
            request["VersionId"] = version
        value: str = self._client("secretsmanager", *keys).get_secret_value(**request)["SecretString"]
        if not json_key:
            return value
        fields = json.loads(value)
        if json_key not in fields:
            raise LookupError(f"retrieved secret from Secrets Manager did not contain json key {json_key}")
        return str(fields[json_key])

    def _parameter(self, value_from: str, *keys: str) -> str:
        name = value_from.partition(":parameter")[2] or value_from
        answer = self._client("ssm", *keys).get_parameter(Name=name, WithDecryption=True)
        value: str = answer["Parameter"]["Value"]
        return value

    def _client(self, service: str, key: str, secret: str, token: str | None) -> Any:
        return self._session.client(
            service,
            region_name=self._account.region,
            endpoint_url=self._account.endpoint,
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            aws_session_token=token,
            config=Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 2}),
        )


class TaskDefinition:
    """A revision of a task definition."""

    def __init__(self, arn: str, properties: Mapping[str, Any]) -> None:
        self.arn = arn
        self._raw = properties
        self.properties = parse(TaskDefinitionProperties, arn, properties)
        self.active = True
        images = self.properties.rehearsal.containers
        for container in self.properties.container_definitions:
            if container.name not in images:
                raise RefusedError(
                    f"{arn}: no rehearsed image for container {container.name}; add it to Rehearsal"
                )
        if (
            any(c.secrets for c in self.properties.container_definitions)
            and not self.properties.execution_role_arn
        ):
            raise RefusedError(
                f"{arn}: containers have secrets, but there is no ExecutionRoleArn to fetch them with"
            )
        self.not_enforced = _not_enforced(properties)

    def overridden(self, overrides: Mapping[str, Any]) -> TaskDefinition:
        """This revision with what a RunTask call overrides, in that call's own words: command and environment."""
        by_name = {one["name"]: one for one in overrides.get("containerOverrides", [])}
        containers = []
        for declared in self._raw["ContainerDefinitions"]:
            override = by_name.pop(declared["Name"], {})
            if unknown := set(override) - {"name", "command", "environment"}:
                raise RefusedError(f"RunTask: overriding {', '.join(sorted(unknown))} is not rehearsed")
            variables = {one["Name"]: one["Value"] for one in declared.get("Environment", [])}
            variables |= {one["name"]: one["value"] for one in override.get("environment", [])}
            environment = [{"Name": name, "Value": value} for name, value in variables.items()]
            command = override.get("command") or declared.get("Command", [])
            containers.append({**declared, "Command": command, "Environment": environment})
        if by_name:
            raise RefusedError(f"RunTask: {self.name} has no container {', '.join(by_name)}")
        return TaskDefinition(self.arn, {**self._raw, "ContainerDefinitions": containers})

    @property
    def name(self) -> str:
        """The part of the ARN that events mention, `family:revision`."""
        return self.arn.rpartition("/")[2]


def _not_enforced(properties: Mapping[str, Any]) -> list[str]:
    """The declared properties that a plain process cannot be held to."""
    whole = ("Cpu", "NetworkMode", "RuntimePlatform", "Volumes", "EphemeralStorage")
    found = [name for name in whole if properties.get(name)]
    per_container = (
        "ReadonlyRootFilesystem",
        "User",
        "Cpu",
        "DependsOn",
        "LinuxParameters",
        "MountPoints",
        "Ulimits",
    )
    for container in properties["ContainerDefinitions"]:
        found += [f"{container['Name']}.{name}" for name in per_container if container.get(name)]
    return found


class Container:
    """One container of a task: a process group, its log file, its health."""

    def __init__(self, definition: ContainerDefinition, image: RehearsedContainer, log_file: Path) -> None:
        self.definition = definition
        self.log_file = log_file
        # An entry point of the definition's own leaves out the image's command, as a container engine does.
        command = definition.command or (() if definition.entry_point else image.command)
        self.argv = [*(definition.entry_point or image.entrypoint), *command]
        self.directory = image.directory
        self.environment: dict[str, str] = {}
        self.process: asyncio.subprocess.Process | None = None
        self.exit_code: int | None = None
        self.health: Literal["HEALTHY", "UNHEALTHY", "UNKNOWN"] = "UNKNOWN"
        self.out_of_memory = False

    async def start(self, registry: ProcessRegistry, name: str) -> None:
        """Start the process. Raises CannotStartError."""
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self.log_file.open("ab") as output:
                self.process = await asyncio.create_subprocess_exec(
                    *self.argv,
                    cwd=self.directory,
                    env=self.environment,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=asyncio.subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            raise CannotStartError(
                f'CannotStartContainerError: exec: "{self.argv[0]}": {error.strerror}'
            ) from error
        self._record = registry.record(name, self.process.pid, self.argv[0])
        self._registry = registry

    async def run(self) -> None:
        """Wait for the end of the process. Whatever it leaves behind ends with it, as in a container."""
        if self.process:
            code = await self.process.wait()
            self.exit_code = code if code >= 0 else 128 - code
            await asyncio.to_thread(kill_session, self.process.pid)
            self._registry.forget(self._record)

    def signal(self, number: signal.Signals) -> None:
        """Signal the first process alone, as a container engine does; it must tell its children itself."""
        if self.process and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)

    async def check_health(self, changed: Callable[[], None]) -> None:
        """Run the health check command again and again; UNHEALTHY after `retries` failures in a row."""
        check = self.definition.health_check
        if check is None:
            return
        kind, *words = check.command
        if kind == "NONE":
            return
        argv = ["/bin/sh", "-c", *words] if kind == "CMD-SHELL" else words
        started, failures = time.monotonic(), 0
        while True:
            await asyncio.sleep(check.interval)
            passed = await self._probe(argv, check.timeout)
            if not passed and time.monotonic() - started < check.start_period:
                continue
            failures = 0 if passed else failures + 1
            if passed or failures >= check.retries:
                self.health = "HEALTHY" if passed else "UNHEALTHY"
                changed()

    async def _probe(self, argv: list[str], timeout: float) -> bool:
        try:
            probe = await asyncio.create_subprocess_exec(
                *argv,
                cwd=self.directory,
                env=self.environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError:
            return False
        try:
            return await asyncio.wait_for(probe.wait(), timeout) == 0
        except TimeoutError:
            return False
        finally:
            if probe.returncode is None:
                probe.kill()
                await probe.wait()


class Owner(Protocol):
    """On whose behalf a task runs: a service, or nobody but the caller of RunTask."""

    cluster: Cluster
    properties: ServiceProperties
    name: str

    def wake(self) -> None:
        """Something about the task has changed."""

    def ended(self, task: Task) -> None:
        """The task has stopped."""


class Task:
    """One run of a task definition."""

    def __init__(self, service: Owner, deployment: Deployment) -> None:
        self.id = uuid.uuid4().hex
        self.token = secrets.token_urlsafe(32)
        self.service = service
        self.deployment = deployment
        self.definition = deployment.definition
        self.created = time.monotonic()
        self.started_at = now()
        self.stopped_at = ""
        self.status = "PROVISIONING"
        self.stop_code = ""
        self.stopped_reason = ""
        self.port: int | None = None
        self.was_healthy = False
        self._ports: dict[tuple[str, int], int] = {}
        self._targets: list[tuple[TargetGroup, Target]] = []
        self._stop = asyncio.Event()
        self._hurry = False
        self._keys: dict[str, Any] = {}
        self._running_since = 0.0
        images = self.definition.properties.rehearsal.containers
        logs = service.properties.rehearsal.log_dir / service.name
        self.containers = [
            Container(container, images[container.name], logs / f"{self.id}.{container.name}.log")
            for container in self.definition.properties.container_definitions
        ]

    @property
    def live(self) -> bool:
        """Whether it runs or is about to, and nobody has asked it to stop."""
        return self.status in ("PROVISIONING", "PENDING", "RUNNING") and not self._stop.is_set()

    @property
    def healthy(self) -> bool:
        """Whether it runs and passes every check there is."""
        if self.status != "RUNNING" or self._stop.is_set():
            return False
        checked = [container for container in self.containers if container.definition.health_check]
        if any(container.health != "HEALTHY" for container in checked if container.definition.essential):
            return False
        if any(target.state != "healthy" for _, target in self._targets):
            return False
        return bool(checked or self._targets) or time.monotonic() - self._running_since >= SETTLE_SECONDS

    @property
    def failing(self) -> str:
        """Why the scheduler should replace it; empty when it should not."""
        grace = self.service.properties.health_check_grace_period_seconds
        if self.status != "RUNNING" or time.monotonic() - self._running_since < grace:
            return ""
        for container in self.containers:
            if container.definition.essential and container.health == "UNHEALTHY":
                return "Task failed container health checks"
        for group, target in self._targets:
            if target.state == "unhealthy":
                return f"Task failed ELB health checks in (target-group {group.arn}): {target.description}"
        return ""

    def stop(self, code: str, reason: str, *, hurry: bool = False) -> None:
        """Ask it to stop; the first reason given stays."""
        if not self._stop.is_set():
            self.stop_code, self.stopped_reason = code, reason
            self._hurry = hurry
            self._stop.set()

    async def run(self) -> None:
        """Live from provisioning to stopped."""
        cluster = self.service.cluster
        home = cluster.directory / self.id[:12]
        watchers: list[asyncio.Task[None]] = []
        try:
            await self._provision(home)
            self.status = "PENDING"
            for container in self.containers:
                if not self._stop.is_set():
                    await container.start(
                        cluster.registry, f"{self.service.name}.{container.definition.name}"
                    )
                    watchers.append(asyncio.create_task(self._watch(container)))
            if not self._stop.is_set():
                await self._serve()
        except (CannotStartError, PortError) as error:
            self.stop("TaskFailedToStart", str(error))
        except Exception as error:
            log.exception("task %s failed", self.id)
            self.stop(
                "TaskFailedToStart", f"the rehearsal itself failed: {error!r}; the host's log says more"
            )
        finally:
            await self._wind_down(watchers)
            for port in self._ports.values():
                cluster.block.free(port)
            await asyncio.to_thread(shutil.rmtree, home, ignore_errors=True)
            self.status, self.stopped_at = "STOPPED", now()
            self.service.ended(self)

    async def _serve(self) -> None:
        """Be registered and checked until asked to stop."""
        self.status, self._running_since = "RUNNING", time.monotonic()
        for entry in self.service.properties.load_balancers:
            group = self.service.cluster.target_groups[entry.target_group_arn]
            port = self._ports[entry.container_name, entry.container_port]
            self._targets.append((group, group.register(self.id, port)))
        checks = [asyncio.create_task(c.check_health(self.service.wake)) for c in self.containers]
        self.service.wake()
        await self._stop.wait()
        for check in checks:
            check.cancel()

    async def credentials(self) -> dict[str, Any]:
        """Keys of the task role in the form SDKs ask a container for, renewed before they expire."""
        role = self.definition.properties.task_role_arn
        if not role:
            raise RefusedError(f"task {self.id} has no task role")
        left = self._keys["Expiration"].timestamp() - time.time() if self._keys else 0.0
        if left < CREDENTIALS_MARGIN:
            roles = Roles(self.service.properties.rehearsal.credentials)
            async with self.service.cluster.boto:
                self._keys = await asyncio.to_thread(roles.assume, role, self.id)
        return {
            "RoleArn": role,
            "AccessKeyId": self._keys["AccessKeyId"],
            "SecretAccessKey": self._keys["SecretAccessKey"],
            "Token": self._keys["SessionToken"],
            "Expiration": self._keys["Expiration"].strftime("%Y-%m-%dT%H:%M:%SZ"),
        }

    def limit_memory(self, used: Mapping[int, int]) -> None:
        """Kill what takes more memory than declared, given the resident bytes of each container's session."""
        mine = {c: used.get(c.process.pid, 0) for c in self.containers if c.process and c.exit_code is None}
        limits = [([c], c.definition.memory) for c in mine] + [
            (list(mine), self.definition.properties.memory)
        ]
        for together, mebibytes in limits:
            if mebibytes is None or sum(mine[c] for c in together) <= mebibytes * 2**20:
                continue
            # Resident memory counts shared pages more than once, so only a suspicion: measure.
            pids = [c.process.pid for c in together if c.process]
            if sum(map(exact_session_memory, pids)) > mebibytes * 2**20:
                for c in together:
                    c.out_of_memory = True
                for pid in pids:
                    kill_session(pid)

    def describe(self) -> dict[str, Any]:
        """The task as `get` shows it."""
        health = "HEALTHY" if self.healthy else "UNHEALTHY" if self.failing else "UNKNOWN"
        return {
            "id": self.id,
            "deployment": self.deployment.id,
            "task_definition": self.definition.arn,
            "status": self.status,
            "health": health,
            "pids": [c.process.pid for c in self.containers if c.process and c.exit_code is None],
            "port": self.port,
            "started_at": self.started_at,
            "stopped_at": self.stopped_at,
            "stop_code": self.stop_code,
            "stopped_reason": self.stopped_reason,
            "exit_codes": {c.definition.name: c.exit_code for c in self.containers},
            "images": {c.definition.name: c.definition.image for c in self.containers},
            "logs": {c.definition.name: str(c.log_file) for c in self.containers},
        }

    async def _provision(self, home: Path) -> None:
        """Ports, private folders, secrets: everything before the first process."""
        properties = self.definition.properties
        account = self.service.properties.rehearsal.credentials
        for container in self.containers:
            for mapping in container.definition.port_mappings:
                port = self.service.cluster.block.take()
                self._ports[container.definition.name, mapping.container_port] = port
                self.port = self.port or port
        wanted = [entry for container in self.containers for entry in container.definition.secrets]
        fetched: dict[str, str] = {}
        if wanted and properties.execution_role_arn:
            fetch = Roles(account).fetch_secrets
            async with self.service.cluster.boto:
                fetched = await asyncio.to_thread(fetch, properties.execution_role_arn, self.id, wanted)
        for container in self.containers:
            definition = container.definition
            private = {"HOME": home / definition.name / "home", "TMPDIR": home / definition.name / "tmp"}
            for folder in private.values():
                folder.mkdir(parents=True)
            container.environment = {
                **BASE_ENVIRONMENT,
                **{name: str(folder) for name, folder in private.items()},
                "AWS_REGION": account.region,
                "AWS_DEFAULT_REGION": account.region,
                "AWS_ENDPOINT_URL": account.endpoint,
                **properties.rehearsal.containers[definition.name].environment,
                **{entry.name: entry.value for entry in definition.environment},
                **{entry.name: fetched[entry.name] for entry in definition.secrets},
            }
            if properties.task_role_arn:
                container.environment |= {
                    "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{self.service.cluster.url}/credentials/{self.id}",
                    "AWS_CONTAINER_AUTHORIZATION_TOKEN": self.token,
                }
            # A task on Fargate has an address of its own; processes share one, so each gets a port of its own
            # instead.
            own_ports = [port for (name, _), port in self._ports.items() if name == definition.name]
            if own_ports:
                container.environment |= {"MLFLOW_HOST": LOOPBACK, "MLFLOW_PORT": str(own_ports[0])}

    async def _watch(self, container: Container) -> None:
        await container.run()
        name, code = container.definition.name, container.exit_code
        if container.out_of_memory:
            self.stop("EssentialContainerExited", "OutOfMemoryError: container killed due to memory usage")
        elif container.definition.essential:
            self.stop(
                "EssentialContainerExited", f"Essential container in task exited ({name}: exit code {code})"
            )
        self.service.wake()

    async def _wind_down(self, watchers: list[asyncio.Task[None]]) -> None:
        """Drain, SIGTERM, wait for the stop timeout, SIGKILL."""
        self.status = "DEACTIVATING"
        dead = any(c.definition.essential and c.exit_code is not None for c in self.containers)
        within = 0.0 if dead else HURRIED_DRAIN if self._hurry else None
        await asyncio.gather(*(group.deregister(self.id, within=within) for group, _ in self._targets))
        self.status = "STOPPING"
        for container in self.containers:
            container.signal(signal.SIGTERM)
        if watchers:
            longest = max(container.definition.stop_timeout for container in self.containers)
            _, late = await asyncio.wait(
                watchers, timeout=min(longest, HURRIED_STOP) if self._hurry else longest
            )
            for container in self.containers:
                container.signal(signal.SIGKILL)
            if late:
                await asyncio.wait(late)


def _said(error: Exception) -> str:
    """An error in one line; a refusal by the rehearsed AWS comes as a page of XML."""
    found = re.search(r"<Code>(.*?)</Code>\s*<Message>(.*?)</Message>", str(error), re.DOTALL)
    return f"{found[1]}: {found[2]}" if found else str(error)


def now() -> str:
    """The time for events and tasks, in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
