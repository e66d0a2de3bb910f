"""What must never be lost: the database, the artifact bucket and the servers' keys, each under a key of its own."""

from __future__ import annotations

from typing import Any

from aws_cdk import Stack
from aws_cdk import aws_ec2 as ec2
from constructs import Construct

from stages.artifacts import artifact_store
from stages.database import database_key, database_server, database_user_key
from stages.mlflow_users import MlflowUsers
from stages.people import People
from stages.server_keys import ServerKeys
from stages.settings import Environment


class DataStack(Stack):
    """A database in isolated subnets and a versioned bucket; both outlive the stack."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        prefix: str,
        settings: Environment,
        vpc: ec2.IVpc,
        **stack: Any,
    ) -> None:
        super().__init__(scope, construct_id, **stack)
        self.artifacts = artifact_store(self, settings.artifacts, settings.logs.days)
        self.database_key = database_key(self)
        self.database_user_key = database_user_key(self) if settings.database.sign_in == "password" else None
        """Of the password of the server's database user, if it has one."""
        self.database = database_server(
            self, prefix, settings.database, vpc, self.database_key, self.database_user_key
        )
        self.server_keys = ServerKeys(self, "ServerKeys")
        self.users = MlflowUsers(self, "Users") if settings.auth == "mlflow-basic" else None
        """MLflow's own users, where they sign in."""
        if settings.people:
            People(
                self,
                "People",
                prefix=prefix,
                saml_provider_arn=settings.people.saml_provider_arn,
                artifacts=self.artifacts,
                user_secret_arn=self.database.user_secret_arn,
            )
