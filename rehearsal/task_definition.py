"""A rehearsed ECS task definition: its properties, what RunTask overrides, what cannot be enforced here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from rehearsal.properties import Properties, RefusedError, parse


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


class MountPoint(Properties):
    """Where a volume of the task is mounted."""

    source_volume: str
    container_path: str
    read_only: bool = False


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
    mount_points: tuple[MountPoint, ...] = ()
    readonly_root_filesystem: bool = False
    user: str = ""
    stop_timeout: float = 30  # seconds from SIGTERM to SIGKILL; 30 is the default on Fargate


class RehearsedContainer(Properties):
    """How a container's image runs: `image` on a container engine, or as a process, by ENTRYPOINT, CMD, ENV and WORKDIR."""

    engine: str = Field(alias="engine", default="")
    image: str = Field(alias="digest", default="")
    entrypoint: list[str] = Field(alias="entrypoint", default_factory=list)
    command: list[str] = Field(alias="command", default_factory=list)
    environment: dict[str, str] = Field(alias="environment", default_factory=dict)
    directory: str = Field(alias="directory", default="/")


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
            told = {one.name: one.value for one in container.environment}
            if (told.get("DATABASE_ENGINE"), told.get("DATABASE_SIGN_IN")) == ("mysql", "iam"):
                raise RefusedError(
                    f'{arn}: sign_in = "iam" is not rehearsed with MySQL, because MariaDB, which stands in for it, takes no'
                    ' tokens; rehearse with sign_in = "password" or engine = "postgres" in platform.toml'
                )
        if (
            any(c.secrets for c in self.properties.container_definitions)
            and not self.properties.execution_role_arn
        ):
            raise RefusedError(
                f"{arn}: containers have secrets, but there is no ExecutionRoleArn to fetch them with"
            )
        if any(image.engine for image in images.values()):
            self._check_for_engine()
        self.not_enforced = _not_enforced(properties, images)

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

    def memory_of(self, container: ContainerDefinition) -> int | None:
        """MiB that a container may take: its own limit, or the task's."""
        limits = [limit for limit in (container.memory, self.properties.memory) if limit is not None]
        return min(limits, default=None)

    def _check_for_engine(self) -> None:
        containers = self.properties.container_definitions
        if shared := _shared_volumes(containers):
            raise RefusedError(
                f"{self.arn}: volume {', '.join(sorted(shared))} is mounted twice, which is not rehearsed with"
                " containers; mount it once, or rehearse with CONTAINERS=no"
            )
        for container in containers:
            if self.memory_of(container) is None:
                raise RefusedError(
                    f"{self.arn}: container {container.name} has no limit; set the task's Memory"
                )

    @property
    def name(self) -> str:
        """The part of the ARN that events mention, `family:revision`."""
        return self.arn.rpartition("/")[2]


def _not_enforced(properties: Mapping[str, Any], images: Mapping[str, RehearsedContainer]) -> list[str]:
    """The declared properties that nothing here is held to: a process to hardly any, a container to most."""
    in_engine = all(image.engine for image in images.values())
    whole = {"Cpu", "NetworkMode", "RuntimePlatform", "Volumes", "EphemeralStorage"}
    per_container = {
        "ReadonlyRootFilesystem",
        "User",
        "Cpu",
        "DependsOn",
        "LinuxParameters",
        "MountPoints",
        "Ulimits",
    }
    if in_engine:
        whole -= {"Volumes"}
        per_container -= {"ReadonlyRootFilesystem", "User", "MountPoints"}
    found = [name for name in properties if name in whole and properties[name]]
    for container in properties["ContainerDefinitions"]:
        found += [
            f"{container['Name']}.{name}" for name in container if name in per_container and container[name]
        ]
    return sorted(found, key=lambda name: ("." in name, name))


def _shared_volumes(containers: list[ContainerDefinition]) -> set[str]:
    mounted = [mount.source_volume for container in containers for mount in container.mount_points]
    return {name for name in mounted if mounted.count(name) > 1}
