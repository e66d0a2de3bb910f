"""RDS: an instance is a real server, MySQL being MariaDB; its managed master password lies in Secrets Manager."""

from __future__ import annotations

import json
import secrets

from rehearsal.cloudformation import Physical, Place, Properties, Resource, ResourceFailed
from rehearsal.database_server import DatabaseServer
from rehearsal.databases import ENGINES, opened
from rehearsal.postgres import Postgres
from rehearsal.processes import ProcessRegistry
from rehearsal.snapshots import describe, managed_secret, snapshot_files


def database_server(place: Place, identifier: str) -> DatabaseServer:
    """The server of an instance."""
    return opened(place.directory / "databases" / identifier, ProcessRegistry(place.state / "processes"))


class DatabaseInstance:
    """AWS::RDS::DBInstance with the engine postgres or mysql, new or from a snapshot.

    Class, storage, standby are declared.
    """

    def create(self, place: Place, logical_id: str, properties: Properties) -> Physical:
        """Make and start a server, its database and the secret of its master user."""
        kind = ENGINES.get(properties["Engine"])
        if kind is None:
            raise ResourceFailed(
                f"engine {properties['Engine']} is not rehearsed; {' and '.join(ENGINES)} are"
            )
        if not properties.get("ManageMasterUserPassword"):
            raise ResourceFailed(
                "only a master password that RDS manages is rehearsed (ManageMasterUserPassword)"
            )
        identifier = properties.get("DBInstanceIdentifier") or place.name(logical_id).lower()
        resource_id = f"db-{identifier}"
        password = secrets.token_urlsafe(24)
        server = kind(place.directory / "databases" / identifier, ProcessRegistry(place.state / "processes"))
        origin = properties.get("DBSnapshotIdentifier")
        try:
            if origin:
                user = self._restore(place, server, origin, password)
            else:
                user = properties["MasterUsername"]
                server.create(user=user, password=password, database=properties["DBName"])
            if isinstance(server, Postgres) and properties.get("EnableIAMDatabaseAuthentication"):
                users = place.arn("rds-db", f"dbuser:{resource_id}")
                server.take_tokens(users, region=place.region, endpoint=place.accounts.endpoint)
        except BaseException:  # half a server is no use to the next deployment
            server.remove()
            raise
        secret = place.client("secretsmanager").create_secret(
            Name=managed_secret(identifier), SecretString=json.dumps({"username": user, "password": password})
        )
        return Physical(
            identifier,
            {
                "DBInstanceArn": place.arn("rds", f"db:{identifier}"),
                "DbiResourceId": resource_id,
                "Endpoint.Address": "127.0.0.1",
                "Endpoint.Port": str(server.port),
                "MasterUserSecret.SecretArn": secret["ARN"],
            },
        )

    def _restore(self, place: Place, server: DatabaseServer, snapshot: str, password: str) -> str:
        """Start the server from a snapshot, and return its master user, which the snapshot brings."""
        found = describe(place.directory, snapshot)
        if found is None or found["Status"] != "available":
            raise ResourceFailed(
                f"there is no snapshot {snapshot} in this account that could be restored; `aws rds"
                " describe-db-snapshots` lists them"
            )
        if found["Engine"] != server.engine:
            raise ResourceFailed(f"snapshot {snapshot} is of {found['Engine']}, and this is {server.engine}")
        user = str(found["MasterUsername"])
        server.restore(snapshot_files(place.directory, snapshot), user=user, password=password)
        return user

    def update(self, place: Place, resource: Resource, properties: Properties) -> Physical:
        """What can change in place is declared only."""
        for name in ("DBInstanceIdentifier", "DBName", "MasterUsername", "Engine", "DBSnapshotIdentifier"):
            if properties.get(name) != resource.properties.get(name):
                raise ResourceFailed(f"{name} changed: that would replace the database, and its data with it")
        return resource.physical

    def delete(self, place: Place, resource: Resource) -> None:
        """Stop the server and remove it."""
        database_server(place, resource.physical.id).remove()
        place.client("secretsmanager").delete_secret(
            SecretId=resource.physical.attributes["MasterUserSecret.SecretArn"],
            ForceDeleteWithoutRecovery=True,
        )


class DatabaseCluster:
    """AWS::RDS::DBCluster: refused, because nothing here behaves like Aurora yet."""

    def create(self, place: Place, logical_id: str, properties: Properties) -> Physical:
        """Say so."""
        raise ResourceFailed(
            f'engine {properties["Engine"]} is not rehearsed; rehearse with engine = "postgres" in platform.toml'
        )

    def update(self, place: Place, resource: Resource, properties: Properties) -> Physical:
        """There is none."""
        raise NotImplementedError

    def delete(self, place: Place, resource: Resource) -> None:
        """There is none."""
