"""Who gets through the load balancer: the rules of its listener, whichever provider people and machines come from.

In this order, the first that matches decides:

1. `GET /health`, and nothing else, is open: the answer says nothing but OK.
2. A request with `Authorization: Bearer` is a machine's. The load balancer verifies its token, or answers 401.
3. A browser that opens a page is sent to the provider's sign-in, unless it is signed in.
4. Everything else needs the session that 3 made, or gets 401: a client without a token reads a status, not a page.

A listener must speak HTTPS for 2, 3 and 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from aws_cdk import CfnOutput, Duration, Stack
from aws_cdk import aws_elasticloadbalancingv2 as elb

from stages.settings.sign_in import ClaimFormat

SESSION = Duration.hours(12)
"""A working day: then people sign in again. The load balancer's own default is seven days."""

HEALTH = "/health"


@dataclass(frozen=True)
class Claim:
    """What a token must say under `name`: just `value`, or a list or a line of words with `value` among them."""

    name: str
    format: ClaimFormat
    value: str


@dataclass(frozen=True)
class Tokens:
    """Where machines' tokens come from, what a good one says, and how the gates get one."""

    issuer: str
    jwks_endpoint: str
    claims: Sequence[Claim]
    request: dict[str, str]
    """Form fields of the token request, besides `grant_type=client_credentials`."""
    gate_secret_arn: str
    """The secret with the gates' `client_id` and `client_secret`."""
    machine_secret_arn: str
    """The same for machines in general: training jobs, services, CI."""
    secret_key_arn: str | None = None
    """The key of both secrets; None is the account's default one, which needs no permission of its own."""


@dataclass(frozen=True)
class SignIn:
    """How an environment's load balancer knows people and machines."""

    people: Callable[[elb.ListenerAction, elb.UnauthenticatedAction], elb.ListenerAction]
    """The action that lets signed-in people go on to the next one; others are sent to sign in, or refused."""
    tokens: Tokens


def default_action(targets: elb.ApplicationTargetGroup, sign_in: SignIn | None) -> elb.ListenerAction:
    """What happens to a request that no rule takes: rule 4, or without sign-in every request goes through."""
    forward = elb.ListenerAction.forward([targets])
    return sign_in.people(forward, elb.UnauthenticatedAction.DENY) if sign_in else forward


def protect(listener: elb.ApplicationListener, targets: elb.ApplicationTargetGroup, sign_in: SignIn) -> None:
    """Put rules 1 to 3 on the listener, and say in outputs where machines get their tokens."""
    forward = elb.ListenerAction.forward([targets])
    listener.add_action(
        "Health",
        priority=1,
        conditions=[
            elb.ListenerCondition.path_patterns([HEALTH]),
            elb.ListenerCondition.http_request_methods(["GET"]),
        ],
        action=forward,
    )
    listener.add_action(
        "Machines",
        priority=2,
        conditions=[elb.ListenerCondition.http_header("Authorization", ["Bearer *"])],
        action=elb.ListenerAction.authenticate_jwt(
            issuer=sign_in.tokens.issuer, jwks_endpoint=sign_in.tokens.jwks_endpoint, next=forward
        ),
    )
    _check_claims(listener, "Machines", sign_in.tokens.claims)
    listener.add_action(
        "Browsers",
        priority=3,
        conditions=[
            elb.ListenerCondition.http_header("Accept", ["*text/html*"]),
            elb.ListenerCondition.http_request_methods(["GET"]),
        ],
        action=sign_in.people(forward, elb.UnauthenticatedAction.AUTHENTICATE),
    )
    tokens, stack = sign_in.tokens, Stack.of(listener)
    CfnOutput(stack, "TokenIssuer", value=tokens.issuer, description="Machines ask it for tokens")
    CfnOutput(stack, "TokenRequest", value=urlencode(tokens.request), description="With these words")
    CfnOutput(stack, "TokenSecret", value=tokens.machine_secret_arn, description="And this client's secret")


def _check_claims(listener: elb.ApplicationListener, rule: str, claims: Sequence[Claim]) -> None:
    """Have the load balancer compare a token's claims, too: the CDK's action checks who issued it and no more.

    Any token of the same issuer would pass otherwise, one for another platform among them.
    """
    declared = listener.node.find_child(f"{rule}Rule").node.default_child
    assert isinstance(declared, elb.CfnListenerRule)
    declared.add_property_override(
        "Actions.0.JwtValidationConfig.AdditionalClaims",
        [{"Name": claim.name, "Format": claim.format, "Values": [claim.value]} for claim in claims],
    )
