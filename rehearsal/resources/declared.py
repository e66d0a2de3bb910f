"""Resources that are declared, not rehearsed: they have an id and an ARN for others to name, and nothing behind it."""

from __future__ import annotations

from rehearsal.cloudformation import Physical, Place, Properties, Resource

_NAMES = ("LogGroupName", "DBSubnetGroupName", "DBParameterGroupName", "AliasName")
"""Properties that are a resource's physical id where the template gives them."""


class Declared:
    """Any type without a provider."""

    def create(self, place: Place, logical_id: str, properties: Properties) -> Physical:
        """An id as CloudFormation would give one."""
        named = next((str(properties[name]) for name in _NAMES if name in properties), None)
        return self._physical(place, named or place.name(logical_id), properties, logical_id)

    def update(self, place: Place, resource: Resource, properties: Properties) -> Physical:
        """The same id: nothing is behind it that could change."""
        return self._physical(place, resource.physical.id, properties, resource.logical_id)

    def delete(self, place: Place, resource: Resource) -> None:
        """Nothing to remove."""

    def _physical(self, place: Place, id_: str, properties: Properties, logical_id: str) -> Physical:
        return Physical(
            id_,
            {"Arn": place.arn("rehearsed", id_), "GroupId": id_, "VpcId": str(properties.get("VpcId", id_))},
            rehearsed=False,
        )
