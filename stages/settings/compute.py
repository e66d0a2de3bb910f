"""Settings of the server's tasks: how many, how large, when, and what runs beside the server."""

from __future__ import annotations

from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, Field, model_validator

from stages.settings.fields import Table, between, matching

# MiB of memory that Fargate sells for each CPU size.
# https://docs.aws.amazon.com/AmazonECS/latest/developerguide/fargate-tasks-services.html#fargate-tasks-size
FARGATE_SIZES: dict[int, range | tuple[int, ...]] = {
    256: (512, 1024, 2048),
    512: range(1024, 4096 + 1, 1024),
    1024: range(2048, 8192 + 1, 1024),
    2048: range(4096, 16384 + 1, 1024),
    4096: range(8192, 30720 + 1, 1024),
    8192: range(16384, 61440 + 1, 4096),
    16384: range(32768, 122880 + 1, 8192),
}

PLATFORMS_OWN = (
    "DATABASE_",
    "ARTIFACTS_DESTINATION",
    "WORKERS",
    "MLFLOW_HOST",
    "MLFLOW_PORT",
    "MLFLOW_SERVER_ALLOWED_HOSTS",
    "SIGN_IN",
    "MLFLOW_AUTH_",
    "GATE_PASSWORD",
)
"""How the variables begin that the platform gives the server; nobody else may."""

SERVER_MEMORY = 512
"""MiB that one server process needs under load, with room: it settles at about 320 MiB."""


def _time_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError):
        raise ValueError('name a time zone as in "Europe/Berlin" or "UTC"') from None
    return name


VariableName = Annotated[
    str, matching(r"[A-Z][A-Z0-9_]*", "name variables in capitals, digits and underscores, a letter first")
]
SecretArn = Annotated[
    str,
    matching(
        r"arn:aws[\w-]*:secretsmanager:[a-z0-9-]+:\d{12}:secret:[\w/+=.@-]+-[A-Za-z0-9]{6}(:[\w.-]+::)?",
        "paste the secret's whole ARN, with the six characters that Secrets Manager added; for one key of a JSON secret"
        " append :KEY::",
    ),
]
TimeOfDay = Annotated[str, matching(r"([01]\d|2[0-3]):[0-5]\d", 'write a time of day such as "07:30"')]


class Scaling(Table):
    """What makes the service start another task. Defaults: CPU and memory with room for the minutes a start takes;
    20 requests a second for each task, a cautious beginning."""

    cpu_percent: Annotated[int, between(10, 90, "a percentage of the tasks' CPU")] = 60
    memory_percent: Annotated[int, between(10, 90, "a percentage of the tasks' memory")] = 80
    requests_per_minute: Annotated[int, between(1, 100_000, "requests per minute for each task")] = 1200


class Schedule(Table):
    """When the service runs; outside of it there are no tasks."""

    days: Annotated[
        str,
        matching(
            r"(MON|TUE|WED|THU|FRI|SAT|SUN)([,-](MON|TUE|WED|THU|FRI|SAT|SUN))*",
            'write days as in "MON-FRI" or "MON,WED,FRI"',
        ),
    ]
    start: TimeOfDay
    stop: TimeOfDay
    time_zone: Annotated[str, AfterValidator(_time_zone)]

    @model_validator(mode="after")
    def _starts_first(self) -> Schedule:
        if self.start >= self.stop:
            raise ValueError(
                f'start = "{self.start}": must come before stop = "{self.stop}" on the same day; change one of them'
            )
        return self


class Sidecar(Table):
    """A container beside the server in each task, such as a monitoring agent."""

    name: Annotated[
        str, matching(r"[a-z][a-z0-9-]{0,30}", "use lower case letters, digits and hyphens, a letter first")
    ]
    image: Annotated[
        str,
        matching(
            r"[\w.-]+\.[\w.-]+/[\w./-]+(:[\w.-]+|@sha256:[0-9a-f]{64})",
            'name registry, repository and version, as in "public.ecr.aws/datadog/agent:7.60.0"',
        ),
    ]
    memory: Annotated[int, between(16, 30720, "MiB")]
    cpu: Annotated[int, between(0, 4096, "Fargate CPU units")] = 0
    essential: bool = False
    writable: bool = False
    variables: dict[VariableName, str] = Field(default_factory=dict)
    secrets: dict[VariableName, SecretArn] = Field(default_factory=dict)


class Compute(Table):
    """How many tasks, of which size and when; with which variables, secrets and neighbours."""

    tasks: Annotated[int, between(1, 50, "a number of tasks")]
    max_tasks: Annotated[int, between(1, 100, "a number of tasks")]
    cpu: int
    memory: int
    workers: Annotated[int, between(1, 16, "a number of server processes per task")]
    capacity: Literal["on-demand", "spot"] = "on-demand"
    scaling: Scaling = Field(default_factory=Scaling)
    schedule: Schedule | None = None
    variables: dict[VariableName, str] = Field(default_factory=dict)
    secrets: dict[VariableName, SecretArn] = Field(default_factory=dict)
    sidecars: list[Sidecar] = Field(default_factory=list)

    def all_secrets(self) -> list[dict[str, str]]:
        """The user's secrets, of the server and of each sidecar."""
        return [self.secrets, *(sidecar.secrets for sidecar in self.sidecars)]

    @model_validator(mode="after")
    def _sizes_fit(self) -> Compute:
        if self.cpu not in FARGATE_SIZES:
            raise ValueError(
                f"cpu = {self.cpu}: Fargate sells {', '.join(map(str, FARGATE_SIZES))}; take one of these"
            )
        sold = FARGATE_SIZES[self.cpu]
        if self.memory not in sold:
            raise ValueError(
                f"memory = {self.memory}: with cpu = {self.cpu} Fargate sells {_sizes(sold)}; take one of these"
            )
        if self.max_tasks < self.tasks:
            raise ValueError(
                f"max_tasks = {self.max_tasks}: must not be less than tasks = {self.tasks}; raise it"
            )
        return self

    @model_validator(mode="after")
    def _containers_fit(self) -> Compute:
        names = [sidecar.name for sidecar in self.sidecars]
        if taken := {name for name in names if names.count(name) > 1 or name == "mlflow"}:
            raise ValueError(
                f"sidecars: {', '.join(sorted(taken))}: is the name of another container of the task; choose another"
            )
        reserved = sum(sidecar.memory for sidecar in self.sidecars)
        if reserved + SERVER_MEMORY > self.memory:
            raise ValueError(
                f"memory = {self.memory}: {reserved} MiB of it are the sidecars', and the server needs {SERVER_MEMORY};"
                " raise it"
            )
        for variable in (*self.variables, *self.secrets):
            if variable.startswith(PLATFORMS_OWN):
                raise ValueError(f"variables: {variable}: is the platform's to set; remove it")
        if both := self.variables.keys() & self.secrets.keys():
            raise ValueError(
                f"secrets: {', '.join(sorted(both))}: is among the variables, too; remove it from one of the two"
            )
        return self


def _sizes(sold: range | tuple[int, ...]) -> str:
    if isinstance(sold, range):
        return f"{sold[0]} to {sold[-1]} MiB in steps of {sold.step}"
    return f"{', '.join(map(str, sold[:-1]))} or {sold[-1]} MiB"
