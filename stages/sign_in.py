"""Where the people and machines of an environment sign in: one provider, chosen by the setting `auth`."""

from __future__ import annotations

from aws_cdk import SecretValue
from aws_cdk import aws_elasticloadbalancingv2 as elb
from constructs import Construct

from stages.access import SESSION, Claim, SignIn, Tokens
from stages.settings import Environment
from stages.settings.sign_in import Oidc
from stages.user_pool import UserPoolStack


def sign_in_of(scope: Construct, prefix: str, settings: Environment) -> SignIn | None:
    """The environment's provider, made first where it is part of the platform; None when nobody signs in."""
    if settings.auth == "cognito":
        return UserPoolStack(
            scope, "UserPool", stack_name=f"{prefix}-user-pool", prefix=prefix, settings=settings
        ).sign_in()
    return _oidc(settings.oidc) if settings.oidc else None


def _oidc(settings: Oidc) -> SignIn:
    """Sign-in at any OpenID Connect provider. Its endpoints are settings: synthesis asks nobody."""

    def people(then: elb.ListenerAction, otherwise: elb.UnauthenticatedAction) -> elb.ListenerAction:
        secret = settings.people_secret_arn
        return elb.ListenerAction.authenticate_oidc(
            issuer=settings.issuer,
            authorization_endpoint=settings.authorization_endpoint,
            token_endpoint=settings.token_endpoint,
            user_info_endpoint=settings.user_info_endpoint,
            # Both are read when the stack is deployed; neither is in the template.
            client_id=SecretValue.secrets_manager(secret, json_field="client_id").unsafe_unwrap(),
            client_secret=SecretValue.secrets_manager(secret, json_field="client_secret"),
            scope="openid",
            session_timeout=SESSION,
            on_unauthenticated_request=otherwise,
            next=then,
        )

    return SignIn(
        people,
        Tokens(
            issuer=settings.issuer,
            jwks_endpoint=settings.jwks_endpoint,
            claims=[
                Claim("aud", settings.audience_format, settings.audience),
                Claim(settings.scope_claim, settings.scope_format, settings.scope),
            ],
            request=settings.token_request,
            gate_secret_arn=settings.machine_secret_arn,
            machine_secret_arn=settings.machine_secret_arn,
        ),
    )
