"""The firewall before the load balancer: where it is, what it refuses, and that honest work passes."""

from __future__ import annotations

import re
from typing import Any

import pytest

from .assembly import ROOT, Json, Platform, of_type

ACL = "AWS::WAFv2::WebACL"
UPLOAD = "/api/2.0/mlflow-artifacts/artifacts/0/abc/artifacts/model.pkl"


@pytest.fixture
def rules(public_platform: Platform) -> dict[str, Json]:
    """The rules by name, in the order in which they are tried."""
    declared = public_platform.only(ACL).properties["Rules"]
    return {rule["Name"]: rule for rule in sorted(declared, key=lambda rule: int(rule["Priority"]))}


def holds(statement: Json, method: str, path: str, length: str) -> bool:
    """Whether a statement of the kinds used here holds for a request."""
    ((kind, content),) = statement.items()
    if kind == "AndStatement":
        return all(holds(part, method, path, length) for part in content["Statements"])
    if kind == "OrStatement":
        return any(holds(part, method, path, length) for part in content["Statements"])
    if kind == "NotStatement":
        return not holds(content["Statement"], method, path, length)
    field = content["FieldToMatch"]
    if kind == "RegexMatchStatement":
        assert field == {"SingleHeader": {"Name": "content-length"}}
        return re.search(content["RegexString"], length) is not None
    assert kind == "ByteMatchStatement"
    text = method if "Method" in field else path
    exact, wanted = content["PositionalConstraint"] == "EXACTLY", content["SearchString"]
    return bool(text == wanted if exact else text.startswith(wanted))


def test_on_the_internet_there_is_one_and_inside_a_network_by_choice(
    public_platform: Platform, platform: Platform, oidc_platform: Platform
) -> None:
    association = public_platform.only("AWS::WAFv2::WebACLAssociation").properties
    assert association == {
        "ResourceArn": "<tracking/LoadBalancer>",
        "WebACLArn": "<tracking/Firewall/Acl.Arn>",
    }
    assert public_platform.settings.firewall is None
    assert not of_type(platform.resources, ACL)
    chosen = oidc_platform.only(ACL).properties["Rules"]
    assert oidc_platform.settings.firewall is not None
    limits = [rule["Statement"]["RateBasedStatement"]["Limit"] for rule in chosen if rule["Priority"] == 0]
    assert limits == [oidc_platform.settings.firewall.requests_per_5_minutes] == [5000]


def test_what_is_tried_and_in_which_order(rules: dict[str, Json]) -> None:
    assert list(rules) == [
        "TooManyRequests",
        "LongBodies",
        "AWSManagedRulesAmazonIpReputationList",
        "AWSManagedRulesCommonRuleSet",
        "AWSManagedRulesKnownBadInputsRuleSet",
    ]
    codes = [rule["Action"]["Block"]["CustomResponse"]["ResponseCode"] for rule in list(rules.values())[:2]]
    assert codes == [429, 413], "and MLflow's client tries a 429 again"
    for rule in list(rules.values())[2:]:
        assert rule["OverrideAction"] == {"None": {}}, "AWS's rules block, but for those that are named"


def test_one_address_may_send_so_much(rules: dict[str, Json]) -> None:
    assert rules["TooManyRequests"]["Statement"]["RateBasedStatement"] == {
        "Limit": 20_000,
        "EvaluationWindowSec": 300,
        "AggregateKeyType": "IP",
    }


@pytest.mark.parametrize(
    ("method", "path", "length", "refused"),
    [
        ("PUT", UPLOAD, "50000000000", False),
        ("PUT", UPLOAD.replace("/api", "/ajax-api"), "50000000000", False),
        ("POST", "/api/2.0/mlflow/runs/log-batch", "1048576", False),
        ("POST", "/v1/traces", "33554432", False),
        ("POST", "/v1/traces", "39999999", False),
        ("POST", "/v1/traces", "40000000", True),
        ("POST", "/api/2.0/mlflow/runs/log-batch", "100000000", True),
        ("POST", "/api/2.0/mlflow/runs/log-batch", "0000100000000", True),
        ("POST", UPLOAD, "50000000000", True),
        ("PUT", "/graphql?" + UPLOAD, "50000000000", True),
    ],
)
def test_long_bodies_pass_where_artifacts_are_stored_alone(
    rules: dict[str, Json], method: str, path: str, length: str, refused: bool
) -> None:
    assert holds(rules["LongBodies"]["Statement"], method, path, length) is refused


def test_it_knows_the_same_uploads_and_bound_as_the_server(rules: dict[str, Json]) -> None:
    limits = (ROOT / "mlflow_image" / "limits.py").read_text(encoding="utf-8")
    found: dict[str, Any] = dict(re.findall(r"^(LARGEST_BODY|ARTIFACTS) = (.+)$", limits, flags=re.MULTILINE))
    factor, base, power = map(int, re.findall(r"\d+", found["LARGEST_BODY"]))
    largest = factor * base**power
    long_bodies = rules["LongBodies"]["Statement"]
    for start in re.findall(r'"([^"]+)"', found["ARTIFACTS"]):
        assert not holds(long_bodies, "PUT", f"{start}0/abc", str(10 * largest))
    assert not holds(long_bodies, "POST", "/v1/traces", str(largest))
    assert holds(long_bodies, "POST", "/v1/traces", str(2 * largest))


def test_rules_that_honest_work_would_break_only_count(rules: dict[str, Json]) -> None:
    """Whatever is about bodies, and what names and filters may hold."""
    counted = {
        override["Name"]
        for rule in list(rules.values())[2:]
        for override in rule["Statement"]["ManagedRuleGroupStatement"].get("RuleActionOverrides", [])
        if override["ActionToUse"] == {"Count": {}}
    }
    assert {
        "SizeRestrictions_BODY",
        "RestrictedExtensions_URIPATH",
        "SizeRestrictions_Cookie_HEADER",
    } <= counted
    assert not {"NoUserAgent_HEADER", "Log4JRCE_HEADER", "ExploitablePaths_URIPATH"} & counted


def test_what_it_refuses_is_logged_without_tokens(public_platform: Platform) -> None:
    logging = public_platform.only("AWS::WAFv2::LoggingConfiguration").properties
    group = public_platform.at("tracking/Firewall/Logs").properties
    assert group["LogGroupName"] == f"aws-waf-logs-{public_platform.prefix}"
    (destination,) = logging["LogDestinationConfigs"]
    assert destination.endswith(":log-group:<tracking/Firewall/Logs>")
    (kept,) = logging["LoggingFilter"]["Filters"]
    assert logging["LoggingFilter"]["DefaultBehavior"] == "DROP"
    assert [c["ActionCondition"]["Action"] for c in kept["Conditions"]] == ["BLOCK", "COUNT"]
    (protection,) = public_platform.only(ACL).properties["DataProtectionConfig"]["DataProtections"]
    assert set(protection["Field"]["FieldKeys"]) == {"authorization", "cookie"}
