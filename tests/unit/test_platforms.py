"""Several teams: two platforms, each released from a repository of its own, in the same account without touching."""

from __future__ import annotations

import json
import re

import pytest

from stages.settings import Settings

from .assembly import Assembly
from .conftest import synthesized_dev

NAMES = re.compile(r"(Name|Identifier|Domain)$")
# Names inside something that has a name of its own: a role, a service, a server; or of what AWS has.
INSIDE = ("AWS::ApplicationAutoScaling::ScalingPolicy", "AWS::IAM::Policy", "AWS::EC2::EIP")
INSIDE_KEYS = ("MetricName", "DBName")


def platform_named(name: str, settings: Settings, directory: pytest.TempPathFactory) -> Assembly:
    content = settings.model_dump()
    account = settings.environments.dev.account
    content["name"] = name
    content["environments"]["dev"] |= {
        "auth": "cognito",
        "certificate_arn": f"arn:aws:acm:{settings.tooling.region}:{account}:certificate/c0ffee",
        "host_name": f"{name}.example.com",
    }
    return synthesized_dev(content, directory.mktemp(name))


def names(assembly: Assembly) -> set[tuple[str, str, str]]:
    """Every physical name, with type and property: what an account or a region can hold but once."""
    return {
        (resource.type, key, value)
        for resource in assembly.platform("dev").resources
        for key, value in resource.properties.items()
        if NAMES.search(key) and isinstance(value, str) and not re.search(r"[<$]|^Fn::", value)
        if resource.type not in INSIDE and key not in INSIDE_KEYS
    }


def test_two_platforms_of_an_account_share_no_name_and_know_nothing_of_each_other(
    settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> None:
    one, other = (platform_named(name, settings, tmp_path_factory) for name in ("mlflow", "fraud"))
    named = names(one)
    assert {type_.split("::")[1] for type_, _, _ in named} >= {
        *("Cognito", "ECS", "ElasticLoadBalancingV2", "IAM", "Logs", "RDS", "CodeBuild")
    }
    assert not named & names(other)
    text = json.dumps([resource.properties for resource in one.platform("dev").resources])
    assert "fraud" not in text
    assert '"mlflow-dev' in text
    theirs = json.dumps([resource.properties for resource in other.platform("dev").resources])
    assert "mlflow-dev" not in theirs
