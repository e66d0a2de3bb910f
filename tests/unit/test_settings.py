"""platform.toml: what is refused, and in which words. Each refusal is one sentence: key, value, mend."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stages.settings import Settings, SettingsError, load_settings
from stages.settings.compute import FARGATE_SIZES

from .assembly import copy_of_the_app

ENVIRONMENT = """
[environments.{name}]
account = "{account}"
region = "eu-west-1"
cidr = "{cidr}"
availability_zones = 2
nat_gateways = 1
exposure = "internal"
ingress_cidrs = []
tasks = 2
max_tasks = 4
cpu = 1024
memory = 2048
workers = 1
smoke_demo = true
database = {{ instance_class = "m7g.large", storage_gib = 50, multi_az = true, backup_days = 7, deletion_protection = true }}
"""
LOAD = (
    "load = { users = 8, spawn_rate = 4, seconds = 30, max_error_rate = 0.0, max_read_p95_ms = 1500,"
    " max_write_p95_ms = 1500, min_rps = 5.0, max_slowdown = 5.0 }\n"
)
GOOD = (
    """
name = "mlflow"
[source]
repository = "example-org/mlflow-platform"
branch = "main"
connection_arn = "arn:aws:codeconnections:eu-west-1:111111111111:connection/00000000-0000-4000-8000-000000000000"
[tooling]
account = "111111111111"
region = "eu-west-1"
"""
    + ENVIRONMENT.format(name="dev", account="222222222222", cidr="10.10.0.0/16")
    + LOAD
    + ENVIRONMENT.format(name="staging", account="333333333333", cidr="10.20.0.0/16")
    + LOAD
    + ENVIRONMENT.format(name="prod", account="444444444444", cidr="10.30.0.0/16")
    + LOAD
)
SECRET = "arn:aws:secretsmanager:eu-west-1:222222222222:secret:"
PROVIDER = (
    'issuer = "https://login.example.com", authorization_endpoint = "https://login.example.com/authorize",'
    ' token_endpoint = "https://login.example.com/token", user_info_endpoint = "https://login.example.com/me",'
    ' jwks_endpoint = "https://login.example.com/keys", audience = "mlflow", scope = "mlflow.access",'
    f' people_secret_arn = "{SECRET}people-a1b2c3", machine_secret_arn = "{SECRET}machine-a1b2c3"'
)
REVISION_MEND = (
    "name the one revision that may be reached by breaking migrations, 12 hexadecimal digits, as the migration that was"
    " refused named it"
)
SNAPSHOT_MEND = (
    "name the snapshot as RDS and a refused rollback show it, such as"
    ' "mlflow-dev-database-0584bdc529eb-20261121-120000"'
)
THROUGH_CLOUDFRONT = 'exposure = "cloudfront"\ncloudfront_prefix_list = "pl-4fa04526"\n'
WITHOUT_NAT = 'nat_gateways = 0\ns3_prefix_list = "pl-6da54004"\n'
OWN_NETWORK = 'cidr = "10.10.0.0/16"\navailability_zones = 2\nnat_gateways = 1\n'


def vpc(
    zones: str = '["eu-west-1a", "eu-west-1b"]', private: str = '["subnet-00000003", "subnet-00000004"]'
) -> str:
    """A VPC that is there already."""
    isolated = '["subnet-00000005", "subnet-00000006"]'
    return f'vpc = {{ id = "vpc-0a1b2c3d", zones = {zones}, private_subnets = {private}, isolated_subnets = {isolated} }}\n'


CERTIFICATE = """certificate_arn = "arn:aws:acm:eu-west-1:222222222222:certificate/c0ffee"
host_name = "mlflow.example.com"
"""


def load(folder: Path, old: str = "", new: str = "") -> Settings:
    """GOOD with the first `old` replaced, which is dev's where every environment has it, loaded from a file."""
    assert old in GOOD, f"this test edits text that is not there: {old}"
    file = folder / "platform.toml"
    file.write_text(GOOD.replace(old, new, 1), encoding="utf-8")
    return load_settings(file)


def refusal(folder: Path, old: str, new: str) -> str:
    with pytest.raises(SettingsError) as refused:
        load(folder, old, new)
    return str(refused.value)


def test_the_file_in_the_repository_loads() -> None:
    assert [name for name, _ in load_settings().environments.items()] == ["dev", "staging", "prod"]


def test_good_settings_load(tmp_path: Path) -> None:
    settings = load(tmp_path)
    assert settings.environments.dev.load.spawn_rate == 4.0


def test_a_vpc_that_is_there_already_takes_the_place_of_the_platforms_own(tmp_path: Path) -> None:
    dev = load(tmp_path, OWN_NETWORK, vpc()).environments.dev
    assert dev.vpc is not None
    assert dev.has_nat


def test_nothing_breaking_is_allowed_and_nothing_restored_unless_the_settings_say_so(tmp_path: Path) -> None:
    settings = load(tmp_path)
    assert settings.allow_breaking_migration is None
    assert all(own.database.restore_from is None for _, own in settings.environments.items())


def test_a_breaking_migration_is_allowed_for_one_revision(tmp_path: Path) -> None:
    settings = load(tmp_path, 'name = "mlflow"', 'name = "mlflow"\nallow_breaking_migration = "0584bdc529eb"')
    assert settings.allow_breaking_migration == "0584bdc529eb"


@pytest.mark.parametrize(
    "snapshot",
    [
        "mlflow-dev-database-0584bdc529eb-20261121-120000",
        "Before",
        "rds:mlflow-dev-database-2026-11-21-03-04",
    ],
)
def test_a_database_is_restored_in_one_environment(tmp_path: Path, snapshot: str) -> None:
    """From a snapshot of the migration's, of a person's, or one of the nightly ones that RDS takes."""
    settings = load(tmp_path, "multi_az = true", f'multi_az = true, restore_from = "{snapshot}"')
    assert settings.environments.dev.database.restore_from == snapshot
    assert settings.environments.staging.database.restore_from is None


def test_a_base_image_is_pinned_by_its_digest(tmp_path: Path) -> None:
    base = f"public.ecr.aws/docker/library/python:3.12-slim-bookworm@sha256:{'0123456789abcdef' * 4}"
    settings = load(tmp_path, "[tooling]", f'[image]\nbase = "{base}"\n[tooling]')
    assert settings.image.base == base
    assert load(tmp_path).image.base is None


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        # keys
        (
            "[tooling]",
            '[image]\nbase = "python:3.12-slim"\n[tooling]',
            'image.base = "python:3.12-slim": write registry/name:tag@sha256:DIGEST; `docker buildx imagetools inspect'
            " registry/name:tag` shows the digest",
        ),
        ("smoke_demo = true", "smoke_demoo = true", "environments.dev.smoke_demo: is missing; add it"),
        (
            "nat_gateways = 1",
            "nat_gateway = 1",
            "environments.dev.nat_gateway = 1: there is no such key; did you mean nat_gateways?",
        ),
        (
            'cidr = "10.10.0.0/16"\n',
            "",
            "environments.dev.cidr: is missing; add it, or name a vpc that is there already",
        ),
        (
            "nat_gateways = 1\n",
            f"{vpc()}nat_gateways = 1\n",
            'environments.dev.cidr = "10.10.0.0/16": is for a network that the platform makes; remove it, or vpc',
        ),
        (
            OWN_NETWORK,
            f"{vpc()}nat_gateways = 1\n",
            "environments.dev.nat_gateways = 1: is for a network that the platform makes; remove it, or vpc",
        ),
        (
            OWN_NETWORK,
            vpc(zones='["eu-west-1a"]'),
            'environments.dev.vpc.zones = ["eu-west-1a"]: name two or three different ones, so that one may fail',
        ),
        (
            OWN_NETWORK,
            vpc(zones='["eu-west-1a", "eu-central-1b"]'),
            'environments.dev.vpc.zones: "eu-central-1b": is not in region = "eu-west-1"; name zones of that region',
        ),
        (
            OWN_NETWORK,
            vpc(private='["subnet-00000003"]'),
            'environments.dev.vpc.private_subnets = ["subnet-00000003"]: give one for each of the 2 zones, in their order',
        ),
        (
            OWN_NETWORK,
            vpc(private='["subnet-00000003", "subnet-00000006"]'),
            'environments.dev.vpc.private_subnets: "subnet-00000006": is named twice; data, tasks and load balancers have'
            " subnets of their own",
        ),
        (
            OWN_NETWORK,
            vpc(private='["subnet-00000003", "private"]'),
            'environments.dev.vpc.private_subnets[1] = "private": write a subnet\'s id, such as "subnet-0a1b2c3d"',
        ),
        (
            "tasks = 2\n",
            'host_name = "mlflow.other.org"\nhosted_zone = { id = "Z0123456789", name = "example.com" }\ntasks = 2\n',
            'environments.dev.host_name = "mlflow.other.org": is not in hosted_zone.name = "example.com"; take a name that'
            " ends in it",
        ),
        (
            "tasks = 2\n",
            'host_name = "notexample.com"\nhosted_zone = { id = "Z0123456789", name = "example.com" }\ntasks = 2\n',
            'environments.dev.host_name = "notexample.com": is not in hosted_zone.name = "example.com"; take a name that'
            " ends in it",
        ),
        (
            "tasks = 2\n",
            'hosted_zone = { id = "Z0123456789", name = "example.com" }\ntasks = 2\n',
            "environments.dev.host_name: is missing; add the name that the certificate is for",
        ),
        (
            "tasks = 2\n",
            'hosted_zone = { id = "example.com", name = "example.com" }\ntasks = 2\n',
            'environments.dev.hosted_zone.id = "example.com": paste the zone\'s id, such as "Z0123456789ABCDEFGHIJ"',
        ),
        (
            "tasks = 2\n",
            "firewall = { requests_per_5_minutes = 10 }\ntasks = 2\n",
            "environments.dev.firewall.requests_per_5_minutes = 10: give requests of one address from 100 to 100000",
        ),
        (
            'exposure = "internal"',
            'exposure = "cloudfront"',
            "environments.dev.cloudfront_prefix_list: is missing; the load balancer admits CloudFront's addresses alone, so"
            " name the list of them",
        ),
        (
            'exposure = "internal"',
            'exposure = "internal"\ncloudfront_prefix_list = "pl-4fa04526"',
            'environments.dev.cloudfront_prefix_list = "pl-4fa04526": is of use with exposure = "cloudfront" only;'
            " remove it",
        ),
        (
            'exposure = "internal"',
            f"{THROUGH_CLOUDFRONT}{CERTIFICATE}",
            'environments.dev.certificate_arn: is of no use with exposure = "cloudfront", which is for environments without'
            ' a domain; remove it, or set exposure to "internet-facing"',
        ),
        (
            'exposure = "internal"\ningress_cidrs = []',
            f'{THROUGH_CLOUDFRONT}auth = "mlflow-basic"\n',
            "environments.dev.ingress_cidrs = []: an environment on the internet without clients is of no use; name the"
            " networks that may reach it",
        ),
        (
            'exposure = "internal"\ningress_cidrs = []',
            f'{THROUGH_CLOUDFRONT}ingress_cidrs = ["198.51.100.0/24"]\n',
            'environments.dev.exposure = "cloudfront": with auth = "none" whoever finds it may read and delete everything;'
            ' set auth to "mlflow-basic", or exposure to "internal"',
        ),
        (
            'exposure = "internal"\ningress_cidrs = []',
            f'{THROUGH_CLOUDFRONT}ingress_cidrs = ["198.51.100.0/24"]\nauth = "cognito"\n',
            'environments.dev.auth = "cognito": the load balancer signs people in over HTTPS alone, for which it has no'
            ' certificate behind CloudFront; set auth to "mlflow-basic", or add a domain and set exposure to'
            ' "internet-facing"',
        ),
        (
            f'{OWN_NETWORK}exposure = "internal"\ningress_cidrs = []',
            f'{vpc()}{CERTIFICATE}auth = "cognito"\ningress_cidrs = ["198.51.100.0/24"]\n'
            'exposure = "internet-facing"',
            'environments.dev.vpc.public_subnets: is missing; with exposure = "internet-facing" the load balancer stands in'
            " them",
        ),
        ("smoke_demo = true\n", "", "environments.dev.smoke_demo: is missing; add it"),
        ('name = "mlflow"\n', "", "name: is missing; add it"),
        (
            "tasks = 2\n",
            "tasks = 2\ntaskz = 3\n",
            "environments.dev.taskz = 3: there is no such key; did you mean tasks?",
        ),
        (
            "storage_gib = 50",
            "storage_gib = 50, storage_gb = 1",
            "environments.dev.database.storage_gb = 1: there is no such key; did you mean storage_gib?",
        ),
        (
            "users = 8",
            "users = 8, sekonds = 1",
            "environments.dev.load.sekonds = 1: there is no such key; did you mean seconds?",
        ),
        (
            'branch = "main"',
            'branch = "main"\nzzz = true',
            "source.zzz = true: there is no such key; remove it, or use one of repository, branch, connection_arn",
        ),
        # what a value is
        (
            '"222222222222"',
            '"2222"',
            'environments.dev.account = "2222": an AWS account id is a string of exactly 12 digits',
        ),
        (
            '"222222222222"',
            "222222222222",
            "environments.dev.account = 222222222222: write it in quotes",
        ),
        (
            'region = "eu-west-1"',
            'region = "Ireland"',
            'tooling.region = "Ireland": write a region such as "eu-west-1"',
        ),
        (
            'name = "mlflow"',
            'name = "ML"',
            'name = "ML": use 3 to 20 lower case letters, digits and hyphens, a letter first',
        ),
        (
            '"example-org/mlflow-platform"',
            '"mlflow-platform"',
            'source.repository = "mlflow-platform": write the repository as "owner/name"',
        ),
        ('branch = "main"', 'branch = ""', 'source.branch = "": is empty; give it a value'),
        (
            "connection/00000000",
            "konnection/00000000",
            'source.connection_arn = "arn:aws:codeconnections:eu-west-1:111111111111:konnection/00000000-0000-4000-8000-'
            '000000000000": paste the ARN of your connection: arn:aws:codeconnections:REGION:ACCOUNT:connection/ID',
        ),
        (
            'instance_class = "m7g.large"',
            'instance_class = "db.m7g.large"',
            'environments.dev.database.instance_class = "db.m7g.large": write an RDS instance class without its "db."'
            ' prefix, such as "t4g.small"',
        ),
        (
            'exposure = "internal"',
            'exposure = "public"',
            'environments.dev.exposure = "public": give "internal", "internet-facing" or "cloudfront"',
        ),
        ("tasks = 2", 'tasks = "2"', 'environments.dev.tasks = "2": write a whole number, without quotes'),
        ("tasks = 2", "tasks = 2.5", "environments.dev.tasks = 2.5: write a whole number, without quotes"),
        (
            "smoke_demo = true",
            'smoke_demo = "yes"',
            'environments.dev.smoke_demo = "yes": write true or false, without quotes',
        ),
        (
            "spawn_rate = 4",
            'spawn_rate = "4"',
            'environments.dev.load.spawn_rate = "4": write a number, without quotes',
        ),
        (
            "ingress_cidrs = []",
            'ingress_cidrs = "10.0.0.0/8"',
            'environments.dev.ingress_cidrs = "10.0.0.0/8": write a list, such as ["10.0.0.0/16"]',
        ),
        (
            LOAD,
            "load = 3\n",
            "environments.dev.load = 3: is not a table; write its keys below a heading or in braces",
        ),
        (
            'name = "mlflow"',
            'name = "mlflow"\nallow_breaking_migration = true',
            "allow_breaking_migration = true: write it in quotes",
        ),
        (
            'name = "mlflow"',
            'name = "mlflow"\nallow_breaking_migration = "yes"',
            f'allow_breaking_migration = "yes": {REVISION_MEND}',
        ),
        (
            'name = "mlflow"',
            'name = "mlflow"\nallow_breaking_migration = "0584BDC529EB"',
            f'allow_breaking_migration = "0584BDC529EB": {REVISION_MEND}',
        ),
        (
            "multi_az = true",
            'multi_az = true, restore_from = ""',
            f'environments.dev.database.restore_from = "": {SNAPSHOT_MEND}',
        ),
        (
            "multi_az = true",
            'multi_az = true, restore_from = "before--upgrade"',
            f'environments.dev.database.restore_from = "before--upgrade": {SNAPSHOT_MEND}',
        ),
        (
            "multi_az = true",
            'multi_az = true, restore_from = "arn:aws:rds:eu-west-1:222222222222:snapshot:mine"',
            'environments.dev.database.restore_from = "arn:aws:rds:eu-west-1:222222222222:snapshot:mine":'
            f" {SNAPSHOT_MEND}",
        ),
        # how much of it
        (
            "backup_days = 7",
            "backup_days = 0",
            "environments.dev.database.backup_days = 0: give a number of days from 1 to 35",
        ),
        (
            "storage_gib = 50",
            "storage_gib = 5",
            "environments.dev.database.storage_gib = 5: give a size in GiB from 20 to 65536",
        ),
        (
            "availability_zones = 2",
            "availability_zones = 1",
            "environments.dev.availability_zones = 1: give a number of zones from 2 to 3",
        ),
        (
            "workers = 1",
            "workers = 0",
            "environments.dev.workers = 0: give a number of server processes per task from 1 to 16",
        ),
        (
            "max_error_rate = 0.0",
            "max_error_rate = 1.0",
            "environments.dev.load.max_error_rate = 1.0: give the share of requests that may fail, as a"
            " fraction from 0 to 0.2",
        ),
        (
            "max_error_rate = 0.0",
            "max_error_rate = nan",
            "environments.dev.load.max_error_rate = nan: give the share of requests that may fail, as a"
            " fraction from 0 to 0.2",
        ),
        (
            "min_rps = 5.0",
            "min_rps = 0.0",
            "environments.dev.load.min_rps = 0.0: give requests per second from 0.1 to 100000",
        ),
        (
            "max_read_p95_ms = 1500",
            "max_read_p95_ms = 0",
            "environments.dev.load.max_read_p95_ms = 0: give milliseconds from 1 to 60000",
        ),
        # networks
        (
            '"10.10.0.0/16"',
            '"10.10.0.1/16"',
            'environments.dev.cidr = "10.10.0.1/16": write an IPv4 network such as "10.10.0.0/16", from /16 to /20, with'
            " no host bits set",
        ),
        (
            '"10.10.0.0/16"',
            '"10.0.0.0/8"',
            'environments.dev.cidr = "10.0.0.0/8": write an IPv4 network such as "10.10.0.0/16", from /16 to /20, with'
            " no host bits set",
        ),
        (
            "ingress_cidrs = []",
            'ingress_cidrs = ["10.0.0.0/8", "office"]',
            'environments.dev.ingress_cidrs[1] = "office": write an IPv4 network such as "10.10.0.0/16", from /0 to /32,'
            " with no host bits set",
        ),
        (
            '"10.20.0.0/16"',
            '"10.10.16.0/20"',
            'environments.staging.cidr = "10.10.16.0/20": overlaps environments.dev.cidr = "10.10.0.0/16"; give each'
            " environment a network of its own",
        ),
        # values that do not go together
        (
            "nat_gateways = 1",
            "nat_gateways = 3",
            "environments.dev.nat_gateways = 3: there are only 2 zones; give at most one each",
        ),
        (
            "nat_gateways = 1",
            "nat_gateways = 0",
            "environments.dev.s3_prefix_list: is missing; without NAT gateways tasks may call AWS's own addresses alone, so"
            " name the list of S3's",
        ),
        (
            "nat_gateways = 1",
            'nat_gateways = 1\ns3_prefix_list = "pl-6da54004"',
            'environments.dev.s3_prefix_list = "pl-6da54004": is of use with nat_gateways = 0 only; remove it',
        ),
        (
            "nat_gateways = 1",
            'nat_gateways = 0\ns3_prefix_list = "s3"',
            'environments.dev.s3_prefix_list = "s3": paste the id of a list of addresses that AWS keeps in the region, such'
            ' as "pl-6da54004" (docs/settings.md says how to look it up)',
        ),
        (
            'nat_gateways = 1\nexposure = "internal"\ningress_cidrs = []',
            f'{WITHOUT_NAT}{CERTIFICATE}auth = "cognito"\ningress_cidrs = ["198.51.100.0/24"]\n'
            'exposure = "internet-facing"',
            'environments.dev.nat_gateways = 0: with exposure = "internet-facing" the gates go out to the environment\'s'
            ' public addresses; give at least one, or set exposure to "internal"',
        ),
        (
            "nat_gateways = 1\n",
            f'{WITHOUT_NAT}{CERTIFICATE}auth = "cognito"\n',
            'environments.dev.nat_gateways = 0: with auth = "cognito" load balancer and gates ask the provider for keys and'
            " tokens, on the internet; give at least one",
        ),
        (
            "nat_gateways = 1\n",
            f'{WITHOUT_NAT}sidecars = [{{ name = "agent", image = "public.ecr.aws/datadog/agent:7.60.0", memory = 64 }}]\n',
            'environments.dev.sidecars: "public.ecr.aws/datadog/agent:7.60.0": cannot be pulled without NAT gateways; copy'
            " the image to a registry of yours, ACCOUNT.dkr.ecr.eu-west-1.amazonaws.com",
        ),
        (
            "cpu = 1024",
            "cpu = 1000",
            "environments.dev.cpu = 1000: Fargate sells 256, 512, 1024, 2048, 4096, 8192, 16384; take one of these",
        ),
        (
            "memory = 2048",
            "memory = 3000",
            "environments.dev.memory = 3000: with cpu = 1024 Fargate sells 2048 to 8192 MiB in steps of 1024; take one of"
            " these",
        ),
        (
            "cpu = 1024\nmemory = 2048",
            "cpu = 256\nmemory = 4096",
            "environments.dev.memory = 4096: with cpu = 256 Fargate sells 512, 1024 or 2048 MiB; take one of these",
        ),
        (
            "max_tasks = 4",
            "max_tasks = 1",
            "environments.dev.max_tasks = 1: must not be less than tasks = 2; raise it",
        ),
        (
            "spawn_rate = 4, seconds = 30",
            "spawn_rate = 0.5, seconds = 30",
            "environments.dev.load: 8 users at 0.5 per second are not all there before half of the 30 seconds are over:"
            " raise spawn_rate or seconds",
        ),
        (
            'exposure = "internal"',
            'exposure = "internet-facing"',
            'environments.dev.exposure = "internet-facing": plain HTTP is not put on the internet; add certificate_arn or'
            " hosted_zone",
        ),
        (
            'exposure = "internal"',
            f'exposure = "internet-facing"\n{CERTIFICATE}',
            "environments.dev.ingress_cidrs = []: an environment on the internet without clients is of no use; name the"
            " networks that may reach it",
        ),
        (
            'exposure = "internal"\ningress_cidrs = []',
            f'exposure = "internet-facing"\n{CERTIFICATE}ingress_cidrs = ["198.51.100.0/24", "0.0.0.0/0"]',
            'environments.dev.exposure = "internet-facing": with auth = "none" whoever finds it may read and delete'
            ' everything; set auth to "oidc", "cognito" or "mlflow-basic", or exposure to "internal"',
        ),
        (
            "ingress_cidrs = []",
            'ingress_cidrs = ["0.0.0.0/0"]',
            'environments.dev.ingress_cidrs = ["0.0.0.0/0"]: nobody has to sign in, so everybody must not get in;'
            " name the networks that may reach the load balancer, or set auth",
        ),
        # who signs in
        (
            'exposure = "internal"',
            'exposure = "internal"\nauth = "saml"',
            'environments.dev.auth = "saml": give "none", "oidc", "cognito" or "mlflow-basic"',
        ),
        (
            'exposure = "internal"',
            'exposure = "internal"\nauth = "mlflow-basic"',
            'environments.dev.auth = "mlflow-basic": each request has its user\'s password with it, which could be read on'
            " the way over plain HTTP; add host_name, and certificate_arn or hosted_zone",
        ),
        (
            'exposure = "internal"',
            'exposure = "internal"\nauth = "cognito"',
            'environments.dev.auth = "cognito": over plain HTTP tokens and sessions could be read on the way, and the load'
            " balancer refuses to check them; add host_name, and certificate_arn or hosted_zone",
        ),
        (
            'exposure = "internal"',
            f'exposure = "internal"\nauth = "oidc"\n{CERTIFICATE}',
            'environments.dev.oidc: is missing; with auth = "oidc" add the table that describes your provider',
        ),
        (
            'exposure = "internal"',
            f'exposure = "internal"\nauth = "cognito"\n{CERTIFICATE}oidc = {{ {PROVIDER} }}',
            'environments.dev.oidc: is not used with auth = "cognito"; remove it, or set auth = "oidc"',
        ),
        (
            'exposure = "internal"',
            f'exposure = "internal"\nauth = "oidc"\n{CERTIFICATE}oidc = {{ {PROVIDER.replace("machine-", "people-")} }}',
            f'environments.dev.oidc.machine_secret_arn = "{SECRET}people-a1b2c3": is people_secret_arn too; register a'
            " client of its own for the gates, which can be refused by itself",
        ),
        (
            'exposure = "internal"',
            f'exposure = "internal"\nauth = "oidc"\n{CERTIFICATE}oidc = {{ {PROVIDER.replace("https", "http")} }}',
            'environments.dev.oidc.issuer = "http://login.example.com": copy it from your provider\'s discovery document,'
            ' such as "https://login.example.com/oauth2/token"',
        ),
        (
            'exposure = "internal"',
            'exposure = "internal"\ncertificate_arn = "c0ffee"',
            'environments.dev.certificate_arn = "c0ffee": paste an ARN of the form'
            " arn:aws:acm:REGION:ACCOUNT:certificate/ID",
        ),
        (
            'exposure = "internal"',
            f'exposure = "internal"\n{CERTIFICATE.splitlines()[0]}',
            "environments.dev.host_name: is missing; add the name that the certificate is for",
        ),
        (
            'exposure = "internal"',
            f'exposure = "internal"\n{CERTIFICATE.splitlines()[1]}',
            'environments.dev.host_name = "mlflow.example.com": is of use with a certificate for it only; add'
            " certificate_arn or hosted_zone, or remove it",
        ),
        (
            'exposure = "internal"',
            'exposure = "internal"\nhost_name = "https://mlflow"',
            'environments.dev.host_name = "https://mlflow": write a host name such as "mlflow.example.com", lower case',
        ),
        # databases of a size that their engine is not sold in
        (
            'instance_class = "m7g.large"',
            'engine = "aurora-postgres", min_capacity = 0.5, max_capacity = 4.0',
            'environments.dev.database.storage_gib = 50: engine = "aurora-postgres" is not sized by it; remove it, and'
            " give min_capacity and max_capacity",
        ),
        (
            'instance_class = "m7g.large", storage_gib = 50',
            'engine = "aurora-mysql", min_capacity = 0.0, max_capacity = 4.0',
            "environments.dev.database.min_capacity = 0: a database that may pause is not one that must survive the loss"
            " of a zone; give at least 0.5, or multi_az = false",
        ),
        (
            'instance_class = "m7g.large", storage_gib = 50',
            'engine = "aurora-mysql", min_capacity = 0.75, max_capacity = 4.0',
            "environments.dev.database.min_capacity = 0.75: Aurora scales in steps of 0.5; give a multiple of that",
        ),
        (
            'instance_class = "m7g.large", storage_gib = 50',
            'engine = "aurora-mysql", min_capacity = 8.0, max_capacity = 4.0',
            "environments.dev.database.max_capacity = 4: must not be less than min_capacity = 8; raise it",
        ),
        (
            'instance_class = "m7g.large"',
            'engine = "mysql", instance_class = "t4g.small"',
            'environments.dev.database.instance_class = "t4g.small": is too small for Performance Insights on MySQL; take'
            ' "t4g.medium" or a larger one',
        ),
        (
            'instance_class = "m7g.large"',
            'engine = "oracle", instance_class = "m7g.large"',
            'environments.dev.database.engine = "oracle": give "postgres", "mysql", "aurora-postgres" or "aurora-mysql"',
        ),
        # a bucket that is the platform's own and is not
        (
            "smoke_demo = true",
            'smoke_demo = true\nartifacts = { prefix = "mlflow" }',
            'environments.dev.artifacts.prefix = "mlflow": is for a bucket that is there already; add bucket, or remove it',
        ),
        (
            "smoke_demo = true",
            'smoke_demo = true\nartifacts = { bucket = "data-lake" }',
            "environments.dev.artifacts.prefix: is missing; a bucket that others may use is shared by folder, so name one",
        ),
        (
            "smoke_demo = true",
            'smoke_demo = true\nartifacts = { bucket = "data-lake", prefix = "mlflow", old_versions_days = 9 }',
            "environments.dev.artifacts.old_versions_days = 9: the platform changes nothing about a bucket that is there"
            " already; set it on the bucket, and remove it here",
        ),
        (
            "smoke_demo = true",
            'smoke_demo = true\nartifacts = { bucket = "s3://data-lake", prefix = "mlflow" }',
            'environments.dev.artifacts.bucket = "s3://data-lake": write the name of a bucket, without s3://',
        ),
        (
            "smoke_demo = true",
            'smoke_demo = true\nartifacts = { bucket = "data-lake", prefix = "/mlflow/" }',
            'environments.dev.artifacts.prefix = "/mlflow/": write a folder such as "teams/mlflow", without slashes at its'
            " ends",
        ),
        # environments that do not go together
        (
            'account = "222222222222"\nregion = "eu-west-1"',
            'account = "222222222222"\nregion = "il-central-1"',
            'environments.dev.region = "il-central-1": mlflow_image/rds_ca.pem has no authority of RDS there, so that the'
            " server would take its database for an impostor; append what is at"
            " https://truststore.pki.rds.amazonaws.com/il-central-1/il-central-1-bundle.pem, and run `make rds-ca`",
        ),
        (
            'account = "222222222222"\nregion = "eu-west-1"',
            'account = "222222222222"\nregion = "eu-north-1"',
            'environments.dev.region = "eu-north-1": the pipeline does not cross regions; use tooling.region ='
            ' "eu-west-1"',
        ),
        (
            '"333333333333"',
            '"222222222222"',
            'environments.staging.account = "222222222222": is the account and region of environments.dev too; give each'
            " environment an account or a region of its own",
        ),
        (
            LOAD,
            "",
            "environments.dev.load: is missing; add it",
        ),
        (
            "max_slowdown = 5.0",
            "max_slowdown = 0.5",
            "environments.dev.load.max_slowdown = 0.5: give times the medians of the release before from 1 to 1000",
        ),
    ],
)
def test_refusals(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    assert f"platform.toml: {sentence}" in refusal(tmp_path, old, new).splitlines()


def test_every_mistake_has_a_sentence_of_its_own(tmp_path: Path) -> None:
    sentences = refusal(
        tmp_path, "workers = 1\nsmoke_demo = true", "workers = 0\nsmoke_demos = true"
    ).splitlines()
    assert [sentence.split(": ")[1].split(" = ")[0] for sentence in sentences] == [
        "environments.dev.workers",
        "environments.dev.smoke_demo",
        "environments.dev.smoke_demos",
    ]


def test_every_size_that_fargate_sells_is_accepted(tmp_path: Path) -> None:
    for cpu, sold in FARGATE_SIZES.items():
        for memory in (sold[0], sold[-1]):
            load(tmp_path, "cpu = 1024\nmemory = 2048", f"cpu = {cpu}\nmemory = {memory}")
        assert f"cpu = {cpu}" in refusal(
            tmp_path, "cpu = 1024\nmemory = 2048", f"cpu = {cpu}\nmemory = {sold[-1] * 2}"
        )


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(tmp_path / "platform.toml")
    sentence = f"{tmp_path / 'platform.toml'}: there is no such file; copy platform.toml from the repository"
    assert str(refused.value) == sentence


@pytest.mark.parametrize("content", [b'name = "mlflow', b"name = \xff"])
def test_a_file_that_is_not_toml(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "platform.toml"
    file.write_bytes(content)
    with pytest.raises(SettingsError, match=r"^platform.toml: is not valid TOML: .+; mend that line$"):
        load_settings(file)


def test_the_app_refuses_before_synthesis_with_the_sentence_alone(tmp_path: Path) -> None:
    app = copy_of_the_app(tmp_path / "app")
    (app / "platform.toml").write_text(
        GOOD.replace("backup_days = 7", "backup_days = 99", 1), encoding="utf-8"
    )
    done = subprocess.run(
        [sys.executable, "pipeline_app.py"],
        cwd=app,
        env={
            **os.environ,
            "JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION": "20",
            "CDK_OUTDIR": str(tmp_path / "out"),
        },
        capture_output=True,
        text=True,
    )
    sentence = (
        "platform.toml: environments.dev.database.backup_days = 99: give a number of days from 1 to 35\n"
    )
    assert (done.returncode, done.stderr, done.stdout) == (2, sentence, "")
    assert not (tmp_path / "out").exists()


SPOT_SECRET = "arn:aws:secretsmanager:eu-west-1:222222222222:secret:token-a1B2c3"


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (
            'schedule = { days = "MON-FRI", start = "19:00", stop = "07:00", time_zone = "UTC" }',
            'environments.dev.schedule.start = "19:00": must come before stop = "07:00" on the same day; change one of them',
        ),
        (
            'schedule = { days = "MON-FRI", start = "07:00", stop = "19:00", time_zone = "Berlin" }',
            'environments.dev.schedule.time_zone = "Berlin": name a time zone as in "Europe/Berlin" or "UTC"',
        ),
        (
            'variables = { DATABASE_HOST = "elsewhere" }',
            "environments.dev.variables: DATABASE_HOST: is the platform's to set; remove it",
        ),
        (
            'variables = { lower = "x" }',
            'environments.dev.variables.lower[key] = "lower": name variables in capitals, digits and underscores, a letter'
            " first",
        ),
        (
            f'variables = {{ TOKEN = "x" }}\nsecrets = {{ TOKEN = "{SPOT_SECRET}" }}',
            "environments.dev.secrets: TOKEN: is among the variables, too; remove it from one of the two",
        ),
        (
            f'secrets = {{ TOKEN = "{SPOT_SECRET.replace("222222222222", "999999999999")}" }}',
            'environments.dev.secrets: "arn:aws:secretsmanager:eu-west-1:999999999999:secret:token-a1B2c3": is in another'
            " account or region; a task reads secrets of its own, 222222222222 in eu-west-1, alone",
        ),
        (
            'sidecars = [{ name = "agent", image = "public.ecr.aws/datadog/agent:7.60.0", memory = 1792 }]',
            "environments.dev.memory = 2048: 1792 MiB of it are the sidecars', and the server needs 512; raise it",
        ),
        (
            'sidecars = [{ name = "mlflow", image = "public.ecr.aws/datadog/agent:7.60.0", memory = 256 }]',
            "environments.dev.sidecars: mlflow: is the name of another container of the task; choose another",
        ),
        (
            'capacity = "cheap"',
            'environments.dev.capacity = "cheap": give "on-demand" or "spot"',
        ),
    ],
)
def test_tasks_that_could_not_run_are_refused(tmp_path: Path, more: str, sentence: str) -> None:
    assert refusal(tmp_path, "workers = 1", f"workers = 1\n{more}") == f"platform.toml: {sentence}"
