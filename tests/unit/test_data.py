"""The database and the artifact bucket of every environment: encrypted, backed up, reachable by the tasks alone."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from .assembly import ROOT, Assembly, Platform, Resource, as_list

sys.path.insert(0, str(ROOT / "mlflow_image"))

import settings as image_settings


@pytest.fixture
def database(platform: Platform) -> Resource:
    return platform.only("AWS::RDS::DBInstance")


def test_database_is_in_isolated_subnets(platform: Platform, database: Resource) -> None:
    group = platform.at(database.properties["DBSubnetGroupName"].strip("<>"))
    subnets = group.properties["SubnetIds"]
    assert len(subnets) == platform.settings.availability_zones
    assert all("/Vpc/isolatedSubnet" in subnet for subnet in subnets)
    assert database.properties["PubliclyAccessible"] is False


def test_database_is_encrypted_with_its_own_key(platform: Platform, database: Resource) -> None:
    assert database.properties["StorageEncrypted"] is True
    key = "<data/DatabaseKey.Arn>"
    assert database.properties["KmsKeyId"] == key
    assert database.properties["MasterUserSecret"]["KmsKeyId"] == key
    assert database.properties["PerformanceInsightsKMSKeyId"] == key
    assert platform.at("data/Artifacts").properties["BucketEncryption"] != key


def test_database_password_is_made_and_kept_by_rds(database: Resource) -> None:
    assert database.properties["ManageMasterUserPassword"] is True
    assert "MasterUserPassword" not in database.properties


def test_database_speaks_tls_only(platform: Platform, database: Resource) -> None:
    parameters = platform.at(database.properties["DBParameterGroupName"].strip("<>"))
    assert parameters.properties["Parameters"]["rds.force_ssl"] == "1"


def test_database_is_backed_up_and_outlives_the_stack(platform: Platform, database: Resource) -> None:
    wanted = platform.settings.database
    assert database.properties["BackupRetentionPeriod"] == wanted.backup_days >= 1
    assert database.properties["DeleteAutomatedBackups"] is False
    # Retained, not deleted with a last snapshot: a restore takes the instance out of the stack and may be a mistake.
    assert database.deletion_policy == "Retain"


def test_database_is_of_the_settings_size(platform: Platform, database: Resource) -> None:
    wanted = platform.settings.database
    assert database.properties["DBInstanceClass"] == f"db.{wanted.instance_class}"
    assert database.properties["MultiAZ"] is wanted.multi_az
    assert database.properties["AllocatedStorage"] == str(wanted.storage_gib)
    assert database.properties["DeletionProtection"] is wanted.deletion_protection


def test_database_logs_are_kept_for_a_while_and_not_forever(platform: Platform, database: Resource) -> None:
    group = platform.at("data/DatabaseLogs").properties
    identifier = database.properties["DBInstanceIdentifier"]
    assert group["LogGroupName"] == f"/aws/rds/instance/{identifier}/postgresql"
    assert group["RetentionInDays"] == 90


def test_artifacts_are_encrypted_with_their_own_key(platform: Platform) -> None:
    (rule,) = platform.at("data/Artifacts").properties["BucketEncryption"][
        "ServerSideEncryptionConfiguration"
    ]
    assert rule["ServerSideEncryptionByDefault"] == {
        "SSEAlgorithm": "aws:kms",
        "KMSMasterKeyID": "<data/ArtifactsKey.Arn>",
    }


def test_artifacts_are_versioned_and_outlive_the_stack(platform: Platform) -> None:
    bucket = platform.at("data/Artifacts")
    assert bucket.properties["VersioningConfiguration"] == {"Status": "Enabled"}
    assert bucket.deletion_policy == "Retain"
    assert all(
        "ExpirationInDays" not in rule for rule in bucket.properties["LifecycleConfiguration"]["Rules"]
    )
    assert bucket.properties["LoggingConfiguration"]["DestinationBucketName"] == "<data/AccessLogs>"


def test_every_bucket_is_private_and_speaks_tls_only(platform: Platform) -> None:
    refusing = {
        policy.properties["Bucket"]
        for policy in platform.all("AWS::S3::BucketPolicy")
        for statement in policy.properties["PolicyDocument"]["Statement"]
        if statement["Effect"] == "Deny"
        and statement["Action"] == "s3:*"
        and statement["Principal"] == {"AWS": "*"}
        and statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
        and len(as_list(statement["Resource"])) == 2
    }
    for bucket in platform.all("AWS::S3::Bucket"):
        assert set(bucket.properties["PublicAccessBlockConfiguration"].values()) == {True}
        assert len(bucket.properties["PublicAccessBlockConfiguration"]) == 4
        assert f"<{bucket.path}>" in refusing, f"{bucket.path} accepts plain HTTP"


def test_every_key_rotates_and_belongs_to_its_account(platform: Platform) -> None:
    for key in platform.all("AWS::KMS::Key"):
        assert key.properties["EnableKeyRotation"] is True
        for statement in key.properties["KeyPolicy"]["Statement"]:
            assert statement["Principal"] == {"AWS": f"arn:aws:iam::{platform.settings.account}:root"}


def test_keys_of_data_outlive_the_stack(platform: Platform) -> None:
    for key in ("data/DatabaseKey", "data/DatabaseUserKey", "data/ArtifactsKey", "data/ServerKeys/Key"):
        assert platform.at(key).deletion_policy == "Retain"


@pytest.mark.parametrize("name", ["GatewayPassphrase", "SessionKey"])
def test_the_servers_keys_are_generated_encrypted_and_kept(platform: Platform, name: str) -> None:
    secret = platform.at(f"data/ServerKeys/{name}")
    assert secret.deletion_policy == "Retain"
    assert secret.properties["KmsKeyId"] == "<data/ServerKeys/Key.Arn>"
    generated = secret.properties["GenerateSecretString"]
    assert generated == {"ExcludePunctuation": True, "PasswordLength": 48}
    assert generated["PasswordLength"] >= image_settings.KEY_LENGTH


SECRET = re.compile(
    r"""(password|secret|token)"?\s*[:=]\s*"(?!<|\{)[^"\s]{6,}"|\{\{resolve:|AKIA[0-9A-Z]{16}|:\S+@\S+:\d""",
    re.I,
)


def test_no_template_holds_a_secret(assembly: Assembly) -> None:
    assert SECRET.search('"DATABASE_PASSWORD": "hunter2!"'), "the pattern finds nothing"
    assert SECRET.search("postgresql://mlflow:hunter2@database:5432/mlflow"), "the pattern finds nothing"
    assert len(assembly.templates) == 16
    for template in assembly.templates:
        found = SECRET.search(template.read_text(encoding="utf-8"))
        assert found is None, f"{Path(template).name}: {found}"


def test_no_plain_variable_is_named_like_a_secret(platform: Platform) -> None:
    variables = [
        variable["Name"]
        for task in platform.all("AWS::ECS::TaskDefinition")
        for container in task.properties["ContainerDefinitions"]
        for variable in container["Environment"]
    ]
    for project in platform.all("AWS::CodeBuild::Project"):
        variables += [v["Name"] for v in project.properties["Environment"]["EnvironmentVariables"]]
    assert [name for name in variables if re.search("PASSWORD|TOKEN|KEY|USER$", name)] == []
