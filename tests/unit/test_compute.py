"""The server's tasks by setting: Spot, scaling, a schedule, the user's own variables, secrets and sidecars."""

from __future__ import annotations

from typing import Any

import pytest

from stages.settings import Settings

from .assembly import Json, Platform
from .conftest import synthesized_dev

OWN_SECRET = "arn:aws:secretsmanager:eu-west-1:222222222222:secret:proxy-token-a1B2c3"
AGENT_SECRET = "arn:aws:secretsmanager:eu-west-1:222222222222:secret:datadog-d4E5f6"


@pytest.fixture(scope="module")
def custom(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Platform:
    """Dev on Spot, asleep at night, with a Datadog agent beside each server."""
    content = settings.model_dump()
    content["environments"]["dev"] |= {
        "memory": 2048,
        "capacity": "spot",
        "scaling": {"cpu_percent": 50, "memory_percent": 70, "requests_per_minute": 600},
        "schedule": {"days": "MON-FRI", "start": "07:30", "stop": "19:00", "time_zone": "Europe/Berlin"},
        "variables": {"HTTPS_PROXY": "http://proxy.example.com:3128"},
        "secrets": {"PROXY_TOKEN": OWN_SECRET},
        "sidecars": [
            {
                "name": "datadog",
                "image": "public.ecr.aws/datadog/agent:7.60.0",
                "memory": 256,
                "writable": True,
                "variables": {"ECS_FARGATE": "true"},
                "secrets": {"DD_API_KEY": f"{AGENT_SECRET}:api_key::"},
            }
        ],
    }
    return synthesized_dev(content, tmp_path_factory.mktemp("custom")).platform("dev")


def container(platform: Platform, name: str) -> Json:
    definition = platform.at("tracking/Task/Definition").properties
    (found,) = (c for c in definition["ContainerDefinitions"] if c["Name"] == name)
    assert isinstance(found, dict)
    return found


def test_spot_tasks(custom: Platform, platform: Platform) -> None:
    service = custom.only("AWS::ECS::Service").properties
    assert service["CapacityProviderStrategy"] == [{"CapacityProvider": "FARGATE_SPOT", "Weight": 1}]
    assert "LaunchType" not in service
    assert platform.only("AWS::ECS::Service").properties["LaunchType"] == "FARGATE"


def test_scaling_follows_cpu_memory_and_requests(custom: Platform) -> None:
    targets: dict[str, Any] = {}
    for policy in custom.all("AWS::ApplicationAutoScaling::ScalingPolicy"):
        tracked = policy.properties["TargetTrackingScalingPolicyConfiguration"]
        targets[tracked["PredefinedMetricSpecification"]["PredefinedMetricType"]] = tracked["TargetValue"]
    assert targets == {
        "ECSServiceAverageCPUUtilization": 50,
        "ECSServiceAverageMemoryUtilization": 70,
        "ALBRequestCountPerTarget": 600,
    }


def test_the_schedule_stops_all_tasks_and_starts_them_again(custom: Platform, platform: Platform) -> None:
    scalable = custom.only("AWS::ApplicationAutoScaling::ScalableTarget").properties
    actions = {action["ScheduledActionName"]: action for action in scalable["ScheduledActions"]}
    assert actions["Start"]["Schedule"] == "cron(30 7 ? * MON-FRI *)"
    assert actions["Stop"]["Schedule"] == "cron(0 19 ? * MON-FRI *)"
    assert {action["Timezone"] for action in actions.values()} == {"Europe/Berlin"}
    dev = custom.settings
    assert actions["Start"]["ScalableTargetAction"] == {
        "MinCapacity": dev.tasks,
        "MaxCapacity": dev.max_tasks,
    }
    assert actions["Stop"]["ScalableTargetAction"] == {"MinCapacity": 0, "MaxCapacity": 0}
    usual = platform.only("AWS::ApplicationAutoScaling::ScalableTarget").properties
    assert not usual.get("ScheduledActions")


def test_a_release_may_wake_what_the_schedule_stopped(custom: Platform, platform: Platform) -> None:
    def told(of: Platform) -> dict[str, str]:
        environment = of.at("migration/Migrate/Project").properties["Environment"]["EnvironmentVariables"]
        return {v["Name"]: v["Value"] for v in environment if v["Name"].startswith("WAKE_")}

    def allowed(of: Platform) -> set[tuple[str, str]]:
        wanted = ("ecs:DescribeServices", "ecs:UpdateService", "application-autoscaling:")
        permissions = of.permissions("migration/Migrate/Role")
        return {(action, resource) for action, resource, _ in permissions if action.startswith(wanted)}

    service, cluster = custom.only("AWS::ECS::Service"), custom.at("tracking/Cluster")
    assert told(custom) == {
        "WAKE_CLUSTER": cluster.properties["ClusterName"],
        "WAKE_SERVICE": service.properties["ServiceName"],
        "WAKE_TASKS": str(custom.settings.tasks),
        "WAKE_MAX_TASKS": str(custom.settings.max_tasks),
    }
    here = f"{custom.settings.region}:{custom.settings.account}"
    assert allowed(custom) == {
        ("ecs:DescribeServices", f"arn:aws:ecs:{here}:service/mlflow-dev/mlflow-dev"),
        ("ecs:UpdateService", f"arn:aws:ecs:{here}:service/mlflow-dev/mlflow-dev"),
        (
            "application-autoscaling:RegisterScalableTarget",
            f"arn:aws:application-autoscaling:{here}:scalable-target/*",
        ),
    }
    assert not told(platform)
    assert not allowed(platform)


def test_the_server_gets_the_user_s_variables_and_secrets(custom: Platform) -> None:
    server = container(custom, "mlflow")
    assert {"Name": "HTTPS_PROXY", "Value": "http://proxy.example.com:3128"} in server["Environment"]
    assert {"Name": "PROXY_TOKEN", "ValueFrom": OWN_SECRET} in server["Secrets"]


def test_a_sidecar_runs_beside_the_server_and_cannot_take_it_down(custom: Platform) -> None:
    agent = container(custom, "datadog")
    assert (agent["Image"], agent["Memory"]) == ("public.ecr.aws/datadog/agent:7.60.0", 256)
    assert agent["Essential"] is False
    assert agent["ReadonlyRootFilesystem"] is False
    assert agent["Environment"] == [{"Name": "ECS_FARGATE", "Value": "true"}]
    assert agent["Secrets"] == [{"Name": "DD_API_KEY", "ValueFrom": f"{AGENT_SECRET}:api_key::"}]


def test_only_the_execution_role_reads_the_user_s_secrets(custom: Platform) -> None:
    def readable(role: str) -> set[str]:
        return {
            resource
            for action, resource, _ in custom.permissions(role)
            if action == "secretsmanager:GetSecretValue"
        }

    assert {OWN_SECRET, AGENT_SECRET} <= readable("tracking/Task/Definition/ExecutionRole")
    assert not {OWN_SECRET, AGENT_SECRET} & readable("tracking/TaskRole")


def test_nobody_gets_a_shell_in_a_task(custom: Platform, platform: Platform) -> None:
    for one in (custom, platform):
        assert not one.only("AWS::ECS::Service").properties.get("EnableExecuteCommand")
