"""A rehearsed ECS task: its containers, their ports, their secrets and the keys of its role.

A task is its containers, one free loopback port for each port mapping, and the credentials of its task role.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
import signal
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import Field

from operations.containers import Engine
from rehearsal.container import Container
from rehearsal.databases import introduce
from rehearsal.engine_container import EngineContainer
from rehearsal.ports import LOOPBACK, PortError
from rehearsal.process_container import ProcessContainer
from rehearsal.properties import Properties, RefusedError
from rehearsal.target_group import Target, TargetGroup
from rehearsal.task_definition import ContainerDefinition, RehearsedContainer
from rehearsal.task_roles import AccountCredentials, CannotStartError, Roles

if TYPE_CHECKING:
    from rehearsal.ecs import Cluster, Deployment, ServiceProperties

log = logging.getLogger(__name__)

# A process starts in milliseconds where Fargate takes half a minute. Without a health check to tell, a task
# counts as running well only after this many seconds; else an image that exits at once would pass.
SETTLE_SECONDS = 2.0
# Seconds to drain and to stop a task when the whole host stops.
HURRIED_DRAIN, HURRIED_STOP = 1.0, 10.0
# Task role credentials are renewed when they have less left than this (seconds).
CREDENTIALS_MARGIN = 300.0


class RehearsedService(Properties):
    """What a rehearsed service needs beyond its declaration."""

    credentials: AccountCredentials = Field(alias="credentials")
    log_dir: Path = Field(alias="log_dir")
    database_authority: Path = Field(alias="database_authority")


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
            self._container(container, images[container.name], logs / f"{self.id}.{container.name}.log")
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
            variables = await self._provision()
            self.status = "PENDING"
            for container in self.containers:
                if not self._stop.is_set():
                    name = container.definition.name
                    own = variables[name]
                    files = introduce(own, self.service.properties.rehearsal.database_authority)
                    await container.start(f"{self.service.name}.{name}", home, own, files)
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

    def describe(self) -> dict[str, Any]:
        """The task as `get` shows it."""
        health = "HEALTHY" if self.healthy else "UNHEALTHY" if self.failing else "UNKNOWN"
        return {
            "id": self.id,
            "deployment": self.deployment.id,
            "task_definition": self.definition.arn,
            "status": self.status,
            "health": health,
            "pids": [c.pid for c in self.containers if c.pid is not None],
            "port": self.port,
            "started_at": self.started_at,
            "stopped_at": self.stopped_at,
            "stop_code": self.stop_code,
            "stopped_reason": self.stopped_reason,
            "exit_codes": {c.definition.name: c.exit_code for c in self.containers},
            "images": {c.definition.name: c.definition.image for c in self.containers},
            "logs": {c.definition.name: str(c.log_file) for c in self.containers},
        }

    def _container(
        self, definition: ContainerDefinition, image: RehearsedContainer, log_file: Path
    ) -> Container:
        cluster = self.service.cluster
        memory = self.definition.memory_of(definition)
        if image.engine and memory is not None:
            return EngineContainer(
                definition,
                Engine(image.engine),
                image.image,
                memory,
                log_file,
                cluster.registry,
                cluster.directory.parent,
            )
        return ProcessContainer(definition, image, log_file, cluster.registry)

    async def _provision(self) -> dict[str, dict[str, str]]:
        """Ports and secrets: everything before the first container. Returns the variables of each, by its name."""
        properties = self.definition.properties
        account = self.service.properties.rehearsal.credentials
        definitions = properties.container_definitions
        for definition in definitions:
            for mapping in definition.port_mappings:
                port = self.service.cluster.block.take()
                self._ports[definition.name, mapping.container_port] = port
                self.port = self.port or port
        wanted = [entry for definition in definitions for entry in definition.secrets]
        fetched: dict[str, str] = {}
        if wanted and properties.execution_role_arn:
            fetch = Roles(account).fetch_secrets
            async with self.service.cluster.boto:
                fetched = await asyncio.to_thread(fetch, properties.execution_role_arn, self.id, wanted)
        shared = {
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_REGION": account.region,
            "AWS_DEFAULT_REGION": account.region,
            "AWS_ENDPOINT_URL": account.endpoint,
        }
        credentials = {
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{self.service.cluster.url}/credentials/{self.id}",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN": self.token,
        }
        variables = {}
        for definition in definitions:
            # A task on Fargate has an address of its own; here they share one, so each gets a port of its own instead.
            own_ports = [port for (name, _), port in self._ports.items() if name == definition.name]
            variables[definition.name] = {
                **shared,
                **{entry.name: entry.value for entry in definition.environment},
                **{entry.name: fetched[entry.name] for entry in definition.secrets},
                **(credentials if properties.task_role_arn else {}),
                **({"MLFLOW_HOST": LOOPBACK, "MLFLOW_PORT": str(own_ports[0])} if own_ports else {}),
            }
        return variables

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
            await container.signal(signal.SIGTERM)
        if watchers:
            longest = max(container.definition.stop_timeout for container in self.containers)
            _, late = await asyncio.wait(
                watchers, timeout=min(longest, HURRIED_STOP) if self._hurry else longest
            )
            for container in self.containers:
                await container.signal(signal.SIGKILL)
            if late:
                await asyncio.wait(late)


def now() -> str:
    """The time for events and tasks, in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
