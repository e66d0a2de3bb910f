"""AWS as whoever operates the platform sees it: the pipeline's account with their own credentials, the environments'
accounts through the read-only role that the CDK's bootstrap makes for lookups.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from stages.settings import Environment, Settings

QUALIFIER = "hnb659fds"
"""The CDK's default bootstrap qualifier; it is in the names of the bootstrap's roles."""

_DENIED = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation")
_STALE = ("ExpiredToken", "ExpiredTokenException", "InvalidClientTokenId", "UnrecognizedClientException")


class CannotOperate(Exception):
    """It cannot be done; the message is a sentence that says why and what to do. Nothing was changed."""


def pipeline_client(settings: Settings) -> Any:
    """CodePipeline's client for the tooling account, with the caller's own credentials."""
    return boto3.client("codepipeline", region_name=settings.tooling.region)


def environment_client(settings: Settings, environment: Environment, service: str) -> Any:
    """A client that may look at everything in an environment's account and change nothing.

    Raises:
        CannotOperate: the caller may not take on the account's lookup role.
    """
    role = f"arn:aws:iam::{environment.account}:role/" + (
        f"cdk-{QUALIFIER}-lookup-role-{environment.account}-{environment.region}"
    )
    with sentences(f"taking on {role}"):
        sts = boto3.client("sts", region_name=settings.tooling.region)
        key = sts.assume_role(RoleArn=role, RoleSessionName="operations")["Credentials"]
    return boto3.client(
        service,
        region_name=environment.region,
        aws_access_key_id=key["AccessKeyId"],
        aws_secret_access_key=key["SecretAccessKey"],
        aws_session_token=key["SessionToken"],
    )


def parameter_history(settings: Settings, environment: Environment, name: str) -> list[str]:
    """All values that Parameter Store remembers of a parameter, the oldest first; empty if there is none.

    Parameter Store keeps the last 100.
    """
    with sentences(f"reading {name} in account {environment.account}"):
        ssm = environment_client(settings, environment, "ssm")
        try:
            pages = list(ssm.get_paginator("get_parameter_history").paginate(Name=name))
        except ssm.exceptions.ParameterNotFound:
            return []
    found = [version for page in pages for version in page["Parameters"]]
    return [str(version["Value"]) for version in sorted(found, key=lambda version: int(version["Version"]))]


@contextmanager
def sentences(doing: str) -> Iterator[None]:
    """Make AWS's refusals sentences.

    Raises:
        CannotOperate: AWS refused, or was not reached.
    """
    try:
        yield
    except NoCredentialsError:
        raise CannotOperate(
            f"{doing}: there are no AWS credentials; sign in to the tooling account (aws sso login, AWS_PROFILE)"
        ) from None
    except ClientError as error:
        code, message = error.response["Error"]["Code"], error.response["Error"]["Message"]
        if code in _STALE:
            raise CannotOperate(f"{doing}: your AWS credentials are no longer valid; sign in again") from None
        if code in _DENIED:
            raise CannotOperate(
                f"{doing}: AWS does not allow you that; use a role of the tooling account that may ({message})"
            ) from None
        raise CannotOperate(f"{doing}: AWS says {code}: {message}") from None
    except BotoCoreError as error:
        raise CannotOperate(f"{doing}: {error}") from None
