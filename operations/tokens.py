"""What a machine signs in with: a token, asked for by client credentials, or the password of one of MLflow's own users.

| variable         | meaning                                                                          |
|------------------|----------------------------------------------------------------------------------|
| TOKEN_ISSUER     | the provider; its discovery document says where tokens are. Not set: no token    |
| TOKEN_SECRET_ARN | the secret that holds client_id and client_secret as JSON                        |
| TOKEN_REQUEST    | what the request says besides the grant, URL-encoded, such as scope=mlflow%2Fuse |
| USER_SECRET_ARN  | the secret that holds username and password as JSON. Not set: no password        |
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from urllib.parse import parse_qsl

import boto3
import requests

from operations.aws import CannotOperate, sentences

SECONDS = 30
"""How long the provider may take for an answer."""


def token(environment: Mapping[str, str]) -> str:
    """A fresh token, or an empty text where nobody has to sign in.

    Raises:
        CannotOperate: the secret cannot be read or is not one of a client, or the provider gives no token.
    """
    issuer = environment.get("TOKEN_ISSUER")
    if not issuer:
        return ""
    client = _held(environment, "TOKEN_SECRET_ARN", "client_id", "client_secret")
    form = {"grant_type": "client_credentials", **dict(parse_qsl(environment.get("TOKEN_REQUEST", "")))}
    answer = _ask("POST", _token_endpoint(issuer), data=form, auth=client)
    try:
        return str(answer["access_token"])
    except KeyError:
        raise CannotOperate(f"{issuer}: its answer to the request for a token holds none") from None


def password(environment: Mapping[str, str]) -> str:
    """The password of one of MLflow's own users, or an empty text where they do not sign in.

    Raises:
        CannotOperate: the secret cannot be read or is not one of a user.
    """
    if not environment.get("USER_SECRET_ARN"):
        return ""
    return _held(environment, "USER_SECRET_ARN", "username", "password")[1]


def _held(environment: Mapping[str, str], variable: str, name: str, secret: str) -> tuple[str, str]:
    """The two fields of the secret that the variable names."""
    arn = environment.get(variable, "")
    if arn.count(":") < 6:
        raise CannotOperate(f"{variable}={arn}: is not the ARN of a secret; set it")
    with sentences(f"reading the secret {arn}"):
        reader = boto3.client("secretsmanager", region_name=arn.split(":")[3])
        content = reader.get_secret_value(SecretId=arn)["SecretString"]
    try:
        held = json.loads(content)
        return str(held[name]), str(held[secret])
    except (ValueError, KeyError, TypeError):
        raise CannotOperate(f"{arn}: does not hold {name} and {secret} as JSON; mend it") from None


def _token_endpoint(issuer: str) -> str:
    """Where tokens are asked for. The document must be the issuer's own, or the secret would go to somebody else."""
    url = f"{issuer.rstrip('/')}/.well-known/openid-configuration"
    document = _ask("GET", url)
    if document.get("issuer") != issuer:
        raise CannotOperate(
            f"{url}: is about the issuer {document.get('issuer')}; mend TOKEN_ISSUER={issuer}"
        )
    endpoint = str(document.get("token_endpoint", ""))
    if not endpoint.startswith("https://"):
        raise CannotOperate(f"{url}: its token_endpoint {endpoint!r} is not https; no secret is sent there")
    return endpoint


def _ask(method: str, url: str, **request: object) -> dict[str, object]:
    """What the provider answers, which must be a JSON object. No message holds what was sent."""
    try:
        answer = requests.request(method, url, timeout=SECONDS, allow_redirects=False, **request)  # type: ignore[arg-type]
        content = answer.json() if answer.content else {}
    except (requests.RequestException, ValueError) as error:
        raise CannotOperate(
            f"{url}: no usable answer ({type(error).__name__}); is it reached from here?"
        ) from None
    if answer.status_code != 200 or not isinstance(content, dict):
        said = content.get("error", "") if isinstance(content, dict) else ""
        raise CannotOperate(f"{url}: answered {answer.status_code} {said}".rstrip() + "; check the client")
    return content
