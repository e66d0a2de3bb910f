"""`database.sign_in`: what there is without a password, and that both ways serve at once while one replaces the other."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rehearsal.databases import introduce
from rehearsal.iam_postgres import Beside
from rehearsal.properties import RefusedError
from rehearsal.task_definition import TaskDefinition
from rehearsal.task_roles import CannotStartError
from stages.settings import Settings
from stages.settings.database import Database

from .assembly import ROOT, Assembly, Platform, Resource, of_type
from .conftest import synthesized_dev
from .test_database_engines import CLUSTER, INSTANCE

CLUSTER_OF_MYSQL = {**CLUSTER, "engine": "aurora-mysql", "min_capacity": 0.0}
TASKS = {"tracking": "tracking/TokenTaskRole", "migration": "migration/TaskRole"}


@pytest.fixture(scope="module", params=[INSTANCE, CLUSTER_OF_MYSQL], ids=["postgres", "aurora-mysql"])
def assembly_by_token(
    request: pytest.FixtureRequest, settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Assembly:
    content = settings.model_dump()
    content["environments"]["dev"]["database"] |= {**request.param, "sign_in": "iam"}
    return synthesized_dev(content, tmp_path_factory.mktemp("iam"))


@pytest.fixture
def by_token(assembly_by_token: Assembly) -> Platform:
    return assembly_by_token.platform("dev")


def server(platform: Platform) -> Resource:
    """What holds the data: the cluster, or the instance that has none."""
    clusters = of_type(platform.resources, "AWS::RDS::DBCluster")
    (found,) = clusters or platform.all("AWS::RDS::DBInstance")
    return found


def actions(platform: Platform, role: str) -> set[str]:
    return {action for action, _, _ in platform.permissions(role)}


def test_iam_authentication_is_on_whoever_uses_it(platform: Platform, by_token: Platform) -> None:
    """A release that goes back to passwords must not lock the tasks out that still serve with tokens."""
    for one in (platform, by_token):
        assert server(one).properties["EnableIAMDatabaseAuthentication"] is True


def test_there_is_no_password_to_keep_to_read_or_to_rotate(by_token: Platform) -> None:
    for kind in ("RotationSchedule", "SecretTargetAttachment"):
        assert not of_type(by_token.resources, f"AWS::SecretsManager::{kind}")
    everything = json.dumps([resource.properties for resource in by_token.resources])
    for word in ("DatabaseUser", "DATABASE_PASSWORD", "DATABASE_SECRET_ARN", "password-rotation"):
        assert word not in everything, word
    for stack, role in TASKS.items():
        assert "secretsmanager:GetSecretValue" not in actions(by_token, role)
        set_up = {"DATABASE_SETUP_USER", "DATABASE_SETUP_PASSWORD"} if stack == "migration" else set()
        assert {name for name in by_token.secrets(stack) if name.startswith("DATABASE_")} == set_up


def test_each_task_may_be_that_one_user_of_that_one_server(by_token: Platform) -> None:
    used = server(by_token)
    attribute = "DBClusterResourceId" if used.type.endswith("Cluster") else "DbiResourceId"
    account, region = by_token.settings.account, by_token.settings.region
    user = f"arn:aws:rds-db:{region}:{account}:dbuser:<{used.path}.{attribute}>/mlflow_server_iam"
    for stack, role in TASKS.items():
        allowed = [(a, r, c) for a, r, c in by_token.permissions(role) if a.startswith("rds-db:")]
        assert allowed == [("rds-db:connect", user, {})]
        assert by_token.at(f"{stack}/Task/Definition").properties["TaskRoleArn"] == f"<{role}.Arn>"
    others = {
        resource.path for resource in by_token.resources if "rds-db:" in json.dumps(resource.properties)
    }
    assert all(path.startswith(tuple(TASKS.values())) for path in others)
    assert len(others) == len(TASKS)


def test_the_image_is_told_how_it_signs_in(by_token: Platform) -> None:
    for stack in TASKS:
        given = by_token.variables(stack)
        assert (given["DATABASE_SIGN_IN"], given["DATABASE_USER"]) == ("iam", "mlflow_server_iam")
        assert given["DATABASE_SSLMODE"] == "verify-full", "a token travels as it is"
        assert ("DATABASE_OWNER" in given) is (stack == "migration")
    assert by_token.variables("migration")["DATABASE_OWNER"] == "mlflow_server"
    described = (ROOT / "mlflow_image" / "settings.py").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| ([A-Z_]+)", described, re.MULTILINE))
    assert set(by_token.variables("migration")) <= documented


def test_tasks_of_the_release_before_keep_their_roles_until_they_are_gone(
    platform: Platform, by_token: Platform
) -> None:
    """CloudFormation changes a role before it rolls tasks out, and deletes one after that."""
    with_password = {
        platform.at("tracking/Task/Definition").properties[kind]
        for kind in ("TaskRoleArn", "ExecutionRoleArn")
    }
    without = {
        by_token.at("tracking/Task/Definition").properties[kind]
        for kind in ("TaskRoleArn", "ExecutionRoleArn")
    }
    assert with_password == {"<tracking/TaskRole.Arn>", "<tracking/Task/Definition/ExecutionRole.Arn>"}
    assert without == {"<tracking/TokenTaskRole.Arn>", "<tracking/Task/ExecutionRole.Arn>"}
    assert platform.at("data/DatabaseUser").deletion_policy == "Retain"
    assert platform.at("data/DatabaseUserKey").deletion_policy == "Retain"


def test_only_the_database_opens_to_its_tasks(by_token: Platform) -> None:
    opened = {
        rule.properties["SourceSecurityGroupId"]
        for rule in by_token.all("AWS::EC2::SecurityGroupIngress")
        if rule.properties["GroupId"] == "<data/DatabaseGroup.GroupId>"
    }
    assert opened == {"<tracking/ServiceGroup.GroupId>", "<migration/MigrationGroup.GroupId>"}


def test_a_password_that_is_not_there_is_not_rotated(settings: Settings) -> None:
    given = settings.environments.dev.database.model_dump() | {"sign_in": "iam", "rotation_days": 7}
    with pytest.raises(
        ValidationError, match='with sign_in = "iam" there is no password to rotate; remove it'
    ):
        Database.model_validate(given)


def test_a_rehearsal_says_that_mariadb_takes_no_tokens() -> None:
    definition: dict[str, Any] = {
        "ContainerDefinitions": [
            {
                "Name": "mlflow",
                "Environment": [
                    {"Name": "DATABASE_ENGINE", "Value": "mysql"},
                    {"Name": "DATABASE_SIGN_IN", "Value": "iam"},
                ],
            }
        ],
        "Rehearsal": {"containers": {"mlflow": {}}},
    }
    with pytest.raises(RefusedError, match='sign_in = "iam" is not rehearsed with MySQL'):
        TaskDefinition("arn:aws:ecs:eu-west-1:222222222222:task-definition/mlflow:1", definition)


def test_a_rehearsed_task_with_tokens_is_sent_to_what_takes_them(tmp_path: Path) -> None:
    """Not to the server itself, which has no TLS; and one that takes none is no reason to send a password."""
    authority = tmp_path / "certificates" / "authority.pem"
    for name, port in (("other", "5001"), ("database", "5002")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "port").write_text(port)
    told = {"DATABASE_ENGINE": "postgresql", "DATABASE_PORT": "5002", "DATABASE_SSLMODE": "verify-full"}
    by_token = {**told, "DATABASE_SIGN_IN": "iam"}
    with pytest.raises(CannotStartError, match="the database at port 5002 takes no tokens"):
        introduce(by_token, authority)
    beside = Beside(
        5003, "arn", "eu-west-1", "http://127.0.0.1:1", "/tmp", "rdsadmin", "certificate.pem", "key.pem"
    )
    beside.save(tmp_path / "database")
    assert introduce(by_token, authority) == [authority]
    assert by_token["DATABASE_PORT"] == "5003"
    assert by_token["DATABASE_SSLMODE"] == "verify-full"
    assert by_token["DATABASE_SSLROOTCERT"] == str(authority)
    assert introduce(told, authority) == []
    assert told == {"DATABASE_ENGINE": "postgresql", "DATABASE_PORT": "5002"}
