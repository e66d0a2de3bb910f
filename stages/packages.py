"""Python packages without a way to the internet: a repository in the account that fetches from PyPI what it is asked for.

Builds name it in `operations/packages.sh`. The hashes in `requirements.lock` hold, whoever hands a package out.
"""

from __future__ import annotations

from collections.abc import Mapping

from aws_cdk import Stack
from aws_cdk import aws_codeartifact as codeartifact
from aws_cdk import aws_iam as iam
from constructs import Construct

from stages.findings import acknowledge


class PackageRepository(Construct):
    """A CodeArtifact domain with one repository, both of the same name."""

    def __init__(self, scope: Construct, construct_id: str, *, name: str) -> None:
        super().__init__(scope, construct_id)
        self._name = name
        domain = codeartifact.CfnDomain(self, "Domain", domain_name=name)
        repository = codeartifact.CfnRepository(
            self,
            "Repository",
            domain_name=name,
            repository_name=name,
            description="What builds install, from PyPI",
            external_connections=["public:pypi"],
        )
        repository.add_resource_dependency(domain)

    @property
    def variables(self) -> Mapping[str, str]:
        """What a build is told."""
        return {"PACKAGES": self._name}

    def admit(self, role: iam.Role) -> None:
        """Let a build's role read packages."""
        stack = Stack.of(role)
        domain = stack.format_arn(service="codeartifact", resource="domain", resource_name=self._name)
        repository = stack.format_arn(
            service="codeartifact", resource="repository", resource_name=f"{self._name}/{self._name}"
        )
        for statement in (
            iam.PolicyStatement(actions=["codeartifact:GetAuthorizationToken"], resources=[domain]),
            iam.PolicyStatement(
                actions=["codeartifact:GetRepositoryEndpoint", "codeartifact:ReadFromRepository"],
                resources=[repository],
            ),
            # CodeArtifact asks for the token in the caller's name.
            iam.PolicyStatement(
                actions=["sts:GetServiceBearerToken"],
                resources=["*"],
                conditions={"StringEquals": {"sts:AWSServiceName": "codeartifact.amazonaws.com"}},
            ),
        ):
            role.add_to_policy(statement)
        acknowledge(
            role,
            "sts:GetServiceBearerToken has no resource to name; its condition binds it to CodeArtifact.",
            "IAM5[Resource::*]",
        )
