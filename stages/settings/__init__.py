"""The settings of the whole delivery: `platform.toml`, typed and checked before anything is synthesized.

Every refusal is one sentence that names the key, the value and the mend. Code downstream trusts what it is given. A
file here is one capability's settings; this one puts them together.
"""

from __future__ import annotations

import tomllib
from ipaddress import IPv4Network
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError, model_validator

from stages.settings.artifacts import Artifacts
from stages.settings.compute import Compute
from stages.settings.database import Database, regions_of_authorities
from stages.settings.fields import Account, Name, Region, Table, matching
from stages.settings.image import Image
from stages.settings.load import Load
from stages.settings.logs import Logs
from stages.settings.network import Network
from stages.settings.people import People
from stages.settings.profile import Profile, filled_in, refusal
from stages.settings.sentences import sentence, shown
from stages.settings.sign_in import SignIn

SETTINGS_FILE = Path(__file__).resolve().parents[2] / "platform.toml"


class SettingsError(Exception):
    """`platform.toml` cannot be used; the message has one sentence for each thing to mend."""


class Source(Table):
    """Where a release comes from."""

    repository: Annotated[str, matching(r"[\w.-]+/[\w.-]+", 'write the repository as "owner/name"')]
    branch: Annotated[str, StringConstraints(min_length=1)]
    connection_arn: Annotated[
        str,
        matching(
            r"arn:aws[\w-]*:(codeconnections|codestar-connections):[a-z0-9-]+:\d{12}:connection/[0-9a-f-]{36}",
            "paste the ARN of your connection: arn:aws:codeconnections:REGION:ACCOUNT:connection/ID",
        ),
    ]

    @property
    def url(self) -> str:
        """Where people read it."""
        return f"https://github.com/{self.repository}"


class Tooling(Table):
    """The account that holds the pipeline."""

    account: Account
    region: Region


class Environment(Network, SignIn, Compute, Table):
    """One account that gets the platform."""

    account: Account
    region: Region
    profile: Profile = "standard"
    smoke_demo: bool
    database: Database
    artifacts: Artifacts = Artifacts()
    logs: Logs = Logs()
    people: People | None = None
    load: Load

    @model_validator(mode="before")
    @classmethod
    def _profile_fills_in(cls, table: Any) -> Any:
        return filled_in(table) if isinstance(table, dict) else table

    @model_validator(mode="after")
    def _strict_is_strict(self) -> Environment:
        if reason := refusal(self):
            raise ValueError(reason)
        return self

    @model_validator(mode="after")
    def _gates_may_do_it(self) -> Environment:
        if self.smoke_demo and self.auth == "mlflow-basic":
            raise ValueError(
                'smoke_demo = true: `mlflow demo` has to be an administrator, and with auth = "mlflow-basic" the gates are'
                " none; set smoke_demo to false"
            )
        return self

    @model_validator(mode="after")
    def _users_fit_the_database(self) -> Environment:
        if self.auth == "mlflow-basic" and self.database.engine.endswith("mysql"):
            raise ValueError(
                'auth = "mlflow-basic": two foreign keys of its tables have one name, in MLflow\'s own migrations, and MySQL'
                ' refuses that; set database.engine to "postgres" or "aurora-postgres", or auth to "cognito" or "oidc"'
            )
        return self

    @model_validator(mode="after")
    def _secrets_are_here(self) -> Environment:
        here = f":{self.region}:{self.account}:"
        for arn in (arn for secrets in self.all_secrets() for arn in secrets.values()):
            if here not in arn:
                raise ValueError(
                    f'secrets: "{arn}": is in another account or region; a task reads secrets of its own,'
                    f" {self.account} in {self.region}, alone"
                )
        return self

    @model_validator(mode="after")
    def _people_sign_in_here(self) -> Environment:
        if self.people and f":{self.account}:" not in self.people.saml_provider_arn:
            raise ValueError(
                f'people.saml_provider_arn = "{self.people.saml_provider_arn}": is in another account; name a provider in'
                f" {self.account}"
            )
        return self

    @model_validator(mode="after")
    def _vpc_fits(self) -> Environment:
        if self.vpc is None:
            return self
        for zone in self.vpc.zones:
            if not zone.startswith(self.region):
                raise ValueError(
                    f'vpc.zones: "{zone}": is not in region = "{self.region}"; name zones of that region'
                )
        if self.exposure == "internet-facing" and not self.vpc.public_subnets:
            raise ValueError(
                'vpc.public_subnets: is missing; with exposure = "internet-facing" the load balancer stands in them'
            )
        return self

    @model_validator(mode="after")
    def _does_without_nat(self) -> Environment:
        """Without NAT nothing leaves the private subnets but calls to AWS's APIs."""
        if self.has_nat:
            return self
        if self.on_the_internet:
            raise ValueError(
                f'nat_gateways = 0: with exposure = "{self.exposure}" the gates go out to the environment\'s public'
                ' addresses; give at least one, or set exposure to "internal"'
            )
        if self.signs_in_at_balancer:
            raise ValueError(
                f'nat_gateways = 0: with auth = "{self.auth}" load balancer and gates ask the provider for keys and tokens,'
                " on the internet; give at least one"
            )
        for sidecar in self.sidecars:
            if f".dkr.ecr.{self.region}." not in sidecar.image:
                raise ValueError(
                    f'sidecars: "{sidecar.image}": cannot be pulled without NAT gateways; copy the image to a registry of'
                    f" yours, ACCOUNT.dkr.ecr.{self.region}.amazonaws.com"
                )
        return self


class Environments(Table):
    """The three environments, in the order of promotion."""

    dev: Environment
    staging: Environment
    prod: Environment

    def items(self) -> list[tuple[str, Environment]]:
        """Name and environment, in the order of promotion."""
        return [("dev", self.dev), ("staging", self.staging), ("prod", self.prod)]


class Settings(Table):
    """All of `platform.toml`."""

    name: Name
    source: Source
    tooling: Tooling
    allow_breaking_migration: (
        Annotated[
            str,
            matching(
                r"[0-9a-f]{12}",
                "name the one revision that may be reached by breaking migrations, 12 hexadecimal digits, as the"
                " migration that was refused named it",
            ),
        ]
        | None
    ) = None
    compliance: list[Literal["nist-800-53-r5", "pci-dss-321"]] = Field(default_factory=list)
    image: Image = Image()
    environments: Environments

    @model_validator(mode="after")
    def _environments_fit(self) -> Settings:
        for (one, first), (other, second) in combinations(self.environments.items(), 2):
            if first.cidr and second.cidr and IPv4Network(first.cidr).overlaps(IPv4Network(second.cidr)):
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
            if self.compliance and environment.profile != "strict":
                raise ValueError(
                    f"compliance = {shown(self.compliance)}: is checked for the whole delivery, but"
                    f' environments.{name}.profile = "{environment.profile}" does not promise what it asks for; set that to'
                    ' "strict", or remove compliance'
                )
            if (region := environment.region) not in regions_of_authorities():
                raise ValueError(
                    f'environments.{name}.region = "{region}": mlflow_image/rds_ca.pem has no authority of RDS there, so'
                    " that the server would take its database for an impostor; append what is at"
                    f" https://truststore.pki.rds.amazonaws.com/{region}/{region}-bundle.pem, and run `make rds-ca`"
                )
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
        sentences = [sentence(Settings, dict(problem)) for problem in error.errors()]
        raise SettingsError("\n".join(f"{path.name}: {sentence}" for sentence in sentences)) from None
