"""The gates of one environment: builds inside its network that test the URL from where its clients are.

The pipeline in the tooling account starts them; a load balancer that only the VPC can reach is gated like a public one.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from aws_cdk import Aws, Duration, RemovalPolicy, Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from constructs import Construct

from stages.access import Tokens
from stages.environment_build import EnvironmentBuild
from stages.findings import acknowledge
from stages.mlflow_users import GATES, MlflowUsers
from stages.network import NetworkStack
from stages.settings import Environment, Settings
from stages.settings.load import Load
from stages.tracking import TrackingStack

SMOKE, LOAD = "smoke", "load"


def load_parameter(prefix: str) -> str:
    """Name of the SSM parameter with the load check's figures of the last release that passed it."""
    return f"/{prefix}/load"


class GatesStack(Stack):
    """Smoke tests and the load check."""

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
        tokens: Tokens | None,
        users: MlflowUsers | None,
        **stack: Any,
    ) -> None:
        super().__init__(scope, construct_id, **stack)
        key = kms.Key(
            self,
            "Key",
            description="Gates' builds",
            enable_key_rotation=True,
            removal_policy=RemovalPolicy.DESTROY,
        )
        self._group = ec2.SecurityGroup(
            self,
            "GateGroup",
            vpc=network.vpc,
            description="Gates of this environment",
            allow_all_outbound=False,
        )
        self._reach(environment, network, tracking)

        url = tracking.url
        gates = {
            SMOKE: {"SMOKE_DEMO": str(environment.smoke_demo).lower()},
            LOAD: {**_load_variables(environment.load), "LOAD_BASELINE_PARAMETER": load_parameter(prefix)},
        }
        builds = {
            gate: EnvironmentBuild(
                self,
                gate,
                prefix=prefix,
                settings=settings,
                description=f"{gate.title()} gate",
                build_spec=f"{gate}_tests/buildspec.yml",
                variables={"MLFLOW_TRACKING_URI": url, **variables, **_sign_in_variables(tokens, users)},
                network=network,
                group=self._group,
                key=key,
                timeout=Duration.minutes(90),
            )
            for gate, variables in gates.items()
        }
        for build in builds.values():
            if tokens:
                _allow_secret(build.role, tokens.gate_secret_arn, tokens.secret_key_arn)
            if users:
                _allow_secret(build.role, users.gates_arn, users.key.key_arn)
        builds[LOAD].role.add_to_policy(
            iam.PolicyStatement(
                actions=["ssm:GetParameter", "ssm:PutParameter"],
                resources=[
                    self.format_arn(
                        service="ssm", resource="parameter", resource_name=load_parameter(prefix).lstrip("/")
                    )
                ],
            )
        )

    def _reach(self, environment: Environment, network: NetworkStack, tracking: TrackingStack) -> None:
        network.let_out(self._group, "Python packages, the source of the release, CloudWatch Logs")
        if environment.exposure == "cloudfront":
            return  # there a gate comes in as everybody does
        port = ec2.Port.HTTPS if environment.https else ec2.Port.HTTP
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


def _sign_in_variables(tokens: Tokens | None, users: MlflowUsers | None) -> dict[str, str]:
    """How a gate signs in, as the variables that `python -m operations token` and `password` read."""
    if users:
        return {"MLFLOW_TRACKING_USERNAME": GATES, "USER_SECRET_ARN": users.gates_arn}
    if tokens is None:
        return {}
    return {
        "TOKEN_ISSUER": tokens.issuer,
        "TOKEN_REQUEST": urlencode(tokens.request),
        "TOKEN_SECRET_ARN": tokens.gate_secret_arn,
    }


def _allow_secret(role: iam.Role, arn: str, key_arn: str | None) -> None:
    """Let a gate read the secret with which it signs in."""
    role.add_to_policy(iam.PolicyStatement(actions=["secretsmanager:GetSecretValue"], resources=[arn]))
    if key_arn:
        role.add_to_policy(
            iam.PolicyStatement(
                actions=["kms:Decrypt"],
                resources=[key_arn],
                conditions={"StringEquals": {"kms:ViaService": f"secretsmanager.{Aws.REGION}.amazonaws.com"}},
            )
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
        "LOAD_MAX_SLOWDOWN": f"{load.max_slowdown:g}",
    }
