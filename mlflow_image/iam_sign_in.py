"""IAM database authentication: the database is opened with a token in place of a password.

A token is an address that the task role's own credentials have signed; making one asks nobody. RDS takes it for 15
minutes, and for opening a connection only: one that is open lives on. So each new connection is given a new one, and
there is nothing to keep, to rotate or to leak for long. It travels as it is, so that settings.py demands TLS.
"""

import threading
from functools import cache
from typing import Any

_first = threading.Lock()


def token(dialect: Any, host: str, port: int, user: str) -> str | bytes:
    """What opens that database to that user now, as the driver of that SQLAlchemy dialect wants it.

    Raises the driver's own OperationalError if the task has no credentials: for whoever asks, that is a refused sign-in.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        with _first:
            client = _client()
        made: str = client.generate_db_auth_token(DBHostname=host, Port=port, DBUsername=user)
    except (BotoCoreError, ClientError) as error:
        raise dialect.loaded_dbapi.OperationalError(
            f"no token could be signed ({error}): the task needs a role, and AWS_REGION the database's region"
        ) from None
    return made.encode() if dialect.driver == "pymysql" else made


@cache
def _client() -> Any:
    # Imported when it is needed: with a password nobody needs it.
    import boto3

    return boto3.client("rds")
