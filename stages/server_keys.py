"""The two keys that every task of an environment must share: for secrets in the database, and for sessions.

Unset, MLflow encrypts the gateway's API keys with a passphrase that is in its source code, and each process signs sessions
of its own. They are two secrets, because a new session key only makes people sign in again, while a new passphrase makes
every stored API key unreadable unless `mlflow crypto rotate-kek` was run first.
"""

from __future__ import annotations

from aws_cdk import RemovalPolicy
from aws_cdk import aws_kms as kms
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct

from stages.findings import acknowledge

LENGTH = 48
"""Letters and digits: 285 bits."""


class ServerKeys(Construct):
    """Generated once and retained, as the database is: without the passphrase part of it cannot be read."""

    def __init__(self, scope: Construct, construct_id: str) -> None:
        super().__init__(scope, construct_id)
        self.key = kms.Key(
            self,
            "Key",
            description="MLflow gateway passphrase and session key",
            enable_key_rotation=True,
            removal_policy=RemovalPolicy.RETAIN,
        )
        self.arns = {
            "MLFLOW_CRYPTO_KEK_PASSPHRASE": self._generated(
                "GatewayPassphrase",
                "Encrypts the API keys that MLflow's gateway keeps in the database",
                "A new passphrase makes what is stored unreadable, unless a person rotates with MLflow's own command.",
            ),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": self._generated(
                "SessionKey",
                "Signs MLflow's sessions",
                "A new session key signs everybody out and is taken up by a deployment only: a person chooses when.",
            ),
        }
        """The image's variable for each key, and the secret that holds its value."""

    def _generated(self, construct_id: str, description: str, not_rotated: str) -> str:
        secret = secretsmanager.Secret(
            self,
            construct_id,
            description=description,
            encryption_key=self.key,
            generate_secret_string=secretsmanager.SecretStringGenerator(
                password_length=LENGTH, exclude_punctuation=True
            ),
            removal_policy=RemovalPolicy.RETAIN,
        )
        acknowledge(secret, not_rotated, "SMG4")
        return secret.secret_arn
