"""IAM: roles and policies, in moto, which enforces them."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from rehearsal.cloudformation import Physical, Place, Properties, Resource


def _document(policy: Any) -> str:
    return policy if isinstance(policy, str) else json.dumps(policy)


class Role:
    """AWS::IAM::Role with its inline and managed policies."""

    def create(self, place: Place, logical_id: str, properties: Properties) -> Physical:
        """Make the role under its own or a made-up name."""
        iam, name = place.client("iam"), properties.get("RoleName") or place.name(logical_id, limit=64)
        with contextlib.suppress(iam.exceptions.EntityAlreadyExistsException):
            iam.create_role(
                RoleName=name,
                Path=properties.get("Path", "/"),
                AssumeRolePolicyDocument=_document(properties["AssumeRolePolicyDocument"]),
            )
        return self._apply(place, name, properties, {})

    def update(self, place: Place, resource: Resource, properties: Properties) -> Physical:
        """Change what may take the role on and what it may do."""
        wanted = properties.get("RoleName", resource.physical.id)
        if wanted != resource.physical.id:
            return self.create(place, resource.logical_id, properties)
        place.client("iam").update_assume_role_policy(
            RoleName=resource.physical.id, PolicyDocument=_document(properties["AssumeRolePolicyDocument"])
        )
        return self._apply(place, resource.physical.id, properties, resource.properties)

    def delete(self, place: Place, resource: Resource) -> None:
        """Remove the role and everything attached to it."""
        iam, name = place.client("iam"), resource.physical.id
        for policy in iam.list_role_policies(RoleName=name)["PolicyNames"]:
            iam.delete_role_policy(RoleName=name, PolicyName=policy)
        for policy in iam.list_attached_role_policies(RoleName=name)["AttachedPolicies"]:
            iam.detach_role_policy(RoleName=name, PolicyArn=policy["PolicyArn"])
        iam.delete_role(RoleName=name)

    def _apply(self, place: Place, name: str, properties: Properties, before: Properties) -> Physical:
        iam = place.client("iam")
        inline = {policy["PolicyName"]: policy["PolicyDocument"] for policy in properties.get("Policies", [])}
        for policy in before.get("Policies", []):
            if policy["PolicyName"] not in inline:
                iam.delete_role_policy(RoleName=name, PolicyName=policy["PolicyName"])
        for policy_name, document in inline.items():
            iam.put_role_policy(RoleName=name, PolicyName=policy_name, PolicyDocument=_document(document))
        managed = set(properties.get("ManagedPolicyArns", []))
        for arn in set(before.get("ManagedPolicyArns", [])) - managed:
            iam.detach_role_policy(RoleName=name, PolicyArn=arn)
        for arn in managed:
            iam.attach_role_policy(RoleName=name, PolicyArn=arn)
        role = iam.get_role(RoleName=name)["Role"]
        return Physical(name, {"Arn": role["Arn"], "RoleId": role["RoleId"]})


class InlinePolicy:
    """AWS::IAM::Policy: the same document, inline in each role that it names."""

    def create(self, place: Place, logical_id: str, properties: Properties) -> Physical:
        """Put it into its roles."""
        self._put(place, properties)
        return Physical(place.name(logical_id), {})

    def update(self, place: Place, resource: Resource, properties: Properties) -> Physical:
        """Put it into its roles anew, and take it from those it left."""
        self._remove(place, resource.properties, keep=set(properties.get("Roles", [])))
        self._put(place, properties)
        return resource.physical

    def delete(self, place: Place, resource: Resource) -> None:
        """Take it from its roles."""
        self._remove(place, resource.properties, keep=set())

    def _put(self, place: Place, properties: Properties) -> None:
        for role in properties.get("Roles", []):
            place.client("iam").put_role_policy(
                RoleName=role,
                PolicyName=properties["PolicyName"],
                PolicyDocument=_document(properties["PolicyDocument"]),
            )

    def _remove(self, place: Place, properties: Properties, keep: set[str]) -> None:
        iam = place.client("iam")
        for role in set(properties.get("Roles", [])) - keep:
            with contextlib.suppress(iam.exceptions.NoSuchEntityException):
                iam.delete_role_policy(RoleName=role, PolicyName=properties["PolicyName"])


class ManagedPolicy:
    """AWS::IAM::ManagedPolicy; a change makes a new version of it."""

    def create(self, place: Place, logical_id: str, properties: Properties) -> Physical:
        """Make the policy and attach it to the roles it names."""
        iam = place.client("iam")
        name = properties.get("ManagedPolicyName") or place.name(logical_id, limit=128)
        arn = f"arn:aws:iam::{place.account}:policy{properties.get('Path', '/')}{name}"
        try:
            iam.create_policy(
                PolicyName=name,
                Path=properties.get("Path", "/"),
                PolicyDocument=_document(properties["PolicyDocument"]),
            )
        except iam.exceptions.EntityAlreadyExistsException:
            self._new_version(iam, arn, properties)
        for role in properties.get("Roles", []):
            iam.attach_role_policy(RoleName=role, PolicyArn=arn)
        return Physical(arn, {"PolicyArn": arn})

    def update(self, place: Place, resource: Resource, properties: Properties) -> Physical:
        """Make a new default version."""
        iam = place.client("iam")
        self._new_version(iam, resource.physical.id, properties)
        for role in properties.get("Roles", []):
            iam.attach_role_policy(RoleName=role, PolicyArn=resource.physical.id)
        return resource.physical

    def delete(self, place: Place, resource: Resource) -> None:
        """Detach it everywhere and remove it."""
        iam, arn = place.client("iam"), resource.physical.id
        for role in iam.list_entities_for_policy(PolicyArn=arn)["PolicyRoles"]:
            iam.detach_role_policy(RoleName=role["RoleName"], PolicyArn=arn)
        for version in iam.list_policy_versions(PolicyArn=arn)["Versions"]:
            if not version["IsDefaultVersion"]:
                iam.delete_policy_version(PolicyArn=arn, VersionId=version["VersionId"])
        iam.delete_policy(PolicyArn=arn)

    def _new_version(self, iam: Any, arn: str, properties: Properties) -> None:
        for version in iam.list_policy_versions(PolicyArn=arn)["Versions"]:
            if not version["IsDefaultVersion"]:
                iam.delete_policy_version(PolicyArn=arn, VersionId=version["VersionId"])
        iam.create_policy_version(
            PolicyArn=arn, PolicyDocument=_document(properties["PolicyDocument"]), SetAsDefault=True
        )
