"""Every engine besides the shipped one, synthesized: encrypted, watched, backed up, TLS only, and known to the tasks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from stages.settings import Settings

from .assembly import Assembly, Platform, Resource
from .conftest import SNAPSHOT, synthesized_dev

INSTANCE = {"instance_class": "m7g.large", "storage_gib": 50, "min_capacity": None, "max_capacity": None}
CLUSTER = {"instance_class": None, "storage_gib": None, "min_capacity": 0.5, "max_capacity": 8.0}

DATABASES: dict[str, dict[str, Any]] = {
    "mysql": {**INSTANCE, "engine": "mysql", "multi_az": True, "deletion_protection": True},
    "aurora-postgres": {
        **CLUSTER,
        "engine": "aurora-postgres",
        "multi_az": True,
        "deletion_protection": True,
        "restore_from": SNAPSHOT,
    },
    "aurora-mysql": {**CLUSTER, "engine": "aurora-mysql", "min_capacity": 0.0},
}
AURORA = [name for name in DATABASES if name != "mysql"]
Synthesized = Callable[[str], Assembly]


@pytest.fixture(scope="module")
def synthesized(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Synthesized:
    @cache
    def of(name: str) -> Assembly:
        content = settings.model_dump()
        content["environments"]["dev"]["database"] |= DATABASES[name]
        return synthesized_dev(content, tmp_path_factory.mktemp(name))

    return of


@pytest.fixture(params=DATABASES)
def assembly_of(request: pytest.FixtureRequest, synthesized: Synthesized) -> Assembly:
    return synthesized(request.param)


@pytest.fixture
def dev(assembly_of: Assembly) -> Platform:
    return assembly_of.platform("dev")


@pytest.fixture
def database(dev: Platform) -> Resource:
    """What holds the data: the cluster, or the instance that has none."""
    kind = "DBCluster" if dev.settings.database.engine.startswith("aurora-") else "DBInstance"
    return dev.all(f"AWS::RDS::{kind}")[-1]


@pytest.fixture
def running(dev: Platform) -> list[Resource]:
    """What runs it, and can be reached."""
    return dev.all("AWS::RDS::DBInstance")


def test_it_is_encrypted_and_its_password_is_kept_by_rds(database: Resource) -> None:
    key = "<data/DatabaseKey.Arn>"
    assert database.properties["KmsKeyId"] == key or "DBSnapshotIdentifier" in database.properties
    assert database.properties["MasterUserSecret"]["KmsKeyId"] == key
    assert database.properties["ManageMasterUserPassword"] is True
    assert "MasterUserPassword" not in database.properties


def test_it_is_backed_up_and_outlives_the_stack(dev: Platform, database: Resource) -> None:
    wanted = dev.settings.database
    assert database.properties["BackupRetentionPeriod"] == wanted.backup_days
    assert database.properties["DeleteAutomatedBackups"] is False
    assert database.properties["DeletionProtection"] is wanted.deletion_protection
    assert database.properties["CopyTagsToSnapshot"] is True
    assert database.deletion_policy == "Retain"


def test_it_is_watched(dev: Platform, database: Resource) -> None:
    watched = database.properties
    performance = [
        watched[name]
        for name in watched
        if name in ("EnablePerformanceInsights", "PerformanceInsightsEnabled")
    ]
    assert performance == [True]
    assert watched.get("PerformanceInsightsKMSKeyId", watched.get("PerformanceInsightsKmsKeyId")) == (
        "<data/DatabaseKey.Arn>"
    )
    assert watched["MonitoringInterval"] == 60
    alarms = {alarm.properties["AlarmName"] for alarm in dev.all("AWS::CloudWatch::Alarm")}
    full = "DatabaseStorage" if database.type.endswith("DBInstance") else "DatabaseCapacity"
    assert {f"{dev.prefix}-DatabaseCpu", f"{dev.prefix}-{full}"} <= alarms


def test_it_refuses_connections_without_tls(dev: Platform, database: Resource) -> None:
    name = (
        database.properties.get("DBClusterParameterGroupName") or database.properties["DBParameterGroupName"]
    )
    parameters = dev.at(name.strip("<>")).properties["Parameters"]
    wanted = "require_secure_transport" if "mysql" in dev.settings.database.engine else "rds.force_ssl"
    assert parameters[wanted] == "1"


def test_triggers_can_be_made_on_mysql(dev: Platform, running: list[Resource]) -> None:
    if "mysql" not in dev.settings.database.engine:
        return
    for instance in running:
        group = dev.at(instance.properties["DBParameterGroupName"].strip("<>"))
        assert group.properties["Parameters"]["log_bin_trust_function_creators"] == "1"


def test_it_is_private(running: list[Resource]) -> None:
    for instance in running:
        assert instance.properties["PubliclyAccessible"] is False


def test_its_logs_are_kept_for_a_while(dev: Platform, database: Resource) -> None:
    exported = database.properties["EnableCloudwatchLogsExports"]
    identifier = database.properties.get("DBClusterIdentifier") or database.properties["DBInstanceIdentifier"]
    kind = "cluster" if database.type.endswith("DBCluster") else "instance"
    groups = {g.properties.get("LogGroupName"): g.properties for g in dev.all("AWS::Logs::LogGroup")}
    for log in exported:
        assert groups[f"/aws/rds/{kind}/{identifier}/{log}"]["RetentionInDays"] == 90


def test_its_own_user_s_password_is_rotated(dev: Platform, database: Resource) -> None:
    """That of the server in use: a restored one has a user, and a secret, of its own."""
    kind = "MySQLSingleUser" if "mysql" in dev.settings.database.engine else "PostgreSQLSingleUser"
    schedule = dev.only("AWS::SecretsManager::RotationSchedule").properties
    assert schedule["HostedRotationLambda"]["RotationType"] == kind
    attached = {
        attachment.properties["SecretId"]: attachment.properties["TargetId"]
        for attachment in dev.all("AWS::SecretsManager::SecretTargetAttachment")
    }
    assert attached[schedule["SecretId"]] == f"<{database.path}>"
    assert len(set(attached.values())) == len(attached)


def test_both_tasks_reach_it_and_no_one_else(dev: Platform, database: Resource) -> None:
    mysql = "mysql" in dev.settings.database.engine
    port = 3306 if mysql else 5432
    for stack in ("tracking", "migration"):
        given = dev.variables(stack)
        assert given["DATABASE_ENGINE"] == ("mysql" if mysql else "postgresql")
        assert given["DATABASE_SSLMODE"] == "verify-full"
        assert given["DATABASE_HOST"].startswith(f"<{database.path}.Endpoint")
        assert given["DATABASE_PORT"] in (str(port), f"<{database.path}.Endpoint.Port>")
    opened = [
        rule.properties
        for rule in dev.all("AWS::EC2::SecurityGroupIngress")
        if rule.properties["GroupId"] == "<data/DatabaseGroup.GroupId>"
    ]
    assert {(rule["FromPort"], rule["ToPort"], rule["SourceSecurityGroupId"]) for rule in opened} == {
        (port, port, "<tracking/ServiceGroup.GroupId>"),
        (port, port, "<migration/MigrationGroup.GroupId>"),
        (port, port, "<tracking/RotationGroup.GroupId>"),
    }


def test_the_migration_may_take_snapshots_of_it_alone(dev: Platform, database: Resource) -> None:
    cluster = database.type.endswith("DBCluster")
    kind, resource = ("Cluster", "cluster-snapshot") if cluster else ("", "snapshot")
    granted = {
        (action, place.rpartition(":")[2] if ":" in place else place)
        for action, place, _ in dev.permissions("migration/TaskRole")
        if action.startswith("rds:")
    }
    names = f"{dev.prefix}-database-*"
    known = {(f"rds:DescribeDB{kind}Snapshots", SNAPSHOT)} if dev.settings.database.restore_from else set()
    own = {place for action, place in granted if action == f"rds:CreateDB{kind}Snapshot"} - {names}
    assert granted - {(f"rds:CreateDB{kind}Snapshot", place) for place in own} == {
        (f"rds:CreateDB{kind}Snapshot", names),
        (f"rds:DescribeDB{kind}Snapshots", names),
        ("rds:AddTagsToResource", names),
        *known,
    }
    assert len(own) == 1
    assert database.path in own.pop()
    snapshots = [place for action, place, _ in dev.permissions("migration/TaskRole") if place.endswith(names)]
    assert all(f":{resource}:" in place for place in snapshots)
    given = dev.variables("migration")
    assert given["DATABASE_CLUSTER" if cluster else "DATABASE_INSTANCE"] == f"<{database.path}>"


@pytest.mark.parametrize("name", AURORA)
def test_aurora_scales_between_its_bounds(synthesized: Synthesized, name: str) -> None:
    dev = synthesized(name).platform("dev")
    wanted = dev.settings.database
    for cluster in dev.all("AWS::RDS::DBCluster"):
        scaling = cluster.properties["ServerlessV2ScalingConfiguration"]
        assert (scaling["MinCapacity"], scaling["MaxCapacity"]) == (wanted.min_capacity, wanted.max_capacity)
        assert ("SecondsUntilAutoPause" in scaling) is (wanted.min_capacity == 0)
        instances = [
            instance
            for instance in dev.all("AWS::RDS::DBInstance")
            if instance.properties["DBClusterIdentifier"] == f"<{cluster.path}>"
        ]
        assert len(instances) == (2 if wanted.multi_az else 1)
        assert {instance.properties["DBInstanceClass"] for instance in instances} == {"db.serverless"}


def test_a_cluster_that_may_pause_is_not_kept_awake(synthesized: Synthesized) -> None:
    """A pool holds its connections open, and Aurora pauses only when nobody is connected."""
    for name, pooled in (("aurora-mysql", False), ("aurora-postgres", True)):
        task = synthesized(name).platform("dev").at("tracking/Task/Definition")
        (container,) = task.properties["ContainerDefinitions"]
        given = {variable["Name"]: variable["Value"] for variable in container["Environment"]}
        assert ("MLFLOW_SQLALCHEMYSTORE_POOLCLASS" not in given) is pooled


def test_a_restored_cluster_stands_beside_the_first(synthesized: Synthesized) -> None:
    first, restored = synthesized("aurora-postgres").platform("dev").all("AWS::RDS::DBCluster")
    assert "SnapshotIdentifier" not in first.properties
    assert restored.properties["SnapshotIdentifier"] == SNAPSHOT
    assert restored.properties["DBClusterIdentifier"] != first.properties["DBClusterIdentifier"]
    for brought in ("DatabaseName", "MasterUsername", "StorageEncrypted", "EngineVersion"):
        assert brought not in restored.properties
