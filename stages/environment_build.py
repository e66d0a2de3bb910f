"""A CodeBuild project inside an environment's network, which the pipeline in the tooling account starts and waits for."""

from __future__ import annotations

from aws_cdk import Duration, RemovalPolicy, Stack
from aws_cdk import aws_codebuild as codebuild
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_logs as logs
from constructs import Construct

from stages.findings import acknowledge, reference
from stages.network import PRIVATE, NetworkStack
from stages.settings import Settings
from stages.toolchain import BUILD_IMAGE


def build_project(prefix: str, name: str) -> str:
    """Name of the CodeBuild project that does `name` in the environment `prefix` names."""
    return f"{prefix}-{name}"


def build_role(prefix: str, name: str) -> str:
    """Name of the role as which that project runs; it reads the release's source from the tooling account."""
    return f"{prefix}-{name}-build"


def starter_role(prefix: str, name: str) -> str:
    """Name of the role that the pipeline takes on to start that project."""
    return f"{prefix}-{name}-starter"


def pipeline_role(name: str) -> str:
    """Name of the pipeline's own role in the tooling account."""
    return f"{name}-pipeline"


def artifact_bucket(settings: Settings) -> str:
    """Name of the pipeline's artifact bucket; the account id makes it globally unique."""
    return f"{settings.name}-pipeline-{settings.tooling.account}-{settings.tooling.region}"


class EnvironmentBuild(Construct):
    """The project, the role it runs as, and the role with which the pipeline may start it and nothing else."""

    def __init__(
        self,
        scope: Construct,
        name: str,
        *,
        prefix: str,
        settings: Settings,
        description: str,
        build_spec: str,
        variables: dict[str, str],
        network: NetworkStack,
        group: ec2.ISecurityGroup,
        key: kms.IKey,
        timeout: Duration,
    ) -> None:
        super().__init__(scope, name.title())
        self._settings = settings
        packages = network.packages
        self.role = iam.Role(
            self,
            "Role",
            role_name=build_role(prefix, name),
            description=f"{description} of {prefix}",
            assumed_by=iam.ServicePrincipal("codebuild.amazonaws.com"),
        )
        self.project = codebuild.PipelineProject(
            self,
            "Project",
            project_name=build_project(prefix, name),
            description=f"{description}, started by the pipeline",
            role=self.role,
            build_spec=codebuild.BuildSpec.from_source_filename(build_spec),
            environment=codebuild.BuildEnvironment(
                build_image=BUILD_IMAGE, compute_type=codebuild.ComputeType.MEDIUM
            ),
            environment_variables={
                name: codebuild.BuildEnvironmentVariable(value=value)
                for name, value in {**variables, **(packages.variables if packages else {})}.items()
            },
            encryption_key=key,
            vpc=network.vpc,
            subnet_selection=PRIVATE,
            security_groups=[group],
            timeout=timeout,
            logging=codebuild.LoggingOptions(
                cloud_watch=codebuild.CloudWatchLoggingOptions(
                    log_group=logs.LogGroup(
                        self,
                        "Logs",
                        log_group_name=f"/{prefix}/{name}",
                        retention=logs.RetentionDays.ONE_YEAR,
                        removal_policy=RemovalPolicy.DESTROY,
                    )
                )
            ),
        )
        self._read_source()
        if packages:
            packages.admit(self.role)
        self._starter(prefix, name)
        self._acknowledge()

    def _read_source(self) -> None:
        """Let the build read the release's source, and nothing else, from the pipeline's bucket in the tooling account."""
        stack, tooling = Stack.of(self), self._settings.tooling
        bucket = f"arn:{stack.partition}:s3:::{artifact_bucket(self._settings)}"
        self.role.add_to_policy(
            iam.PolicyStatement(actions=["s3:GetObject", "s3:GetObjectVersion"], resources=[f"{bucket}/*"])
        )
        self.role.add_to_policy(
            iam.PolicyStatement(
                # The key's id is known to the tooling account only; its own policy admits just these roles.
                actions=["kms:Decrypt"],
                resources=[f"arn:{stack.partition}:kms:{tooling.region}:{tooling.account}:key/*"],
                conditions={"StringEquals": {"kms:ViaService": f"s3.{tooling.region}.amazonaws.com"}},
            )
        )

    def _starter(self, prefix: str, name: str) -> None:
        tooling = self._settings.tooling
        role = f"role/{pipeline_role(self._settings.name)}"
        starter = iam.Role(
            self,
            "Starter",
            role_name=starter_role(prefix, name),
            description=f"Taken on by the pipeline to start {name}",
            assumed_by=iam.PrincipalWithConditions(
                iam.AccountPrincipal(tooling.account),
                {
                    "ArnEquals": {
                        "aws:PrincipalArn": f"arn:{Stack.of(self).partition}:iam::{tooling.account}:{role}"
                    }
                },
            ),
        )
        starter.add_to_policy(
            iam.PolicyStatement(
                actions=["codebuild:BatchGetBuilds", "codebuild:StartBuild", "codebuild:StopBuild"],
                resources=[self.project.project_arn],
            )
        )

    def _acknowledge(self) -> None:
        stack, tooling = Stack.of(self), self._settings.tooling
        name = reference(stack, self.project.project_name)
        acknowledge(
            self.role,
            "The build writes to its own key, logs and reports, makes network interfaces in its own subnets (the"
            " statement's condition), and reads the source from this pipeline's bucket, whose policy admits it by name.",
            "IAM5[Action::kms:ReEncrypt*]",
            "IAM5[Action::kms:GenerateDataKey*]",
            "IAM5[Resource::arn:<AWS::Partition>:ec2:<AWS::Region>:<AWS::AccountId>:network-interface/*]",
            f"IAM5[Resource::arn:{stack.partition}:logs:{stack.region}:{stack.account}:log-group:/aws/codebuild/{name}:*]",
            f"IAM5[Resource::arn:{stack.partition}:codebuild:{stack.region}:{stack.account}:report-group/{name}-*]",
            f"IAM5[Resource::arn:{stack.partition}:s3:::{artifact_bucket(self._settings)}/*]",
            f"IAM5[Resource::arn:{stack.partition}:kms:{tooling.region}:{tooling.account}:key/*]",
        )
        acknowledge(
            self.project,
            "CodeBuild looks up the subnets it is given and makes interfaces there; EC2 has no narrower resource for it.",
            "IAM5[Resource::*]",
        )
