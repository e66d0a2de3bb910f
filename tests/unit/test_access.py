"""Who gets through the load balancer: the listener's rules with each provider, and the user pool behind one of them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from .assembly import Json, Platform, of_type
from .conftest import OIDC

FORWARD = {"Type": "forward", "TargetGroupArn": "<tracking/Targets>"}
LISTENER = "AWS::ElasticLoadBalancingV2::Listener"
RULE = "AWS::ElasticLoadBalancingV2::ListenerRule"


@pytest.fixture(params=["oidc", "cognito"])
def protected(request: pytest.FixtureRequest) -> Platform:
    """A platform with each provider in turn."""
    fixture = {"oidc": "oidc_platform", "cognito": "public_platform"}[request.param]
    platform: Platform = request.getfixturevalue(fixture)
    assert platform.settings.auth == request.param
    return platform


def rules(platform: Platform) -> list[Json]:
    """The listener's rules in the order in which they are tried, the default last."""
    listener = platform.only(LISTENER)
    declared = [rule.properties for rule in platform.all(RULE)]
    assert {rule["ListenerArn"] for rule in declared} == {f"<{listener.path}>"}
    default = {"Conditions": [], "Actions": listener.properties["DefaultActions"]}
    return [*sorted(declared, key=lambda rule: int(rule["Priority"])), default]


def conditions(rule: Json) -> dict[str, list[str]]:
    found = {}
    for condition in rule["Conditions"]:
        ((_, config),) = ((key, value) for key, value in condition.items() if key != "Field")
        found[config.get("HttpHeaderName", condition["Field"])] = config["Values"]
    return found


def steps(rule: Json) -> list[Json]:
    """A rule's actions in their order."""
    ordered = sorted(rule["Actions"], key=lambda action: int(action.get("Order", 1)))
    return [{key: value for key, value in action.items() if key != "Order"} for action in ordered]


def people(platform: Platform) -> str:
    return f"authenticate-{platform.settings.auth}"


def config(step: Json) -> Json:
    ((_, found),) = ((key, value) for key, value in step.items() if key.endswith("Config"))
    assert isinstance(found, dict)
    return found


def test_the_rules_and_their_order(protected: Platform) -> None:
    assert [(conditions(rule), [step["Type"] for step in steps(rule)]) for rule in rules(protected)] == [
        ({"path-pattern": ["/health"], "http-request-method": ["GET"]}, ["forward"]),
        ({"Authorization": ["Bearer *"]}, ["jwt-validation", "forward"]),
        ({"Accept": ["*text/html*"], "http-request-method": ["GET"]}, [people(protected), "forward"]),
        ({}, [people(protected), "forward"]),
    ]
    for rule in rules(protected):
        assert steps(rule)[-1] == FORWARD


def test_only_a_page_leads_to_the_sign_in_and_all_else_is_refused(protected: Platform) -> None:
    *_, pages, rest = rules(protected)
    assert config(steps(pages)[0])["OnUnauthenticatedRequest"] == "authenticate"
    assert config(steps(rest)[0])["OnUnauthenticatedRequest"] == "deny"


def test_a_session_ends_with_the_working_day(protected: Platform) -> None:
    *_, pages, rest = rules(protected)
    assert {int(config(steps(rule)[0])["SessionTimeout"]) for rule in (pages, rest)} == {12 * 3600}


def test_actions_that_ask_who_it_is_are_on_a_listener_with_https(protected: Platform) -> None:
    assert protected.only(LISTENER).properties["Protocol"] == "HTTPS"


def test_the_balancer_may_call_the_provider(protected: Platform) -> None:
    assert (
        protected.at("tracking/BalancerGroup").properties["SecurityGroupEgress"][0].items()
        >= {
            "CidrIp": "0.0.0.0/0",
            "FromPort": 443,
            "ToPort": 443,
        }.items()
    )


def test_a_machines_token_is_checked_beyond_its_issuer(oidc_platform: Platform) -> None:
    token = config(steps(rules(oidc_platform)[1])[0])
    assert token == {
        "Issuer": OIDC["issuer"],
        "JwksEndpoint": OIDC["jwks_endpoint"],
        "AdditionalClaims": [
            {"Name": "aud", "Format": "single-string", "Values": ["mlflow"]},
            {"Name": "scope", "Format": "space-separated-values", "Values": ["mlflow.access"]},
        ],
    }


def test_a_token_of_the_pool_must_have_this_platforms_scope(public_platform: Platform) -> None:
    token = config(steps(rules(public_platform)[1])[0])
    assert token == {
        "Issuer": "<userpool/Pool.ProviderURL>",
        "JwksEndpoint": "<userpool/Pool.ProviderURL>/.well-known/jwks.json",
        "AdditionalClaims": [
            {"Name": "scope", "Format": "space-separated-values", "Values": ["mlflow-dev/access"]},
            {"Name": "token_use", "Format": "single-string", "Values": ["access"]},
        ],
    }


def test_people_sign_in_at_the_settings_provider(oidc_platform: Platform) -> None:
    for rule in rules(oidc_platform)[2:]:
        told = config(steps(rule)[0])
        assert {key: value for key, value in told.items() if key.endswith(("Endpoint", "Issuer"))} == {
            "Issuer": OIDC["issuer"],
            "AuthorizationEndpoint": OIDC["authorization_endpoint"],
            "TokenEndpoint": OIDC["token_endpoint"],
            "UserInfoEndpoint": OIDC["user_info_endpoint"],
        }
        secret = f"{{{{resolve:secretsmanager:{OIDC['people_secret_arn']}:SecretString:%s::}}}}"
        assert (told["ClientId"], told["ClientSecret"]) == (secret % "client_id", secret % "client_secret")


def pool_clients(platform: Platform) -> Iterator[tuple[str, Json]]:
    for client in platform.all("AWS::Cognito::UserPoolClient"):
        yield client.path.rpartition("/")[2], client.properties


def test_only_machines_are_granted_the_scope(public_platform: Platform) -> None:
    """Else a person's own access token would pass for a machine's."""
    scopes = {name: client["AllowedOAuthScopes"] for name, client in pool_clients(public_platform)}
    granted = ["<userpool/Pool/Server>/access"]
    assert scopes == {"People": ["openid"], "Machines": granted, "Gates": granted}
    flows = {name: client["AllowedOAuthFlows"] for name, client in pool_clients(public_platform)}
    assert flows == {
        "People": ["code"],
        "Machines": ["client_credentials"],
        "Gates": ["client_credentials"],
    }
    assert public_platform.at("userpool/Pool/Server").properties["Identifier"] == "mlflow-dev"


def test_people_come_back_to_the_balancer_alone(public_platform: Platform) -> None:
    client = dict(pool_clients(public_platform))["People"]
    assert client["CallbackURLs"] == ["https://mlflow.example.com/oauth2/idpresponse"]


def test_nobody_signs_up_and_everybody_has_a_second_factor(public_platform: Platform) -> None:
    pool = public_platform.at("userpool/Pool")
    assert pool.properties["AdminCreateUserConfig"]["AllowAdminCreateUserOnly"] is True
    assert (pool.properties["MfaConfiguration"], pool.properties["EnabledMfas"]) == (
        "ON",
        ["SOFTWARE_TOKEN_MFA"],
    )
    assert pool.deletion_policy == "Retain", "it knows who may sign in"


def test_the_secrets_of_machines_are_references(public_platform: Platform) -> None:
    for name in ("Machines", "Gates"):
        secret = public_platform.at(f"userpool/{name}Secret").properties
        assert json.loads(secret["SecretString"]) == {
            "client_id": f"<userpool/Pool/{name}>",
            "client_secret": f"<userpool/Pool/{name}.ClientSecret>",
        }
        assert secret["KmsKeyId"] == "<userpool/Key.Arn>"


def test_without_sign_in_there_are_no_rules_and_no_pool(platform: Platform) -> None:
    assert platform.settings.auth == "none"
    assert not of_type(platform.resources, RULE)
    assert not [resource for resource in platform.resources if resource.type.startswith("AWS::Cognito")]
