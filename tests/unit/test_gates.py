"""The gates of every environment: inside its network, started by the pipeline alone, with little power."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from load_tests.settings import OPTIONAL, VARIABLES
from stages.settings import Settings

from .assembly import ROOT, Json, Platform
from .conftest import OIDC


def gates(platform: Platform) -> dict[str, Json]:
    """The gates' projects by name."""
    return {
        project.properties["Name"].removeprefix(f"{platform.prefix}-"): project.properties
        for project in platform.all("AWS::CodeBuild::Project")
        if project.path.startswith("gates/")
    }


def variables(project: Json) -> dict[str, str]:
    return {v["Name"]: v["Value"] for v in project["Environment"]["EnvironmentVariables"]}


def test_smoke_and_load_everywhere(platform: Platform) -> None:
    assert gates(platform).keys() == {"smoke", "load"}


def test_gates_are_inside_the_network(platform: Platform) -> None:
    for project in gates(platform).values():
        assert project["VpcConfig"]["VpcId"] == "<network/Vpc>"
        assert project["VpcConfig"]["SecurityGroupIds"] == ["<gates/GateGroup.GroupId>"]
        assert all("/Vpc/privateSubnet" in subnet for subnet in project["VpcConfig"]["Subnets"])


def test_gates_test_their_own_environment(platform: Platform) -> None:
    name = platform.settings.host_name
    for project in gates(platform).values():
        url = variables(project)["MLFLOW_TRACKING_URI"]
        assert url == (f"https://{name}" if name else "http://<tracking/LoadBalancer.DNSName>")


def test_gates_of_a_platform_with_a_certificate_use_the_certificate_s_name(public_platform: Platform) -> None:
    for project in gates(public_platform).values():
        assert variables(project)["MLFLOW_TRACKING_URI"] == "https://mlflow.example.com"


def test_gates_run_the_release_s_own_buildspecs(platform: Platform) -> None:
    for gate, project in gates(platform).items():
        assert project["Source"] == {"Type": "CODEPIPELINE", "BuildSpec": f"{gate}_tests/buildspec.yml"}
        spec = yaml.safe_load((ROOT / project["Source"]["BuildSpec"]).read_text(encoding="utf-8"))
        (report,) = spec["reports"].values()
        assert report["file-format"] == "JUNITXML"


def test_gates_are_not_privileged(platform: Platform) -> None:
    for project in gates(platform).values():
        assert project["Environment"]["PrivilegedMode"] is False


def test_thresholds_are_the_settings(platform: Platform) -> None:
    given = variables(gates(platform)["load"])
    wanted = platform.settings.load.model_dump()
    assert {name: float(given[f"LOAD_{name.upper()}"]) for name in wanted} == wanted
    read = {*VARIABLES, *OPTIONAL}
    assert given.keys() - read == set(), "the load check reads them all"
    assert given.keys() >= VARIABLES.keys(), "and has all that it needs"


def test_the_load_check_alone_keeps_its_figures_for_the_next_release(platform: Platform) -> None:
    parameter = variables(gates(platform)["load"])["LOAD_BASELINE_PARAMETER"]
    assert parameter == f"/{platform.prefix}/load"
    own = platform.settings
    arn = f"arn:aws:ssm:{own.region}:{own.account}:parameter{parameter}"
    for gate in ("smoke", "load"):
        policy = platform.at(f"gates/{gate.title()}/Role/DefaultPolicy").properties["PolicyDocument"]
        given = [one for one in policy["Statement"] if "ssm:" in str(one["Action"])]
        expected = {"Action": ["ssm:GetParameter", "ssm:PutParameter"], "Effect": "Allow", "Resource": arn}
        assert given == ([expected] if gate == "load" else [])


def test_the_demo_is_part_of_smoke_where_the_settings_say_so(platform: Platform) -> None:
    assert variables(gates(platform)["smoke"])["SMOKE_DEMO"] == str(platform.settings.smoke_demo).lower()


def test_only_the_pipeline_may_start_gates(platform: Platform, settings: Settings) -> None:
    """Each gate has a starter of its own, under the name by which the pipeline takes it on."""
    tooling = f"arn:aws:iam::{settings.tooling.account}"
    for gate in gates(platform):
        starter = platform.at(f"gates/{gate.title()}/Starter").properties
        assert starter["RoleName"] == f"{platform.prefix}-{gate}-starter"
        (statement,) = starter["AssumeRolePolicyDocument"]["Statement"]
        assert statement["Principal"] == {"AWS": f"{tooling}:root"}
        assert statement["Condition"] == {
            "ArnEquals": {"aws:PrincipalArn": f"{tooling}:role/{settings.name}-pipeline"}
        }


def test_a_starter_may_start_its_gate_and_no_more(platform: Platform) -> None:
    for gate in gates(platform):
        allowed = platform.permissions(f"gates/{gate.title()}/Starter")
        assert {action for action, _, _ in allowed} == {
            "codebuild:BatchGetBuilds",
            "codebuild:StartBuild",
            "codebuild:StopBuild",
        }
        assert {resource for _, resource, _ in allowed} == {f"<gates/{gate.title()}/Project.Arn>"}


def test_a_gate_reads_the_source_and_nothing_of_the_environment(
    platform: Platform, settings: Settings
) -> None:
    """It meets MLflow as any client does: not its bucket, its database's secret or its keys."""
    tooling = settings.tooling
    source = f"arn:aws:s3:::{settings.name}-pipeline-{tooling.account}-{tooling.region}/*"
    key = f"arn:aws:kms:{tooling.region}:{tooling.account}:key/*"
    by_s3 = {"StringEquals": {"kms:ViaService": f"s3.{tooling.region}.amazonaws.com"}}
    for gate in gates(platform):
        allowed = platform.permissions(f"gates/{gate.title()}/Role")
        data = [(a, r) for a, r, _ in allowed if a.startswith(("s3:", "secretsmanager:", "rds", "dynamodb:"))]
        assert sorted(data) == [("s3:GetObject", source), ("s3:GetObjectVersion", source)]
        elsewhere = [p for p in allowed if p[0].startswith("kms:") and p[1] != "<gates/Key.Arn>"]
        assert elsewhere == [("kms:Decrypt", key, by_s3)]
        for action, resource, _ in allowed:
            assert not resource.startswith(("<data/", "<tracking/")), f"{action} on {resource}"
            assert resource != "*" or action.startswith("ec2:"), f"{action} on everything"


def test_gates_of_a_platform_with_sign_in_ask_for_a_token_and_may_read_that_secret_alone(
    public_platform: Platform, oidc_platform: Platform
) -> None:
    pool = {
        "TOKEN_ISSUER": "<userpool/Pool.ProviderURL>",
        "TOKEN_REQUEST": "scope=mlflow-dev%2Faccess",
        "TOKEN_SECRET_ARN": "<userpool/GatesSecret>",
    }
    provider = {
        "TOKEN_ISSUER": OIDC["issuer"],
        "TOKEN_REQUEST": "scope=mlflow.access&audience=mlflow",
        "TOKEN_SECRET_ARN": OIDC["machine_secret_arn"],
    }
    by_secrets_manager = {"StringEquals": {"kms:ViaService": "secretsmanager.${AWS::Region}.amazonaws.com"}}
    for platform, wanted, key in ((public_platform, pool, True), (oidc_platform, provider, False)):
        for gate, project in gates(platform).items():
            given = {name: value for name, value in variables(project).items() if name.startswith("TOKEN_")}
            assert given == wanted
            allowed = platform.permissions(f"gates/{gate.title()}/Role")
            secrets = [one for one in allowed if one[0].startswith("secretsmanager:")]
            assert secrets == [("secretsmanager:GetSecretValue", wanted["TOKEN_SECRET_ARN"], {})]
            keys = [one for one in allowed if one[1].startswith("<userpool/Key")]
            assert keys == ([("kms:Decrypt", "<userpool/Key.Arn>", by_secrets_manager)] if key else [])


SIGN_IN = (
    'MLFLOW_TRACKING_TOKEN="${TOKEN_ISSUER:+$(.venv/bin/python -m operations token)}"',
    'MLFLOW_TRACKING_PASSWORD="${USER_SECRET_ARN:+$(.venv/bin/python -m operations password)}"',
)


def test_gates_get_what_they_sign_in_with_before_they_begin() -> None:
    """In one shell; and not by `export A=$(b)`, which succeeds when b fails."""
    for gate in ("smoke", "load"):
        spec = yaml.safe_load((ROOT / f"{gate}_tests" / "buildspec.yml").read_text(encoding="utf-8"))
        assert spec["phases"]["build"]["commands"][:3] == [
            *SIGN_IN,
            "export MLFLOW_TRACKING_TOKEN MLFLOW_TRACKING_PASSWORD",
        ]


@pytest.mark.parametrize(
    ("command", "variable", "asked"),
    [(SIGN_IN[0], "TOKEN_ISSUER", "token"), (SIGN_IN[1], "USER_SECRET_ARN", "password")],
)
def test_a_gate_asks_only_where_somebody_signs_in_and_ends_where_it_gets_nothing(
    tmp_path: Path, command: str, variable: str, asked: str
) -> None:
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    shown = f'{command}; echo "$? $MLFLOW_TRACKING_TOKEN$MLFLOW_TRACKING_PASSWORD"'
    tried: list[tuple[str, dict[str, str], str]] = [
        ("exit 3", {}, "0"),
        ("exit 3", {variable: ""}, "0"),
        ("exit 3", {variable: "x"}, "3"),
        ('echo "the $3"', {variable: "x"}, f"0 the {asked}"),
    ]
    for answer, given, said in tried:
        python.write_text(f"#!/bin/sh\n{answer}\n", encoding="utf-8")
        python.chmod(0o755)
        done = subprocess.run(
            ["bash", "-c", shown], cwd=tmp_path, env=given, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == said
