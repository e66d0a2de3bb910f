"""Running a task and taking snapshots in a rehearsed account: the migration's own stacks, real tasks, real databases.

What is deployed is what `stages/` synthesizes, so that the policies under test are the ones of an environment. The image
is a few lines of Python that each test writes.
"""

from __future__ import annotations

import json
import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pytest
from botocore.exceptions import ClientError
from psycopg import sql

from operations.migrate import migrate
from rehearsal.accounts import Accounts, Key
from rehearsal.cloudformation import CloudFormation, StackFailed
from rehearsal.database_server import remove_files
from rehearsal.databases import opened
from rehearsal.images import Image, ImageStore
from rehearsal.processes import ProcessRegistry
from rehearsal.resources import providers
from rehearsal.resources.declared import Declared
from stages.settings import Environment, Settings, load_settings

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "5f2c1e0d9b8a7f6e5d4c3b2a1f0e9d8c7b6a5f4e"
NETWORK, DATA, MIGRATION = "mlflow-dev-network", "mlflow-dev-data", "mlflow-dev-migration"
FORBIDDEN = "forbidden by the caller's policies"
ADMINISTRATOR = "arn:aws:iam::aws:policy/AdministratorAccess"

MIGRATES = """
    import json, os, sys, time
    import boto3, psycopg
    assert sys.argv[1:] == ["migrate"], sys.argv
    snapshot = os.environ["DATABASE_INSTANCE"] + "-none-20261121-120000"
    database = psycopg.connect(
        host=os.environ["DATABASE_HOST"], port=os.environ["DATABASE_PORT"], dbname=os.environ["DATABASE_NAME"],
        user=os.environ["DATABASE_SETUP_USER"], password=os.environ["DATABASE_SETUP_PASSWORD"], autocommit=True,
    )
    database.execute("CREATE TABLE runs (name text)")
    database.execute("INSERT INTO runs VALUES ('before')")
    rds = boto3.client("rds")
    rds.create_db_snapshot(
        DBSnapshotIdentifier=snapshot, DBInstanceIdentifier=os.environ["DATABASE_INSTANCE"],
        Tags=[{"Key": "commit", "Value": os.environ["RELEASE_COMMIT"]}],
    )
    while (state := rds.describe_db_snapshots(DBSnapshotIdentifier=snapshot)["DBSnapshots"][0])["Status"] == "creating":
        time.sleep(0.1)
    print("snapshot", snapshot, "is", state["Status"], flush=True)
    database.execute("INSERT INTO runs VALUES ('after')")
    print(json.dumps({
        "before": None, "after": "0584bdc529eb", "kind": "additive", "snapshot": snapshot,
        "applied": [{"revision": "0584bdc529eb", "kind": "additive", "reasons": []}],
    }))
"""


class Dev:
    """The rehearsed dev account: its network, its data and its migration deployed, and what the pipeline does there."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.processes = ProcessRegistry(state / "processes")
        self.accounts = Accounts(state)
        self.accounts.start(self.processes)
        self.cloudformation = CloudFormation(state, self.accounts, providers(), Declared())
        self.settings = load_settings()
        self.own: Environment = self.settings.environments.dev
        self.directory = state / "accounts" / f"{self.own.account}-{self.own.region}"
        self.program = state / "image" / "entrypoint.py"
        self._bootstrap()
        templates = synthesize(self.settings, state / "assembly")
        self._image(templates[MIGRATION])
        for stack in (NETWORK, DATA, MIGRATION):
            self.deploy(stack, templates[stack])

    def deploy(self, stack: str, template: dict[str, Any]) -> str:
        return str(
            self.cloudformation.deploy(self.own.account, self.own.region, stack, template, lambda line: None)
        )

    def _bootstrap(self) -> None:
        """What is of use here of the CDK's bootstrap: CloudFormation's own role, and the version that stacks ask for."""
        version = {"Name": "/cdk-bootstrap/hnb659fds/version", "Type": "String", "Value": "30"}
        role = {
            "RoleName": f"cdk-hnb659fds-cfn-exec-role-{self.own.account}-{self.own.region}",
            "AssumeRolePolicyDocument": {
                "Version": "2012-10-17",
                "Statement": [
                    {
                        "Effect": "Allow",
                        "Action": "sts:AssumeRole",
                        "Principal": {"Service": "cloudformation.amazonaws.com"},
                    }
                ],
            },
            "ManagedPolicyArns": [ADMINISTRATOR],
        }
        self.accounts.enforce(False)
        self.deploy(
            "CDKToolkit",
            {
                "Resources": {
                    "Role": {"Type": "AWS::IAM::Role", "Properties": role},
                    "Version": {"Type": "AWS::SSM::Parameter", "Properties": version},
                }
            },
        )
        self.accounts.enforce(True)

    def _image(self, template: dict[str, Any]) -> None:
        """Under the name that the task definition gives it, as if it had been built and pushed."""
        self.program.parent.mkdir(parents=True)
        image = Image(
            digest="sha256:" + "c0ffee" * 10,
            root=str(self.program.parent),
            entrypoint=[sys.executable, str(self.program)],
            command=["serve"],
            environment={},
            directory=str(self.program.parent),
        )
        folder = self.state / "images" / image.digest.removeprefix("sha256:")[:16]
        folder.mkdir(parents=True)
        (folder / "image.json").write_text(json.dumps(asdict(image)))
        (definition,) = (r for r in template["Resources"].values() if r["Type"] == "AWS::ECS::TaskDefinition")
        name = definition["Properties"]["ContainerDefinitions"][0]["Image"]["Fn::Sub"]
        ImageStore(self.state / "images").tag(
            image.digest, name.replace("${AWS::URLSuffix}", "amazonaws.com")
        )

    def is_released(self, program: str) -> None:
        """What the image does from now on."""
        self.program.write_text(textwrap.dedent(program))

    def resource(self, stack: str, type_: str) -> Any:
        deployed = self.cloudformation.stack(self.own.account, self.own.region, stack)
        assert deployed is not None
        (found,) = (resource for resource in deployed.resources.values() if resource.type == type_)
        return found

    def databases(self) -> list[str]:
        """The identifiers of the data stack's instances, the first one first."""
        deployed = self.cloudformation.stack(self.own.account, self.own.region, DATA)
        assert deployed is not None
        found = [r for r in deployed.resources.values() if r.type == "AWS::RDS::DBInstance"]
        return [r.physical.id for r in sorted(found, key=lambda r: "DBSnapshotIdentifier" in r.properties)]

    def build_variables(self) -> dict[str, str]:
        """What CodeBuild gives the migration's build."""
        project = self.resource(MIGRATION, "AWS::CodeBuild::Project").properties
        declared = {v["Name"]: v["Value"] for v in project["Environment"]["EnvironmentVariables"]}
        return {**declared, "CODEBUILD_RESOLVED_SOURCE_VERSION": COMMIT, "PIPELINE_EXECUTION": "execution-7"}

    def role_of_build(self) -> Key:
        role = self.resource(MIGRATION, "AWS::CodeBuild::Project").properties["ServiceRole"]
        return self.accounts.assume(role, "build")

    def client(self, service: str, key: Key | None = None) -> Any:
        """A client with `key`, or one that may do everything in this account."""
        if key is None:
            return self.accounts.client(service, self.own.account, self.own.region)
        return boto3.client(
            service,
            endpoint_url=self.accounts.endpoint,
            region_name=self.own.region,
            aws_access_key_id=key.access_key_id,
            aws_secret_access_key=key.secret_access_key,
            aws_session_token=key.session_token,
        )

    def password(self, instance: str) -> str:
        answer = self.client("secretsmanager").get_secret_value(SecretId=f"rds!db-{instance}")
        return str(json.loads(answer["SecretString"])["password"])

    def connect(self, instance: str, password: str, user: str = "mlflow") -> psycopg.Connection:
        port = int((self.directory / "databases" / instance / "port").read_text())
        return psycopg.connect(host="127.0.0.1", port=port, user=user, password=password, dbname="mlflow")

    def rows(
        self, instance: str, password: str, query: str = "SELECT name FROM runs ORDER BY name"
    ) -> list[str]:
        with self.connect(instance, password) as connection:
            return [str(row[0]) for row in connection.execute(query)]

    def release(self) -> Any:
        """What the release parameter says; None if there is none."""
        ssm = self.client("ssm")
        try:
            value = ssm.get_parameter(Name=self.build_variables()["RELEASE_PARAMETER"])["Parameter"]["Value"]
        except ssm.exceptions.ParameterNotFound:
            return None
        return json.loads(value)


def synthesize(settings: Settings, output: Path) -> dict[str, dict[str, Any]]:
    """Dev's templates by stack name."""
    from aws_cdk import App

    from stages.platform import PlatformStage

    flags = json.loads((ROOT / "cdk.json").read_text(encoding="utf-8"))["context"]
    stage = PlatformStage(
        App(outdir=str(output), context=flags, analytics_reporting=False),
        "Dev",
        settings=settings,
        environment="dev",
    )
    return {stack.stack_name: stack.template for stack in stage.synth().stacks}


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    state = tmp_path_factory.mktemp("state")
    registry = ProcessRegistry(state / "processes")
    made: list[Dev] = []
    try:
        made.append(Dev(state))
        yield made[0]
    finally:
        for host in state.glob("accounts/*/host/processes"):
            ProcessRegistry(host).stop_all(3)
        for file in state.glob("accounts/*/databases/*/engine"):
            opened(file.parent, registry).remove()
        registry.stop_all(3)
        for copy in state.glob("accounts/*/snapshots/*"):
            remove_files(copy)
    assert not registry.alive()


@pytest.fixture
def as_build(dev: Dev, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """This process as the migration's build: its folder, its role's keys, its variables. Waiting is cut short."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        **dev.accounts.environment(dev.own.region),
        **dev.role_of_build().environment(),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    pause = time.sleep
    monkeypatch.setattr("operations.migrate.time.sleep", lambda seconds: pause(min(seconds, 0.1)))
    return dev.build_variables()


def refused(call: Callable[..., Any], **arguments: Any) -> str:
    with pytest.raises(ClientError) as error:
        call(**arguments)
    answer = error.value.response
    if (
        answer["ResponseMetadata"]["HTTPStatusCode"] == 403
    ):  # moto words it in XML, also to clients that expect JSON
        assert "is not authorized to perform" in str(answer), answer
        return FORBIDDEN
    return str(answer["Error"]["Code"])


def run(dev: Dev, key: Key, **overrides: Any) -> dict[str, Any]:
    """Run the task as the build does, and describe it when it has stopped."""
    given, ecs = dev.build_variables(), dev.client("ecs", key)
    started = ecs.run_task(
        cluster=given["MIGRATION_CLUSTER"],
        taskDefinition=given["MIGRATION_TASK_DEFINITION"],
        overrides={"containerOverrides": [{"name": "mlflow", **overrides}]},
    )
    (arn,) = (task["taskArn"] for task in started["tasks"])
    for _ in range(200):
        (task,) = ecs.describe_tasks(cluster=given["MIGRATION_CLUSTER"], tasks=[arn])["tasks"]
        if task["lastStatus"] == "STOPPED":
            found: dict[str, Any] = task
            return found
        time.sleep(0.1)
    raise AssertionError(f"not stopped after 20 s: {task}")


def lines(dev: Dev, key: Key, task: dict[str, Any], token: str | None = None) -> tuple[list[str], str]:
    answer = dev.client("logs", key).get_log_events(
        logGroupName=dev.build_variables()["MIGRATION_LOG_GROUP"],
        logStreamName=f"migrate/mlflow/{task['taskArn'].rpartition('/')[2]}",
        startFromHead=True,
        **({"nextToken": token} if token else {}),
    )
    return [event["message"] for event in answer["events"]], answer["nextForwardToken"]


# RunTask


@pytest.mark.parametrize("status", [0, 1, 3])
def test_a_task_s_exit_status_is_the_image_s(dev: Dev, status: int) -> None:
    dev.is_released(f"import sys; sys.exit({status})")
    task = run(dev, dev.role_of_build())
    (container,) = task["containers"]
    assert (container["name"], container["exitCode"]) == ("mlflow", status)
    assert container["imageDigest"].startswith("sha256:c0ffee")
    assert task["stopCode"] == "EssentialContainerExited"
    assert task["taskDefinitionArn"] == dev.build_variables()["MIGRATION_TASK_DEFINITION"]


def test_overrides_reach_the_task_and_nobody_else(dev: Dev) -> None:
    dev.is_released(
        "import os, sys; print(os.environ['DATABASE_NAME'], os.environ.get('WHO'), *sys.argv[1:])"
    )
    key = dev.role_of_build()
    first = run(dev, key, environment=[{"name": "WHO", "value": "me"}], command=["look", "around"])
    assert lines(dev, key, first)[0] == ["mlflow me look around"]
    assert lines(dev, key, run(dev, key))[0] == ["mlflow None migrate"]


def test_a_log_is_read_on_from_where_it_was_left(dev: Dev) -> None:
    dev.is_released("print('one'); print('two')")
    key = dev.role_of_build()
    task = run(dev, key)
    first, token = lines(dev, key, task)
    assert first == ["one", "two"]
    assert lines(dev, key, task, token) == ([], token)


def test_a_task_that_nobody_knows_is_missing(dev: Dev) -> None:
    given = dev.build_variables()
    arn = f"arn:aws:ecs:{dev.own.region}:{dev.own.account}:task/{given['MIGRATION_CLUSTER']}/{'0' * 32}"
    answer = dev.client("ecs").describe_tasks(cluster=given["MIGRATION_CLUSTER"], tasks=[arn])
    assert (answer["tasks"], answer["failures"][0]["reason"]) == ([], "MISSING")


def test_a_container_that_is_not_there_is_not_overridden(dev: Dev) -> None:
    given = dev.build_variables()
    with pytest.raises(ClientError, match="has no container sidecar"):
        dev.client("ecs").run_task(
            cluster=given["MIGRATION_CLUSTER"],
            taskDefinition=given["MIGRATION_TASK_DEFINITION"],
            overrides={"containerOverrides": [{"name": "sidecar"}]},
        )


def test_the_build_may_do_its_own_work_and_nothing_else(dev: Dev) -> None:
    """The policies are the ones that `stages/migration.py` writes."""
    given, key = dev.build_variables(), dev.role_of_build()
    ecs, ssm = dev.client("ecs", key), dev.client("ssm", key)
    other = given["MIGRATION_TASK_DEFINITION"].replace("migration:", "tracking:")
    cluster = given["MIGRATION_CLUSTER"]
    assert refused(ecs.run_task, cluster=cluster, taskDefinition=other) == FORBIDDEN
    elsewhere = f"arn:aws:ecs:{dev.own.region}:{dev.own.account}:task/mlflow-dev/{'0' * 32}"
    assert refused(ecs.describe_tasks, cluster="mlflow-dev", tasks=[elsewhere]) == FORBIDDEN
    logs = {"logGroupName": "/mlflow-dev/tracking", "logStreamName": "serve/mlflow/0"}
    assert refused(dev.client("logs", key).get_log_events, **logs) == FORBIDDEN
    note = {"Name": "/mlflow-prod/release", "Value": "mine", "Type": "String"}
    assert refused(ssm.put_parameter, **note) == FORBIDDEN
    (database,) = dev.databases()
    snapshot = {"DBSnapshotIdentifier": f"{database}-x", "DBInstanceIdentifier": database}
    assert refused(dev.client("rds", key).create_db_snapshot, **snapshot) == FORBIDDEN


# `python -m operations.migrate`


def test_a_refusal_stops_before_the_service(dev: Dev, as_build: dict[str, str], capfd: Any) -> None:
    dev.is_released("""
        import json, sys
        print("2 migrations are pending")
        print(json.dumps({"error": "Revision 0584bdc529eb drops a column: allow it by name."}))
        sys.exit(3)
    """)
    before = dev.release()
    assert migrate(as_build) == 1
    said = capfd.readouterr()
    assert "  2 migrations are pending\n" in said.out
    assert said.err == (
        "Stopped before the service was touched: Revision 0584bdc529eb drops a column: allow it by name.\n"
    )
    assert dev.release() == before, "no release was made"


def test_a_crash_names_the_status_and_the_log(dev: Dev, as_build: dict[str, str], capfd: Any) -> None:
    dev.is_released("print('about to'); raise SystemExit('out of luck')")
    before = dev.release()
    assert migrate(as_build) == 1
    said = capfd.readouterr()
    assert "  about to\n" in said.out
    assert "  out of luck\n" in said.out
    assert said.err.startswith("The migration task failed (exit status 1): ")
    assert "the whole log is in /mlflow-dev/migration, stream migrate/mlflow/" in said.err
    assert dev.release() == before


def test_success_without_a_result_is_a_failure(dev: Dev, as_build: dict[str, str], capfd: Any) -> None:
    dev.is_released("print('all is well')")
    before = dev.release()
    assert migrate(as_build) == 1
    assert "The migration task failed (exit status 0)" in capfd.readouterr().err
    assert dev.release() == before


def test_a_task_that_cannot_start_says_why(dev: Dev, as_build: dict[str, str], capfd: Any) -> None:
    """Its password cannot be fetched: ECS stops it before its first line."""
    dev.is_released("print('never said')")
    secret = dev.resource(DATA, "AWS::RDS::DBInstance").physical.attributes["MasterUserSecret.SecretArn"]
    vault = dev.client("secretsmanager")
    value = vault.get_secret_value(SecretId=secret)["SecretString"]
    vault.put_secret_value(SecretId=secret, SecretString="{}")
    try:
        assert migrate(as_build) == 1
    finally:
        vault.put_secret_value(SecretId=secret, SecretString=value)
    said = capfd.readouterr()
    assert "never said" not in said.out
    assert "exit status None" in said.err
    assert "unable to pull secrets" in said.err


def test_a_retained_secret_is_in_nobody_s_way(dev: Dev) -> None:
    """As when an environment goes to `sign_in = "iam"` and back: the first secret stays, and there is another one."""
    secret = {"Type": "AWS::SecretsManager::Secret", "DeletionPolicy": "Retain"}
    kept = {"Type": "AWS::SSM::Parameter", "Properties": {"Name": "/kept", "Type": "String", "Value": "it"}}
    vault = dev.client("secretsmanager")
    before = len(vault.list_secrets(MaxResults=100)["SecretList"])
    for resources in ({"Secret": secret, "Kept": kept}, {"Kept": kept}, {"Secret": secret, "Kept": kept}):
        dev.deploy("retaining", {"Resources": resources})
    assert len(vault.list_secrets(MaxResults=100)["SecretList"]) == before + 2


def test_what_aws_refuses_is_told_in_one_line(dev: Dev, as_build: dict[str, str], capfd: Any) -> None:
    other = as_build["MIGRATION_TASK_DEFINITION"].replace("migration:", "tracking:")
    assert migrate({**as_build, "MIGRATION_TASK_DEFINITION": other}) == 1
    said = capfd.readouterr().err
    assert said.startswith("AWS refused or did not answer: ")
    assert "RunTask" in said
    assert said.endswith("The service was not touched.\n")


# Rotation of the server's own password


def test_a_rotation_changes_the_database_and_then_the_secret(dev: Dev) -> None:
    """On demand, once there is a schedule, without the master; what neither the task nor its build may ask for."""
    secret = dev.resource(DATA, "AWS::SecretsManager::SecretTargetAttachment").physical.id
    vault = dev.client("secretsmanager")
    before = json.loads(vault.get_secret_value(SecretId=secret)["SecretString"])
    (instance,) = dev.databases()
    assert (before["username"], before["dbname"]) == ("mlflow_server", "mlflow")
    assert (before["dbInstanceIdentifier"], before["engine"]) == (instance, "postgres")
    made = sql.SQL("CREATE ROLE mlflow_server LOGIN PASSWORD {}").format(sql.Literal(before["password"]))
    with dev.connect(instance, dev.password(instance)) as connection:
        connection.execute(made)
    key = dev.role_of_build()
    assert refused(dev.client("secretsmanager", key).rotate_secret, SecretId=secret) == FORBIDDEN
    assert refused(vault.rotate_secret, SecretId=secret) == "InvalidRequestException"
    schedule = {"ScheduleExpression": "rate(30 days)"}
    version = vault.rotate_secret(SecretId=secret, RotationRules=schedule)["VersionId"]
    deadline = time.monotonic() + 60
    while (now := vault.get_secret_value(SecretId=secret))["VersionId"] != version:
        assert time.monotonic() < deadline, now
        time.sleep(0.1)
    after = json.loads(now["SecretString"])
    assert after == {**before, "password": after["password"]}
    dev.connect(instance, after["password"], "mlflow_server").close()
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        dev.connect(instance, before["password"], "mlflow_server")
    with pytest.raises(ClientError):
        vault.get_secret_value(SecretId=secret, VersionStage="AWSPENDING")


# Snapshots, and a restore beside the database in use


def test_a_migration_a_snapshot_and_a_restore(
    dev: Dev, as_build: dict[str, str], capfd: Any, tmp_path: Path
) -> None:
    """The way of a release that goes wrong later: migrated with a snapshot, written to, restored from it."""
    (first,) = dev.databases()
    snapshot = f"{first}-none-20261121-120000"
    dev.is_released(MIGRATES)
    status, said = migrate(as_build), capfd.readouterr()
    assert status == 0, said.out + said.err
    assert f"  snapshot {snapshot} is available\n" in said.out
    assert said.out.endswith(
        "Schema: from none to 0584bdc529eb, 1 migration(s), all additive, snapshot"
        f" {snapshot} taken first; breaking migrations are not allowed.\n"
    )
    release = dev.release()
    assert release.pop("at")
    assert release == {
        "commit": COMMIT,
        "execution": "execution-7",
        "image": dev.resource(MIGRATION, "AWS::ECS::TaskDefinition").properties["ContainerDefinitions"][0][
            "Image"
        ],
        "image_digest": "sha256:" + "c0ffee" * 10,
        "before": None,
        "revision": "0584bdc529eb",
        "kind": "additive",
        "snapshot": snapshot,
        "restored_from": None,
    }
    assert dev.rows(first, dev.password(first)) == ["after", "before"]
    rds = dev.client("rds")
    (described,) = rds.describe_db_snapshots(DBInstanceIdentifier=first)["DBSnapshots"]
    assert described["TagList"] == [{"Key": "commit", "Value": COMMIT}]
    again = {"DBSnapshotIdentifier": snapshot, "DBInstanceIdentifier": first}
    assert refused(rds.create_db_snapshot, **again) == "DBSnapshotAlreadyExists"

    content = dev.settings.model_dump()
    content["environments"]["dev"]["database"]["restore_from"] = snapshot
    templates = synthesize(Settings.model_validate(content), tmp_path / "restored")
    dev.deploy(DATA, templates[DATA])
    kept, second = dev.databases()
    assert kept == first
    assert dev.rows(second, dev.password(second)) == ["before"], "exactly what was there at the snapshot"
    assert dev.rows(first, dev.password(first)) == ["after", "before"], "the old one is kept, and serves"
    assert dev.password(second) != dev.password(first)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        dev.rows(second, dev.password(first))

    dev.deploy(MIGRATION, templates[MIGRATION])
    dev.is_released("""
        import json, os
        import psycopg
        found = psycopg.connect(
            host=os.environ["DATABASE_HOST"], port=os.environ["DATABASE_PORT"], dbname=os.environ["DATABASE_NAME"],
            user=os.environ["DATABASE_SETUP_USER"], password=os.environ["DATABASE_SETUP_PASSWORD"],
        ).execute("SELECT name FROM runs").fetchall()
        print(found, os.environ["DATABASE_RESTORED_FROM"])
    """)
    key = dev.role_of_build()
    assert lines(dev, key, run(dev, key))[0] == [f"[('before',)] {snapshot}"]


def test_a_snapshot_that_is_not_there(dev: Dev, tmp_path: Path) -> None:
    rds = dev.client("rds")
    assert refused(rds.describe_db_snapshots, DBSnapshotIdentifier="nobodys") == "DBSnapshotNotFound"
    nothing = {"DBSnapshotIdentifier": "nobodys", "DBInstanceIdentifier": "nobodys"}
    assert refused(rds.create_db_snapshot, **nothing) == "DBInstanceNotFound"
    content = dev.settings.model_dump()
    content["environments"]["dev"]["database"]["restore_from"] = "nobodys"
    templates = synthesize(Settings.model_validate(content), tmp_path / "restored")
    before = dev.databases()
    with pytest.raises(StackFailed, match="there is no snapshot nobodys in this account"):
        dev.deploy(DATA, templates[DATA])
    assert dev.databases() == before, "the stack is as it was"
    for instance in before:
        assert dev.rows(instance, dev.password(instance), "SELECT 1") == ["1"]
