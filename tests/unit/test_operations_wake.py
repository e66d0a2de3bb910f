"""`python -m operations.wake`: a service without tasks gets those of the day, and its bounds; any other is left alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from moto import mock_aws

from operations.wake import wake

GIVEN = {
    "WAKE_CLUSTER": "mlflow-dev",
    "WAKE_SERVICE": "mlflow-dev",
    "WAKE_TASKS": "2",
    "WAKE_MAX_TASKS": "4",
}
TARGET = {
    "ServiceNamespace": "ecs",
    "ResourceId": "service/mlflow-dev/mlflow-dev",
    "ScalableDimension": "ecs:service:DesiredCount",
}


@pytest.fixture
def ecs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with mock_aws():
        yield boto3.client("ecs")


def service(ecs: Any, tasks: int) -> None:
    """A service of so many tasks, and bounds that keep it there."""
    ecs.create_cluster(clusterName="mlflow-dev")
    ecs.register_task_definition(
        family="mlflow-dev", containerDefinitions=[{"name": "mlflow", "image": "mlflow", "memory": 512}]
    )
    ecs.create_service(
        cluster="mlflow-dev", serviceName="mlflow-dev", taskDefinition="mlflow-dev", desiredCount=tasks
    )
    boto3.client("application-autoscaling").register_scalable_target(
        **TARGET, MinCapacity=tasks, MaxCapacity=tasks
    )


def state(ecs: Any) -> tuple[int, int, int]:
    """Wanted tasks, and the bounds."""
    (found,) = ecs.describe_services(cluster="mlflow-dev", services=["mlflow-dev"])["services"]
    (target,) = boto3.client("application-autoscaling").describe_scalable_targets(ServiceNamespace="ecs")[
        "ScalableTargets"
    ]
    return found["desiredCount"], target["MinCapacity"], target["MaxCapacity"]


def test_without_a_schedule_nothing_is_asked(capfd: pytest.CaptureFixture[str]) -> None:
    assert wake({}) == 0
    assert capfd.readouterr().out == ""


def test_before_the_first_deployment_there_is_nothing_to_wake(
    ecs: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    assert wake(GIVEN) == 0
    ecs.create_cluster(clusterName="mlflow-dev")
    assert wake(GIVEN) == 0
    assert capfd.readouterr().out == "mlflow-dev is not there yet: the release makes it, awake.\n" * 2


def test_a_sleeping_service_gets_its_tasks_and_its_bounds(
    ecs: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    service(ecs, tasks=0)
    assert wake(GIVEN) == 0
    assert state(ecs) == (2, 2, 4)
    assert capfd.readouterr().out.endswith("mlflow-dev is awake.\n")


def test_a_service_that_is_awake_is_left_as_it_is(ecs: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """Scaling may have started more tasks than the settings begin with."""
    service(ecs, tasks=3)
    assert wake(GIVEN) == 0
    assert state(ecs) == (3, 3, 3)
    assert capfd.readouterr().out == "mlflow-dev is awake: 3 task(s) wanted.\n"


def test_tasks_that_do_not_start_do_not_stop_the_release_that_may_mend_them(
    ecs: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("operations.wake.POLL_SECONDS", 0)
    none_starts = property(lambda _: 0, lambda _, __: None)
    monkeypatch.setattr("moto.ecs.models.Service.running_count", none_starts, raising=False)
    service(ecs, tasks=0)
    assert wake(GIVEN, polls=2) == 0
    assert capfd.readouterr().out.endswith("has not started in 0 s. The release goes on without it.\n")


@pytest.mark.usefixtures("aws_that_does_not_answer")
def test_without_aws_nothing_is_released(capfd: pytest.CaptureFixture[str]) -> None:
    assert wake(GIVEN) == 1
    said = capfd.readouterr().err
    assert said.startswith("AWS refused or did not answer: Could not connect")
    assert said.endswith("Nothing was released.\n")
