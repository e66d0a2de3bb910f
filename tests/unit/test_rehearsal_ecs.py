"""The arithmetic of the rehearsed ECS."""

from __future__ import annotations

from typing import Any

import pytest

from rehearsal.ecs import CircuitBreaker, ServiceProperties
from rehearsal.properties import RefusedError, parse
from rehearsal.task_definition import TaskDefinition

IMAGE = {"containers": {"server": {"command": ["/bin/true"], "directory": "/"}}}


@pytest.mark.parametrize(
    ("configuration", "desired", "threshold"),
    [
        ({}, 1, 3),
        ({}, 6, 3),
        ({}, 10, 5),
        ({}, 25, 13),
        ({}, 1000, 200),
        ({"Type": "UNBOUNDED_PERCENT", "Value": 50}, 2, 1),
        ({"Type": "COUNT", "Value": 7}, 2, 7),
    ],
)
def test_failures_that_open_the_circuit_breaker(
    configuration: dict[str, Any], desired: int, threshold: int
) -> None:
    breaker = parse(CircuitBreaker, "breaker", {"Enable": True, "ThresholdConfiguration": configuration})
    assert breaker.threshold(desired) == threshold


def test_numbers_may_come_as_strings() -> None:
    credentials = {
        "endpoint": "http://127.0.0.1:1",
        "region": "eu-west-1",
        "admin": {"access_key_id": "a", "secret_access_key": "b"},
    }
    service = parse(
        ServiceProperties,
        "service",
        {
            "TaskDefinition": "arn",
            "DesiredCount": "2",
            "DeploymentConfiguration": {"DeploymentCircuitBreaker": {"Enable": "true"}},
            "Rehearsal": {"credentials": credentials, "log_dir": "logs", "database_authority": "ca"},
        },
    )
    assert service.desired_count == 2
    assert service.deployment_configuration.deployment_circuit_breaker.enable is True


def test_what_a_process_cannot_be_held_to_is_listed() -> None:
    container = {"Name": "server", "ReadonlyRootFilesystem": True, "User": "10001"}
    properties = {
        "Cpu": "512",
        "NetworkMode": "awsvpc",
        "ContainerDefinitions": [container],
        "Rehearsal": IMAGE,
    }
    definition = TaskDefinition("arn:aws:ecs:eu-west-1:1:task-definition/mlflow:3", properties)
    assert definition.not_enforced == ["Cpu", "NetworkMode", "server.ReadonlyRootFilesystem", "server.User"]
    assert definition.name == "mlflow:3"


def test_an_engine_holds_a_container_to_more() -> None:
    container = {
        "Name": "server",
        "ReadonlyRootFilesystem": True,
        "MountPoints": [{"SourceVolume": "tmp", "ContainerPath": "/tmp"}],
        "LinuxParameters": {"InitProcessEnabled": True},
    }
    properties = {
        "Cpu": "512",
        "Memory": "1024",
        "Volumes": [{"Name": "tmp"}],
        "ContainerDefinitions": [container],
        "Rehearsal": {"containers": {"server": {"engine": "podman", "digest": "sha256:1"}}},
    }
    definition = TaskDefinition("arn", properties)
    assert definition.not_enforced == ["Cpu", "server.LinuxParameters"]
    assert definition.memory_of(definition.properties.container_definitions[0]) == 1024
    with pytest.raises(RefusedError, match="has no limit; set the task's Memory"):
        TaskDefinition("arn", {**properties, "Memory": None})
    twice = [container, {**container, "Name": "beside"}]
    images = {
        "containers": {name: {"engine": "podman", "digest": "sha256:1"} for name in ("server", "beside")}
    }
    with pytest.raises(RefusedError, match="volume tmp is mounted twice"):
        TaskDefinition("arn", {**properties, "ContainerDefinitions": twice, "Rehearsal": images})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"ContainerDefinitions": [{"Name": "other"}]}, "no rehearsed image for container other"),
        (
            {"ContainerDefinitions": [{"Name": "server", "Secrets": [{"Name": "A", "ValueFrom": "b"}]}]},
            "no ExecutionRoleArn",
        ),
        ({"Memory": "much"}, r"arn: Memory: Input should be a valid integer"),
        ({"ContainerDefinitions": []}, r"arn: ContainerDefinitions: "),
    ],
)
def test_a_definition_that_cannot_run_is_refused(change: dict[str, Any], sentence: str) -> None:
    properties = {"ContainerDefinitions": [{"Name": "server"}], "Rehearsal": IMAGE}
    with pytest.raises(RefusedError, match=sentence):
        TaskDefinition("arn", properties | change)
