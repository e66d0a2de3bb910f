"""What of a task definition is rehearsed: the platform's own images, and the secrets that its templates make."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from moto import mock_aws

from rehearsal.resources.service import _own_containers

OWN_IMAGE = "222222222222.dkr.ecr.eu-west-1.amazonaws.com/assets:abc"
SECRET = "arn:aws:secretsmanager:eu-west-1:222222222222:secret:team/proxy-a1B2c3"


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "key")
    told: list[str] = []
    with mock_aws():
        client = boto3.client("secretsmanager", region_name="eu-west-1")
        yield SimpleNamespace(progress=told.append, told=told, client=lambda service: client)


def names(place: Any, *containers: dict[str, Any]) -> list[str]:
    return [
        c["Name"]
        for c in _own_containers(place, {"ContainerDefinitions": list(containers)})["ContainerDefinitions"]
    ]


@pytest.mark.parametrize("image", [OWN_IMAGE, "good", "assets:abc", "folder/name:1"])
def test_the_platform_s_own_images_run(place: Any, image: str) -> None:
    assert names(place, {"Name": "mlflow", "Image": image}) == ["mlflow"]
    assert place.told == []


@pytest.mark.parametrize("image", ["public.ecr.aws/datadog/agent:7.60.0", "docker.io/library/redis:8"])
def test_a_sidecar_from_another_registry_is_left_out_and_told(place: Any, image: str) -> None:
    sidecar = {"Name": "agent", "Image": image, "Secrets": [{"Name": "KEY", "ValueFrom": SECRET}]}
    assert names(place, {"Name": "mlflow", "Image": OWN_IMAGE}, sidecar) == ["mlflow"]
    [sentence] = place.told
    assert sentence.startswith("container agent is declared, not rehearsed")


@pytest.mark.parametrize("ending", ["", ":token::"])
def test_a_secret_of_the_user_s_own_is_left_out_and_told(place: Any, ending: str) -> None:
    made = place.client("secretsmanager").create_secret(Name="own", SecretString="{}")["ARN"]
    server = {
        "Name": "mlflow",
        "Image": OWN_IMAGE,
        "Secrets": [
            {"Name": "TOKEN", "ValueFrom": f"{SECRET}{ending}"},
            {"Name": "DATABASE_USER", "ValueFrom": f"{made}:username::"},
            {"Name": "PARAMETER", "ValueFrom": "/a/parameter"},
        ],
    }
    [container] = _own_containers(place, {"ContainerDefinitions": [server]})["ContainerDefinitions"]
    assert [entry["Name"] for entry in container["Secrets"]] == ["DATABASE_USER", "PARAMETER"]
    [sentence] = place.told
    assert sentence.startswith("variable TOKEN is declared, not rehearsed: no template makes its secret")
