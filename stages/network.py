"""The network of one environment: public, private and isolated subnets over the settings' zones, NAT, flow logs."""

from __future__ import annotations

from typing import Any

from aws_cdk import Fn, RemovalPolicy, Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_logs as logs
from constructs import Construct

from stages.settings import Environment


class NetworkStack(Stack):
    """A VPC: load balancers in public or private subnets, tasks and gates in private ones, data in isolated ones."""

    def __init__(self, scope: Construct, construct_id: str, *, settings: Environment, **stack: Any) -> None:
        self._zones = [Fn.select(zone, Fn.get_azs()) for zone in range(settings.availability_zones)]
        super().__init__(scope, construct_id, **stack)
        self.vpc = ec2.Vpc(
            self,
            "Vpc",
            ip_addresses=ec2.IpAddresses.cidr(settings.cidr),
            max_azs=settings.availability_zones,
            nat_gateways=settings.nat_gateways,
            # Emptying the default group takes a custom resource, a function to keep patched; nothing uses the group.
            restrict_default_security_group=False,
            subnet_configuration=[
                ec2.SubnetConfiguration(name="public", subnet_type=ec2.SubnetType.PUBLIC, cidr_mask=24),
                ec2.SubnetConfiguration(
                    name="private", subnet_type=ec2.SubnetType.PRIVATE_WITH_EGRESS, cidr_mask=22
                ),
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
        # Artifacts are most of the bytes: through the gateway endpoint they cost no NAT traffic.
        self.vpc.add_gateway_endpoint("S3", service=ec2.GatewayVpcEndpointAwsService.S3)

    @property
    def nat_addresses(self) -> list[str]:
        """The public addresses as which the private subnets reach the internet."""
        addresses = (subnet.node.try_find_child("EIP") for subnet in self.vpc.public_subnets)
        return [address.attr_public_ip for address in addresses if isinstance(address, ec2.CfnEIP)]

    @property
    def availability_zones(self) -> list[str]:
        """The region's first zones, chosen on deployment; the default looks them up in the account during synthesis."""
        return self._zones
