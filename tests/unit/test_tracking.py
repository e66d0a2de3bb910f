"""The tracking service of every environment: what a task may do, how it is replaced, and that timings fit together."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import pytest

from .assembly import ROOT, Json, Platform, Resource, attributes

sys.path.insert(0, str(ROOT / "mlflow_image"))

import database as image_database
import deadlines as image_deadlines
import server as image_server
import settings as image_settings


@pytest.fixture
def service(platform: Platform) -> Json:
    return platform.only("AWS::ECS::Service").properties


@pytest.fixture
def task(platform: Platform) -> Json:
    return platform.at("tracking/Task/Definition").properties


@pytest.fixture
def container(task: Json) -> Json:
    (container,) = task["ContainerDefinitions"]
    assert isinstance(container, dict)
    return container


@pytest.fixture
def targets(platform: Platform) -> Resource:
    return platform.only("AWS::ElasticLoadBalancingV2::TargetGroup")


@pytest.fixture
def balancer(platform: Platform) -> Resource:
    return platform.only("AWS::ElasticLoadBalancingV2::LoadBalancer")


def idle_timeout(balancer: Resource) -> int:
    return int(attributes(balancer, "LoadBalancerAttributes")["idle_timeout.timeout_seconds"])


# What a task may do


def test_the_task_role_may_use_its_bucket_and_read_its_password(platform: Platform) -> None:
    """Exactly this. MLflow lists, reads, writes and deletes artifacts; the password is read again when it was rotated."""
    bucket, key, secret = "<data/Artifacts.Arn>", "<data/ArtifactsKey.Arn>", "<data/DatabaseUser>"
    by_secrets_manager = {"StringEquals": {"kms:ViaService": "secretsmanager.${AWS::Region}.amazonaws.com"}}
    expected: list[tuple[str, str, Json]] = [
        ("s3:ListBucket", bucket, {}),
        ("s3:AbortMultipartUpload", f"{bucket}/*", {}),
        ("s3:DeleteObject", f"{bucket}/*", {}),
        ("s3:GetObject", f"{bucket}/*", {}),
        ("s3:ListMultipartUploadParts", f"{bucket}/*", {}),
        ("s3:PutObject", f"{bucket}/*", {}),
        ("kms:Decrypt", key, {}),
        ("kms:GenerateDataKey", key, {}),
        ("secretsmanager:GetSecretValue", secret, {}),
        ("kms:Decrypt", "<data/DatabaseUserKey.Arn>", by_secrets_manager),
    ]
    assert in_order(platform.permissions("tracking/TaskRole")) == in_order(expected)


def test_the_execution_role_may_start_a_task_and_no_more(platform: Platform) -> None:
    account, region = platform.settings.account, platform.settings.region
    repository = (
        f"arn:aws:ecr:{region}:{account}:repository/cdk-hnb659fds-container-assets-{account}-{region}"
    )
    secret = "<data/DatabaseUser>"
    by_secrets_manager = {"StringEquals": {"kms:ViaService": "secretsmanager.${AWS::Region}.amazonaws.com"}}
    expected: list[tuple[str, str, Json]] = [
        ("ecr:BatchCheckLayerAvailability", repository, {}),
        ("ecr:BatchGetImage", repository, {}),
        ("ecr:GetDownloadUrlForLayer", repository, {}),
        ("ecr:GetAuthorizationToken", "*", {}),
        ("logs:CreateLogStream", "<tracking/Task/Logs.Arn>", {}),
        ("logs:PutLogEvents", "<tracking/Task/Logs.Arn>", {}),
        ("secretsmanager:DescribeSecret", secret, {}),
        ("secretsmanager:GetSecretValue", secret, {}),
        ("kms:Decrypt", "<data/DatabaseUserKey.Arn>", by_secrets_manager),
        *(
            (f"secretsmanager:{action}", f"<data/ServerKeys/{key}>", {})
            for action in ("DescribeSecret", "GetSecretValue")
            for key in ("GatewayPassphrase", "SessionKey")
        ),
        ("kms:Decrypt", "<data/ServerKeys/Key.Arn>", by_secrets_manager),
    ]
    assert in_order(platform.permissions("tracking/Task/Definition/ExecutionRole")) == in_order(expected)


def in_order(permissions: list[tuple[str, str, Json]]) -> list[tuple[str, str, Json]]:
    return sorted(permissions, key=str)


@pytest.mark.parametrize("role", ["tracking/TaskRole", "tracking/Task/Definition/ExecutionRole"])
def test_only_ecs_tasks_take_on_the_roles_of_tasks(platform: Platform, role: str) -> None:
    (statement,) = platform.at(role).properties["AssumeRolePolicyDocument"]["Statement"]
    assert (statement["Action"], statement["Principal"]) == (
        "sts:AssumeRole",
        {"Service": "ecs-tasks.amazonaws.com"},
    )


def test_the_task_runs_as_these_roles(task: Json) -> None:
    assert (task["TaskRoleArn"], task["ExecutionRoleArn"]) == (
        "<tracking/TaskRole.Arn>",
        "<tracking/Task/Definition/ExecutionRole.Arn>",
    )


# What a task is


def test_the_container_writes_to_tmp_alone(task: Json, container: Json) -> None:
    assert container["ReadonlyRootFilesystem"] is True
    assert task["Volumes"] == [{"Name": "tmp"}]
    assert container["MountPoints"] == [{"ContainerPath": "/tmp", "SourceVolume": "tmp", "ReadOnly": False}]


def test_the_task_has_the_settings_size(platform: Platform, task: Json, container: Json) -> None:
    wanted = platform.settings
    assert (task["Cpu"], task["Memory"]) == (str(wanted.cpu), str(wanted.memory))
    assert variables(container)["WORKERS"] == str(wanted.workers)


def test_logs_are_kept_for_a_while_and_not_forever(platform: Platform, container: Json) -> None:
    group = platform.at(container["LogConfiguration"]["Options"]["awslogs-group"].strip("<>"))
    assert group.properties["RetentionInDays"] == 90


def variables(container: Json) -> dict[str, str]:
    return {variable["Name"]: variable["Value"] for variable in container["Environment"]}


def test_password_and_keys_come_from_secrets(container: Json) -> None:
    secret = "<data/DatabaseUser>"
    assert {s["Name"]: s["ValueFrom"] for s in container["Secrets"]} == {
        "DATABASE_USER": f"{secret}:username::",
        "DATABASE_PASSWORD": f"{secret}:password::",
        "MLFLOW_CRYPTO_KEK_PASSPHRASE": "<data/ServerKeys/GatewayPassphrase>",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "<data/ServerKeys/SessionKey>",
    }


def test_nothing_of_the_service_knows_the_master_secret(platform: Platform) -> None:
    """Neither by name nor by its key: only the migration's task, which sets up, is given it."""
    for word in ("MasterUserSecret", "<data/DatabaseKey"):
        knowing = {
            resource.path for resource in platform.resources if word in json.dumps(resource.properties)
        }
        assert not [path for path in knowing if path.startswith(("tracking/", "gates/"))], word
        assert [path for path in knowing if path.startswith("migration/Task/")], word


def test_the_password_is_rotated_by_aws_s_own_function(platform: Platform) -> None:
    """Of the user's own secret, in the tasks' subnets, once the service is there: its user is, then."""
    schedule = platform.only("AWS::SecretsManager::RotationSchedule").properties
    assert schedule["SecretId"] == "<data/DatabaseUser>"
    assert schedule["RotationRules"] == {
        "ScheduleExpression": f"rate({platform.settings.database.rotation_days} days)"
    }
    assert "RotateImmediatelyOnUpdate" not in schedule, "a new schedule rotates at once"
    function = schedule["HostedRotationLambda"]
    assert function["RotationType"] == "PostgreSQLSingleUser"
    assert function["KmsKeyArn"] == "<data/DatabaseUserKey.Arn>"
    assert function["VpcSecurityGroupIds"] == "<tracking/RotationGroup.GroupId>"
    assert all("/Vpc/privateSubnet" in subnet for subnet in function["VpcSubnetIds"].split(","))
    secret = platform.at("data/DatabaseUser")
    assert secret.deletion_policy == "Retain"
    assert secret.properties["KmsKeyId"] == "<data/DatabaseUserKey.Arn>"
    assert json.loads(secret.properties["GenerateSecretString"]["SecretStringTemplate"]) == {
        "username": "mlflow_server",
        "dbname": "mlflow",
    }
    attached = platform.only("AWS::SecretsManager::SecretTargetAttachment").properties
    assert attached["TargetId"] == f"<{platform.only('AWS::RDS::DBInstance').path}>"


def test_the_task_points_to_its_own_database_and_bucket(container: Json, platform: Platform) -> None:
    given = variables(container)
    assert given["DATABASE_HOST"] == "<data/Database.Endpoint.Address>"
    assert given["DATABASE_PORT"] == "<data/Database.Endpoint.Port>"
    assert given["ARTIFACTS_DESTINATION"] == "s3://<data/Artifacts>"
    name = platform.settings.host_name or "<tracking/LoadBalancer.DNSName>"
    assert given["MLFLOW_SERVER_ALLOWED_HOSTS"] == name


def documented_variables() -> dict[str, str]:
    """The image's own table of variables: each with its default, or `required`."""
    table = dict(re.findall(r"^\| ([A-Z_]+) +\|.*\| ([^|]+?) +\|$", image_settings.__doc__ or "", re.M))
    assert table["DATABASE_HOST"] == "required", "the image's table of variables was not understood"
    return table


def test_the_image_reads_every_variable_that_a_task_gives_it(container: Json) -> None:
    documented = documented_variables()
    given = {*variables(container), *(secret["Name"] for secret in container["Secrets"])}
    assert given <= documented.keys(), "the image does not read these"
    required = {name for name, default in documented.items() if default == "required"}
    assert required <= given, "the image does not start without these"


# How tasks are replaced


def test_a_deployment_keeps_every_task_until_its_successor_serves(platform: Platform, service: Json) -> None:
    rollout = service["DeploymentConfiguration"]
    assert (rollout["MinimumHealthyPercent"], rollout["MaximumPercent"]) == (100, 200)
    assert rollout["DeploymentCircuitBreaker"] == {"Enable": True, "Rollback": True}
    assert service["DesiredCount"] == platform.settings.tasks


def test_tasks_are_in_private_subnets_without_public_addresses(service: Json) -> None:
    network = service["NetworkConfiguration"]["AwsvpcConfiguration"]
    assert network["AssignPublicIp"] == "DISABLED"
    assert all("/Vpc/privateSubnet" in subnet for subnet in network["Subnets"])
    assert network["SecurityGroups"] == ["<tracking/ServiceGroup.GroupId>"]


def test_scaling_follows_cpu_memory_and_requests(platform: Platform) -> None:
    scalable = platform.only("AWS::ApplicationAutoScaling::ScalableTarget").properties
    wanted = platform.settings
    assert (scalable["MinCapacity"], scalable["MaxCapacity"]) == (wanted.tasks, wanted.max_tasks)
    targets: dict[str, Any] = {
        policy.properties["TargetTrackingScalingPolicyConfiguration"]["PredefinedMetricSpecification"][
            "PredefinedMetricType"
        ]: policy.properties["TargetTrackingScalingPolicyConfiguration"]["TargetValue"]
        for policy in platform.all("AWS::ApplicationAutoScaling::ScalingPolicy")
    }
    assert targets.keys() == {
        "ECSServiceAverageCPUUtilization",
        "ECSServiceAverageMemoryUtilization",
        "ALBRequestCountPerTarget",
    }
    assert 40 <= targets["ECSServiceAverageCPUUtilization"] <= 75


# How requests reach it


def test_the_balancer_asks_health_and_sends_requests_to_the_same_port(
    targets: Resource, container: Json
) -> None:
    properties = targets.properties
    (mapping,) = container["PortMappings"]
    assert properties["Port"] == mapping["ContainerPort"] == 5000
    assert (properties["HealthCheckPath"], properties["Matcher"]) == ("/health", {"HttpCode": "200"})
    assert properties["HealthCheckTimeoutSeconds"] < properties["HealthCheckIntervalSeconds"]
    assert "HealthCheckPort" not in properties


def test_the_balancer_logs_to_a_bucket_that_accepts_its_logs(platform: Platform, balancer: Resource) -> None:
    given = attributes(balancer, "LoadBalancerAttributes")
    assert given["access_logs.s3.enabled"] == "true"
    bucket = given["access_logs.s3.bucket"]
    (policy,) = (p for p in platform.all("AWS::S3::BucketPolicy") if p.properties["Bucket"] == bucket)
    writers = [
        statement["Principal"]
        for statement in policy.properties["PolicyDocument"]["Statement"]
        if statement["Effect"] == "Allow" and statement["Action"] == "s3:PutObject"
    ]
    assert {"Service": "delivery.logs.amazonaws.com"} in writers
    assert given["routing.http.drop_invalid_header_fields.enabled"] == "true"


def test_the_only_listener_forwards_to_the_tasks(platform: Platform, targets: Resource) -> None:
    listener = platform.only("AWS::ElasticLoadBalancingV2::Listener").properties
    assert listener["DefaultActions"] == [{"Type": "forward", "TargetGroupArn": f"<{targets.path}>"}]
    encrypted = platform.settings.certificate_arn is not None
    assert (listener["Port"], listener["Protocol"]) == ((443, "HTTPS") if encrypted else (80, "HTTP"))


def test_on_the_internet_there_is_https_only(public_platform: Platform) -> None:
    listener = public_platform.only("AWS::ElasticLoadBalancingV2::Listener").properties
    assert (listener["Port"], listener["Protocol"]) == (443, "HTTPS")
    assert listener["Certificates"] == [{"CertificateArn": public_platform.settings.certificate_arn}]
    assert "TLS13" in listener["SslPolicy"]
    smoke = public_platform.at("gates/Smoke/Project").properties["Environment"]["EnvironmentVariables"]
    assert {
        "Name": "MLFLOW_TRACKING_URI",
        "Type": "PLAINTEXT",
        "Value": "https://mlflow.example.com",
    } in smoke


# Timings: the image's and the platform's


def test_the_image_keeps_idle_connections_longer_than_the_balancer(balancer: Resource) -> None:
    """Else the balancer sends a request into a connection that the server is closing: 502."""
    assert idle_timeout(balancer) < image_server.KEEP_ALIVE_SECONDS


def test_waiting_for_the_database_ends_before_the_balancer_gives_up(balancer: Resource) -> None:
    """Else its clients are answered 504 by the balancer, which knows no reason."""
    connect = int(image_settings.CONNECTION_LIMITS["connect_timeout"])
    longest = image_deadlines.POOL_SECONDS + image_deadlines.CLIENT_SECONDS + connect
    assert image_deadlines.STATEMENT_SECONDS < image_deadlines.CLIENT_SECONDS
    assert longest < idle_timeout(balancer)


def test_a_task_has_time_to_stop_by_itself(container: Json) -> None:
    """Fargate allows 120 s at most."""
    assert image_server.GRACEFUL_SECONDS < image_server.FORCED_SECONDS < container["StopTimeout"] <= 120


def test_requests_in_flight_may_finish_when_a_task_leaves(targets: Resource, balancer: Resource) -> None:
    delay = int(attributes(targets, "TargetGroupAttributes")["deregistration_delay.timeout_seconds"])
    assert idle_timeout(balancer) <= delay <= 300


def test_a_task_that_waits_for_its_database_is_not_replaced(service: Json) -> None:
    assert service["HealthCheckGracePeriodSeconds"] > image_database.CONNECT_SECONDS
