"""MLflow's own users: where their passwords are made, and who is given them."""

from __future__ import annotations

import json

from .assembly import Platform, of_type


def test_passwords_are_generated_under_a_key_of_their_own(basic_platform: Platform) -> None:
    for name, user in (("Admin", "admin"), ("Gates", "gates")):
        secret = basic_platform.at(f"data/Users/{name}").properties
        assert secret["KmsKeyId"] == "<data/Users/Key.Arn>"
        assert secret["GenerateSecretString"] == {
            "SecretStringTemplate": json.dumps({"username": user}),
            "GenerateStringKey": "password",
            "PasswordLength": 48,
            "ExcludePunctuation": True,
        }


def test_the_server_is_given_both_and_the_migration_none(basic_platform: Platform) -> None:
    given = basic_platform.secrets("tracking")
    assert given["MLFLOW_AUTH_ADMIN_PASSWORD"] == "<data/Users/Admin>:password::"
    assert given["GATE_PASSWORD"] == "<data/Users/Gates>:password::"
    for stack in ("tracking", "migration"):
        assert basic_platform.variables(stack)["SIGN_IN"] == "basic"
    assert not [name for name in basic_platform.secrets("migration") if not name.startswith("DATABASE_")]


def test_gates_sign_in_as_their_own_user_and_read_no_other_password(basic_platform: Platform) -> None:
    by_secrets_manager = {"StringEquals": {"kms:ViaService": "secretsmanager.${AWS::Region}.amazonaws.com"}}
    for gate in ("Smoke", "Load"):
        project = basic_platform.at(f"gates/{gate}/Project").properties
        given = {one["Name"]: one["Value"] for one in project["Environment"]["EnvironmentVariables"]}
        assert given["MLFLOW_TRACKING_USERNAME"] == "gates"
        assert given["USER_SECRET_ARN"] == "<data/Users/Gates>"
        allowed = basic_platform.permissions(f"gates/{gate}/Role")
        assert [one for one in allowed if one[0].startswith("secretsmanager:")] == [
            ("secretsmanager:GetSecretValue", "<data/Users/Gates>", {})
        ]
        assert ("kms:Decrypt", "<data/Users/Key.Arn>", by_secrets_manager) in allowed


def test_the_load_balancer_lets_everybody_through_to_mlflow(basic_platform: Platform) -> None:
    assert not of_type(basic_platform.resources, "AWS::ElasticLoadBalancingV2::ListenerRule")
    listener = basic_platform.only("AWS::ElasticLoadBalancingV2::Listener").properties
    assert listener["Protocol"] == "HTTPS"
    assert [action["Type"] for action in listener["DefaultActions"]] == ["forward"]


def test_nobody_else_has_users(platform: Platform) -> None:
    for stack in ("tracking", "migration"):
        assert "SIGN_IN" not in platform.variables(stack)
    assert "MLFLOW_AUTH_ADMIN_PASSWORD" not in platform.secrets("tracking")
    assert not [one for one in platform.resources if one.path.startswith("data/Users")]
