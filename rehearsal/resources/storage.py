"""S3, KMS, Secrets Manager, Parameter Store and ECR, in moto."""

from __future__ import annotations

import contextlib
import json
import secrets
import string
from typing import Any

from rehearsal.cloudformation import Physical, Place, Properties, Resource


class Bucket:
    """AWS::S3::Bucket: versioned where the template says so.

    Encryption, access logs and lifecycle are declared: nothing in a rehearsal lives long enough to be expired. A bucket
    policy is declared as well, because moto does not weigh its conditions.
    """

    def create(self, place: Place, logical_id: str, properties: Properties) -> Physical:
        """Make the bucket, or take over one that an earlier stack retained."""
        name = properties.get("BucketName") or place.name(logical_id).lower()
        s3 = place.client("s3")
        with contextlib.suppress(s3.exceptions.BucketAlreadyOwnedByYou):
            s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": place.region})
        return self._apply(place, s3, name, properties)

    def update(self, place: Place, resource: Resource, properties: Properties) -> Physical:
        """Change its settings; another name is another bucket."""
        if properties.get("BucketName", resource.physical.id) != resource.physical.id:
            return self.create(place, resource.logical_id, properties)
        return self._apply(place, place.client("s3"), resource.physical.id, properties)

    def delete(self, place: Place, resource: Resource) -> None:
        """Remove the bucket; S3 refuses while it holds anything."""
        place.client("s3").delete_bucket(Bucket=resource.physical.id)

    def _apply(self, place: Place, s3: Any, name: str, properties: Properties) -> Physical:
        status = properties.get("VersioningConfiguration", {}).get("Status")
        if status:
            s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": status})
        return Physical(
            name,
            {
                "Arn": f"arn:aws:s3:::{name}",
                "DomainName": f"{name}.s3.amazonaws.com",
                "RegionalDomainName": f"{name}.s3.{place.region}.amazonaws.com",
            },
        )


class EncryptionKey:
    """AWS::KMS::Key. Who may use it is not enforced: moto does not ask KMS when it encrypts."""

    def create(self, place: Place, logical_id: str, properties: Properties) -> Physical:
        """Make a key."""
        made = place.client("kms").create_key(
            Description=properties.get("Description", logical_id), Policy=json.dumps(properties["KeyPolicy"])
        )
        metadata = made["KeyMetadata"]
        return Physical(metadata["KeyId"], {"Arn": metadata["Arn"], "KeyId": metadata["KeyId"]})

    def update(self, place: Place, resource: Resource, properties: Properties) -> Physical:
        """Change its policy."""
        place.client("kms").put_key_policy(
            KeyId=resource.physical.id, PolicyName="default", Policy=json.dumps(properties["KeyPolicy"])
        )
        return resource.physical

    def delete(self, place: Place, resource: Resource) -> None:
        """Schedule its deletion, as CloudFormation does."""
        place.client("kms").schedule_key_deletion(KeyId=resource.physical.id, PendingWindowInDays=7)


class Secret:
    """AWS::SecretsManager::Secret, generated where the template asks for it."""

    def create(self, place: Place, logical_id: str, properties: Properties) -> Physical:
        """Make the secret and its first value."""
        # As AWS has it, another name each time: one that was retained is in nobody's way when a release goes back.
        name = properties.get("Name") or f"{place.name(logical_id)}-{secrets.token_hex(4)}"
        made = place.client("secretsmanager").create_secret(Name=name, SecretString=self._value(properties))
        return Physical(made["ARN"], {"Id": made["ARN"]})

    def update(self, place: Place, resource: Resource, properties: Properties) -> Physical:
        """Change its value, if the template holds one; a generated value stays."""
        if "SecretString" in properties:
            place.client("secretsmanager").put_secret_value(
                SecretId=resource.physical.id, SecretString=properties["SecretString"]
            )
        return resource.physical

    def delete(self, place: Place, resource: Resource) -> None:
        """Remove it."""
        place.client("secretsmanager").delete_secret(
            SecretId=resource.physical.id, ForceDeleteWithoutRecovery=True
        )

    def _value(self, properties: Properties) -> str:
        if "SecretString" in properties:
            return str(properties["SecretString"])
        generate = properties.get("GenerateSecretString", {})
        excluded = set(generate.get("ExcludeCharacters", ""))
        letters = [c for c in string.ascii_letters + string.digits if c not in excluded]
        password = "".join(secrets.choice(letters) for _ in range(generate.get("PasswordLength", 32)))
        if "GenerateStringKey" not in generate:
            return password
        return json.dumps(
            {
                **json.loads(generate.get("SecretStringTemplate", "{}")),
                generate["GenerateStringKey"]: password,
            }
        )


class Parameter:
    """AWS::SSM::Parameter."""

    def create(self, place: Place, logical_id: str, properties: Properties) -> Physical:
        """Write it."""
        name = properties.get("Name") or place.name(logical_id)
        place.client("ssm").put_parameter(
            Name=name, Value=properties["Value"], Type=properties["Type"], Overwrite=True
        )
        return Physical(name, {"Type": properties["Type"], "Value": properties["Value"]})

    def update(self, place: Place, resource: Resource, properties: Properties) -> Physical:
        """Write it anew."""
        return self.create(place, resource.logical_id, {"Name": resource.physical.id, **properties})

    def delete(self, place: Place, resource: Resource) -> None:
        """Remove it."""
        place.client("ssm").delete_parameter(Name=resource.physical.id)


class Repository:
    """AWS::ECR::Repository: where the publisher looks whether an image is there already."""

    def create(self, place: Place, logical_id: str, properties: Properties) -> Physical:
        """Make it."""
        name = properties.get("RepositoryName") or place.name(logical_id).lower()
        made = place.client("ecr").create_repository(repositoryName=name)["repository"]
        return Physical(name, {"Arn": made["repositoryArn"], "RepositoryUri": made["repositoryUri"]})

    def update(self, place: Place, resource: Resource, properties: Properties) -> Physical:
        """Its settings are declared."""
        return resource.physical

    def delete(self, place: Place, resource: Resource) -> None:
        """Remove it with its images."""
        place.client("ecr").delete_repository(repositoryName=resource.physical.id, force=True)


class LogGroup:
    """AWS::Logs::LogGroup: a name for policies to speak of. What tasks and builds say is in files."""

    def create(self, place: Place, logical_id: str, properties: Properties) -> Physical:
        """Its name is its id."""
        name = properties.get("LogGroupName") or place.name(logical_id)
        return Physical(name, {"Arn": place.arn("logs", f"log-group:{name}:*")})

    def update(self, place: Place, resource: Resource, properties: Properties) -> Physical:
        """Another name is another group."""
        return self.create(place, resource.logical_id, {"LogGroupName": resource.physical.id, **properties})

    def delete(self, place: Place, resource: Resource) -> None:
        """Nothing is behind it."""
