"""AWS WAF before the load balancer: what it refuses, what it only counts, and why.

WAFv2 has no L2 constructs; the dictionaries below are CloudFormation's. Two things about MLflow shape the rules. Its
bodies are data: parameters, prompts, traces and artifacts may hold HTML, paths, addresses or code, so that a rule about
bodies would refuse honest work at random. And WAF reads the first 8 KB of a body alone. Bodies are bounded by their
announced length here, and to the byte by the server (`mlflow_image/limits.py`), which counts those that announce none.

AWS's rules against SQL injection are left out: MLflow's search language (`metrics.rmse < 1 AND params.model = 'tree'`) is
what they look for, and the server binds its values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aws_cdk import ArnFormat, RemovalPolicy, Stack
from aws_cdk import aws_elasticloadbalancingv2 as elb
from aws_cdk import aws_logs as logs
from aws_cdk import aws_wafv2 as waf
from constructs import Construct

from stages.edge import VIEWER_ADDRESS, VIEWER_TLS
from stages.settings.network import Firewall as Settings
from stages.settings.sign_in import EVERYBODY

Json = dict[str, Any]

UPLOADS = ("/api/2.0/mlflow-artifacts/artifacts/", "/ajax-api/2.0/mlflow-artifacts/artifacts/")
"""Where artifacts are PUT, as long as a model is: the same as in `mlflow_image/limits.py`."""

LONG = r"^0*([4-9][0-9]{7}|[1-9][0-9]{8,})$"
"""A Content-Length of 40 MB or more; everywhere else the server takes 32 MiB."""

MANAGED: Mapping[str, Sequence[str]] = {
    "AWSManagedRulesAmazonIpReputationList": (),
    "AWSManagedRulesCommonRuleSet": (
        # Bodies are data.
        "CrossSiteScripting_BODY",
        "EC2MetaDataSSRF_BODY",
        "GenericLFI_BODY",
        "GenericRFI_BODY",
        "SizeRestrictions_BODY",
        # An artifact may be called train.log or config.ini, be in any folder, and be asked for by path.
        "GenericLFI_QUERYARGUMENTS",
        "GenericLFI_URIPATH",
        "RestrictedExtensions_QUERYARGUMENTS",
        "RestrictedExtensions_URIPATH",
        # A filter may hold any text, and more of it than 2 KB; the load balancer's session takes up to 16 KB of cookies.
        "CrossSiteScripting_QUERYARGUMENTS",
        "SizeRestrictions_Cookie_HEADER",
        "SizeRestrictions_QUERYSTRING",
    ),
    "AWSManagedRulesKnownBadInputsRuleSet": ("JavaDeserializationRCE_BODY", "Log4JRCE_BODY"),
}
"""AWS's rule groups in their order, each with the rules that only count here."""


class Firewall(Construct):
    """A web ACL on a load balancer; what it blocks or counts is logged for three months, without tokens and cookies."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        prefix: str,
        settings: Settings,
        balancer: elb.ApplicationLoadBalancer,
        behind_edge: Sequence[str] | None = None,
    ) -> None:
        """The firewall on `balancer`; `behind_edge` are the networks that may come in through CloudFront, where it is."""
        super().__init__(scope, construct_id)
        known = self._known(prefix, behind_edge) if behind_edge is not None else {}
        acl = waf.CfnWebACL(
            self,
            "Acl",
            name=prefix,
            scope="REGIONAL",
            default_action=waf.CfnWebACL.DefaultActionProperty(allow={}),
            visibility_config=_visible("all"),
            rules=_rules(settings, known, behind_edge is not None),
            # Requests that WAF samples are shown in its console.
            data_protection_config=waf.CfnWebACL.DataProtectionConfigProperty(
                data_protections=[
                    waf.CfnWebACL.DataProtectProperty(
                        action="SUBSTITUTION",
                        field=waf.CfnWebACL.FieldToProtectProperty(
                            field_type="SINGLE_HEADER", field_keys=["authorization", "cookie"]
                        ),
                    )
                ]
            ),
        )
        waf.CfnWebACLAssociation(
            self, "OnBalancer", resource_arn=balancer.load_balancer_arn, web_acl_arn=acl.attr_arn
        )
        log = logs.LogGroup(
            self,
            "Logs",
            # WAF writes to groups of this name alone.
            log_group_name=f"aws-waf-logs-{prefix}",
            retention=logs.RetentionDays.THREE_MONTHS,
            removal_policy=RemovalPolicy.DESTROY,
        )
        waf.CfnLoggingConfiguration(
            self,
            "Logging",
            resource_arn=acl.attr_arn,
            # The group's own ARN ends in ":*", which WAF does not take.
            log_destination_configs=[
                Stack.of(self).format_arn(
                    service="logs",
                    resource="log-group",
                    resource_name=log.log_group_name,
                    arn_format=ArnFormat.COLON_RESOURCE_NAME,
                )
            ],
            logging_filter={
                "DefaultBehavior": "DROP",
                "Filters": [
                    {
                        "Behavior": "KEEP",
                        "Requirement": "MEETS_ANY",
                        "Conditions": [
                            {"ActionCondition": {"Action": action}} for action in ("BLOCK", "COUNT")
                        ],
                    }
                ],
            },
        )

    def _known(self, prefix: str, networks: Sequence[str]) -> dict[str, tuple[Json, int]]:
        """Refuse what comes through CloudFront from other networks, or by an old TLS. Whatever else is wrong with it."""
        old = {
            "notStatement": {
                "statement": {
                    "orStatement": {
                        "statements": [
                            _matches({"singleHeader": {"Name": VIEWER_TLS}}, version, "STARTS_WITH")
                            for version in ("TLSv1.2:", "TLSv1.3:")
                        ]
                    }
                }
            }
        }
        if EVERYBODY in networks:
            return {"OldTls": (old, 403)}
        addresses = waf.CfnIPSet(
            self,
            "Networks",
            name=prefix,
            scope="REGIONAL",
            ip_address_version="IPV4",
            addresses=list(networks),
        )
        named = {
            "ipSetReferenceStatement": {
                "arn": addresses.attr_arn,
                "ipSetForwardedIpConfig": {
                    "headerName": VIEWER_ADDRESS,
                    "position": "FIRST",
                    "fallbackBehavior": "NO_MATCH",
                },
            }
        }
        return {"OtherNetworks": ({"notStatement": {"statement": named}}, 403), "OldTls": (old, 403)}


def _rules(
    settings: Settings, known: Mapping[str, tuple[Json, int]], behind_edge: bool
) -> list[waf.CfnWebACL.RuleProperty]:
    own = {
        **known,
        "TooManyRequests": (_too_many(settings, behind_edge), 429),
        "LongBodies": (_long_bodies(), 413),
    }
    rules = [
        waf.CfnWebACL.RuleProperty(
            name=name,
            priority=priority,
            statement=statement,
            action={"block": {"customResponse": {"responseCode": status}}},
            visibility_config=_visible(name),
        )
        for priority, (name, (statement, status)) in enumerate(own.items())
    ]
    for priority, (group, counted) in enumerate(MANAGED.items(), start=len(rules)):
        overrides = [{"name": rule, "actionToUse": {"count": {}}} for rule in counted]
        rules.append(
            waf.CfnWebACL.RuleProperty(
                name=group,
                priority=priority,
                statement={
                    "managedRuleGroupStatement": {
                        "vendorName": "AWS",
                        "name": group,
                        "ruleActionOverrides": overrides,
                    }
                },
                override_action={"none": {}},
                visibility_config=_visible(group),
            )
        )
    return rules


def _too_many(settings: Settings, behind_edge: bool) -> Json:
    limit = {"limit": settings.requests_per_5_minutes, "evaluationWindowSec": 300}
    if not behind_edge:
        return {"rateBasedStatement": {**limit, "aggregateKeyType": "IP"}}
    forwarded = {"headerName": VIEWER_ADDRESS, "fallbackBehavior": "MATCH"}
    return {
        "rateBasedStatement": {**limit, "aggregateKeyType": "FORWARDED_IP", "forwardedIpConfig": forwarded}
    }


def _long_bodies() -> Json:
    length = {
        "regexMatchStatement": {
            "fieldToMatch": {"singleHeader": {"Name": "content-length"}},
            "regexString": LONG,
            "textTransformations": _AS_IT_IS,
        }
    }
    upload = {
        "andStatement": {
            "statements": [
                _matches({"method": {}}, "PUT", "EXACTLY"),
                {
                    "orStatement": {
                        "statements": [_matches({"uriPath": {}}, path, "STARTS_WITH") for path in UPLOADS]
                    }
                },
            ]
        }
    }
    return {"andStatement": {"statements": [length, {"notStatement": {"statement": upload}}]}}


def _matches(field: Json, text: str, how: str) -> Json:
    return {
        "byteMatchStatement": {
            "fieldToMatch": field,
            "searchString": text,
            "positionalConstraint": how,
            "textTransformations": _AS_IT_IS,
        }
    }


_AS_IT_IS = [{"priority": 0, "type": "NONE"}]


def _visible(name: str) -> waf.CfnWebACL.VisibilityConfigProperty:
    return waf.CfnWebACL.VisibilityConfigProperty(
        cloud_watch_metrics_enabled=True, metric_name=name, sampled_requests_enabled=True
    )
