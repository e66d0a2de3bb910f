"""Settings of an environment's network, and of who may reach its load balancer from where."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.settings.fields import Table, between, ipv4_network, matching
from stages.settings.sentences import shown

PrefixListId = Annotated[
    str,
    matching(
        r"pl-[0-9a-f]{8,17}",
        'paste the id of a list of addresses that AWS keeps in the region, such as "pl-6da54004" (docs/settings.md says how'
        " to look it up)",
    ),
]
SubnetId = Annotated[
    str, matching(r"subnet-[0-9a-f]{8,17}", 'write a subnet\'s id, such as "subnet-0a1b2c3d"')
]


class ExistingVpc(Table):
    """A VPC that is there already, and its subnets by kind: one of each kind in each zone, in the zones' order."""

    id: Annotated[str, matching(r"vpc-[0-9a-f]{8,17}", 'write a VPC\'s id, such as "vpc-0a1b2c3d"')]
    zones: list[Annotated[str, matching(r"[a-z]{2}(-[a-z]+)+-\d[a-z]", 'write a zone such as "eu-west-1a"')]]
    private_subnets: list[SubnetId]
    isolated_subnets: list[SubnetId]
    public_subnets: list[SubnetId] = Field(default_factory=list)

    @model_validator(mode="after")
    def _a_subnet_of_each_kind_in_each_zone(self) -> ExistingVpc:
        if not 2 <= len(set(self.zones)) == len(self.zones) <= 3:
            raise ValueError(
                f"zones = {shown(self.zones)}: name two or three different ones, so that one may fail"
            )
        kinds = {
            kind: getattr(self, kind) for kind in ("private_subnets", "isolated_subnets", "public_subnets")
        }
        for kind, subnets in kinds.items():
            if len(subnets) != len(self.zones) and (subnets or kind != "public_subnets"):
                raise ValueError(
                    f"{kind} = {shown(subnets)}: give one for each of the {len(self.zones)} zones, in their order"
                )
        named = [subnet for subnets in kinds.values() for subnet in subnets]
        if twice := sorted({subnet for subnet in named if named.count(subnet) > 1}):
            where = next(kind for kind, subnets in kinds.items() if twice[0] in subnets)
            raise ValueError(
                f'{where}: "{twice[0]}": is named twice; data, tasks and load balancers have subnets of their own'
            )
        return self


class Network(Table):
    """The VPC: one that the platform makes, or one that is there already."""

    cidr: Annotated[str, ipv4_network(smallest=20, largest=16)] | None = None
    availability_zones: Annotated[int, between(2, 3, "a number of zones")] | None = None
    nat_gateways: Annotated[int, between(0, 3, "a number of NAT gateways")] | None = None
    s3_prefix_list: PrefixListId | None = None
    vpc: ExistingVpc | None = None

    @property
    def has_nat(self) -> bool:
        """Whether private subnets lead to the internet. Those of a VPC that is there already must."""
        return self.nat_gateways != 0

    @model_validator(mode="after")
    def _describes_one_network(self) -> Network:
        if self.cidr is None and self.vpc is None:
            raise ValueError("cidr: is missing; add it, or name a vpc that is there already")
        for name in ("cidr", "availability_zones", "nat_gateways"):
            if (value := getattr(self, name)) is not None and self.vpc is not None:
                raise ValueError(
                    f"{name} = {shown(value)}: is for a network that the platform makes; remove it, or vpc"
                )
        return self

    @model_validator(mode="after")
    def _gateways_fit(self) -> Network:
        if (self.nat_gateways or 0) > (self.availability_zones or 0):
            raise ValueError(
                f"nat_gateways = {self.nat_gateways}: there are only {self.availability_zones} zones; give at most one each"
            )
        if not self.has_nat and self.s3_prefix_list is None:
            raise ValueError(
                "s3_prefix_list: is missing; without NAT gateways tasks may call AWS's own addresses alone, so name the"
                " list of S3's"
            )
        if self.has_nat and self.s3_prefix_list is not None:
            raise ValueError(
                f's3_prefix_list = "{self.s3_prefix_list}": is of use with nat_gateways = 0 only; remove it'
            )
        return self


HostName = Annotated[
    str,
    matching(
        r"([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)+[a-z]{2,}",
        'write a host name such as "mlflow.example.com", lower case',
    ),
]


class HostedZone(Table):
    """A public zone of Route 53, in the environment's account."""

    id: Annotated[str, matching(r"Z[A-Z0-9]{5,31}", 'paste the zone\'s id, such as "Z0123456789ABCDEFGHIJ"')]
    name: HostName


class Firewall(Table):
    """What AWS WAF refuses before the load balancer takes it.

    The default is 66 requests a second from one address, for five minutes: a whole office or cluster behind one NAT gateway.
    """

    requests_per_5_minutes: Annotated[int, between(100, 100_000, "requests of one address")] = 20_000


class Exposure(Table):
    """The load balancer's side of the outside."""

    exposure: Literal["internal", "internet-facing", "cloudfront"]
    cloudfront_prefix_list: PrefixListId | None = None
    certificate_arn: (
        Annotated[
            str,
            matching(
                r"arn:aws[\w-]*:acm:[a-z0-9-]+:\d{12}:certificate/[\w-]+",
                "paste an ARN of the form arn:aws:acm:REGION:ACCOUNT:certificate/ID",
            ),
        ]
        | None
    ) = None
    host_name: HostName | None = None
    hosted_zone: HostedZone | None = None
    firewall: Firewall | None = None
    ingress_cidrs: list[Annotated[str, ipv4_network(smallest=32, largest=0)]] = Field(default_factory=list)

    @property
    def https(self) -> bool:
        """Whether the load balancer has a certificate, and then speaks nothing but HTTPS."""
        return self.certificate_arn is not None or self.hosted_zone is not None

    @property
    def encrypted(self) -> bool:
        """Whether clients speak HTTPS, to the load balancer or to CloudFront before it."""
        return self.https or self.exposure == "cloudfront"

    @property
    def on_the_internet(self) -> bool:
        """Whether strangers can knock."""
        return self.exposure != "internal"

    @property
    def guard(self) -> Firewall | None:
        """The firewall: always on the internet, inside a network where the settings want one."""
        return self.firewall or (Firewall() if self.on_the_internet else None)

    @model_validator(mode="after")
    def _names_and_networks_fit(self) -> Exposure:
        if self.https and self.host_name is None:
            raise ValueError("host_name: is missing; add the name that the certificate is for")
        if self.host_name is not None and not self.https:
            raise ValueError(
                f'host_name = "{self.host_name}": is of use with a certificate for it only; add certificate_arn or'
                " hosted_zone, or remove it"
            )
        if self.hosted_zone is not None and not f".{self.host_name}".endswith(f".{self.hosted_zone.name}"):
            raise ValueError(
                f'host_name = "{self.host_name}": is not in hosted_zone.name = "{self.hosted_zone.name}"; take a name that'
                " ends in it"
            )
        if self.exposure == "cloudfront":
            for name in ("certificate_arn", "host_name", "hosted_zone"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f'{name}: is of no use with exposure = "cloudfront", which is for environments without a domain;'
                        ' remove it, or set exposure to "internet-facing"'
                    )
        if (self.exposure == "cloudfront") != (self.cloudfront_prefix_list is not None):
            raise ValueError(
                "cloudfront_prefix_list: is missing; the load balancer admits CloudFront's addresses alone, so name the list"
                " of them"
                if self.cloudfront_prefix_list is None
                else f'cloudfront_prefix_list = "{self.cloudfront_prefix_list}": is of use with exposure = "cloudfront"'
                " only; remove it"
            )
        if self.on_the_internet:
            if not self.encrypted:
                raise ValueError(
                    'exposure = "internet-facing": plain HTTP is not put on the internet; add certificate_arn or'
                    " hosted_zone"
                )
            if not self.ingress_cidrs:
                raise ValueError(
                    "ingress_cidrs = []: an environment on the internet without clients is of no use; name the networks"
                    " that may reach it"
                )
        return self
