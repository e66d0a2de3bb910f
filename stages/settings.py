"""The settings of the whole delivery: `platform.toml`, typed and checked before anything is synthesized.

Every refusal is one sentence that names the key, the value and the mend. Code downstream trusts what it is given.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from ipaddress import IPv4Network
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

SETTINGS_FILE = Path(__file__).resolve().parent.parent / "platform.toml"

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


class SettingsError(Exception):
    """`platform.toml` cannot be used; the message has one sentence for each thing to mend."""


def _matching(pattern: str, mend: str) -> AfterValidator:
    compiled = re.compile(pattern)

    def check(value: str) -> str:
        if not compiled.fullmatch(value):
            raise ValueError(mend)
        return value

    return AfterValidator(check)


def _between(low: float, high: float, what: str) -> AfterValidator:
    def check(value: float) -> float:
        if not low <= value <= high:
            raise ValueError(f"give {what} from {low:g} to {high:g}")
        return value

    return AfterValidator(check)


def _cidr(smallest: int, largest: int) -> AfterValidator:
    def check(value: str) -> str:
        mend = f'write an IPv4 network such as "10.10.0.0/16", from /{largest} to /{smallest}, with no host bits set'
        try:
            network = IPv4Network(value)
        except ValueError:
            raise ValueError(mend) from None
        if not largest <= network.prefixlen <= smallest:
            raise ValueError(mend)
        return value

    return AfterValidator(check)


Account = Annotated[str, _matching(r"\d{12}", "an AWS account id is a string of exactly 12 digits")]
Region = Annotated[str, _matching(r"[a-z]{2}(-[a-z]+)+-\d", 'write a region such as "eu-west-1"')]
Name = Annotated[
    str,
    _matching(
        r"[a-z][a-z0-9-]{1,18}[a-z0-9]", "use 3 to 20 lower case letters, digits and hyphens, a letter first"
    ),
]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Source(_Table):
    """Where a release comes from."""

    repository: Annotated[str, _matching(r"[\w.-]+/[\w.-]+", 'write the repository as "owner/name"')]
    branch: Annotated[str, StringConstraints(min_length=1)]
    connection_arn: Annotated[
        str,
        _matching(
            r"arn:aws[\w-]*:(codeconnections|codestar-connections):[a-z0-9-]+:\d{12}:connection/[0-9a-f-]{36}",
            "paste the ARN of your connection: arn:aws:codeconnections:REGION:ACCOUNT:connection/ID",
        ),
    ]


class Tooling(_Table):
    """The account that holds the pipeline."""

    account: Account
    region: Region


class Database(_Table):
    """Size and safety of the RDS instance."""

    instance_class: Annotated[
        str,
        _matching(
            r"[a-z0-9]+\.[a-z0-9]+",
            'write an RDS instance class without its "db." prefix, such as "t4g.small"',
        ),
    ]
    storage_gib: Annotated[int, _between(20, 65536, "a size in GiB")]
    multi_az: bool
    backup_days: Annotated[int, _between(1, 35, "a number of days")]
    deletion_protection: bool
    restore_from: (
        Annotated[
            str,
            _matching(
                r"[A-Za-z](-?[A-Za-z0-9])*(:[a-z0-9-]+)?",
                "name the snapshot as RDS and a refused rollback show it, such as"
                ' "mlflow-dev-database-0584bdc529eb-20261121-120000"',
            ),
        ]
        | None
    ) = None


class Load(_Table):
    """The load check and its thresholds; milliseconds unless the name says otherwise."""

    users: Annotated[int, _between(1, 500, "a number of users")]
    spawn_rate: Annotated[float, _between(0.1, 100, "users to start per second")]
    seconds: Annotated[int, _between(10, 3600, "a duration in seconds")]
    max_error_rate: Annotated[float, _between(0, 0.2, "the share of requests that may fail, as a fraction")]
    max_read_p95_ms: Annotated[int, _between(1, 60000, "milliseconds")]
    max_write_p95_ms: Annotated[int, _between(1, 60000, "milliseconds")]
    min_rps: Annotated[float, _between(0.1, 100000, "requests per second")]
    max_slowdown: Annotated[float, _between(1, 1000, "times the medians of the release before")]

    @model_validator(mode="after")
    def _spawns_in_time(self) -> Load:
        if self.users / self.spawn_rate > self.seconds / 2:
            raise ValueError(
                f"{self.users} users at {self.spawn_rate:g} per second are not all there before half of the"
                f" {self.seconds} seconds are over: raise spawn_rate or seconds"
            )
        return self


class Environment(_Table):
    """One account that gets the platform."""

    account: Account
    region: Region
    cidr: Annotated[str, _cidr(smallest=20, largest=16)]
    availability_zones: Annotated[int, _between(2, 3, "a number of zones")]
    nat_gateways: Annotated[int, _between(1, 3, "a number of NAT gateways")]
    exposure: Literal["internal", "internet-facing"]
    certificate_arn: (
        Annotated[
            str,
            _matching(
                r"arn:aws[\w-]*:acm:[a-z0-9-]+:\d{12}:certificate/[\w-]+",
                "paste an ARN of the form arn:aws:acm:REGION:ACCOUNT:certificate/ID",
            ),
        ]
        | None
    ) = None
    host_name: (
        Annotated[
            str,
            _matching(
                r"([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)+[a-z]{2,}",
                'write a host name such as "mlflow.example.com", lower case',
            ),
        ]
        | None
    ) = None
    ingress_cidrs: list[Annotated[str, _cidr(smallest=32, largest=0)]] = Field(default_factory=list)
    tasks: Annotated[int, _between(1, 50, "a number of tasks")]
    max_tasks: Annotated[int, _between(1, 100, "a number of tasks")]
    cpu: int
    memory: int
    workers: Annotated[int, _between(1, 16, "a number of server processes per task")]
    smoke_demo: bool
    database: Database
    load: Load

    @model_validator(mode="after")
    def _parts_fit(self) -> Environment:
        if self.nat_gateways > self.availability_zones:
            raise ValueError(
                f"nat_gateways = {self.nat_gateways}: there are only {self.availability_zones} zones; give at most one each"
            )
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
        if "0.0.0.0/0" in self.ingress_cidrs:
            raise ValueError(
                f"ingress_cidrs = {_shown(self.ingress_cidrs)}: nobody has to sign in yet, so everybody must not get in;"
                " name the networks that may reach the load balancer"
            )
        if self.certificate_arn is not None and self.host_name is None:
            raise ValueError("host_name: is missing; add the name that the certificate was issued for")
        if self.host_name is not None and self.certificate_arn is None:
            raise ValueError(
                f'host_name = "{self.host_name}": is of use with a certificate for it only; add certificate_arn,'
                " or remove it"
            )
        if self.exposure == "internet-facing":
            if self.certificate_arn is None:
                raise ValueError(
                    'exposure = "internet-facing": plain HTTP is not put on the internet; add certificate_arn'
                )
            if not self.ingress_cidrs:
                raise ValueError(
                    "ingress_cidrs = []: an internet-facing load balancer without clients is of no use; name the"
                    " networks that may reach it"
                )
        return self


class Environments(_Table):
    """The three environments, in the order of promotion."""

    dev: Environment
    staging: Environment
    prod: Environment

    def items(self) -> list[tuple[str, Environment]]:
        """Name and environment, in the order of promotion."""
        return [("dev", self.dev), ("staging", self.staging), ("prod", self.prod)]


class Settings(_Table):
    """All of `platform.toml`."""

    name: Name
    source: Source
    tooling: Tooling
    allow_breaking_migration: (
        Annotated[
            str,
            _matching(
                r"[0-9a-f]{12}",
                "name the one revision that may be reached by breaking migrations, 12 hexadecimal digits, as the"
                " migration that was refused named it",
            ),
        ]
        | None
    ) = None
    environments: Environments

    @model_validator(mode="after")
    def _environments_fit(self) -> Settings:
        for (one, first), (other, second) in combinations(self.environments.items(), 2):
            if IPv4Network(first.cidr).overlaps(IPv4Network(second.cidr)):
                raise ValueError(
                    f'environments.{other}.cidr = "{second.cidr}": overlaps environments.{one}.cidr = "{first.cidr}";'
                    " give each environment a network of its own"
                )
            if (first.account, first.region) == (second.account, second.region):
                raise ValueError(
                    f'environments.{other}.account = "{second.account}": is the account and region of'
                    f" environments.{one} too; give each environment an account or a region of its own"
                )
        for name, environment in self.environments.items():
            if environment.region != self.tooling.region:
                raise ValueError(
                    f'environments.{name}.region = "{environment.region}": the pipeline does not cross regions; use'
                    f' tooling.region = "{self.tooling.region}"'
                )
        return self


def load_settings(path: Path = SETTINGS_FILE) -> Settings:
    """Read and check the settings.

    Raises:
        SettingsError: the file is missing, is not TOML, or holds something that cannot be deployed.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(
            f"{path}: there is no such file; copy platform.toml from the repository"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path.name}: is not valid TOML: {error}; mend that line") from None
    try:
        return Settings.model_validate(table)
    except ValidationError as error:
        sentences = [_sentence(dict(problem)) for problem in error.errors()]
        raise SettingsError("\n".join(f"{path.name}: {sentence}" for sentence in sentences)) from None


def _sentence(problem: dict[str, Any]) -> str:
    """One sentence for one of pydantic's findings: key, value, mend."""
    key = ".".join(f"[{part}]" if isinstance(part, int) else str(part) for part in problem["loc"]).replace(
        ".[", "["
    )
    value, kind, message = problem["input"], problem["type"], problem["msg"]
    if kind == "missing":
        return f"{key}: is missing; add it"
    if kind == "extra_forbidden":
        return f"{key} = {_shown(value)}: there is no such key; {_did_you_mean(problem['loc'])}"
    if kind == "value_error":
        reason = str(problem["ctx"]["error"])
        if isinstance(value, dict):  # a rule over several keys: its message begins with the key
            return (
                f"{key}.{reason}"
                if key and not reason[0].isdigit()
                else f"{key}: {reason}".removeprefix(": ")
            )
        return f"{key} = {_shown(value)}: {reason}"
    if kind == "literal_error":
        expected = problem["ctx"]["expected"].replace("'", '"')
        return f"{key} = {_shown(value)}: give {expected}"
    return (
        f"{key} = {_shown(value)}: {_KINDS.get(kind) or f'{message[0].lower()}{message[1:]}; mend the value'}"
    )


_KINDS = {
    "bool_type": "write true or false, without quotes",
    "float_type": "write a number, without quotes",
    "int_from_float": "write a whole number",
    "int_type": "write a whole number, without quotes",
    "list_type": 'write a list, such as ["10.0.0.0/16"]',
    "model_type": "is not a table; write its keys below a heading or in braces",
    "string_too_short": "is empty; give it a value",
    "string_type": "write it in quotes",
}
"""What to do about a value of the wrong type, by pydantic's name for the finding."""


def _shown(value: Any) -> str:
    """A value as it stands in the file."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {_shown(item)}' for key, item in value.items())} }}"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _sizes(sold: range | tuple[int, ...]) -> str:
    if isinstance(sold, range):
        return f"{sold[0]} to {sold[-1]} MiB in steps of {sold.step}"
    return f"{', '.join(map(str, sold[:-1]))} or {sold[-1]} MiB"


def _did_you_mean(loc: tuple[str | int, ...]) -> str:
    table: type[BaseModel] | None = Settings
    for part in loc[:-1]:
        field = table.model_fields.get(str(part)) if table else None
        table = next((t for t in _tables(field.annotation) if t), None) if field else None
    known = list(table.model_fields) if table else []
    close = difflib.get_close_matches(str(loc[-1]), known, n=1)
    return f"did you mean {close[0]}?" if close else f"remove it, or use one of {', '.join(known)}"


def _tables(annotation: Any) -> list[type[BaseModel]]:
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    return [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
