"""Settings of who has to sign in, and where."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.settings.fields import Table, matching
from stages.settings.network import Exposure
from stages.settings.sentences import shown

ClaimFormat = Literal["single-string", "string-array", "space-separated-values"]
"""How a token writes a claim, in the load balancer's words."""

EVERYBODY = "0.0.0.0/0"

Url = Annotated[
    str,
    matching(
        r"https://[A-Za-z0-9.-]+(:\d+)?(/[^\s?#]*)?",
        'copy it from your provider\'s discovery document, such as "https://login.example.com/oauth2/token"',
    ),
]
SecretArn = Annotated[
    str,
    matching(
        r"arn:aws[\w-]*:secretsmanager:[a-z0-9-]+:\d{12}:secret:[\w/+=.@-]+",
        "paste the whole ARN of a secret that holds client_id and client_secret as JSON:"
        " arn:aws:secretsmanager:REGION:ACCOUNT:secret:NAME-SUFFIX",
    ),
]
Text = Annotated[str, matching(r"[^\s\"]{1,256}", "give 1 to 256 characters without blanks")]


class Oidc(Table):
    """An OpenID Connect provider, from its discovery document, and what it knows this platform by."""

    issuer: Url
    authorization_endpoint: Url
    token_endpoint: Url
    user_info_endpoint: Url
    jwks_endpoint: Url
    people_secret_arn: SecretArn
    machine_secret_arn: SecretArn
    audience: Text
    audience_format: ClaimFormat = "single-string"
    scope: Text
    scope_claim: Text = "scope"
    scope_format: ClaimFormat = "space-separated-values"
    token_request: dict[Text, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _secrets_differ(self) -> Oidc:
        if self.people_secret_arn == self.machine_secret_arn:
            raise ValueError(
                f'machine_secret_arn = "{self.machine_secret_arn}": is people_secret_arn too; register a client of its own'
                " for the gates, which can be refused by itself"
            )
        return self


class SignIn(Exposure):
    """Who gets through the load balancer."""

    auth: Literal["none", "oidc", "cognito", "mlflow-basic"] = "none"
    oidc: Oidc | None = None

    @property
    def signs_in_at_balancer(self) -> bool:
        """Whether the load balancer asks who it is."""
        return self.auth in ("oidc", "cognito")

    @model_validator(mode="after")
    def _sign_in_fits(self) -> SignIn:
        if self.auth == "none":
            if self.on_the_internet:
                choice = (
                    '"mlflow-basic"'
                    if self.exposure == "cloudfront"
                    else '"oidc", "cognito" or "mlflow-basic"'
                )
                raise ValueError(
                    f'exposure = "{self.exposure}": with auth = "none" whoever finds it may read and delete everything;'
                    f' set auth to {choice}, or exposure to "internal"'
                )
            if EVERYBODY in self.ingress_cidrs:
                raise ValueError(
                    f"ingress_cidrs = {shown(self.ingress_cidrs)}: nobody has to sign in, so everybody must not get in;"
                    " name the networks that may reach the load balancer, or set auth"
                )
        elif self.auth == "mlflow-basic":
            if not self.encrypted:
                raise ValueError(
                    'auth = "mlflow-basic": each request has its user\'s password with it, which could be read on the way'
                    " over plain HTTP; add host_name, and certificate_arn or hosted_zone"
                )
        elif self.exposure == "cloudfront":
            raise ValueError(
                f'auth = "{self.auth}": the load balancer signs people in over HTTPS alone, for which it has no certificate'
                ' behind CloudFront; set auth to "mlflow-basic", or add a domain and set exposure to "internet-facing"'
            )
        elif not self.https:
            raise ValueError(
                f'auth = "{self.auth}": over plain HTTP tokens and sessions could be read on the way, and the load'
                " balancer refuses to check them; add host_name, and certificate_arn or hosted_zone"
            )
        if self.auth == "oidc" and self.oidc is None:
            raise ValueError(
                'oidc: is missing; with auth = "oidc" add the table that describes your provider'
            )
        if self.auth != "oidc" and self.oidc is not None:
            raise ValueError(f'oidc: is not used with auth = "{self.auth}"; remove it, or set auth = "oidc"')
        return self
