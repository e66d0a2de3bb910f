"""Profiles: what each fills in, what the environment's own keys keep, what a strict environment may not be without."""

from __future__ import annotations

import tomllib
from typing import Any, get_args

import pytest

from stages.settings import SETTINGS_FILE, Settings, SettingsError, load_settings
from stages.settings.profile import PROFILES, SIZES, STRICT, Profile

from .assembly import Assembly, Json, Platform

NEEDED = ("account", "region", "cidr", "exposure", "smoke_demo", "load")
"""What no profile can know."""

SIGNED_IN = {
    "certificate_arn": "arn:aws:acm:eu-west-1:222222222222:certificate/c0ffee",
    "host_name": "mlflow.example.com",
    "auth": "cognito",
}


def content(**own: Any) -> Json:
    """The shipped settings, of which dev says only what it must, and `own`."""
    shipped = tomllib.loads(SETTINGS_FILE.read_text(encoding="utf-8"))
    dev = shipped["environments"]["dev"]
    shipped["environments"]["dev"] = {key: dev[key] for key in NEEDED} | own
    return shipped


def refusal(folder: Any, **own: Any) -> str:
    """The sentence with which dev is refused when it is written to a file like this."""
    file = folder / "platform.toml"
    text = SETTINGS_FILE.read_text(encoding="utf-8")
    before, _, rest = text.partition("[environments.dev]")
    dev, _, after = rest.partition("[environments.staging]")
    kept = [line for line in dev.splitlines() if line.split(" ")[0] in NEEDED]
    lines = [*kept, *(f"{key} = {value}" for key, value in own.items())]
    file.write_text(
        f"{before}[environments.dev]\n" + "\n".join(lines) + f"\n[environments.staging]{after}",
        encoding="utf-8",
    )
    with pytest.raises(SettingsError) as refused:
        load_settings(file)
    return str(refused.value)


def test_every_profile_says_how_large_every_engine_is() -> None:
    assert PROFILES.keys() == set(get_args(Profile))
    for engine, sizes in SIZES.items():
        assert sizes.keys() == PROFILES.keys(), engine


@pytest.mark.parametrize("engine", SIZES)
@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_is_enough(profile: str, engine: str) -> None:
    signed_in = SIGNED_IN if profile == "strict" else {}
    dev = Settings.model_validate(
        content(profile=profile, database={"engine": engine}, **signed_in)
    ).environments.dev
    assert dev.tasks == {"standard": 2, "cost": 1, "strict": 2}[profile]
    assert dev.capacity == ("spot" if profile == "cost" else "on-demand")
    assert dev.database.multi_az is (profile == "strict")
    assert (dev.database.min_capacity == 0) is (profile == "cost" and engine.startswith("aurora-"))


def test_without_a_profile_it_is_the_standard_one() -> None:
    explicit = Settings.model_validate(content(profile="standard"))
    assert Settings.model_validate(content()) == explicit


def test_the_environment_s_own_keys_are_kept() -> None:
    dev = Settings.model_validate(
        content(profile="cost", tasks=2, capacity="on-demand", database={"backup_days": 14})
    ).environments.dev
    assert (dev.tasks, dev.capacity, dev.database.backup_days) == (2, "on-demand", 14)
    assert dev.cpu == PROFILES["cost"]["cpu"]
    assert dev.database.instance_class == SIZES["postgres"]["cost"]["instance_class"]


WEAKER = {
    "database.multi_az": {"database": "{ multi_az = false }"},
    "database.deletion_protection": {"database": "{ deletion_protection = false }"},
    "database.backup_days": {"database": "{ backup_days = 6 }"},
    "tasks": {"tasks": "1"},
    "capacity": {"capacity": '"spot"'},
    "logs.own_key": {"logs": "{ own_key = false }"},
    "logs.days": {"logs": "{ days = 180 }"},
    "host_name": {"auth": '"none"'},
    "auth": {"auth": '"none"'},
}


def test_each_promise_of_the_strict_profile_has_a_case() -> None:
    assert [key for key, _, _ in STRICT] == list(WEAKER)


@pytest.mark.parametrize("key", WEAKER)
def test_a_strict_environment_is_not_weaker_than_it_promises(key: str, tmp_path: Any) -> None:
    given = {"profile": '"strict"', **{name: f'"{value}"' for name, value in SIGNED_IN.items()}} | WEAKER[key]
    if key == "host_name":
        given = {name: value for name, value in given.items() if name not in ("certificate_arn", "host_name")}
    said = refusal(tmp_path, **given)
    assert said.startswith(
        f'platform.toml: environments.dev.{key}: is not what profile = "strict" promises; '
    )
    assert said.endswith(", or choose another profile")


def test_an_unknown_profile_is_refused(tmp_path: Any) -> None:
    assert refusal(tmp_path, profile='"cheap"') == (
        'platform.toml: environments.dev.profile = "cheap": give "standard", "cost" or "strict"'
    )


# What they are, synthesized


@pytest.fixture
def cost(cost_dev: Assembly) -> Platform:
    return cost_dev.platform("dev")


def test_a_strict_environment_keeps_every_log_for_a_year_under_a_key_of_its_own(
    strict_delivery: Assembly,
) -> None:
    groups = strict_delivery.platform("dev").all("AWS::Logs::LogGroup")
    assert len(groups) >= 6, "flow logs, the database's, the migration's, the service's, the builds'"
    assert {group.properties["RetentionInDays"] for group in groups} == {365}
    assert {group.properties["KmsKeyId"] for group in groups} == {"<network/LogKey.Arn>"}


def test_only_the_logs_service_uses_that_key_and_only_for_this_account_s_logs(
    strict_delivery: Assembly,
) -> None:
    key = strict_delivery.platform("dev").at("network/LogKey")
    (statement,) = (
        statement
        for statement in key.properties["KeyPolicy"]["Statement"]
        if "Service" in statement["Principal"]
    )
    assert statement["Principal"]["Service"] == "logs.${AWS::Region}.amazonaws.com"
    assert statement["Condition"] == {
        "ArnLike": {
            "kms:EncryptionContext:aws:logs:arn": "arn:${AWS::Partition}:logs:${AWS::Region}:${AWS::AccountId}:*"
        }
    }
    assert key.properties["EnableKeyRotation"] is True
    assert key.deletion_policy == "Retain"


def test_other_environments_keep_logs_for_three_months_and_those_of_builds_for_a_year(
    platform: Platform,
) -> None:
    groups = platform.all("AWS::Logs::LogGroup")
    assert {group.properties["RetentionInDays"] for group in groups} == {90, 365}
    assert not [group.path for group in groups if "KmsKeyId" in group.properties]


def test_the_cheap_environment_has_one_task_which_is_replaced_and_the_smallest_database(
    cost: Platform,
) -> None:
    service = cost.only("AWS::ECS::Service").properties
    assert service["DesiredCount"] == 1
    assert service["DeploymentConfiguration"]["MinimumHealthyPercent"] == 100
    assert service["CapacityProviderStrategy"] == [{"CapacityProvider": "FARGATE_SPOT", "Weight": 1}]
    assert cost.only("AWS::RDS::DBInstance").properties["DBInstanceClass"] == "db.t4g.small"
    assert len(cost.all("AWS::EC2::NatGateway")) == 1
