"""The network of every environment, and who can reach whom in it."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Network

from .assembly import Json, Platform, attributes

KINDS = ("public", "private", "isolated")
BALANCER, SERVICE, DATABASE, MIGRATION, BUILD, GATE = (
    "tracking/BalancerGroup",
    "tracking/ServiceGroup",
    "data/DatabaseGroup",
    "migration/MigrationGroup",
    "migration/BuildGroup",
    "gates/GateGroup",
)
EVERYWHERE = "0.0.0.0/0"

Flow = tuple[str, str, int]
"""Who, to whom, on which TCP port."""


def subnets(platform: Platform, kind: str) -> list[Json]:
    return [
        subnet.properties
        for subnet in platform.all("AWS::EC2::Subnet")
        if attributes(subnet, "Tags")["aws-cdk:subnet-name"] == kind
    ]


def test_each_zone_has_a_subnet_of_each_kind(platform: Platform) -> None:
    for kind in KINDS:
        zones = [subnet["AvailabilityZone"] for subnet in subnets(platform, kind)]
        assert len(set(zones)) == len(zones) == platform.settings.availability_zones


def test_subnets_share_the_networks_addresses(platform: Platform) -> None:
    whole = IPv4Network(platform.only("AWS::EC2::VPC").properties["CidrBlock"])
    assert str(whole) == platform.settings.cidr
    parts = [IPv4Network(subnet["CidrBlock"]) for kind in KINDS for subnet in subnets(platform, kind)]
    assert all(part.subnet_of(whole) for part in parts)
    assert not any(one.overlaps(other) for one in parts for other in parts if one is not other)


def test_only_public_subnets_hand_out_public_addresses(platform: Platform) -> None:
    assert all(subnet["MapPublicIpOnLaunch"] for subnet in subnets(platform, "public"))
    for kind in ("private", "isolated"):
        assert not any(subnet["MapPublicIpOnLaunch"] for subnet in subnets(platform, kind))


def test_what_leads_to_the_internet(platform: Platform) -> None:
    """Public subnets by the internet gateway, private ones by NAT, isolated ones not at all."""
    ways = {kind: set[str]() for kind in KINDS}
    for route in platform.all("AWS::EC2::Route"):
        assert route.properties["DestinationCidrBlock"] == EVERYWHERE
        kind = next(kind for kind in KINDS if f"/Vpc/{kind}Subnet" in route.properties["RouteTableId"])
        ways[kind] |= route.properties.keys() & {"GatewayId", "NatGatewayId"}
    assert ways == {"public": {"GatewayId"}, "private": {"NatGatewayId"}, "isolated": set()}


def test_as_many_nat_gateways_as_the_settings_say(platform: Platform) -> None:
    gateways = platform.all("AWS::EC2::NatGateway")
    assert len(gateways) == platform.settings.nat_gateways
    assert all("/Vpc/publicSubnet" in gateway.properties["SubnetId"] for gateway in gateways)


def test_flow_logs_record_everything(platform: Platform) -> None:
    log = platform.only("AWS::EC2::FlowLog").properties
    assert (log["ResourceId"], log["TrafficType"]) == ("<network/Vpc>", "ALL")


def test_artifacts_do_not_go_through_nat(platform: Platform) -> None:
    endpoint = platform.only("AWS::EC2::VPCEndpoint").properties
    assert (endpoint["VpcEndpointType"], endpoint["ServiceName"][-3:]) == ("Gateway", ".s3")
    assert {f"<network/Vpc/{kind}Subnet1/RouteTable>" for kind in KINDS} <= set(endpoint["RouteTableIds"])


def flows(platform: Platform, direction: str) -> Iterator[Flow]:
    """Every rule of a direction, Ingress or Egress, of every security group."""
    rules = [
        (group.path, rule)
        for group in platform.all("AWS::EC2::SecurityGroup")
        for rule in group.properties.get(f"SecurityGroup{direction}", [])
    ]
    for resource in platform.all(f"AWS::EC2::SecurityGroup{direction}"):
        rules.append(
            (resource.properties["GroupId"].strip("<>").removesuffix(".GroupId"), resource.properties)
        )
    for group, rule in rules:
        if rule.get("CidrIp") == "255.255.255.255/32":
            continue  # the CDK's way of writing "nothing": without any rule EC2 would let everything out
        assert rule["IpProtocol"] == "tcp", f"{group}: {rule}"
        assert rule["FromPort"] == rule["ToPort"], f"{group}: {rule}"
        if not (other := rule.get("CidrIp")):
            other = rule.get("SourceSecurityGroupId") or rule["DestinationSecurityGroupId"]
            other = other.strip("<>").removesuffix(".GroupId")
        yield (other, group, rule["FromPort"]) if direction == "Ingress" else (group, other, rule["FromPort"])


def between_groups(port: int) -> set[Flow]:
    return {
        (BALANCER, SERVICE, 5000),
        (SERVICE, DATABASE, 5432),
        (MIGRATION, DATABASE, 5432),
        (GATE, BALANCER, port),
    }


def test_who_can_reach_whom(platform: Platform) -> None:
    """Inbound: clients and gates to the load balancer, that to the tasks, these and the migration to the database."""
    port = 443 if platform.settings.certificate_arn else 80
    clients = {(cidr, BALANCER, port) for cidr in platform.settings.ingress_cidrs}
    inbound = set(flows(platform, "Ingress"))
    nat = {flow for flow in inbound if flow[0].startswith("<network/Vpc/publicSubnet")}
    assert inbound - nat == clients | between_groups(port)
    assert bool(nat) == (platform.settings.exposure == "internet-facing")


def test_who_may_call_out(platform: Platform) -> None:
    """Outbound: the same, and HTTPS to AWS for tasks and builds. The database and the balancer call nobody else."""
    port = 443 if platform.settings.certificate_arn else 80
    outbound = set(flows(platform, "Egress"))
    assert outbound == between_groups(port) | {
        (who, EVERYWHERE, 443) for who in (SERVICE, MIGRATION, BUILD, GATE)
    }


def test_no_group_keeps_the_rule_that_lets_everything_out(platform: Platform) -> None:
    """EC2 gives a group that rule when it is made without any other."""
    ruled = {group for group, _, _ in flows(platform, "Egress")}
    for group in platform.all("AWS::EC2::SecurityGroup"):
        assert group.path in ruled or group.properties["SecurityGroupEgress"], group.path


def test_nothing_is_open_to_everybody(platform: Platform, public_platform: Platform) -> None:
    for anywhere in (platform, public_platform):
        assert EVERYWHERE not in {source for source, _, _ in flows(anywhere, "Ingress")}


def test_on_the_internet_only_the_named_networks_and_the_gates_get_in(public_platform: Platform) -> None:
    """A gate reaches the balancer's public addresses through NAT: a rule that names its group would not match."""
    nat = {f"<{address.path}.PublicIp>/32" for address in public_platform.all("AWS::EC2::EIP")}
    assert len(nat) == public_platform.settings.nat_gateways
    expected = {(source, BALANCER, 443) for source in {"198.51.100.0/24", "203.0.113.7/32"} | nat}
    assert set(flows(public_platform, "Ingress")) == expected | between_groups(443)


def test_the_balancer_stands_where_its_clients_are(platform: Platform, public_platform: Platform) -> None:
    kinds = {"internet-facing": "public", "internal": "private"}
    for anywhere in (platform, public_platform):
        exposure = anywhere.settings.exposure
        balancer = anywhere.only("AWS::ElasticLoadBalancingV2::LoadBalancer").properties
        assert balancer["Scheme"] == exposure
        assert all(f"/Vpc/{kinds[exposure]}Subnet" in subnet for subnet in balancer["Subnets"])
