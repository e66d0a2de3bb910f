"""A rotated database password is picked up without a restart.

A task has read the password when it started. When that is changed, its open connections live on, but each new one would
be refused. So a refused sign-in makes it read the secret again, and if the password there is another one, the connection
is tried with that.

Who rotates changes the database first and makes the new password the secret's current one later, Secrets Manager in
steps that take seconds each. In between it stands in the secret as the pending one, so that is tried, too.
"""

import json
import logging
import os
import threading
import time
from functools import cached_property
from typing import Any

import withheld
from sqlalchemy import event
from sqlalchemy.engine import Engine

log = logging.getLogger("uvicorn.error")

# PostgreSQL, RDS's own for who must have a token, MySQL
REFUSED = ("password authentication failed", "PAM authentication failed", "Access denied for user")
CURRENT, PENDING = "AWSCURRENT", "AWSPENDING"
# Without a pending one, a reader that comes between the two changes has to wait.
READS = 5
SECONDS_BETWEEN_READS = 1.0


class Secret:
    """The secret that holds the password of DATABASE_USER."""

    def __init__(self, arn: str) -> None:
        self.arn = arn

    def password(self, stage: str = CURRENT) -> str:
        """Its password at a stage; empty if none is there now. Raises botocore's errors."""
        try:
            answer = self._client.get_secret_value(SecretId=self.arn, VersionStage=stage)
        except self._client.exceptions.ResourceNotFoundException:
            return ""
        return str(json.loads(answer["SecretString"])["password"])

    @cached_property
    def _client(self) -> Any:
        # Imported when it is needed: most tasks never meet a rotation while they start.
        import boto3
        from botocore.config import Config

        limits = Config(connect_timeout=3, read_timeout=5, retries={"total_max_attempts": 2})
        return boto3.client("secretsmanager", config=limits)


class Rotation:
    """Follows one secret; `reread` is called by whichever thread was refused first."""

    def __init__(self, secret: Secret) -> None:
        self._secret = secret
        self._lock = threading.Lock()

    def reread(self, refused: str) -> bool:
        """Put the secret's password in the place of the refused one; False if there is no other."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return self._reread(refused)
        except (BotoCoreError, ClientError) as error:
            log.warning("The secret of the database password cannot be read again: %s", error)
            return False

    def _reread(self, refused: str) -> bool:
        with self._lock:
            for read in range(READS):
                if withheld.secrets["DATABASE_PASSWORD"] != refused:
                    return True
                for stage in (CURRENT, PENDING):
                    password = self._secret.password(stage)
                    if password not in ("", refused):
                        withheld.secrets["DATABASE_PASSWORD"] = password
                        log.info("The database password was rotated; new connections use the new one.")
                        return True
                if read + 1 < READS:
                    time.sleep(SECONDS_BETWEEN_READS)
            return False


def follow(secret_arn: str) -> None:
    """Make every connection of this process that is refused try again with the rotated password, once.

    It connects itself, so that no listener after it is asked (`database.before_connecting`).
    """
    rotation = Rotation(Secret(secret_arn))

    @event.listens_for(Engine, "do_connect")
    def connect(dialect: Any, _record: Any, arguments: Any, parameters: Any) -> Any:
        if parameters["user"] != os.environ["DATABASE_USER"]:
            return None
        given = parameters["password"]
        used = given.decode() if isinstance(given, bytes) else given
        try:
            return dialect.connect(*arguments, **parameters)
        except dialect.loaded_dbapi.OperationalError as error:
            if not is_refusal(error) or not rotation.reread(used):
                raise
            password = withheld.password(dialect, parameters["user"])
            return dialect.connect(*arguments, **{**parameters, "password": password})


def is_refusal(error: object) -> bool:
    """Whether the driver's error says that user and password do not fit."""
    return any(words in str(error) for words in REFUSED)
