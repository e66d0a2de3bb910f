"""RotateSecret of Secrets Manager: the hosted rotation of a database user's password, on its real server.

moto's own only calls Lambda functions, and none runs here. Its request parsing and its IAM stay in front. The steps are
those of AWS's function for one user (create, set, test, finish), each a moment after the one before, so that a server
that follows meets every state there is in between.
"""

from __future__ import annotations

import json
import logging
import secrets
import string
import threading
import time
import uuid
from typing import Any

import psycopg
import pymysql
from moto.secretsmanager.exceptions import InvalidRequestException
from moto.secretsmanager.models import FakeSecret, SecretsManagerBackend
from moto.secretsmanager.responses import SecretsManagerResponse
from psycopg import sql

from rehearsal import mariadb

log = logging.getLogger(__name__)

STEP_SECONDS = 1.0
"""Between two steps: Secrets Manager calls the function anew for each."""

_one_at_a_time = threading.Lock()


def answer_secrets_manager() -> None:
    """Teach moto's Secrets Manager to rotate."""
    SecretsManagerResponse.rotate_secret = _rotate_secret
    SecretsManagerResponse.cancel_rotate_secret = _cancel_rotate_secret


def _rotate_secret(self: Any) -> str:
    secret = self.backend.describe_secret(self._get_param("SecretId"))
    if self._get_param("RotationRules"):
        secret.rotation_enabled = secret.rotation_requested = True
    if not secret.rotation_enabled:
        raise InvalidRequestException("No Lambda rotation function ARN is associated with this secret.")
    version = str(uuid.uuid4())
    if self._get_bool_param("RotateImmediately", True):
        threading.Thread(target=_rotate, args=(self.backend, secret, version)).start()
    return json.dumps({"ARN": secret.arn, "Name": secret.name, "VersionId": version})


def _cancel_rotate_secret(self: Any) -> str:
    secret = self.backend.describe_secret(self._get_param("SecretId"))
    secret.rotation_enabled = False
    return json.dumps({"ARN": secret.arn, "Name": secret.name})


def _rotate(backend: SecretsManagerBackend, secret: FakeSecret, version: str) -> None:
    with _one_at_a_time:
        try:
            current = json.loads(backend.get_secret_value(secret.arn, "", "AWSCURRENT")["SecretString"])
            pending = {**current, "password": _password()}
            backend.put_secret_value(secret.arn, json.dumps(pending), "", version, ["AWSPENDING"])
            time.sleep(STEP_SECONDS)
            _sign_in(current, new_password=pending["password"])
            time.sleep(STEP_SECONDS)
            _sign_in(pending)
            time.sleep(STEP_SECONDS)
            made = secret.versions[version]
            made["version_stages"] = ["AWSCURRENT"]
            secret.reset_default_version(made, version)
        except (psycopg.Error, pymysql.Error, LookupError):
            log.exception("the password in %s was not rotated", secret.name)


def _sign_in(held: dict[str, Any], new_password: str | None = None) -> None:
    """Sign in as the user of a secret, and change its password, if there is a new one."""
    user = held["username"]
    if held["engine"] == "mysql":
        with mariadb.connect(held["port"], user, held["password"], held["dbname"]) as server:
            if new_password:
                server.cursor().execute("SET PASSWORD = PASSWORD(%s)", (new_password,))
        return
    with psycopg.connect(
        host=held["host"],
        port=held["port"],
        user=user,
        password=held["password"],
        dbname=held["dbname"],
        autocommit=True,
    ) as connection:
        if new_password:
            change = sql.SQL("ALTER USER {} WITH PASSWORD {}")
            connection.execute(change.format(sql.Identifier(user), sql.Literal(new_password)))


def _password() -> str:
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(32))
