"""The roles for people: exactly these rights, each on this environment's own things; and none unless asked for."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from stages.settings import Settings

from .assembly import Json, Platform, of_type
from .conftest import synthesized_dev

PROVIDER = "arn:aws:iam::222222222222:saml-provider/company"
BUCKET, KEY = "<data/Artifacts.Arn>", "<data/ArtifactsKey.Arn>"
BY_S3 = {"StringEquals": {"kms:ViaService": "s3.${AWS::Region}.amazonaws.com"}}

Right = tuple[str, str, Json]


@pytest.fixture(scope="module")
def people(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Platform:
    content = settings.model_dump()
    content["environments"]["dev"]["people"] = {"saml_provider_arn": PROVIDER}
    return synthesized_dev(content, tmp_path_factory.mktemp("people")).platform("dev")


def rights(platform: Platform, role: str) -> list[str]:
    return in_order(platform.permissions(f"data/People/{role}"))


def in_order(found: list[Right]) -> list[str]:
    return sorted(json.dumps(right, sort_keys=True) for right in found)


def arn(service: str, name: str) -> str:
    return f"arn:aws:{service}:eu-west-1:222222222222:{name}"


def logs() -> list[Right]:
    return [
        (f"logs:{action}", arn("logs", f"log-group:/mlflow-dev/{task}:*"), {})
        for action in ("DescribeLogStreams", "FilterLogEvents", "GetLogEvents")
        for task in ("tracking", "migration")
    ]


READING: list[Right] = [
    ("s3:ListBucket", BUCKET, {}),
    ("s3:GetObject", f"{BUCKET}/*", {}),
    ("kms:Decrypt", KEY, BY_S3),
]
WRITING: list[Right] = [
    ("s3:AbortMultipartUpload", f"{BUCKET}/*", {}),
    ("s3:ListMultipartUploadParts", f"{BUCKET}/*", {}),
    ("s3:PutObject", f"{BUCKET}/*", {}),
    ("kms:GenerateDataKey", KEY, BY_S3),
]


def test_a_reader_reads_artifacts_and_logs(people: Platform) -> None:
    assert rights(people, "Reader") == in_order([*READING, *logs()])


def test_an_ml_engineer_writes_artifacts_too_and_deletes_none(people: Platform) -> None:
    assert rights(people, "MlEngineer") == in_order([*READING, *WRITING, *logs()])


def test_an_operator_runs_the_service_and_sees_no_data(people: Platform) -> None:
    in_cluster = {"ArnEquals": {"ecs:cluster": arn("ecs", "cluster/mlflow-dev")}}
    service, tasks = arn("ecs", "service/mlflow-dev/mlflow-dev"), arn("ecs", "task/mlflow-dev/*")
    expected: list[Right] = [
        *logs(),
        ("ecs:DescribeServices", service, {}),
        ("ecs:UpdateService", service, {}),
        ("ecs:ListTasks", "*", in_cluster),
        ("ecs:DescribeTasks", tasks, in_cluster),
        ("ecs:StopTask", tasks, in_cluster),
        ("cloudwatch:GetMetricData", "*", {}),
        ("cloudwatch:ListMetrics", "*", {}),
        ("cloudwatch:DescribeAlarms", arn("cloudwatch", "alarm:mlflow-dev-*"), {}),
        ("secretsmanager:DescribeSecret", "<data/DatabaseUser>", {}),
        ("secretsmanager:RotateSecret", "<data/DatabaseUser>", {}),
    ]
    assert rights(people, "Operator") == in_order(expected)


def test_the_names_in_those_rights_are_the_names_of_what_is_there(people: Platform) -> None:
    service = people.only("AWS::ECS::Service").properties
    clusters = {one.properties["ClusterName"] for one in people.all("AWS::ECS::Cluster")}
    groups = {one.properties.get("LogGroupName") for one in people.all("AWS::Logs::LogGroup")}
    assert service["ServiceName"] == "mlflow-dev"
    assert "mlflow-dev" in clusters
    assert {"/mlflow-dev/tracking", "/mlflow-dev/migration"} <= groups
    alarms = [one.properties["AlarmName"] for one in people.all("AWS::CloudWatch::Alarm")]
    assert all(name.startswith("mlflow-dev-") for name in alarms)


@pytest.mark.parametrize(
    ("role", "name"), [("Reader", "reader"), ("MlEngineer", "ml-engineer"), ("Operator", "operator")]
)
def test_only_the_provider_in_the_settings_lets_anybody_in(people: Platform, role: str, name: str) -> None:
    made: dict[str, Any] = people.at(f"data/People/{role}").properties
    assert made["RoleName"] == f"mlflow-dev-{name}"
    (statement,) = made["AssumeRolePolicyDocument"]["Statement"]
    assert statement == {
        "Action": "sts:AssumeRoleWithSAML",
        "Condition": {"StringEquals": {"SAML:aud": "https://signin.aws.amazon.com/saml"}},
        "Effect": "Allow",
        "Principal": {"Federated": PROVIDER},
    }


def test_nobody_has_a_role_by_default(platform: Platform) -> None:
    roles = [role.path for role in of_type(platform.resources, "AWS::IAM::Role")]
    assert not [path for path in roles if "People" in path]


def test_a_provider_of_another_account_is_refused(settings: Settings) -> None:
    content = settings.model_dump()
    content["environments"]["prod"]["people"] = {"saml_provider_arn": PROVIDER}
    with pytest.raises(ValidationError, match="is in another account; name a provider in 444444444444"):
        Settings.model_validate(content)
