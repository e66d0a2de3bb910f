"""The network of one environment: subnets over the settings' zones, and what tasks and builds reach outside of it."""

from __future__ import annotations

from typing import Any

from aws_cdk import Annotations, CfnWaitConditionHandle, Fn, RemovalPolicy, Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_logs as logs
from constructs import Construct

from stages.endpoints import bind, endpoints
from stages.packages import PackageRepository
from stages.settings import Environment, Settings
from stages.settings.network import ExistingVpc

PUBLIC, PRIVATE, ISOLATED = (
    ec2.SubnetSelection(subnet_group_name=kind) for kind in ("public", "private", "isolated")
)
"""Load balancers are in public or private subnets, tasks and gates in private ones, data in isolated ones."""


class NetworkStack(Stack):
    """A VPC with flow logs; its private subnets lead to the internet by NAT, or to AWS's APIs by endpoints alone.

    Or a VPC that is there already, in which nothing is made or changed: its subnets are settings, synthesis asks nobody.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        prefix: str,
        settings: Settings,
        environment: Environment,
        **stack: Any,
    ) -> None:
        zones = range(environment.availability_zones or 0)
        self._zones = (
            environment.vpc.zones if environment.vpc else [Fn.select(z, Fn.get_azs()) for z in zones]
        )
        super().__init__(scope, construct_id, **stack)
        self.packages: PackageRepository | None = None
        self._outside: list[ec2.IPeer] = [ec2.Peer.any_ipv4()]
        self.vpc: ec2.IVpc
        if environment.vpc:
            self.vpc = self._existing(environment.vpc)
            return
        self.vpc = vpc = self._own(environment)
        # Artifacts are most of the bytes: through the gateway endpoint they cost no NAT traffic.
        s3 = vpc.add_gateway_endpoint("S3", service=ec2.GatewayVpcEndpointAwsService.S3)
        if not environment.has_nat:
            bind(s3, settings.tooling.account)
            self.packages = PackageRepository(self, "Packages", name=prefix)
            self._outside = [
                endpoints(self, vpc, PRIVATE),
                ec2.Peer.prefix_list(environment.s3_prefix_list or ""),
            ]

    def _own(self, environment: Environment) -> ec2.Vpc:
        private = (
            ec2.SubnetType.PRIVATE_WITH_EGRESS if environment.has_nat else ec2.SubnetType.PRIVATE_ISOLATED
        )
        return ec2.Vpc(
            self,
            "Vpc",
            ip_addresses=ec2.IpAddresses.cidr(environment.cidr or ""),
            max_azs=environment.availability_zones,
            nat_gateways=environment.nat_gateways,
            # Emptying the default group takes a custom resource, a function to keep patched; nothing uses the group.
            restrict_default_security_group=False,
            subnet_configuration=[
                ec2.SubnetConfiguration(
                    name="public",
                    subnet_type=ec2.SubnetType.PUBLIC,
                    cidr_mask=24,
                    # Gateways and load balancers have addresses of their own; nothing else is to get one by accident.
                    map_public_ip_on_launch=False,
                ),
                ec2.SubnetConfiguration(name="private", subnet_type=private, cidr_mask=22),
                ec2.SubnetConfiguration(
                    name="isolated", subnet_type=ec2.SubnetType.PRIVATE_ISOLATED, cidr_mask=24
                ),
            ],
            flow_logs={
                "All": ec2.FlowLogOptions(
                    destination=ec2.FlowLogDestination.to_cloud_watch_logs(
                        logs.LogGroup(
                            self,
                            "FlowLogs",
                            retention=logs.RetentionDays.THREE_MONTHS,
                            removal_policy=RemovalPolicy.DESTROY,
                        )
                    )
                )
            },
        )

    def _existing(self, given: ExistingVpc) -> ec2.IVpc:
        # CloudFormation takes no stack without a resource; this one is nothing.
        CfnWaitConditionHandle(self, "Nothing")
        vpc = ec2.Vpc.from_vpc_attributes(
            self,
            "Vpc",
            vpc_id=given.id,
            availability_zones=given.zones,
            public_subnet_ids=given.public_subnets or None,
            public_subnet_names=["public"] if given.public_subnets else None,
            private_subnet_ids=given.private_subnets,
            private_subnet_names=["private"],
            isolated_subnet_ids=given.isolated_subnets,
            isolated_subnet_names=["isolated"],
        )
        Annotations.of(vpc).acknowledge_warning(
            "@aws-cdk/aws-ec2:noSubnetRouteTableId", "Nothing here adds a route to the subnets' tables."
        )
        return vpc

    def let_out(self, who: ec2.IConnectable, why: str) -> None:
        """Let `who` call by HTTPS what there is outside: everything where there is NAT, else AWS's APIs and S3 alone."""
        for outside in self._outside:
            who.connections.allow_to(outside, ec2.Port.HTTPS, why)

    @property
    def nat_addresses(self) -> list[str]:
        """The public addresses as which the private subnets reach the internet."""
        addresses = (subnet.node.try_find_child("EIP") for subnet in self.vpc.public_subnets)
        return [address.attr_public_ip for address in addresses if isinstance(address, ec2.CfnEIP)]

    @property
    def availability_zones(self) -> list[str]:
        """The settings' zones, or the region's first ones, chosen on deployment: the default would look them up."""
        return self._zones
