"""The figures of the last release that passed this check here, so that a release can be compared with the one before.

They are kept in an SSM parameter, whose history shows how the figures went from release to release.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from load_tests.verdict import Baseline


class BaselineError(Exception):
    """The parameter cannot be read or written; the message is a sentence that says why and what to do."""


def read(parameter: str) -> Baseline | None:
    """The last release's figures; None before the first.

    Raises:
        BaselineError: SSM refused or did not answer, or the parameter holds something else.
    """
    ssm = _client(parameter)
    try:
        value = ssm.get_parameter(Name=parameter)["Parameter"]["Value"]
    except ssm.exceptions.ParameterNotFound:
        return None
    except (ClientError, BotoCoreError) as error:
        raise BaselineError(f"the figures of the release before cannot be read: {error}") from None
    try:
        return Baseline(**json.loads(value))
    except (TypeError, ValueError):
        raise BaselineError(
            f"the SSM parameter {parameter} does not hold the figures of a release: delete it, and this release's are"
            " the first"
        ) from None


def write(parameter: str, baseline: Baseline) -> None:
    """Keep a release's figures for the next one.

    Raises:
        BaselineError: SSM refused or did not answer.
    """
    try:
        _client(parameter).put_parameter(
            Name=parameter, Type="String", Value=json.dumps(asdict(baseline)), Overwrite=True
        )
    except (ClientError, BotoCoreError) as error:
        raise BaselineError(f"the figures of this release cannot be kept for the next: {error}") from None


def _client(parameter: str) -> Any:
    try:
        return boto3.client("ssm")
    except BotoCoreError as error:
        raise BaselineError(f"the SSM parameter {parameter} cannot be reached: {error}") from None
