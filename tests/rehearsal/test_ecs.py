"""The rehearsed ECS with real hosts, real servers behind its load balancer, and moto that enforces IAM."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest

from rehearsal.ecs import BAKE_SECONDS
from rehearsal.host import HostClient, HostError, start_host
from rehearsal.processes import ProcessRegistry

SERVER = Path(__file__).with_name("server_image.py")
GROUP = "arn:aws:elasticloadbalancing:eu-west-1:222222222222:targetgroup/mlflow/1"
BALANCER = "arn:aws:elasticloadbalancing:eu-west-1:222222222222:loadbalancer/app/mlflow/1"
LISTENER = "arn:aws:elasticloadbalancing:eu-west-1:222222222222:listener/app/mlflow/1/1"
ALARM = "mlflow-ServerErrors"
SERVICE = "arn:aws:ecs:eu-west-1:222222222222:service/platform/mlflow"
# Its period outlasts a test, so that it stays on once it went off.
SERVER_ERRORS = {
    "Namespace": "AWS/ApplicationELB",
    "MetricName": "HTTPCode_Target_5XX_Count",
    "Dimensions": [
        {"Name": "LoadBalancer", "Value": "app/mlflow/1"},
        {"Name": "TargetGroup", "Value": "targetgroup/mlflow/1"},
    ],
    "Statistic": "Sum",
    "Period": 900,
    "EvaluationPeriods": 1,
    "Threshold": 10,
    "ComparisonOperator": "GreaterThanOrEqualToThreshold",
    "TreatMissingData": "notBreaching",
}
WATCHED = {"DeploymentConfiguration": {"Alarms": {"AlarmNames": [ALARM], "Enable": True, "Rollback": True}}}
NOBODY = {"access_key_id": "test", "secret_access_key": "test", "session_token": None}


def until(what: Callable[[], Any], seconds: float = 20) -> Any:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)
    return value


def lives(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Account:
    """A host with a load balancer, and a service on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "host"
        self.image: dict[str, Any] = {"command": [sys.executable, str(SERVER)], "directory": str(folder)}
        self.client = start_host(self.state, folder / "host.log")
        self.credentials: dict[str, Any] = {
            "endpoint": "http://127.0.0.1:9",
            "region": "eu-west-1",
            "admin": NOBODY,
        }
        self.client.put(
            "target-group",
            GROUP,
            {
                "HealthCheckPath": "/health",
                "HealthCheckIntervalSeconds": 0.2,
                "HealthCheckTimeoutSeconds": 1,
                "HealthyThresholdCount": 2,
                "UnhealthyThresholdCount": 2,
                "TargetGroupAttributes": [{"Key": "deregistration_delay.timeout_seconds", "Value": "5"}],
            },
        )
        self.client.put("load-balancer", BALANCER, {})
        self.url = self.client.put(
            "listener",
            LISTENER,
            {
                "LoadBalancerArn": BALANCER,
                "Port": 80,
                "Protocol": "HTTP",
                "DefaultActions": [{"Type": "forward", "TargetGroupArn": GROUP}],
            },
        )["url"]

    def define(self, revision: str, behaviour: str = "well", **extra: Any) -> str:
        arn = f"arn:aws:ecs:eu-west-1:222222222222:task-definition/mlflow:{revision}"
        container = {
            "Name": "server",
            "Environment": [
                {"Name": "REVISION", "Value": revision},
                {"Name": "BEHAVIOUR", "Value": behaviour},
            ],
            "PortMappings": [{"ContainerPort": 5000}],
            "StopTimeout": 2,
            "ReadonlyRootFilesystem": True,
            **extra.pop("container", {}),
        }
        self.client.put(
            "task-definition",
            arn,
            {
                "Family": "mlflow",
                "Memory": "256",
                "ContainerDefinitions": [container],
                "Rehearsal": {"containers": {"server": self.image}},
                **extra,
            },
        )
        return arn

    def serve(self, definition: str, **extra: Any) -> str:
        answer = self.client.put(
            "service",
            SERVICE,
            {
                "ServiceName": "mlflow",
                "TaskDefinition": definition,
                "DesiredCount": 2,
                "HealthCheckGracePeriodSeconds": 1.5,
                "DeploymentConfiguration": {
                    "MinimumHealthyPercent": 100,
                    "MaximumPercent": 200,
                    "DeploymentCircuitBreaker": {"Enable": True, "Rollback": True},
                },
                "LoadBalancers": [
                    {"TargetGroupArn": GROUP, "ContainerName": "server", "ContainerPort": 5000}
                ],
                "Rehearsal": {
                    "credentials": self.credentials,
                    "log_dir": str(self.folder / "logs"),
                    "database_authority": str(self.folder / "authority.pem"),
                },
                **extra,
            },
        )
        return str(answer["deployment"])

    def service(self) -> dict[str, Any]:
        return self.client.get("service", SERVICE)

    def stable(self) -> dict[str, Any]:
        until(lambda: self.service()["stable"])
        return self.service()

    def deployment(self, deployment_id: str) -> dict[str, Any]:
        return next(d for d in self.service()["deployments"] if d["id"] == deployment_id)

    def running(self) -> list[dict[str, Any]]:
        return [task for task in self.service()["tasks"] if task["status"] == "RUNNING"]

    def ask(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            content: bytes = answer.read()
        return content


@pytest.fixture
def account(tmp_path: Path) -> Iterator[Account]:
    registry = ProcessRegistry(tmp_path / "host" / "processes")
    try:
        yield Account(tmp_path)
    finally:
        registry.stop_all(3)
    assert not registry.alive()


class Client:
    """A client that never stops asking, over kept-alive connections, and notes every answer."""

    def __init__(self, url: str, connections: int = 4) -> None:
        self.answers: Counter[tuple[int, str]] = Counter()
        self._stop = threading.Event()
        self._address = url.removeprefix("http://")
        self._threads = [threading.Thread(target=self._ask) for _ in range(connections)]

    def __enter__(self) -> Client:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def failed(self) -> dict[tuple[int, str], int]:
        return {key: count for key, count in self.answers.items() if key[0] != 200}

    def _ask(self) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=10)
        while not self._stop.is_set():
            try:
                connection.request("GET", "/slow?seconds=0.02")
                answer = connection.getresponse()
                self.answers[answer.status, answer.read().decode()] += 1
            except (OSError, http.client.HTTPException) as error:
                self.answers[0, repr(error)] += 1
                connection.close()


def test_rolling_update_drops_no_request(account: Account) -> None:
    account.serve(account.define("1"))
    account.stable()
    before = {task["id"] for task in account.running()}
    with Client(account.url) as client:
        time.sleep(0.3)
        second = account.serve(account.define("2"))
        account.stable()
        time.sleep(0.3)
    assert client.failed == {}
    assert client.answers[200, "1"] > 20
    assert client.answers[200, "2"] > 20
    assert account.deployment(second)["rollout_state"] == "COMPLETED"
    after = {task["id"] for task in account.running()}
    assert len(after) == 2
    assert not after & before
    stopped = [task for task in account.service()["tasks"] if task["status"] == "STOPPED"]
    assert {task["id"] for task in stopped} == before
    assert all(task["exit_codes"] == {"server": 0} for task in stopped)
    assert any("has reached a steady state" in event["message"] for event in account.service()["events"])
    counters = account.client.get("target-group", GROUP)["counters"]
    assert counters["requests"] == counters["target_2xx"] >= sum(client.answers.values())


def test_same_properties_again_change_nothing(account: Account) -> None:
    first = account.serve(account.define("1"))
    before = account.stable()["tasks"]
    assert account.serve(account.define("1")) == first
    time.sleep(0.7)
    assert account.stable()["tasks"] == before


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("exit", "Essential container in task exited"),
        ("deaf", "Task failed ELB health checks"),
        ("errors", "Health checks failed with these codes: [500]"),
    ],
)
def test_circuit_breaker_rolls_back_while_old_tasks_serve(
    account: Account, behaviour: str, reason: str
) -> None:
    breaker = {"Enable": True, "Rollback": True}
    roomy = {"DeploymentConfiguration": {"MaximumPercent": 400, "DeploymentCircuitBreaker": breaker}}
    first = account.serve(account.define("1"), **roomy)
    account.stable()
    before = {task["id"] for task in account.running()}
    most = 0
    with Client(account.url) as client:
        second = account.serve(account.define("2", behaviour), **roomy)
        while (failing := account.deployment(second))["rollout_state"] == "IN_PROGRESS":
            most = max(most, failing["running"] + failing["pending"])
            time.sleep(0.02)
        account.stable()
    assert most == 2  # what fails makes way for its replacement at once
    assert client.failed == {}
    assert {revision for _, revision in client.answers} == {"1"}
    assert {task["id"] for task in account.running()} == before
    failed = account.deployment(second)
    assert failed["status"] == "INACTIVE"
    assert failed["failed"] >= 3
    assert "circuit breaker" in failed["rollout_reason"]
    primary = account.service()["deployments"][0]
    assert primary["id"] == first
    assert primary["rollout_state"] == "COMPLETED"
    lost = [task for task in account.service()["tasks"] if task["deployment"] == second]
    assert len(lost) >= 3
    assert reason in lost[-1]["stopped_reason"]
    if behaviour == "exit":
        assert "I will not start" in Path(lost[-1]["logs"]["server"]).read_text()
    # What CloudFormation does next, putting the old properties again, must not begin anything.
    assert account.serve(account.define("1"), **roomy) == first


def test_an_alarm_takes_a_deployment_back(account: Account) -> None:
    """The old task is gone by then, as there is one only: another is started, and the bad one answers until it does."""
    account.client.put("alarm", ALARM, SERVER_ERRORS)
    one = {**WATCHED, "DesiredCount": 1}
    first = account.serve(account.define("1"), **one)
    account.stable()
    before = {task["id"] for task in account.running()}
    with Client(account.url) as client:
        second = account.serve(account.define("2", "wrong"), **one)
        until(lambda: account.deployment(second)["rollout_state"] != "IN_PROGRESS")
        account.stable()
        assert set(client.failed) == {(500, "2")}
        failed, good = client.answers[500, "2"], client.answers[200, "1"]
        until(lambda: client.answers[200, "1"] > good + 20)
        assert client.answers[500, "2"] == failed
    assert failed >= 10
    taken_back = account.deployment(second)
    assert (taken_back["rollout_state"], taken_back["status"]) == ("FAILED", "INACTIVE")
    assert taken_back["rollout_reason"].startswith(
        f"ECS deployment alarm: {ALARM} is in ALARM, Sum of HTTPCode_Target_5XX_Count was "
    )
    primary = account.service()["deployments"][0]
    assert (primary["id"], primary["rollout_state"]) == (first, "COMPLETED")
    told = [event["message"] for event in account.service()["events"]]
    assert sum("rolling back to deployment" in message for message in told) == 1
    [started] = account.running()
    assert started["id"] not in before
    changes = account.client.get("alarm", ALARM)["changes"]
    assert [change["state"] for change in changes] == ["ALARM", "OK"]
    # What CloudFormation does next, putting the old properties again, must not begin anything.
    assert account.serve(account.define("1"), **one) == first

    # The alarm is still on. ECS then watches none, so that a mend can be deployed; this is none.
    third = account.serve(account.define("3", "wrong"), **one)
    account.stable()
    assert account.deployment(third)["rollout_state"] == "COMPLETED"
    assert any(
        f"watches no alarms during this deployment; in ALARM already: {ALARM}" in event["message"]
        for event in account.service()["events"]
    )


def test_a_watched_deployment_is_completed_some_time_after_its_tasks_serve(account: Account) -> None:
    account.client.put("alarm", ALARM, SERVER_ERRORS)
    account.serve(account.define("1"), **WATCHED)
    account.stable()
    account.serve(account.define("2"), **WATCHED)
    account.stable()
    told = account.service()["events"]  # the newest comes first

    def when(what: str) -> datetime:
        return next(datetime.fromisoformat(e["created_at"]) for e in told if what in e["message"])

    assert when("stopped 1 running tasks") <= when("is watched for another 5 s")
    # The wait is not by the clock that is told.
    assert when("deployment completed") - when("is watched for another") >= timedelta(
        seconds=BAKE_SECONDS - 1
    )


def test_an_alarm_that_is_only_told_of_ends_nothing(account: Account) -> None:
    """Without Rollback the failed revision stays; with Enable false nobody looks."""
    account.client.put("alarm", ALARM, SERVER_ERRORS)
    alarms = {"AlarmNames": [ALARM], "Enable": True, "Rollback": False}
    account.serve(account.define("1"))
    account.stable()
    with Client(account.url):
        second = account.serve(account.define("2", "wrong"), DeploymentConfiguration={"Alarms": alarms})
        until(lambda: account.deployment(second)["rollout_state"] == "FAILED")
    assert account.service()["deployments"][0]["id"] == second
    account.client.delete("alarm", ALARM)
    account.client.put("alarm", ALARM, SERVER_ERRORS)
    with Client(account.url) as client:
        unwatched = {"Alarms": {**alarms, "Enable": False}}
        third = account.serve(account.define("3", "wrong"), DeploymentConfiguration=unwatched)
        until(lambda: client.answers[500, "3"] > 20)
        account.stable()
    until(lambda: account.client.get("alarm", ALARM)["state"] == "ALARM")
    assert account.deployment(third)["rollout_state"] == "COMPLETED"


def test_alarms_that_are_refused_or_have_no_data(account: Account) -> None:
    put = account.client.put
    with pytest.raises(HostError, match=f"there is no alarm {ALARM}; put it first"):
        account.serve(account.define("1"), **WATCHED)
    other = [{"Name": "LoadBalancer", "Value": "app/other/1"}]
    with pytest.raises(HostError, match=f"{ALARM}: there is no LoadBalancer app/other/1; put it first"):
        put("alarm", ALARM, {**SERVER_ERRORS, "Dimensions": other})
    zone = [{"Name": "AvailabilityZone", "Value": "eu-west-1a"}]
    with pytest.raises(
        HostError, match="by AvailabilityZone is not rehearsed; its dimensions are LoadBalancer"
    ):
        put("alarm", ALARM, {**SERVER_ERRORS, "Dimensions": zone})
    with pytest.raises(HostError, match="give it a Statistic or an ExtendedStatistic, and not both"):
        put("alarm", ALARM, {**SERVER_ERRORS, "ExtendedStatistic": "p95"})
    with pytest.raises(HostError, match="DatapointsToAlarm is more than EvaluationPeriods"):
        put("alarm", ALARM, {**SERVER_ERRORS, "DatapointsToAlarm": 2})
    with pytest.raises(HostError, match=f"{ALARM}: Period: Field required"):
        put("alarm", ALARM, {name: value for name, value in SERVER_ERRORS.items() if name != "Period"})
    told = put("alarm", ALARM, {"Namespace": "AWS/ECS", "MetricName": "CPUUtilization"})
    assert told == {"not_rehearsed": "AWS/ECS CPUUtilization is not measured in a rehearsal"}
    computed = put("alarm", "mlflow-Rate", {"Metrics": [{"Id": "rate", "Expression": "errors / requests"}]})
    assert computed["not_rehearsed"].startswith("what it computes from several metrics")
    account.serve(account.define("1"), **WATCHED)
    account.stable()
    assert account.client.get("alarm", ALARM)["state"] == "INSUFFICIENT_DATA"


def test_first_deployment_that_fails_leaves_no_task(account: Account) -> None:
    first = account.serve(account.define("1", "exit"))
    until(lambda: account.deployment(first)["rollout_state"] == "FAILED")
    until(lambda: not account.running())
    assert not account.service()["stable"]
    second = account.serve(account.define("1"))
    assert second != first
    assert account.stable()["deployments"][0]["id"] == second


def test_crashed_and_unhealthy_tasks_are_replaced(account: Account) -> None:
    account.serve(account.define("1"))
    account.stable()
    victim = account.running()[0]
    os.kill(victim["pids"][0], signal.SIGKILL)
    until(lambda: victim["id"] not in {task["id"] for task in account.running()})
    account.stable()
    tasks = {task["id"]: task for task in account.service()["tasks"]}
    assert tasks[victim["id"]]["exit_codes"] == {"server": 137}
    assert len(account.running()) == 2
    with Client(account.url) as client:
        account.ask("/sicken")
        sick = until(lambda: [t for t in account.service()["tasks"] if t["stop_code"] == "TaskUnhealthy"])[0]
        account.stable()
    assert client.failed == {}
    assert "failed ELB health checks" in sick["stopped_reason"]
    assert len(account.running()) == 2


def test_memory_limit_and_stop_timeout(account: Account) -> None:
    account.serve(account.define("1", "stubborn"), DesiredCount=1)
    account.stable()
    with contextlib.suppress(urllib.error.HTTPError):
        for _ in range(3):
            account.ask("/leak")
    killed = until(lambda: [task for task in account.service()["tasks"] if task["status"] == "STOPPED"])[0]
    assert killed["stopped_reason"] == "OutOfMemoryError: container killed due to memory usage"
    account.stable()
    began = time.monotonic()
    account.serve(account.define("1", "stubborn"), DesiredCount=0)
    account.stable()
    assert 2 <= time.monotonic() - began < 5
    assert account.service()["tasks"][0]["exit_codes"] == {"server": 137}
    assert account.service()["not_enforced"] == ["server.ReadonlyRootFilesystem"]


def test_draining_lets_requests_finish(account: Account) -> None:
    account.serve(account.define("1"), DesiredCount=1)
    account.stable()
    answers: list[bytes] = []
    slow = threading.Thread(target=lambda: answers.append(account.ask("/slow?seconds=2")))
    slow.start()
    time.sleep(0.3)
    account.serve(account.define("2"), DesiredCount=1)
    until(lambda: account.ask("/") == b"2")
    slow.join()
    assert answers == [b"1"]
    account.stable()


def test_service_without_load_balancer_and_scaling(account: Account) -> None:
    account.serve(account.define("1"), LoadBalancers=[], DesiredCount=1)
    account.stable()
    account.serve(account.define("1"), LoadBalancers=[], DesiredCount=3)
    assert len(account.stable()["tasks"]) == 3
    failing = account.serve(account.define("2", "exit"), LoadBalancers=[], DesiredCount=3)
    until(lambda: account.deployment(failing)["rollout_state"] == "FAILED")
    account.client.delete("service", SERVICE)
    with pytest.raises(HostError, match="there is no service"):
        account.service()


def test_minimum_and_maximum_of_a_tight_update(account: Account) -> None:
    tight = {"DeploymentConfiguration": {"MinimumHealthyPercent": 50, "MaximumPercent": 100}}
    account.serve(account.define("1"), **tight)
    account.stable()
    account.serve(account.define("2"), **tight)
    most, fewest = 0, 9
    while not (service := account.service())["stable"]:
        most = max(most, sum(task["status"] in ("PENDING", "RUNNING") for task in service["tasks"]))
        fewest = min(fewest, sum(task["health"] == "HEALTHY" for task in service["tasks"]))
    assert (most, fewest) == (2, 1)


def test_container_health_check(account: Account) -> None:
    check = {"Command": ["CMD-SHELL", "test ! -e sick"], "Interval": 0.2, "Retries": 2}
    account.serve(account.define("1", container={"HealthCheck": check}), LoadBalancers=[], DesiredCount=1)
    account.stable()
    (account.folder / "sick").touch()
    sick = until(lambda: [t for t in account.service()["tasks"] if t["stop_code"] == "TaskUnhealthy"])[0]
    assert sick["stopped_reason"] == "Task failed container health checks"
    (account.folder / "sick").unlink()
    account.stable()


@pytest.fixture
def aws() -> Iterator[str]:
    """A moto server of its own; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def answers() -> bool:
        try:
            return bool(urllib.request.urlopen(f"{url}/moto-api/", timeout=1).status == 200)
        except OSError:
            return False

    until(answers)
    yield url
    server.kill()
    server.wait()


def test_roles_secrets_and_environment(account: Account, aws: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = boto3.client(
        "sts", endpoint_url=aws, region_name="eu-west-1", aws_access_key_id="x", aws_secret_access_key="x"
    )
    keys = first.assume_role(RoleArn="arn:aws:iam::222222222222:role/admin", RoleSessionName="set-up")[
        "Credentials"
    ]
    session = boto3.session.Session(
        keys["AccessKeyId"], keys["SecretAccessKey"], keys["SessionToken"], region_name="eu-west-1"
    )
    iam = session.client("iam", endpoint_url=aws)
    vault = session.client("secretsmanager", endpoint_url=aws)
    ssm = session.client("ssm", endpoint_url=aws)
    given = vault.create_secret(
        Name="database", SecretString=json.dumps({"password": "s:p@/%", "port": 5432})
    )["ARN"]
    kept = vault.create_secret(Name="kept", SecretString="nobody")["ARN"]
    ssm.put_parameter(Name="/platform/flag", Value="on", Type="String")
    # moto looks at trust policies, but knows no service principals: this one stands for
    # ecs-tasks.amazonaws.com.
    anyone = {"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}
    trust = json.dumps({"Version": "2012-10-17", "Statement": [anyone]})

    def role(name: str, actions: list[str], resource: str) -> str:
        arn: str = iam.create_role(RoleName=name, AssumeRolePolicyDocument=trust)["Role"]["Arn"]
        statement = {"Effect": "Allow", "Action": actions, "Resource": resource}
        policy = {"Version": "2012-10-17", "Statement": [statement]}
        iam.put_role_policy(RoleName=name, PolicyName="p", PolicyDocument=json.dumps(policy))
        return arn

    role("admin", ["*"], "*")
    execution = role("execution", ["secretsmanager:GetSecretValue", "ssm:GetParameter"], "*")
    narrow = role("narrow", ["secretsmanager:GetSecretValue"], given)
    task_role = role("task", ["ssm:GetParameter"], "*")
    admin = first.assume_role(RoleArn="arn:aws:iam::222222222222:role/admin", RoleSessionName="host")[
        "Credentials"
    ]
    enforce = urllib.request.Request(f"{aws}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"})
    urllib.request.urlopen(enforce).read()
    account.credentials = {
        "endpoint": aws,
        "region": "eu-west-1",
        "admin": {
            "access_key_id": admin["AccessKeyId"],
            "secret_access_key": admin["SecretAccessKey"],
            "session_token": admin["SessionToken"],
        },
    }
    wanted = [
        {"Name": "PASSWORD", "ValueFrom": f"{given}:password::"},
        {"Name": "PORT", "ValueFrom": f"{given}:port:AWSCURRENT:"},
        {"Name": "WHOLE", "ValueFrom": given},
        {"Name": "FLAG", "ValueFrom": "arn:aws:ssm:eu-west-1:222222222222:parameter/platform/flag"},
    ]

    def deploy(revision: str, secrets: list[dict[str, str]], execution_role: str) -> str:
        definition = account.define(
            revision, container={"Secrets": secrets}, ExecutionRoleArn=execution_role, TaskRoleArn=task_role
        )
        return account.serve(definition, DesiredCount=1)

    deploy("1", wanted, execution)
    account.stable()
    environment = json.loads(account.ask("/environment"))
    assert environment["PASSWORD"] == "s:p@/%"
    assert environment["PORT"] == "5432"
    assert json.loads(environment["WHOLE"])["port"] == 5432
    assert environment["FLAG"] == "on"
    assert "AWS_ACCESS_KEY_ID" not in environment
    assert "AWS_PROFILE" not in environment
    assert environment["HOME"].startswith(str(account.state))
    assert environment["AWS_ENDPOINT_URL"] == aws

    # With the task's own environment the SDK gets the task role's keys, and they allow what its policy says,
    # no more.
    code = (
        "import boto3\n"
        "print(boto3.client('ssm').get_parameter(Name='/platform/flag')['Parameter']['Value'])\n"
        "try: boto3.client('secretsmanager').get_secret_value(SecretId='kept')\n"
        "except Exception as error: print(error)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert said.stdout.startswith("on\n"), said
    assert "AccessDenied" in said.stdout
    denied = urllib.request.Request(environment["AWS_CONTAINER_CREDENTIALS_FULL_URI"])
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(denied)

    failing = deploy("2", [{"Name": "KEPT", "ValueFrom": kept}], narrow)
    until(lambda: account.deployment(failing)["rollout_state"] == "FAILED")
    reason = next(t["stopped_reason"] for t in account.service()["tasks"] if t["deployment"] == failing)
    assert reason.startswith("ResourceInitializationError")
    assert "AccessDenied" in reason
    assert kept in reason
    missing = deploy("3", [{"Name": "USER", "ValueFrom": f"{given}:user::"}], execution)
    until(lambda: account.deployment(missing)["rollout_state"] == "FAILED")
    reason = next(t["stopped_reason"] for t in account.service()["tasks"] if t["deployment"] == missing)
    assert "did not contain json key user" in reason
    assert account.ask("/") == b"1"


def test_what_a_killed_host_leaves_can_be_stopped(account: Account) -> None:
    account.serve(account.define("1", "stubborn"))
    account.stable()
    pids = [pid for task in account.running() for pid in task["pids"]]
    host = json.loads((account.state / "host.json").read_text())
    assert (account.state / "host.json").stat().st_mode & 0o777 == 0o600
    os.kill(host["pid"], signal.SIGKILL)
    os.waitpid(host["pid"], 0)
    assert all(lives(pid) for pid in pids)
    registry = ProcessRegistry(account.state / "processes")
    stopped = {process.pid for process in registry.stop_all(0.5)}
    assert set(pids) <= stopped
    assert not any(lives(pid) for pid in pids)


def test_a_host_that_starts_again_takes_up_its_services(account: Account) -> None:
    account.client.put("alarm", ALARM, SERVER_ERRORS)
    first = account.serve(account.define("1"))
    account.stable()
    pids = [pid for task in account.running() for pid in task["pids"]]
    host = json.loads((account.state / "host.json").read_text())
    os.kill(host["pid"], signal.SIGKILL)
    os.waitpid(host["pid"], 0)
    assert all(lives(pid) for pid in pids)
    account.client = start_host(account.state, account.folder / "host.log")
    assert not any(lives(pid) for pid in pids)
    account.stable()
    assert account.ask("/") == b"1"  # at the old address
    until(lambda: account.client.get("alarm", ALARM)["state"] == "OK")
    assert account.serve(account.define("1")) == first
    second = account.serve(account.define("2", "exit"))
    until(lambda: account.deployment(second)["rollout_state"] == "FAILED")
    account.stable()
    account.client.stop()
    assert not account.client.answers()
    assert not ProcessRegistry(account.state / "processes").alive()


def test_refusals_are_sentences(account: Account) -> None:
    with pytest.raises(HostError, match="there is no task definition arn:x; put it first"):
        account.serve("arn:x")
    definition = account.define("1")
    entry = {"TargetGroupArn": GROUP, "ContainerName": "server", "ContainerPort": 5001}
    with pytest.raises(HostError, match="does not map port 5001"):
        account.serve(definition, LoadBalancers=[entry])
    with pytest.raises(HostError, match=r"DeploymentController.Type: Input should be 'ECS'"):
        account.serve(definition, DeploymentController={"Type": "CODE_DEPLOY"})
    with pytest.raises(HostError, match="still used by"):
        account.client.delete("target-group", GROUP)
    with pytest.raises(HostError, match="kind 'cluster' is not rehearsed"):
        account.client.put("cluster", "arn:y", {})
    host = json.loads((account.state / "host.json").read_text())
    stranger = urllib.request.Request(f"http://127.0.0.1:{host['port']}/stop", data=b"{}", method="POST")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(stranger)
    with pytest.raises(HostError, match="no host runs for"):
        HostClient(account.folder / "elsewhere").get("service", SERVICE)
