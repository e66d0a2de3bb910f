"""The roles of a rehearsed task: temporary keys, and the secrets that its execution role may read."""

from __future__ import annotations

import json
import re
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from pydantic import Field

from rehearsal.properties import Properties
from rehearsal.task_definition import SecretEntry

NO_SECRETS = (
    "ResourceInitializationError: unable to pull secrets or registry auth: "
    "execution resource retrieval failed"
)


class AdminKeys(Properties):
    """Keys that may assume the roles of the account."""

    access_key_id: str = Field(alias="access_key_id")
    secret_access_key: str = Field(alias="secret_access_key")
    session_token: str | None = Field(alias="session_token", default=None)


class AccountCredentials(Properties):
    """Where the account's AWS services answer, and the keys to assume its roles with."""

    endpoint: str = Field(alias="endpoint")
    region: str = Field(alias="region")
    admin: AdminKeys = Field(alias="admin")


class CannotStartError(Exception):
    """A task could not be started; the message is its stopped reason, worded as ECS words it."""


class Roles:
    """Assumes the roles of an account and fetches its secrets. Calls block: use it from a thread."""

    _session = boto3.session.Session()

    def __init__(self, account: AccountCredentials) -> None:
        self._account = account

    def assume(self, role_arn: str, session_name: str) -> dict[str, Any]:
        """Temporary keys of a role: AccessKeyId, SecretAccessKey, SessionToken, Expiration."""
        admin = self._account.admin
        sts = self._client("sts", admin.access_key_id, admin.secret_access_key, admin.session_token)
        keys: dict[str, Any] = sts.assume_role(RoleArn=role_arn, RoleSessionName=session_name)["Credentials"]
        return keys

    def fetch_secrets(self, role_arn: str, session_name: str, wanted: list[SecretEntry]) -> dict[str, str]:
        """The values of secrets, fetched with the execution role, so that its policies must allow it."""
        try:
            keys = self.assume(role_arn, session_name)
        except (ClientError, BotoCoreError) as error:
            raise CannotStartError(
                f"{NO_SECRETS}: unable to assume execution role {role_arn}: {_said(error)}"
            ) from error
        given = (keys["AccessKeyId"], keys["SecretAccessKey"], keys["SessionToken"])
        values = {}
        for entry in wanted:
            store = "asm" if ":secretsmanager:" in entry.value_from else "ssm"
            try:
                values[entry.name] = (
                    self._secret(entry.value_from, *given)
                    if store == "asm"
                    else self._parameter(entry.value_from, *given)
                )
            except (ClientError, BotoCoreError, LookupError, ValueError) as error:
                raise CannotStartError(
                    f"{NO_SECRETS}: unable to retrieve secret from {store}: failed to fetch "
                    f"{entry.value_from} for {entry.name} with execution role {role_arn}: {_said(error)}"
                ) from error
        return values

    def _secret(self, value_from: str, *keys: str) -> str:
        # arn:partition:secretsmanager:region:account:secret:name, then optionally
        # :json-key:version-stage:version-id
        parts = value_from.split(":")
        json_key, stage, version = (*parts[7:], "", "", "")[:3]
        request = {"SecretId": ":".join(parts[:7])}
        if stage:
            request["VersionStage"] = stage
        if version:
            request["VersionId"] = version
        value: str = self._client("secretsmanager", *keys).get_secret_value(**request)["SecretString"]
        if not json_key:
            return value
        fields = json.loads(value)
        if json_key not in fields:
            raise LookupError(f"retrieved secret from Secrets Manager did not contain json key {json_key}")
        return str(fields[json_key])

    def _parameter(self, value_from: str, *keys: str) -> str:
        name = value_from.partition(":parameter")[2] or value_from
        answer = self._client("ssm", *keys).get_parameter(Name=name, WithDecryption=True)
        value: str = answer["Parameter"]["Value"]
        return value

    def _client(self, service: str, key: str, secret: str, token: str | None) -> Any:
        return self._session.client(
            service,
            region_name=self._account.region,
            endpoint_url=self._account.endpoint,
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            aws_session_token=token,
            config=Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 2}),
        )


def _said(error: Exception) -> str:
    """An error in one line; a refusal by the rehearsed AWS comes as a page of XML."""
    found = re.search(r"<Code>(.*?)</Code>\s*<Message>(.*?)</Message>", str(error), re.DOTALL)
    return f"{found[1]}: {found[2]}" if found else str(error)
