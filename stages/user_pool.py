"""The environment's own directory of people and machines: a Cognito user pool, when `auth = "cognito"`.

It holds data (who may sign in), so it has a stack of its own, which a new load balancer does not touch.
"""

from __future__ import annotations

from typing import Any

from aws_cdk import CfnOutput, Duration, RemovalPolicy, SecretValue, Stack
from aws_cdk import aws_cognito as cognito
from aws_cdk import aws_elasticloadbalancingv2 as elb
from aws_cdk import aws_elasticloadbalancingv2_actions as actions
from aws_cdk import aws_kms as kms
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct

from stages.access import SESSION, Claim, SignIn, Tokens
from stages.findings import acknowledge
from stages.settings import Environment

SCOPE = "access"

TOKEN_LIFE = Duration.hours(1)
"""A machine's token cannot be called back: an hour bounds what a stolen one is good for."""


class UserPoolStack(Stack):
    """People with a password and a second factor; two machine clients, one of them the gates'."""

    def __init__(
        self, scope: Construct, construct_id: str, *, prefix: str, settings: Environment, **stack: Any
    ) -> None:
        super().__init__(scope, construct_id, **stack)
        self._prefix = prefix
        self._key = kms.Key(
            self,
            "Key",
            description="Machines' credentials",
            enable_key_rotation=True,
            removal_policy=RemovalPolicy.DESTROY,
        )
        self._pool = self._user_pool(settings)
        self._domain = self._pool.add_domain(
            "Domain",
            # Must be unique in the region, among all accounts.
            cognito_domain=cognito.CognitoDomainOptions(domain_prefix=f"{prefix}-{settings.account}"),
        )
        self._people = self._pool.add_client(
            "People",
            user_pool_client_name=f"{prefix}-people",
            generate_secret=True,
            o_auth=cognito.OAuthSettings(
                flows=cognito.OAuthFlows(authorization_code_grant=True),
                scopes=[cognito.OAuthScope.OPENID],
                callback_urls=[f"https://{settings.host_name}/oauth2/idpresponse"],
            ),
            supported_identity_providers=[cognito.UserPoolClientIdentityProvider.COGNITO],
            prevent_user_existence_errors=True,
            access_token_validity=TOKEN_LIFE,
            id_token_validity=TOKEN_LIFE,
            refresh_token_validity=SESSION,
        )
        scope_ = cognito.ResourceServerScope(scope_name=SCOPE, scope_description="Use MLflow")
        server = self._pool.add_resource_server("Server", identifier=prefix, scopes=[scope_])
        granted = cognito.OAuthScope.resource_server(server, scope_)
        self._machines = self._machine("Machines", "machines", granted)
        self._gates = self._machine("Gates", "gates", granted)
        CfnOutput(self, "People", value=self._pool.user_pool_id, description="The user pool; add people here")

    def sign_in(self) -> SignIn:
        """People of this pool, and its two machines."""

        def people(then: elb.ListenerAction, otherwise: elb.UnauthenticatedAction) -> elb.ListenerAction:
            return actions.AuthenticateCognitoAction(
                user_pool=self._pool,
                user_pool_client=self._people,
                user_pool_domain=self._domain,
                scope="openid",
                session_timeout=SESSION,
                on_unauthenticated_request=otherwise,
                next=then,
            )

        issuer, scope = self._pool.user_pool_provider_url, f"{self._prefix}/{SCOPE}"
        return SignIn(
            people,
            Tokens(
                issuer=issuer,
                jwks_endpoint=f"{issuer}/.well-known/jwks.json",
                # Cognito's access tokens name no audience: the scope's first half does, it names this platform. Only the
                # two machines are granted it, so that a person's token does not pass for one.
                claims=[
                    Claim("scope", "space-separated-values", scope),
                    Claim("token_use", "single-string", "access"),
                ],
                request={"scope": scope},
                gate_secret_arn=self._gates.secret_arn,
                machine_secret_arn=self._machines.secret_arn,
                secret_key_arn=self._key.key_arn,
            ),
        )

    def _user_pool(self, settings: Environment) -> cognito.UserPool:
        return cognito.UserPool(
            self,
            "Pool",
            user_pool_name=self._prefix,
            self_sign_up_enabled=False,
            sign_in_aliases=cognito.SignInAliases(email=True),
            sign_in_case_sensitive=False,
            account_recovery=cognito.AccountRecovery.EMAIL_ONLY,
            mfa=cognito.Mfa.REQUIRED,
            mfa_second_factor=cognito.MfaSecondFactor(otp=True, sms=False),
            password_policy=cognito.PasswordPolicy(
                min_length=14,
                require_digits=True,
                require_lowercase=True,
                require_symbols=True,
                require_uppercase=True,
                temp_password_validity=Duration.days(3),
            ),
            # Refuses passwords that are known from leaks, and sign-ins that look like an attack.
            feature_plan=cognito.FeaturePlan.PLUS,
            standard_threat_protection_mode=cognito.StandardThreatProtectionMode.FULL_FUNCTION,
            deletion_protection=settings.database.deletion_protection,
            removal_policy=RemovalPolicy.RETAIN,
        )

    def _machine(self, construct_id: str, name: str, scope: cognito.OAuthScope) -> secretsmanager.Secret:
        """A client that asks for tokens by itself: the secret that holds its id and its secret."""
        client = self._pool.add_client(
            construct_id,
            user_pool_client_name=f"{self._prefix}-{name}",
            generate_secret=True,
            o_auth=cognito.OAuthSettings(flows=cognito.OAuthFlows(client_credentials=True), scopes=[scope]),
            access_token_validity=TOKEN_LIFE,
        )
        declared = client.node.default_child
        assert isinstance(declared, cognito.CfnUserPoolClient)
        secret = secretsmanager.Secret(
            self,
            f"{construct_id}Secret",
            description=f"Client credentials of {name}; Cognito issued them",
            encryption_key=self._key,
            # A reference: CloudFormation copies the value from one service to the other.
            secret_object_value={
                "client_id": SecretValue.unsafe_plain_text(client.user_pool_client_id),
                "client_secret": SecretValue.resource_attribute(declared.attr_client_secret),
            },
            removal_policy=RemovalPolicy.DESTROY,
        )
        acknowledge(
            secret,
            "Cognito issues a client's secret once and cannot be told another; a new client replaces it.",
            "SMG4",
        )
        return secret
