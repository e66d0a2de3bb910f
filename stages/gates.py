"""The gates of one environment: CodeBuild projects inside its network that test the URL from where its clients are.

The pipeline in the tooling account starts them; a load balancer that only the VPC can reach is gated like a public one.
"""

from __future__ import annotations

from typing import Any

from aws_cdk import Duration, RemovalPolicy, Stack
from aws_cdk import aws_codebuild as codebuild
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_logs as logs
from constructs import Construct

from stages.findings import acknowledge, reference
from stages.network import NetworkStack
from stages.settings import Environment, Load, Settings
from stages.toolchain import BUILD_IMAGE
from stages.tracking import TrackingStack

SMOKE, LOAD = "smoke", "load"


def gate_project(prefix: str, gate: str) -> str:
    """Name of the CodeBuild project that runs `gate` in the environment `prefix` names."""
    return f"{prefix}-{gate}"


def gate_role(prefix: str, gate: str) -> str:
    """Name of the role as which `gate` runs; it reads the release's source from the tooling account."""
    return f"{prefix}-{gate}-gate"


def starter_role(prefix: str) -> str:
    """Name of the role that the pipeline takes on to start the environment's gates."""
    return f"{prefix}-gate-starter"


def pipeline_role(name: str) -> str:
    """Name of the pipeline's own role in the tooling account."""
    return f"{name}-pipeline"


def artifact_bucket(settings: Settings) -> str:
    """Name of the pipeline's artifact bucket; the account id makes it globally unique."""
    return f"{settings.name}-pipeline-{settings.tooling.account}-{settings.tooling.region}"


class GatesStack(Stack):
    """Smoke tests and, where the settings have thresholds, the load check."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        prefix: str,
        settings: Settings,
        environment: Environment,
        network: NetworkStack,
        tracking: TrackingStack,
        **stack: Any,
    ) -> None:
        super().__init__(scope, construct_id, **stack)
        self._prefix = prefix
        self._settings = settings
        self._vpc = network.vpc
        self._key = kms.Key(
            self,
            "Key",
            description="Gates' builds",
            enable_key_rotation=True,
            removal_policy=RemovalPolicy.DESTROY,
        )
        self._group = ec2.SecurityGroup(
            self,
            "GateGroup",
            vpc=self._vpc,
            description="Gates of this environment",
            allow_all_outbound=False,
        )
        self._reach(environment, network, tracking)

        url = tracking.url
        gates = {SMOKE: {"MLFLOW_TRACKING_URI": url, "SMOKE_DEMO": str(environment.smoke_demo).lower()}}
        if environment.load:
            gates[LOAD] = {"MLFLOW_TRACKING_URI": url, **_load_variables(environment.load)}
        starter = self._starter()
        for gate, variables in gates.items():
            project = self._project(gate, variables)
            starter.add_to_policy(
                iam.PolicyStatement(
                    actions=["codebuild:BatchGetBuilds", "codebuild:StartBuild", "codebuild:StopBuild"],
                    resources=[project.project_arn],
                )
            )

    def _reach(self, environment: Environment, network: NetworkStack, tracking: TrackingStack) -> None:
        port = ec2.Port.HTTPS if environment.certificate_arn else ec2.Port.HTTP
        self._group.connections.allow_to(tracking.balancer, port, "Gates to the load balancer")
        if environment.exposure == "internet-facing":
            # Its name resolves to public addresses: a gate leaves through a NAT gateway and arrives as its address.
            self._group.connections.allow_to(ec2.Peer.any_ipv4(), port, "Gates to the public load balancer")
            for number, address in enumerate(network.nat_addresses, start=1):
                rule = ec2.CfnSecurityGroupIngress(
                    self,
                    f"NatIngress{number}",
                    group_id=tracking.balancer.connections.security_groups[0].security_group_id,
                    description="Gates, through the NAT gateway",
                    ip_protocol="tcp",
                    from_port=443,
                    to_port=443,
                    cidr_ip=f"{address}/32",
                )
                acknowledge(
                    rule, "One address, this network's own NAT gateway; cdk-nag cannot see it yet.", "EC23"
                )
        self._group.connections.allow_to(
            ec2.Peer.any_ipv4(), ec2.Port.HTTPS, "Python packages, the release's source, CloudWatch Logs"
        )

    def _project(self, gate: str, variables: dict[str, str]) -> codebuild.PipelineProject:
        role = iam.Role(
            self,
            f"{gate.title()}Role",
            role_name=gate_role(self._prefix, gate),
            description=f"{gate.title()} gate of {self._prefix}",
            assumed_by=iam.ServicePrincipal("codebuild.amazonaws.com"),
        )
        project = codebuild.PipelineProject(
            self,
            f"{gate.title()}Project",
            project_name=gate_project(self._prefix, gate),
            description=f"{gate.title()} gate, started by the pipeline",
            role=role,
            build_spec=codebuild.BuildSpec.from_source_filename(f"{gate}_tests/buildspec.yml"),
            environment=codebuild.BuildEnvironment(
                build_image=BUILD_IMAGE, compute_type=codebuild.ComputeType.MEDIUM
            ),
            environment_variables={
                name: codebuild.BuildEnvironmentVariable(value=value) for name, value in variables.items()
            },
            encryption_key=self._key,
            vpc=self._vpc,
            subnet_selection=ec2.SubnetSelection(subnet_type=ec2.SubnetType.PRIVATE_WITH_EGRESS),
            security_groups=[self._group],
            timeout=Duration.minutes(90),
            logging=codebuild.LoggingOptions(
                cloud_watch=codebuild.CloudWatchLoggingOptions(
                    log_group=logs.LogGroup(
                        self,
                        f"{gate.title()}Logs",
                        log_group_name=f"/{self._prefix}/{gate}",
                        retention=logs.RetentionDays.ONE_YEAR,
                        removal_policy=RemovalPolicy.DESTROY,
                    )
                )
            ),
        )
        self._read_source(role)
        name = reference(self, project.project_name)
        acknowledge(
            role,
            "The gate writes to its own key, logs and reports, makes network interfaces in its own subnets (the"
            " statement's condition), and reads the source from this pipeline's bucket, whose policy admits it by name.",
            "IAM5[Action::kms:ReEncrypt*]",
            "IAM5[Action::kms:GenerateDataKey*]",
            "IAM5[Resource::arn:<AWS::Partition>:ec2:<AWS::Region>:<AWS::AccountId>:network-interface/*]",
            f"IAM5[Resource::arn:{self.partition}:logs:{self.region}:{self.account}:log-group:/aws/codebuild/{name}:*]",
            f"IAM5[Resource::arn:{self.partition}:codebuild:{self.region}:{self.account}:report-group/{name}-*]",
            f"IAM5[Resource::arn:{self.partition}:s3:::{artifact_bucket(self._settings)}/*]",
            f"IAM5[Resource::arn:{self.partition}:kms:{self.region}:{self._settings.tooling.account}:key/*]",
        )
        acknowledge(
            project,
            "CodeBuild looks up the subnets it is given and makes interfaces there; EC2 has no narrower resource for it.",
            "IAM5[Resource::*]",
        )
        return project

    def _read_source(self, role: iam.Role) -> None:
        """Let a gate read the release's source, and nothing else, from the pipeline's bucket in the tooling account."""
        tooling = self._settings.tooling
        bucket = f"arn:{self.partition}:s3:::{artifact_bucket(self._settings)}"
        role.add_to_policy(
            iam.PolicyStatement(actions=["s3:GetObject", "s3:GetObjectVersion"], resources=[f"{bucket}/*"])
        )
        role.add_to_policy(
            iam.PolicyStatement(
                # The key's id is known to the tooling account only; its own policy admits just these roles.
                actions=["kms:Decrypt"],
                resources=[f"arn:{self.partition}:kms:{tooling.region}:{tooling.account}:key/*"],
                conditions={"StringEquals": {"kms:ViaService": f"s3.{tooling.region}.amazonaws.com"}},
            )
        )

    def _starter(self) -> iam.Role:
        tooling = self._settings.tooling
        return iam.Role(
            self,
            "Starter",
            role_name=starter_role(self._prefix),
            description="Taken on by the pipeline to start the gates",
            assumed_by=iam.PrincipalWithConditions(
                iam.AccountPrincipal(tooling.account),
                {
                    "ArnEquals": {
                        "aws:PrincipalArn": f"arn:{self.partition}:iam::{tooling.account}:role/"
                        f"{pipeline_role(self._settings.name)}"
                    }
                },
            ),
        )


def _load_variables(load: Load) -> dict[str, str]:
    """The load check's settings as the variables that `load_tests` reads."""
    return {
        "LOAD_USERS": str(load.users),
        "LOAD_SPAWN_RATE": f"{load.spawn_rate:g}",
        "LOAD_SECONDS": str(load.seconds),
        "LOAD_MAX_ERROR_RATE": f"{load.max_error_rate:g}",
        "LOAD_MAX_READ_P95_MS": str(load.max_read_p95_ms),
        "LOAD_MAX_WRITE_P95_MS": str(load.max_write_p95_ms),
        "LOAD_MIN_RPS": f"{load.min_rps:g}",
    }
