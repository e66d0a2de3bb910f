"""A rotated database password is picked up without a restart.

RDS changes a master password that it manages every seven days. A task has read the old one when it started: its open
connections live on, but each new one would be refused. So a refused sign-in makes the server read the secret again,
and if the password there is another one, the connection is tried with that.

Who rotates changes the database first and makes the new password the secret's current one later, Secrets Manager in
steps that take seconds each. In between it stands in the secret as the pending one, so that is tried, too.
"""

import json
import logging
import threading
import time
from typing import Any

import boto3
import withheld
from botocore.config import Config
from sqlalchemy import event
from sqlalchemy.engine import Engine

log = logging.getLogger("uvicorn.error")

REFUSED = ("password authentication failed", "Access denied for user")  # PostgreSQL, MySQL
CURRENT, PENDING = "AWSCURRENT", "AWSPENDING"
# Without a pending one, a reader that comes between the two changes has to wait.
READS = 5
SECONDS_BETWEEN_READS = 1.0


class Rotation:
    """Follows one secret; `reread` is called by whichever thread was refused first."""

    def __init__(self, secret_arn: str) -> None:
        self._secret_arn = secret_arn
        self._lock = threading.Lock()
        limits = Config(connect_timeout=3, read_timeout=5, retries={"total_max_attempts": 2})
        self._secrets = boto3.client("secretsmanager", config=limits)

    def reread(self, refused: str) -> bool:
        """Put the secret's password in the place of the refused one; False if it is still the same."""
        with self._lock:
            for read in range(READS):
                if withheld.secrets["DATABASE_PASSWORD"] != refused:
                    return True
                for stage in (CURRENT, PENDING):
                    password = self._password(stage)
                    if password not in ("", refused):
                        withheld.secrets["DATABASE_PASSWORD"] = password
                        log.info("The database password was rotated; new connections use the new one.")
                        return True
                if read + 1 < READS:
                    time.sleep(SECONDS_BETWEEN_READS)
            return False

    def _password(self, stage: str) -> str:
        """The secret's password at a stage; empty if none is there now."""
        try:
            answer = self._secrets.get_secret_value(SecretId=self._secret_arn, VersionStage=stage)
        except self._secrets.exceptions.ResourceNotFoundException:
            return ""
        return str(json.loads(answer["SecretString"])["password"])


def follow(secret_arn: str) -> None:
    """Make every connection of this process that is refused try again with the rotated password, once."""
    rotation = Rotation(secret_arn)

    @event.listens_for(Engine, "do_connect")
    def connect(dialect: Any, _record: Any, arguments: Any, parameters: Any) -> Any:
        given = parameters["password"]
        used = given.decode() if isinstance(given, bytes) else given
        try:
            return dialect.connect(*arguments, **parameters)
        except dialect.loaded_dbapi.OperationalError as error:
            if not any(words in str(error) for words in REFUSED) or not rotation.reread(used):
                raise
            return dialect.connect(*arguments, **{**parameters, "password": withheld.password(dialect)})
