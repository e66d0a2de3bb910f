"""Cognito: user pools and their clients, played by the account's host."""

from __future__ import annotations

from rehearsal.cloudformation import Physical, Place, Properties, Resource
from rehearsal.resources.service import host


class UserPool:
    """AWS::Cognito::UserPool."""

    def create(self, place: Place, logical_id: str, properties: Properties) -> Physical:
        """Make it, or take over one that an earlier stack retained."""
        pool_id = f"{place.region}_{place.name(logical_id)[-8:]}"
        return self._put(place, pool_id, properties)

    def update(self, place: Place, resource: Resource, properties: Properties) -> Physical:
        """Its settings are declared."""
        return self._put(place, resource.physical.id, properties)

    def delete(self, place: Place, resource: Resource) -> None:
        """Stop it."""
        host(place).delete("user-pool", resource.physical.attributes["Arn"])

    def _put(self, place: Place, pool_id: str, properties: Properties) -> Physical:
        arn = place.arn("cognito-idp", f"userpool/{pool_id}")
        url = host(place).put("user-pool", arn, properties)["provider_url"]
        name = str(url).removeprefix("https://")
        return Physical(
            pool_id, {"Arn": arn, "ProviderURL": url, "ProviderName": name, "UserPoolId": pool_id}
        )


class UserPoolClient:
    """AWS::Cognito::UserPoolClient."""

    def create(self, place: Place, logical_id: str, properties: Properties) -> Physical:
        """Make it."""
        return self._put(place, place.name(logical_id, limit=26), properties)

    def update(self, place: Place, resource: Resource, properties: Properties) -> Physical:
        """Change what it may ask for; in another pool it is another one."""
        if properties["UserPoolId"] != resource.properties["UserPoolId"]:
            return self.create(place, resource.logical_id, properties)
        return self._put(place, resource.physical.id, properties)

    def delete(self, place: Place, resource: Resource) -> None:
        """Remove it."""
        host(place).delete("user-pool-client", resource.physical.attributes["Arn"])

    def _put(self, place: Place, client: str, properties: Properties) -> Physical:
        arn = place.arn("cognito-idp", f"client/{client}")
        secret = host(place).put("user-pool-client", arn, properties)["secret"]
        return Physical(client, {"Arn": arn, "ClientId": client, "ClientSecret": secret})


class Named:
    """A part of a pool that is known by a name of its own, and that its clients refer to by it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def create(self, place: Place, logical_id: str, properties: Properties) -> Physical:
        """Its name is its id."""
        return Physical(str(properties[self._name]), {})

    def update(self, place: Place, resource: Resource, properties: Properties) -> Physical:
        """Another name is another one."""
        return self.create(place, resource.logical_id, properties)

    def delete(self, place: Place, resource: Resource) -> None:
        """Nothing is behind it."""
