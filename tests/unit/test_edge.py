"""HTTPS without a domain: what CloudFront hands on, to whom, and who is let in through it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

from .assembly import Json, Platform, attributes, of_type

DISTRIBUTION = "AWS::CloudFront::Distribution"


@pytest.fixture
def distribution(edge_platform: Platform) -> Json:
    config = edge_platform.only(DISTRIBUTION).properties["DistributionConfig"]
    assert isinstance(config, dict)
    return config


def test_no_other_environment_has_one(platform: Platform, public_platform: Platform) -> None:
    for anywhere in (platform, public_platform):
        assert not of_type(anywhere.resources, DISTRIBUTION)


def test_clients_speak_https_and_plain_http_is_not_answered(distribution: Json) -> None:
    assert distribution["DefaultCacheBehavior"]["ViewerProtocolPolicy"] == "https-only"
    assert "CacheBehaviors" not in distribution, "one behavior for every path"


def test_it_leads_to_the_internal_load_balancer_alone(edge_platform: Platform, distribution: Json) -> None:
    balancer = edge_platform.only("AWS::ElasticLoadBalancingV2::LoadBalancer")
    assert balancer.properties["Scheme"] == "internal"
    endpoint = edge_platform.only("AWS::CloudFront::VpcOrigin")
    config = endpoint.properties["VpcOriginEndpointConfig"]
    assert (config["Arn"], config["OriginProtocolPolicy"]) == (f"<{balancer.path}>", "http-only")
    (origin,) = distribution["Origins"]
    assert origin["DomainName"] == f"<{balancer.path}.DNSName>"
    assert origin["VpcOriginConfig"]["VpcOriginId"] == f"<{endpoint.path}.Id>"


def test_it_waits_as_long_as_the_load_balancer_and_hangs_up_first(
    edge_platform: Platform, distribution: Json
) -> None:
    balancer = edge_platform.only("AWS::ElasticLoadBalancingV2::LoadBalancer")
    idle = int(attributes(balancer, "LoadBalancerAttributes")["idle_timeout.timeout_seconds"])
    (origin,) = distribution["Origins"]
    assert origin["VpcOriginConfig"]["OriginReadTimeout"] >= idle
    assert origin["VpcOriginConfig"]["OriginKeepaliveTimeout"] < idle


def test_every_request_goes_through_as_it_came_and_nothing_is_kept(
    edge_platform: Platform, distribution: Json
) -> None:
    behavior = distribution["DefaultCacheBehavior"]
    assert set(behavior["AllowedMethods"]) == {"GET", "HEAD", "OPTIONS", "PUT", "PATCH", "POST", "DELETE"}
    assert behavior["CachePolicyId"] == "4135ea2d-6df8-44a3-9df3-4b5a84be39ad", (
        "AWS's policy that caches nothing"
    )
    assert behavior["Compress"] is False
    policy = edge_platform.only("AWS::CloudFront::OriginRequestPolicy")
    assert behavior["OriginRequestPolicyId"] == f"<{policy.path}>"
    config = policy.properties["OriginRequestPolicyConfig"]
    assert config["CookiesConfig"] == {"CookieBehavior": "all"}
    assert config["QueryStringsConfig"] == {"QueryStringBehavior": "all"}
    assert config["HeadersConfig"] == {
        "HeaderBehavior": "allViewerAndWhitelistCloudFront",
        "Headers": ["CloudFront-Viewer-TLS"],
    }


def test_the_firewall_is_told_who_asks_whatever_the_client_says(edge_platform: Platform) -> None:
    """CloudFront's function, run by the Node that the CDK needs anyway."""
    node = shutil.which("node")
    assert node, "node is missing: the CDK needs it, too"
    code = edge_platform.only("AWS::CloudFront::Function").properties["FunctionCode"]
    request = {"headers": {"x-viewer-ip": {"value": "10.0.0.1"}, "host": {"value": "h"}}, "uri": "/"}
    event = {"request": request, "viewer": {"ip": "198.51.100.7"}}
    script = f"{code}\nconsole.log(JSON.stringify(handler({json.dumps(event)})))"
    done = subprocess.run([node, "-e", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {
        "headers": {"x-viewer-ip": {"value": "198.51.100.7"}, "host": {"value": "h"}},
        "uri": "/",
    }


def test_only_named_networks_and_the_gates_come_in_and_by_a_tls_of_today(edge_platform: Platform) -> None:
    rules = {rule["Name"]: rule for rule in edge_platform.only("AWS::WAFv2::WebACL").properties["Rules"]}
    assert sorted(rules, key=lambda name: int(rules[name]["Priority"]))[:4] == [
        "OtherNetworks",
        "OldTls",
        "TooManyRequests",
        "LongBodies",
    ]
    nat = [f"<{address.path}.PublicIp>/32" for address in edge_platform.all("AWS::EC2::EIP")]
    networks = edge_platform.only("AWS::WAFv2::IPSet")
    assert networks.properties["Addresses"] == ["198.51.100.0/24", *nat]
    named = rules["OtherNetworks"]["Statement"]["NotStatement"]["Statement"]["IPSetReferenceStatement"]
    assert named == {
        "Arn": f"<{networks.path}.Arn>",
        "IPSetForwardedIPConfig": {
            "HeaderName": "x-viewer-ip",
            "Position": "FIRST",
            "FallbackBehavior": "NO_MATCH",
        },
    }, "and a request without the header matches no network"
    tls = rules["OldTls"]["Statement"]["NotStatement"]["Statement"]["OrStatement"]["Statements"]
    versions = [one["ByteMatchStatement"]["SearchString"] for one in tls]
    for spoken, let_in in {
        "TLSv1.3:TLS_AES": True,
        "TLSv1.2:ECDHE": True,
        "TLSv1.1:x": False,
        "TLSv1:x": False,
    }.items():
        assert any(spoken.startswith(version) for version in versions) is let_in
    limit = rules["TooManyRequests"]["Statement"]["RateBasedStatement"]
    assert limit["AggregateKeyType"] == "FORWARDED_IP"
    assert limit["ForwardedIPConfig"] == {"HeaderName": "x-viewer-ip", "FallbackBehavior": "MATCH"}


def test_clients_gates_and_server_use_its_name(edge_platform: Platform) -> None:
    name = f"<{edge_platform.only(DISTRIBUTION).path}.DomainName>"
    smoke = edge_platform.at("gates/Smoke/Project").properties["Environment"]["EnvironmentVariables"]
    assert {"Name": "MLFLOW_TRACKING_URI", "Type": "PLAINTEXT", "Value": f"https://{name}"} in smoke
    (container,) = edge_platform.at("tracking/Task/Definition").properties["ContainerDefinitions"]
    allowed = {v["Name"]: v["Value"] for v in container["Environment"]}["MLFLOW_SERVER_ALLOWED_HOSTS"]
    assert allowed == name


def test_its_requests_are_logged(edge_platform: Platform, distribution: Json) -> None:
    bucket = re.sub(r"\\..*", "", distribution["Logging"]["Bucket"].strip("<>"))
    logs = edge_platform.at(bucket.removesuffix(".RegionalDomainName")).properties
    assert logs["OwnershipControls"] == {"Rules": [{"ObjectOwnership": "ObjectWriter"}]}
