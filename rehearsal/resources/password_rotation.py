"""Secrets Manager knows a secret's database, and rotates its password there (`rehearsal/secrets_api.py`)."""

from __future__ import annotations

import json

from rehearsal.cloudformation import Physical, Place, Properties, Resource, ResourceFailed
from rehearsal.ports import LOOPBACK
from rehearsal.resources.database import database_server


class SecretTargetAttachment:
    """AWS::SecretsManager::SecretTargetAttachment: writes into a secret where its database is."""

    def create(self, place: Place, logical_id: str, properties: Properties) -> Physical:
        """Add the connection to what the secret holds."""
        if properties["TargetType"] != "AWS::RDS::DBInstance":
            raise ResourceFailed(
                f"a secret of {properties['TargetType']} is not rehearsed; of an instance it is"
            )
        identifier = properties["TargetId"]
        server = database_server(place, identifier)
        _write(
            place,
            properties["SecretId"],
            {
                "engine": server.engine,
                "host": LOOPBACK,
                "port": server.port,
                "dbInstanceIdentifier": identifier,
            },
        )
        return Physical(properties["SecretId"])

    def update(self, place: Place, resource: Resource, properties: Properties) -> Physical:
        """Write what is true now."""
        return self.create(place, resource.logical_id, properties)

    def delete(self, place: Place, resource: Resource) -> None:
        """Take the connection out again."""
        _write(
            place,
            resource.physical.id,
            dict.fromkeys(("engine", "host", "port", "dbInstanceIdentifier")),
        )


class RotationSchedule:
    """AWS::SecretsManager::RotationSchedule with a hosted rotation: rotates when it is made or changed, as AWS does.

    Time does not pass in a rehearsal, so that no schedule is waited for: RotateSecret rotates at once.
    """

    def create(self, place: Place, logical_id: str, properties: Properties) -> Physical:
        """Tell Secrets Manager, which begins with a first rotation."""
        wanted = properties.get("HostedRotationLambda", {}).get("RotationType")
        if wanted not in ("PostgreSQLSingleUser", "MySQLSingleUser"):
            raise ResourceFailed(
                f"rotation {wanted} is not rehearsed; PostgreSQLSingleUser and MySQLSingleUser are"
            )
        place.client("secretsmanager").rotate_secret(
            SecretId=properties["SecretId"],
            RotationRules=properties["RotationRules"],
            RotateImmediately=properties.get("RotateImmediatelyOnUpdate", True),
        )
        return Physical(properties["SecretId"])

    def update(self, place: Place, resource: Resource, properties: Properties) -> Physical:
        """The same; another secret is another schedule."""
        return self.create(place, resource.logical_id, properties)

    def delete(self, place: Place, resource: Resource) -> None:
        """Rotate no more."""
        place.client("secretsmanager").cancel_rotate_secret(SecretId=resource.physical.id)


def _write(place: Place, secret: str, changes: dict[str, object]) -> None:
    """Change what a secret's JSON says; None takes a key out."""
    vault = place.client("secretsmanager")
    held = json.loads(vault.get_secret_value(SecretId=secret)["SecretString"])
    told = {name: value for name, value in {**held, **changes}.items() if value is not None}
    vault.put_secret_value(SecretId=secret, SecretString=json.dumps(told))
