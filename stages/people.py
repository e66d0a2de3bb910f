"""Three roles for people who need AWS itself: reader, ML engineer, operator. Most need none: MLflow's own URL serves them.

Who is in which group of the identity provider decides who may take on which role: the provider names the roles when
somebody signs in. No role may change a policy, read a password, or take on another one. Every resource but the bucket has a
fixed name, so that this may stand beside what it opens, and be deployed before there is a service.
"""

from __future__ import annotations

from collections.abc import Sequence

from aws_cdk import Aws, Stack
from aws_cdk import aws_iam as iam
from constructs import Construct

from stages.artifacts import ArtifactStore
from stages.findings import acknowledge

Statements = Sequence[iam.PolicyStatement]


class People(Construct):
    """The roles of one environment: `PREFIX-reader`, `PREFIX-ml-engineer`, `PREFIX-operator`."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        prefix: str,
        saml_provider_arn: str,
        artifacts: ArtifactStore,
        user_secret_arn: str | None,
    ) -> None:
        super().__init__(scope, construct_id)
        self._prefix, self._artifacts = prefix, artifacts
        provider = iam.SamlProvider.from_saml_provider_arn(self, "Provider", saml_provider_arn)
        self._principal = iam.SamlConsolePrincipal(provider)
        rotating = self._rotating(user_secret_arn) if user_secret_arn else []
        self._role("Reader", "reader", [*self._reading(), *self._logs()])
        self._role("MlEngineer", "ml-engineer", [*self._reading(), *self._writing(), *self._logs()])
        self._role("Operator", "operator", [*self._logs(), *self._operating(), *rotating])

    def _role(self, construct_id: str, name: str, statements: Statements) -> None:
        role = iam.Role(
            self,
            construct_id,
            role_name=f"{self._prefix}-{name}",
            description=f"People: {name} of {self._prefix}",
            assumed_by=self._principal,
        )
        for statement in statements:
            role.add_to_policy(statement)
        stack = Stack.of(self)
        here = f"{stack.region}:{stack.account}"
        acknowledge(
            role,
            "Objects, log streams, tasks, alarms are named by those who make them; each is bound to this environment's own"
            " bucket, log group, cluster or prefix. CloudWatch's metrics have no resource to name.",
            "IAM5[Resource::*]",
            f"IAM5[Resource::{self._artifacts.objects_in_findings}]",
            f"IAM5[Resource::arn:{stack.partition}:ecs:{here}:task/{self._prefix}/*]",
            f"IAM5[Resource::arn:{stack.partition}:cloudwatch:{here}:alarm:{self._prefix}-*]",
            *(
                f"IAM5[Resource::arn:{stack.partition}:logs:{here}:log-group:{group}:*]"
                for group in self._groups()
            ),
        )

    def _reading(self) -> Statements:
        """Look at artifacts."""
        store = self._artifacts
        key = [_through_s3(store.key_arn, "kms:Decrypt")] if store.key_arn else []
        return [
            iam.PolicyStatement(
                actions=["s3:ListBucket"], resources=[store.bucket_arn], conditions=store.listing
            ),
            iam.PolicyStatement(actions=["s3:GetObject"], resources=[store.objects_arn]),
            *key,
        ]

    def _writing(self) -> Statements:
        """Put artifacts there without MLflow's help. Nobody deletes any: that is done in MLflow."""
        store = self._artifacts
        key = [_through_s3(store.key_arn, "kms:GenerateDataKey")] if store.key_arn else []
        return [
            iam.PolicyStatement(
                actions=["s3:AbortMultipartUpload", "s3:ListMultipartUploadParts", "s3:PutObject"],
                resources=[store.objects_arn],
            ),
            *key,
        ]

    def _groups(self) -> list[str]:
        return [f"/{self._prefix}/{task}" for task in ("tracking", "migration")]

    def _logs(self) -> Statements:
        """What the server and the migrations said."""
        stack = Stack.of(self)
        streams = [
            f"arn:{stack.partition}:logs:{stack.region}:{stack.account}:log-group:{group}:*"
            for group in self._groups()
        ]
        actions = ["logs:DescribeLogStreams", "logs:FilterLogEvents", "logs:GetLogEvents"]
        return [iam.PolicyStatement(actions=actions, resources=streams)]

    def _operating(self) -> Statements:
        """Watch the service, start it anew, scale it, stop one of its tasks."""
        stack, name = Stack.of(self), self._prefix
        ecs = f"arn:{stack.partition}:ecs:{stack.region}:{stack.account}"
        in_cluster = {"ArnEquals": {"ecs:cluster": f"{ecs}:cluster/{name}"}}
        alarms = f"arn:{stack.partition}:cloudwatch:{stack.region}:{stack.account}:alarm:{name}-*"
        return [
            iam.PolicyStatement(
                actions=["ecs:DescribeServices", "ecs:UpdateService"],
                resources=[f"{ecs}:service/{name}/{name}"],
            ),
            iam.PolicyStatement(actions=["ecs:ListTasks"], resources=["*"], conditions=in_cluster),
            iam.PolicyStatement(
                actions=["ecs:DescribeTasks", "ecs:StopTask"],
                resources=[f"{ecs}:task/{name}/*"],
                conditions=in_cluster,
            ),
            iam.PolicyStatement(
                actions=["cloudwatch:GetMetricData", "cloudwatch:ListMetrics"], resources=["*"]
            ),
            iam.PolicyStatement(actions=["cloudwatch:DescribeAlarms"], resources=[alarms]),
        ]

    def _rotating(self, secret_arn: str) -> Statements:
        """Give the server's database user another password now, without seeing it."""
        actions = ["secretsmanager:DescribeSecret", "secretsmanager:RotateSecret"]
        return [iam.PolicyStatement(actions=actions, resources=[secret_arn])]


def _through_s3(key_arn: str, action: str) -> iam.PolicyStatement:
    return iam.PolicyStatement(
        actions=[action],
        resources=[key_arn],
        conditions={"StringEquals": {"kms:ViaService": f"s3.{Aws.REGION}.amazonaws.com"}},
    )
