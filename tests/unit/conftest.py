"""One synthesized assembly for all unit tests."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from stages.settings import Settings, load_settings

from .assembly import ENVIRONMENTS, ROOT, Assembly, Json, Platform, context, synthesize

ALLOWED_REVISION = "0584bdc529eb"
SNAPSHOT = "mlflow-dev-database-0584bdc529eb-20261121-120000"


ON_THE_INTERNET = {
    "exposure": "internet-facing",
    "certificate_arn": "arn:aws:acm:eu-west-1:222222222222:certificate/c0ffee",
    "host_name": "mlflow.example.com",
    "ingress_cidrs": ["198.51.100.0/24", "203.0.113.7/32"],
    "auth": "cognito",
}
VPC: Json = {
    "id": "vpc-0a1b2c3d",
    "zones": ["eu-west-1a", "eu-west-1b"],
    "public_subnets": ["subnet-00000001", "subnet-00000002"],
    "private_subnets": ["subnet-00000003", "subnet-00000004"],
    "isolated_subnets": ["subnet-00000005", "subnet-00000006"],
}


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unit tests know no account: a build, rehearsed or on AWS, has an endpoint, keys and a region in its environment."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def aws_that_does_not_answer(no_account: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody listens, asked once."""
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def settings() -> Settings:
    return load_settings()


@pytest.fixture(scope="session")
def assembly(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Assembly:
    """What `make synth` wrote a moment ago, if ASSEMBLY says where; else synthesized here, once for all workers."""
    if given := os.environ.get("ASSEMBLY"):
        directory = ROOT / given
        if not (directory / "manifest.json").exists():
            raise pytest.UsageError(f"ASSEMBLY={given}: there is no cloud assembly; run `make synth` first")
        return Assembly(directory, settings)
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    directory = shared / "assembly"
    with (shared / "assembly.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "complete").exists():
            synthesize(ROOT, directory)
            (directory / "complete").touch()
    return Assembly(directory, settings)


@pytest.fixture(scope="session", params=ENVIRONMENTS)
def platform(request: pytest.FixtureRequest, assembly: Assembly) -> Platform:
    """Each environment in turn."""
    return assembly.platform(request.param)


@pytest.fixture(scope="session")
def public_platform(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Platform:
    """Dev as it would be on the internet, with a user pool of its own."""
    content = settings.model_dump()
    content["environments"]["dev"] |= ON_THE_INTERNET
    return synthesized_dev(content, tmp_path_factory.mktemp("public")).platform("dev")


S3_PREFIX_LIST, CLOUDFRONT_PREFIX_LIST = "pl-6da54004", "pl-4fa04526"

SECRET = "arn:aws:secretsmanager:eu-west-1:222222222222:secret:"

OIDC = {
    "issuer": "https://login.example.com",
    "authorization_endpoint": "https://login.example.com/authorize",
    "token_endpoint": "https://login.example.com/token",
    "user_info_endpoint": "https://login.example.com/me",
    "jwks_endpoint": "https://login.example.com/keys",
    "people_secret_arn": f"{SECRET}mlflow-people-a1b2c3",
    "machine_secret_arn": f"{SECRET}mlflow-machines-d4e5f6",
    "audience": "mlflow",
    "scope": "mlflow.access",
    "token_request": {"scope": "mlflow.access", "audience": "mlflow"},
}


@pytest.fixture(scope="session")
def oidc_platform(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Platform:
    """Dev inside its network, with an OpenID Connect provider."""
    content = settings.model_dump()
    content["environments"]["dev"] |= {
        "certificate_arn": f"arn:aws:acm:{settings.tooling.region}:{settings.environments.dev.account}:certificate/c0ffee",
        "host_name": "mlflow.example.com",
        "ingress_cidrs": ["0.0.0.0/0"],
        "auth": "oidc",
        "oidc": OIDC,
        "firewall": {"requests_per_5_minutes": 5000},
    }
    return synthesized_dev(content, tmp_path_factory.mktemp("oidc")).platform("dev")


@pytest.fixture(scope="session")
def endpoint_platform(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Platform:
    """Dev without NAT."""
    content = settings.model_dump()
    content["environments"]["dev"] |= {
        "nat_gateways": 0,
        "s3_prefix_list": S3_PREFIX_LIST,
        "ingress_cidrs": ["10.0.0.0/8"],
    }
    return synthesized_dev(content, tmp_path_factory.mktemp("endpoints")).platform("dev")


@pytest.fixture(scope="session")
def zone_platform(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Platform:
    """Dev inside its network, under a name whose zone the account has."""
    content = settings.model_dump()
    content["environments"]["dev"] |= {
        "host_name": "mlflow.example.com",
        "hosted_zone": {"id": "Z0123456789ABCDEFGHIJ", "name": "example.com"},
        "auth": "cognito",
    }
    return synthesized_dev(content, tmp_path_factory.mktemp("zone")).platform("dev")


@pytest.fixture(scope="session")
def edge_platform(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Platform:
    """Dev on the internet without a domain."""
    content = settings.model_dump()
    content["environments"]["dev"] |= {
        "exposure": "cloudfront",
        "cloudfront_prefix_list": CLOUDFRONT_PREFIX_LIST,
        "ingress_cidrs": ["198.51.100.0/24"],
        "auth": "mlflow-basic",
        "smoke_demo": False,
    }
    return synthesized_dev(content, tmp_path_factory.mktemp("edge")).platform("dev")


@pytest.fixture(scope="session")
def guest_platform(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Platform:
    """Dev in a VPC that is there already, on the internet."""
    content = settings.model_dump(exclude_none=True)
    own = content["environments"]["dev"]
    for key in ("cidr", "availability_zones", "nat_gateways"):
        del own[key]
    own |= ON_THE_INTERNET | {"vpc": VPC}
    return synthesized_dev(content, tmp_path_factory.mktemp("guest")).platform("dev")


@pytest.fixture(scope="session")
def basic_platform(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Platform:
    """Dev inside its network, with MLflow's own users."""
    content = settings.model_dump()
    content["environments"]["dev"] |= {
        "certificate_arn": f"arn:aws:acm:{settings.tooling.region}:{settings.environments.dev.account}:certificate/c0ffee",
        "host_name": "mlflow.example.com",
        "auth": "mlflow-basic",
        "smoke_demo": False,
    }
    return synthesized_dev(content, tmp_path_factory.mktemp("basic")).platform("dev")


@pytest.fixture(scope="session")
def restored(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Assembly:
    """Dev with a database from a snapshot, and a breaking migration allowed."""
    content = settings.model_dump()
    content["allow_breaking_migration"] = ALLOWED_REVISION
    content["environments"]["dev"]["database"]["restore_from"] = SNAPSHOT
    return synthesized_dev(content, tmp_path_factory.mktemp("restored"))


def synthesized_dev(content: Json, directory: Path) -> Assembly:
    """Dev with settings of its own; a cdk-nag finding that is not acknowledged fails its synthesis."""
    from aws_cdk import App

    from stages.packs import check
    from stages.platform import PlatformStage

    variant = Settings.model_validate(content)
    app = App(outdir=str(directory), context=context(), analytics_reporting=False)
    PlatformStage(app, "Dev", settings=variant, environment="dev")
    check(app, variant.compliance)
    app.synth()
    return Assembly(directory, variant)


@pytest.fixture(scope="session")
def strict_delivery(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Assembly:
    """The whole delivery, strict in every environment, on Graviton, checked by every pack."""
    from aws_cdk import App, Environment

    from pipeline_app import PipelineStack
    from stages.packs import PACKS, check

    content = settings.model_dump(exclude_unset=True)
    for name, own in settings.environments.items():
        content["environments"][name] = {
            "account": own.account,
            "region": own.region,
            "cidr": own.cidr,
            "exposure": "internal",
            "profile": "strict",
            "auth": "cognito",
            "certificate_arn": f"arn:aws:acm:{own.region}:{own.account}:certificate/c0ffee",
            "host_name": f"mlflow-{name}.example.com",
            "smoke_demo": own.smoke_demo,
            "load": own.load.model_dump(),
        }
    content |= {"image": {"architecture": "arm64"}, "compliance": list(PACKS)}
    variant = Settings.model_validate(content)
    directory = tmp_path_factory.mktemp("strict")
    app = App(outdir=str(directory), context=context(), analytics_reporting=False)
    PipelineStack(
        app,
        f"{variant.name}-pipeline",
        settings=variant,
        env=Environment(account=variant.tooling.account, region=variant.tooling.region),
    )
    check(app, variant.compliance)
    app.synth()
    return Assembly(directory, variant)


@pytest.fixture(scope="session")
def standard_dev(tmp_path_factory: pytest.TempPathFactory) -> Assembly:
    """Dev of the standard profile, with Cognito."""
    return synthesized_dev(_of_profile("standard"), tmp_path_factory.mktemp("standard"))


@pytest.fixture(scope="session")
def cost_dev(tmp_path_factory: pytest.TempPathFactory) -> Assembly:
    """The same, as cheap as it gets."""
    return synthesized_dev(_of_profile("cost"), tmp_path_factory.mktemp("cost"))


def _of_profile(profile: str) -> Json:
    from tests.matrix.axes import content

    return content(
        ("postgres", "password", "internal", "cognito", "one NAT gateway", profile, "x86", "AwsSolutions")
    )
