"""The migration of every environment: before the service, by the release's own image, with little power; and a restore."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from operations.migrate import CONTAINER, STREAM_PREFIX, VARIABLES
from stages.settings import Settings

from .assembly import ROOT, Assembly, Json, Platform, Resource, assert_valid
from .conftest import ALLOWED_REVISION, SNAPSHOT
from .test_tracking import documented_variables, variables

MASTER, OWN = "<data/Database.MasterUserSecret.SecretArn>", "<data/DatabaseUser>"
SNAPSHOT_ACTIONS = {
    "rds:AddTagsToResource",
    "rds:CreateDBSnapshot",
    "rds:DescribeDBSnapshots",
}
BUILD_ACTIONS = {"ecs:DescribeTasks", "ecs:RunTask", "iam:PassRole", "logs:GetLogEvents", "ssm:PutParameter"}
OF_EVERY_BUILD = ("codebuild:", "ec2:", "kms:", "logs:Create", "logs:Put", "s3:GetObject")
"""What CodeBuild needs for any build in a network: interfaces, its own log and reports, its key, the source."""


@pytest.fixture
def container(platform: Platform) -> Json:
    return platform.container("migration")


def secrets(container: Json) -> dict[str, str]:
    return {secret["Name"]: secret["ValueFrom"] for secret in container["Secrets"]}


def build_variables(platform: Platform) -> dict[str, str]:
    environment = platform.at("migration/Migrate/Project").properties["Environment"]
    return {v["Name"]: v["Value"] for v in environment["EnvironmentVariables"]}


# The task


def test_the_task_migrates_with_the_service_s_own_image(platform: Platform, container: Json) -> None:
    service = platform.container("tracking")
    assert container["Image"] == service["Image"]
    assert (container["Command"], service["Command"]) == (["migrate"], ["serve"])


def test_the_task_meets_the_service_s_own_database(platform: Platform, container: Json) -> None:
    service = platform.container("tracking")
    given = variables(container)
    address = {"DATABASE_ENGINE", "DATABASE_HOST", "DATABASE_PORT", "DATABASE_NAME", "DATABASE_SSLMODE"}
    assert {name: given[name] for name in address} == {name: variables(service)[name] for name in address}
    # The servers' keys are none of the migration's business, and the master none of the service's.
    own = {name: secrets(service)[name] for name in ("DATABASE_USER", "DATABASE_PASSWORD")}
    assert secrets(container) == {
        **own,
        "DATABASE_SETUP_USER": f"{MASTER}:username::",
        "DATABASE_SETUP_PASSWORD": f"{MASTER}:password::",
    }
    assert given["DATABASE_SECRET_ARN"] == variables(service)["DATABASE_SECRET_ARN"] == OWN
    assert given.keys() - address == {"DATABASE_INSTANCE", "DATABASE_SECRET_ARN"}, (
        "nothing is allowed and nothing restored by default"
    )
    assert given["DATABASE_INSTANCE"] == f"<{platform.only('AWS::RDS::DBInstance').path}>"


def test_the_image_reads_every_variable_that_the_migration_is_given(container: Json) -> None:
    """Also those of a release and of some settings; what has no meaning to the image would be ignored in silence."""
    by_the_build = re.findall(
        r'"name": "([A-Z_]+)"', (ROOT / "operations" / "migrate.py").read_text(encoding="utf-8")
    )
    assert by_the_build == ["RELEASE_COMMIT"]
    by_settings = {"ALLOW_BREAKING_MIGRATION", "DATABASE_RESTORED_FROM"}
    assert {
        *variables(container),
        *secrets(container),
        *by_the_build,
        *by_settings,
    } <= documented_variables().keys()


def test_a_migration_has_time_to_roll_back_and_writes_to_tmp_alone(container: Json) -> None:
    assert container["StopTimeout"] == 120, "the longest that Fargate allows"
    assert container["ReadonlyRootFilesystem"] is True
    assert [mount["ContainerPath"] for mount in container["MountPoints"]] == ["/tmp"]
    assert "PortMappings" not in container


def test_the_task_may_take_snapshots_of_its_own_databases_and_no_more(platform: Platform) -> None:
    """And read again what its own password is; no artifacts, no other secrets, no deleting and no restoring."""
    account, region = platform.settings.account, platform.settings.region
    database = f"arn:aws:rds:{region}:{account}:db:<data/Database>"
    snapshots = f"arn:aws:rds:{region}:{account}:snapshot:{platform.prefix}-database-*"
    expected = {(action, snapshots) for action in SNAPSHOT_ACTIONS} | {
        ("rds:CreateDBSnapshot", database),
        ("secretsmanager:GetSecretValue", OWN),
        ("kms:Decrypt", "<data/DatabaseUserKey.Arn>"),
    }
    allowed = platform.permissions("migration/TaskRole")
    assert {(action, resource) for action, resource, _ in allowed} == expected
    assert "ManagedPolicyArns" not in platform.at("migration/TaskRole").properties


def test_the_task_is_started_with_its_database_s_two_secrets_and_no_other(platform: Platform) -> None:
    task = platform.at("migration/Task/Definition").properties
    assert task["TaskRoleArn"] == "<migration/TaskRole.Arn>"
    assert task["ExecutionRoleArn"] == "<migration/Task/Definition/ExecutionRole.Arn>"
    allowed = platform.permissions("migration/Task/Definition/ExecutionRole")
    assert {r for action, r, _ in allowed if action.startswith("secretsmanager:")} == {MASTER, OWN}
    assert {r for action, r, _ in allowed if action.startswith("logs:")} == {"<migration/Task/Logs.Arn>"}
    services = {action.partition(":")[0] for action, _, _ in allowed}
    assert services == {"ecr", "kms", "logs", "secretsmanager"}


@pytest.mark.parametrize("role", ["migration/TaskRole", "migration/Task/Definition/ExecutionRole"])
def test_only_ecs_tasks_take_on_the_roles_of_the_task(platform: Platform, role: str) -> None:
    (statement,) = platform.at(role).properties["AssumeRolePolicyDocument"]["Statement"]
    assert (statement["Action"], statement["Principal"]) == (
        "sts:AssumeRole",
        {"Service": "ecs-tasks.amazonaws.com"},
    )


# The build that runs it


def test_the_build_may_run_this_task_and_note_the_release_and_no_more(platform: Platform) -> None:
    account, region = platform.settings.account, platform.settings.region
    in_cluster = {"ArnEquals": {"ecs:cluster": "<migration/Cluster.Arn>"}}
    to_tasks = {"StringEquals": {"iam:PassedToService": "ecs-tasks.amazonaws.com"}}
    expected: list[tuple[str, str, Json]] = [
        ("ecs:RunTask", "<migration/Task/Definition>", in_cluster),
        ("ecs:DescribeTasks", f"arn:aws:ecs:{region}:{account}:task/<migration/Cluster>/*", in_cluster),
        ("iam:PassRole", "<migration/TaskRole.Arn>", to_tasks),
        ("iam:PassRole", "<migration/Task/Definition/ExecutionRole.Arn>", to_tasks),
        ("logs:GetLogEvents", "<migration/Task/Logs.Arn>", {}),
        ("ssm:PutParameter", f"arn:aws:ssm:{region}:{account}:parameter/{platform.prefix}/release", {}),
    ]
    allowed = platform.permissions("migration/Migrate/Role")
    own = [permission for permission in allowed if not permission[0].startswith(OF_EVERY_BUILD)]
    assert sorted(own, key=str) == sorted(expected, key=str)
    for action, resource, _ in allowed:
        assert resource != "*" or action.startswith("ec2:"), f"{action} on everything"
        assert not resource.startswith(("<data/", "<tracking/")), f"{action} on {resource}"


def test_the_build_gives_the_command_every_variable_it_needs(platform: Platform) -> None:
    given = build_variables(platform)
    assert given.keys() == set(VARIABLES) - {"CODEBUILD_RESOLVED_SOURCE_VERSION"}, "that one is CodeBuild's"
    assert given["MIGRATION_CLUSTER"] == "<migration/Cluster>"
    assert given["MIGRATION_TASK_DEFINITION"] == "<migration/Task/Definition>"
    assert given["RELEASE_PARAMETER"] == f"/{platform.prefix}/release"
    assert given["MIGRATION_SECURITY_GROUP"] == "<migration/MigrationGroup.GroupId>"
    subnets = given["MIGRATION_SUBNETS"].split(",")
    assert len(subnets) == platform.settings.availability_zones
    assert all("/Vpc/privateSubnet" in subnet for subnet in subnets)


def test_the_command_follows_the_log_that_the_task_writes(platform: Platform, container: Json) -> None:
    options = container["LogConfiguration"]["Options"]
    assert build_variables(platform)["MIGRATION_LOG_GROUP"] == options["awslogs-group"]
    assert (options["awslogs-stream-prefix"], container["Name"]) == (STREAM_PREFIX, CONTAINER)


def test_the_build_runs_the_release_s_own_command_inside_the_network(platform: Platform) -> None:
    project = platform.at("migration/Migrate/Project").properties
    assert project["Name"] == f"{platform.prefix}-migrate"
    assert project["Environment"]["PrivilegedMode"] is False
    assert project["VpcConfig"]["VpcId"] == "<network/Vpc>"
    assert all("/Vpc/privateSubnet" in subnet for subnet in project["VpcConfig"]["Subnets"])
    spec = yaml.safe_load((ROOT / project["Source"]["BuildSpec"]).read_text(encoding="utf-8"))
    assert spec["phases"]["build"] == {
        "on-failure": "ABORT",
        "commands": [
            'test -z "$WAKE_CLUSTER" || .venv/bin/python -m operations.wake',
            ".venv/bin/python -m operations.migrate",
            'export SCHEMA="$(cat reports/schema.txt)"',
        ],
    }


def test_the_build_outlasts_a_long_migration(platform: Platform) -> None:
    assert 60 <= platform.at("migration/Migrate/Project").properties["TimeoutInMinutes"] <= 480


def test_only_the_pipeline_may_start_the_build(platform: Platform, settings: Settings) -> None:
    starter = platform.at("migration/Migrate/Starter").properties
    assert starter["RoleName"] == f"{platform.prefix}-migrate-starter"
    (statement,) = starter["AssumeRolePolicyDocument"]["Statement"]
    tooling = f"arn:aws:iam::{settings.tooling.account}"
    assert statement["Principal"] == {"AWS": f"{tooling}:root"}
    assert statement["Condition"] == {
        "ArnEquals": {"aws:PrincipalArn": f"{tooling}:role/{settings.name}-pipeline"}
    }
    allowed = platform.permissions("migration/Migrate/Starter")
    assert {resource for _, resource, _ in allowed} == {"<migration/Migrate/Project.Arn>"}
    assert {action for action, _, _ in allowed} == {
        "codebuild:BatchGetBuilds",
        "codebuild:StartBuild",
        "codebuild:StopBuild",
    }


def test_the_service_s_roles_cannot_take_snapshots_or_run_tasks(platform: Platform) -> None:
    for role in ("tracking/TaskRole", "tracking/Task/Definition/ExecutionRole", "gates/Smoke/Role"):
        actions = {action for action, _, _ in platform.permissions(role)}
        assert not [action for action in actions if action.startswith(("rds:", "ecs:", "iam:"))], role


# A restore: a new database from a snapshot beside the old one


@pytest.fixture(scope="session")
def restored_platform(restored: Assembly) -> Platform:
    return restored.platform("dev")


@pytest.fixture(scope="session")
def dev(assembly: Assembly) -> Platform:
    return assembly.platform("dev")


@pytest.fixture(scope="session")
def old(dev: Platform) -> Resource:
    return dev.only("AWS::RDS::DBInstance")


@pytest.fixture(scope="session")
def new(restored_platform: Platform, old: Resource) -> Resource:
    """Beside the first one: another logical id, so that CloudFormation makes it and leaves the first alone."""
    (found,) = (r for r in restored_platform.all("AWS::RDS::DBInstance") if r.path != old.path)
    return found


def test_a_restored_database_has_a_name_of_its_own(old: Resource, new: Resource) -> None:
    first, second = old.properties["DBInstanceIdentifier"], new.properties["DBInstanceIdentifier"]
    assert re.fullmatch(re.escape(first) + r"-[0-9a-f]{8}", second)
    assert len(second) <= 63, "RDS allows no longer name"


def test_what_a_snapshot_brings_is_not_given_again(new: Resource) -> None:
    """RDS refuses a name, a user or a key beside a snapshot that has them."""
    assert new.properties["DBSnapshotIdentifier"] == SNAPSHOT
    brought = {"DBName", "MasterUsername", "MasterUserPassword", "KmsKeyId", "StorageEncrypted"}
    assert not brought & new.properties.keys()


def test_in_every_other_respect_it_is_the_same_database(dev: Platform, old: Resource, new: Resource) -> None:
    own = {"DBInstanceIdentifier", "DBSnapshotIdentifier", "DBSubnetGroupName", "MonitoringRoleArn"}
    brought = {
        "DBName",
        "MasterUsername",
        "KmsKeyId",
        "StorageEncrypted",
        "AllocatedStorage",
        "EngineVersion",
    }
    kept = {name: value for name, value in old.properties.items() if name not in own | brought}
    assert {name: value for name, value in new.properties.items() if name not in own} == kept
    assert kept["ManageMasterUserPassword"] is True
    assert kept["DeletionProtection"] is dev.settings.database.deletion_protection
    assert new.deletion_policy == "Retain"


def test_the_first_database_stays_as_it_is(dev: Platform, restored_platform: Platform, old: Resource) -> None:
    """And so does all it stands on: its key, subnets, group, parameters and logs."""
    assert restored_platform.at(old.path) == old
    assert old.deletion_policy == "Retain"
    changed = {
        resource.path
        for resource in dev.resources
        if resource.path.startswith("data/") and resource not in restored_platform.resources
    }
    assert all(path.endswith("Alarm") for path in changed), changed
    assert changed, "alarms watch the database in use"


def test_service_and_migration_turn_to_the_restored_database(
    restored_platform: Platform, new: Resource
) -> None:
    for stack in ("migration", "tracking"):
        container = restored_platform.container(stack)
        assert variables(container)["DATABASE_HOST"] == f"<{new.path}.Endpoint.Address>"
        assert variables(container)["DATABASE_PORT"] == f"<{new.path}.Endpoint.Port>"
        known = {
            f"<{new.path}User>",
            *([f"<{new.path}.MasterUserSecret.SecretArn>"] if stack == "migration" else []),
        }
        given = {name: told for name, told in secrets(container).items() if name.startswith("DATABASE_")}
        assert set(given.values()) == {f"{one}:{key}::" for one in known for key in ("username", "password")}
        allowed = restored_platform.permissions(f"{stack}/Task/Definition/ExecutionRole")
        read = {r for action, r, _ in allowed if action.startswith("secretsmanager:")}
        assert {r for r in read if not r.startswith("<data/ServerKeys/")} == known
    allowed = restored_platform.permissions("migration/TaskRole")
    assert [r for _, r, _ in allowed if ":db:" in r] == [
        f"arn:aws:rds:{restored_platform.settings.region}:{restored_platform.settings.account}:db:<{new.path}>"
    ]


def test_the_migration_is_told_what_was_decided(restored_platform: Platform, new: Resource) -> None:
    given = variables(restored_platform.container("migration"))
    assert given["ALLOW_BREAKING_MIGRATION"] == ALLOWED_REVISION
    assert given["DATABASE_RESTORED_FROM"] == SNAPSHOT
    assert given["DATABASE_INSTANCE"] == f"<{new.path}>"
    for name in ("ALLOW_BREAKING_MIGRATION", "DATABASE_RESTORED_FROM"):
        assert name not in variables(restored_platform.container("tracking"))


def test_its_snapshots_and_alarms_are_those_of_the_restored_database(
    restored_platform: Platform, new: Resource
) -> None:
    """A snapshot is named after its database; the policy must cover that name, too."""
    allowed = restored_platform.permissions("migration/TaskRole")
    assert {r.rpartition(":snapshot:")[2] for action, r, _ in allowed if "Describe" in action} == {
        f"{restored_platform.prefix}-database-*",
        SNAPSHOT,
    }
    (pattern,) = {
        r.rpartition(":snapshot:")[2] for action, r, _ in allowed if "Create" in action and ":snapshot:" in r
    }
    assert f"{new.properties['DBInstanceIdentifier']}-{ALLOWED_REVISION}".startswith(
        pattern.removesuffix("*")
    )
    watched = [
        dimension["Value"]
        for alarm in restored_platform.all("AWS::CloudWatch::Alarm")
        for dimension in alarm.properties.get("Dimensions", [])
        if dimension["Name"] == "DBInstanceIdentifier"
    ]
    assert watched
    assert set(watched) == {f"<{new.path}>"}


def test_a_restored_environment_has_no_lint(restored: Assembly, tmp_path: Path) -> None:
    """cdk-nag looked at it when it was synthesized; this is CloudFormation's own linter."""
    templates = list(restored.templates)
    assert len(templates) == 5
    assert_valid(templates, tmp_path)
