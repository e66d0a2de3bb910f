"""Who can reach whom, computed from a platform's template: what a rehearsal, on one loopback address, cannot show.

One reaches another on a port when a rule of its groups lets the connection out, a rule of the other's lets it in, and,
where the other is outside of the network, a route leads there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .assembly import Json, Platform, of_type

INTERNET, S3 = "the internet", "S3"
EVERYWHERE = "0.0.0.0/0"
NOWHERE = "255.255.255.255/32"
"""The CDK's way of writing "nothing": without any rule EC2 would let everything out."""

Reach = tuple[str, str, int]
"""Who, whom, on which TCP port."""


@dataclass(frozen=True)
class Rule:
    """One rule of a security group: the other side is a group, a network, or a list of AWS's addresses."""

    group: str
    other: str
    port: int


@dataclass(frozen=True)
class Member:
    """Something with network interfaces."""

    name: str
    groups: frozenset[str]
    subnets: tuple[str, ...]
    public: bool = False
    """Whether it has public addresses, so that an internet gateway is of use to it."""


def rules(platform: Platform, direction: str) -> list[Rule]:
    """Every rule of a direction, Ingress or Egress, of every security group."""
    return [
        _rule(rule["GroupId"], rule)
        for rule in declared_rules(platform, direction)
        if rule.get("CidrIp") != NOWHERE
    ]


def declared_rules(platform: Platform, direction: str) -> list[Json]:
    """The same as the template has them, each with its group."""
    inline = [
        {**rule, "GroupId": group.path}
        for group in platform.all("AWS::EC2::SecurityGroup")
        for rule in group.properties.get(f"SecurityGroup{direction}", [])
    ]
    apart = [
        {**resource.properties, "GroupId": _group(resource.properties["GroupId"])}
        for resource in platform.all(f"AWS::EC2::SecurityGroup{direction}")
    ]
    return [*inline, *apart]


def _rule(group: str, rule: Json) -> Rule:
    assert rule["IpProtocol"] == "tcp", f"{group}: {rule}"
    assert rule["FromPort"] == rule["ToPort"], f"{group}: {rule}"
    sides = ("CidrIp", "SourceSecurityGroupId", "DestinationSecurityGroupId", "SourcePrefixListId")
    (other,) = (rule[side] for side in (*sides, "DestinationPrefixListId") if side in rule)
    return Rule(group, _group(other), int(rule["FromPort"]))


def _group(reference: str) -> str:
    return reference.removesuffix(".GroupId>").removeprefix("<") if ".GroupId" in reference else reference


def members(platform: Platform) -> list[Member]:
    """Everything in the network, from whichever property says in which groups it is."""
    found = list(_members(platform))
    assert len({member.name for member in found}) == len(found)
    return found


def _members(platform: Platform) -> Iterator[Member]:
    for resource in platform.resources:
        given, name = resource.properties, resource.path
        if resource.type == "AWS::ElasticLoadBalancingV2::LoadBalancer":
            public = given["Scheme"] == "internet-facing"
            yield _member("balancer", given["SecurityGroups"], given["Subnets"], public)
        elif resource.type == "AWS::ECS::Service":
            network = given["NetworkConfiguration"]["AwsvpcConfiguration"]
            assert network["AssignPublicIp"] == "DISABLED"
            yield _member("tasks", network["SecurityGroups"], network["Subnets"])
        elif resource.type == "AWS::SecretsManager::RotationSchedule":
            function = given["HostedRotationLambda"]
            subnets = function["VpcSubnetIds"].split(",")
            yield _member("rotation", function["VpcSecurityGroupIds"].split(","), subnets)
        elif resource.type == "AWS::RDS::DBInstance":
            (subnets,) = (group.properties["SubnetIds"] for group in platform.all("AWS::RDS::DBSubnetGroup"))
            yield _member("database", given["VPCSecurityGroups"], subnets)
        elif resource.type == "AWS::CodeBuild::Project":
            network = given["VpcConfig"]
            build = given["Name"].removeprefix(f"{platform.prefix}-")
            yield _member(f"{build} build", network["SecurityGroupIds"], network["Subnets"])
            variables = {v["Name"]: v["Value"] for v in given["Environment"]["EnvironmentVariables"]}
            if group := variables.get("MIGRATION_SECURITY_GROUP"):
                yield _member("migration", [group], variables["MIGRATION_SUBNETS"].split(","))
        elif resource.type == "AWS::EC2::VPCEndpoint" and given["VpcEndpointType"] == "Interface":
            service = given["ServiceName"].removeprefix("com.amazonaws.").split(".", 1)[1]
            yield _member(f"{service} endpoint", given["SecurityGroupIds"], given["SubnetIds"])
        else:
            hidden = {
                "SecurityGroups",
                "SecurityGroupIds",
                "VpcSecurityGroupIds",
                "VPCSecurityGroups",
            } & given.keys()
            assert not hidden, f"{name} ({resource.type}) is in the network: tell this helper how"


def _member(name: str, groups: list[str], subnets: list[str], public: bool = False) -> Member:
    return Member(name, frozenset(map(_group, groups)), tuple(subnets), public)


def reach(platform: Platform) -> set[Reach]:
    """The table: everything in the network, S3, the internet, and the networks that rules name."""
    return {way for way, _ in _ways(platform)}


def rules_of_no_use(platform: Platform) -> set[Rule]:
    """Rules by which nobody reaches anybody: one half of a pair, or left behind."""
    used = {rule for _, pair in _ways(platform) for rule in pair}
    return {*rules(platform, "Ingress"), *rules(platform, "Egress")} - used


def _ways(platform: Platform) -> Iterator[tuple[Reach, tuple[Rule, ...]]]:
    everything = members(platform)
    out, into = rules(platform, "Egress"), rules(platform, "Ingress")
    for who in everything:
        for rule in out:
            if rule.group not in who.groups:
                continue
            if rule.other == EVERYWHERE and _leads_out(platform, who):
                yield (who.name, INTERNET, rule.port), (rule,)
            if rule.other.startswith("pl-"):
                yield (who.name, S3, rule.port), (rule,)
            for whom in everything:
                if rule.other == EVERYWHERE or rule.other in whom.groups:
                    for let_in in into:
                        if (
                            let_in.group in whom.groups
                            and let_in.port == rule.port
                            and let_in.other in who.groups
                        ):
                            yield (who.name, whom.name, rule.port), (rule, let_in)
    for let_in in into:
        for whom in everything:
            if let_in.group in whom.groups and re.search(r"/\d+$|^pl-", let_in.other):
                yield (let_in.other, whom.name, let_in.port), (let_in,)


def _leads_out(platform: Platform, who: Member) -> bool:
    """Whether a route leads from its subnets to the internet: by NAT, or by an internet gateway if it is public."""
    table = {
        association.properties["SubnetId"]: association.properties["RouteTableId"]
        for association in of_type(platform.resources, "AWS::EC2::SubnetRouteTableAssociation")
    }
    gateway = "GatewayId" if who.public else "NatGatewayId"
    leading = {
        route.properties["RouteTableId"]
        for route in of_type(platform.resources, "AWS::EC2::Route")
        if route.properties["DestinationCidrBlock"] == EVERYWHERE and gateway in route.properties
    }
    # Of a VPC that was there before, the template knows subnets alone; that they lead out is its owner's word.
    return all(subnet.startswith("subnet-") or table[subnet] in leading for subnet in who.subnets)
