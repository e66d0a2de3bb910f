"""The network of every environment, and who can reach whom in it."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path

from stages.endpoints import APIS

from .assembly import ROOT, Json, Platform, as_list, attributes, of_type
from .conftest import CLOUDFRONT_PREFIX_LIST, S3_PREFIX_LIST, VPC
from .reachability import (
    EVERYWHERE,
    INTERNET,
    S3,
    Reach,
    declared_rules,
    members,
    reach,
    rules,
    rules_of_no_use,
)

KINDS = ("public", "private", "isolated")


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


def test_no_subnet_hands_out_public_addresses(platform: Platform) -> None:
    for kind in KINDS:
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


def within(port: int) -> set[Reach]:
    """Who reaches whom inside every network."""
    return {
        ("balancer", "tasks", 5000),
        ("tasks", "database", 5432),
        ("migration", "database", 5432),
        ("rotation", "database", 5432),
        ("smoke build", "balancer", port),
        ("load build", "balancer", port),
    }


def all_to(whom: str) -> set[Reach]:
    """Tasks, builds and the rotation of the password, which call AWS's APIs, by HTTPS."""
    builds = ("migrate build", "smoke build", "load build")
    return {(who, whom, 443) for who in ("tasks", "migration", "rotation", *builds)}


def test_ec2_takes_what_groups_and_rules_are_described_by(
    platform: Platform, public_platform: Platform, endpoint_platform: Platform
) -> None:
    """It refuses an apostrophe, say, and no linter knows for rules."""
    for anywhere in (platform, public_platform, endpoint_platform):
        texts = [group.properties["GroupDescription"] for group in anywhere.all("AWS::EC2::SecurityGroup")]
        for direction in ("Ingress", "Egress"):
            texts += [rule["Description"] for rule in declared_rules(anywhere, direction)]
        assert not [text for text in texts if not re.fullmatch(r"[\w ._\-:/()#,@\[\]+=&;{}!$*]{1,255}", text)]


def test_who_can_reach_whom(platform: Platform) -> None:
    """Database and load balancer call nobody else; nothing but the load balancer is called from outside."""
    port = 443 if platform.settings.certificate_arn else 80
    clients = {(cidr, "balancer", port) for cidr in platform.settings.ingress_cidrs}
    assert reach(platform) == within(port) | all_to(INTERNET) | clients


def test_who_can_reach_whom_without_nat(endpoint_platform: Platform) -> None:
    """The same, with AWS's APIs and S3 in place of the internet."""
    endpoints = {member.name for member in members(endpoint_platform) if member.name.endswith(" endpoint")}
    assert len(endpoints) == len(APIS)
    outside = {way for whom in (*endpoints, S3) for way in all_to(whom)}
    assert reach(endpoint_platform) == within(80) | outside | {("10.0.0.0/8", "balancer", 80)}


def test_who_can_reach_whom_on_the_internet(public_platform: Platform) -> None:
    """A gate goes to the balancer's public addresses through NAT, and arrives as NAT's address. The balancer asks the
    user pool who people are."""
    nat = {f"<{address.path}.PublicIp>/32" for address in public_platform.all("AWS::EC2::EIP")}
    assert len(nat) == public_platform.settings.nat_gateways
    clients = {(source, "balancer", 443) for source in {"198.51.100.0/24", "203.0.113.7/32"} | nat}
    out = all_to(INTERNET) | {("balancer", INTERNET, 443)}
    assert reach(public_platform) == within(443) | out | clients


def test_who_can_reach_whom_through_cloudfront(edge_platform: Platform) -> None:
    """The load balancer admits CloudFront's addresses and nobody else, gates included."""
    inside = {way for way in within(80) if way[1] != "balancer"}
    assert reach(edge_platform) == inside | all_to(INTERNET) | {(CLOUDFRONT_PREFIX_LIST, "balancer", 80)}


def test_no_rule_is_of_no_use(
    platform: Platform,
    public_platform: Platform,
    endpoint_platform: Platform,
    guest_platform: Platform,
    edge_platform: Platform,
) -> None:
    """A rule without its other half is a mistake, or was forgotten."""
    for anywhere in (platform, public_platform, endpoint_platform, guest_platform, edge_platform):
        assert not rules_of_no_use(anywhere)


def test_no_group_keeps_the_rule_that_lets_everything_out(platform: Platform) -> None:
    """EC2 gives a group that rule when it is made without any other."""
    ruled = {rule.group for rule in rules(platform, "Egress")}
    for group in platform.all("AWS::EC2::SecurityGroup"):
        assert group.path in ruled or group.properties["SecurityGroupEgress"], group.path


def test_the_balancer_stands_where_its_clients_are(platform: Platform, public_platform: Platform) -> None:
    kinds = {"internet-facing": "public", "internal": "private"}
    for anywhere in (platform, public_platform):
        exposure = anywhere.settings.exposure
        balancer = anywhere.only("AWS::ElasticLoadBalancingV2::LoadBalancer").properties
        assert balancer["Scheme"] == exposure
        assert all(f"/Vpc/{kinds[exposure]}Subnet" in subnet for subnet in balancer["Subnets"])


# In a VPC that is there already


def test_nothing_is_made_in_a_vpc_that_is_there_already(guest_platform: Platform) -> None:
    made = {r.type for r in guest_platform.resources if r.type.startswith("AWS::EC2::")}
    assert made <= {f"AWS::EC2::SecurityGroup{kind}" for kind in ("", "Ingress", "Egress")}
    assert {group.properties["VpcId"] for group in guest_platform.all("AWS::EC2::SecurityGroup")} == {
        VPC["id"]
    }


def test_everything_stands_in_the_subnets_of_its_kind(guest_platform: Platform) -> None:
    kinds = {"balancer": "public", "database": "isolated"}
    for member in members(guest_platform):
        assert list(member.subnets) == VPC[f"{kinds.get(member.name, 'private')}_subnets"], member.name
    targets = guest_platform.only("AWS::ElasticLoadBalancingV2::TargetGroup").properties
    assert targets["VpcId"] == VPC["id"]


def test_who_can_reach_whom_in_a_vpc_that_is_there_already(guest_platform: Platform) -> None:
    """The platform does not know its NAT gateways: their addresses are for the settings to name."""
    clients = {(source, "balancer", 443) for source in guest_platform.settings.ingress_cidrs}
    out = all_to(INTERNET) | {("balancer", INTERNET, 443)}
    assert reach(guest_platform) == within(443) | out | clients


# Without NAT


def policies(platform: Platform) -> Iterator[tuple[str, Json]]:
    """Each endpoint's service with each statement of its policy."""
    for endpoint in platform.all("AWS::EC2::VPCEndpoint"):
        service = endpoint.properties["ServiceName"].rpartition("}.")[2]
        for statement in endpoint.properties["PolicyDocument"]["Statement"]:
            yield service, statement


def callers(platform: Platform) -> list[str]:
    """The roles as which tasks and builds call AWS, and ECS in their place, from inside the network."""
    trusted = ("ecs-tasks.amazonaws.com", "codebuild.amazonaws.com")
    return [
        role.path
        for role in platform.all("AWS::IAM::Role")
        if role.properties["AssumeRolePolicyDocument"]["Statement"][0]["Principal"].get("Service") in trusted
    ]


def test_without_nat_nothing_leads_to_the_internet_from_tasks_and_data(endpoint_platform: Platform) -> None:
    assert not of_type(endpoint_platform.resources, "AWS::EC2::NatGateway")
    for route in endpoint_platform.all("AWS::EC2::Route"):
        assert "/Vpc/publicSubnet" in route.properties["RouteTableId"]
    assert rules(endpoint_platform, "Egress")
    assert EVERYWHERE not in {rule.other for rule in rules(endpoint_platform, "Egress")}


def test_every_endpoint_answers_under_the_usual_name_in_every_zone(endpoint_platform: Platform) -> None:
    zones = endpoint_platform.settings.availability_zones or 0
    interfaces = [
        endpoint.properties
        for endpoint in endpoint_platform.all("AWS::EC2::VPCEndpoint")
        if endpoint.properties["VpcEndpointType"] == "Interface"
    ]
    assert len(interfaces) == len(APIS)
    for endpoint in interfaces:
        assert endpoint["PrivateDnsEnabled"] is True
        assert endpoint["SecurityGroupIds"] == ["<network/EndpointGroup.GroupId>"]
        assert [f"<network/Vpc/privateSubnet{zone + 1}/Subnet>" for zone in range(zones)] == endpoint[
            "SubnetIds"
        ]


def test_endpoints_let_through_what_roles_may_do_and_no_more(endpoint_platform: Platform) -> None:
    """Both ways: a call that no endpoint takes would hang, and an endpoint that nobody uses costs money every hour."""
    # Not calls from the network: EC2 is asked by CodeBuild itself, KMS by S3 and Secrets Manager, STS by CodeArtifact;
    # and to pass a role is a right, not a call.
    elsewhere = ("ec2:", "kms:", "sts:", "iam:PassRole")
    database = endpoint_platform.at("data/Database").type.removeprefix("AWS::RDS::DB")
    other = {"Instance": "Cluster", "Cluster": "Instance"}[database]
    assert other == "Cluster"
    allowed = {
        action
        for role in callers(endpoint_platform)
        for action, _, _ in endpoint_platform.permissions(role)
        if not action.startswith(elsewhere)
    }
    let_through = {
        action for _, statement in policies(endpoint_platform) for action in as_list(statement["Action"])
    }
    of_clusters = {"rds:CreateDBClusterSnapshot", "rds:DescribeDBClusterSnapshots"}
    unused = {"codebuild:BatchPutCodeCoverages", "secretsmanager:DescribeSecret"}
    # AWS makes the role of the function that rotates; CloudFormation shows it in a stack of its own.
    rotation = {
        f"secretsmanager:{action}"
        for action in ("GetRandomPassword", "PutSecretValue", "UpdateSecretVersionStage")
    }
    assert allowed <= let_through
    assert let_through - allowed <= of_clusters | unused | rotation


def test_endpoints_serve_this_account_alone(endpoint_platform: Platform) -> None:
    """Stolen keys of another account cannot carry data out through them."""
    tooling = "111111111111"
    resources = []
    for service, statement in policies(endpoint_platform):
        if statement.get("Resource") != "*":
            assert statement["Resource"].endswith(":s3:::prod-${AWS::Region}-starport-layer-bucket/*")
            assert statement["Action"] == "s3:GetObject"
            continue
        condition = dict(statement["Condition"]["StringEquals"])
        assert condition.pop("aws:PrincipalAccount") == "${AWS::AccountId}"
        resources += [(service, condition)] if condition else []
    assert resources == [
        ("s3", {"aws:ResourceAccount": "${AWS::AccountId}"}),
        ("s3", {"aws:ResourceAccount": tooling}),
    ]


def test_s3_is_reached_by_the_list_that_the_settings_name(endpoint_platform: Platform) -> None:
    lists = [rule.other for rule in rules(endpoint_platform, "Egress") if rule.other.startswith("pl-")]
    assert set(lists) == {S3_PREFIX_LIST}


def test_builds_without_nat_install_from_the_accounts_own_repository(
    endpoint_platform: Platform, platform: Platform
) -> None:
    repository = endpoint_platform.only("AWS::CodeArtifact::Repository").properties
    assert repository["ExternalConnections"] == ["public:pypi"]
    assert not of_type(platform.resources, "AWS::CodeArtifact::Repository")
    for project in endpoint_platform.all("AWS::CodeBuild::Project"):
        variables = {v["Name"]: v["Value"] for v in project.properties["Environment"]["EnvironmentVariables"]}
        assert variables["PACKAGES"] == repository["RepositoryName"] == repository["DomainName"]


def test_a_build_points_pip_and_uv_to_that_repository(tmp_path: Path) -> None:
    """In the shell that goes on to install, as the buildspecs source it; without one, nothing changes."""
    aws = tmp_path / "aws"
    aws.write_text(
        '#!/bin/sh\ncase "$*" in\n'
        '*get-authorization-token*"--domain there"*) echo s3cret;;\n'
        '*get-repository-endpoint*"--repository there --format pypi"*) echo https://there.example.com/pypi/there/;;\n'
        "*) exit 1;;\nesac\n"
    )
    aws.chmod(0o755)

    def install(packages: str) -> tuple[int, list[str]]:
        done = subprocess.run(
            ["bash", "-c", '. operations/packages.sh && echo "${PIP_INDEX_URL:-} ${UV_DEFAULT_INDEX:-}"'],
            cwd=ROOT,
            env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "PACKAGES": packages},
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout.split()

    assert install("there") == (0, ["https://aws:s3cret@there.example.com/pypi/there/simple/"] * 2)
    assert install("") == (0, [])
    assert install("elsewhere")[0] != 0
    for build in (
        "smoke_tests/buildspec.yml",
        "load_tests/buildspec.yml",
        "operations/migrate.buildspec.yml",
    ):
        commands = (ROOT / build).read_text(encoding="utf-8")
        assert commands.index("- . operations/packages.sh") < commands.index("- make venv")
