"""The pipeline: its shape as a readable snapshot, and the properties that a release depends on."""

from __future__ import annotations

import difflib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.settings import Settings

from .assembly import (
    ENVIRONMENTS,
    ROOT,
    Assembly,
    Json,
    Resource,
    as_list,
    context,
    copy_of_the_app,
    of_type,
    synthesize,
    without_accounts,
)

SNAPSHOT = Path(__file__).with_name("pipeline.snapshot.txt")


@pytest.fixture
def pipeline(assembly: Assembly) -> Json:
    (pipeline,) = of_type(assembly.pipeline, "AWS::CodePipeline::Pipeline")
    return pipeline.properties


@pytest.fixture
def stages(pipeline: Json) -> dict[str, list[Json]]:
    return {stage["Name"]: stage["Actions"] for stage in pipeline["Stages"]}


@pytest.fixture
def projects(assembly: Assembly) -> dict[str, Json]:
    """The buildspecs of the pipeline's own CodeBuild projects, by how actions refer to them."""
    return {
        f"<{project.path}>": buildspec(assembly.directory, project)
        for project in of_type(assembly.pipeline, "AWS::CodeBuild::Project")
    }


def buildspec(assembly: Path, project: Resource) -> Json:
    text = project.properties["Source"]["BuildSpec"]
    spec: Json = yaml.safe_load(text if "\n" in text else (assembly / text).read_text(encoding="utf-8"))
    return spec


def commands(spec: Json) -> list[str]:
    return [command for phase in spec["phases"].values() for command in phase["commands"]]


# The shape


def test_shape(pipeline: Json, projects: dict[str, Json], settings: Settings) -> None:
    """Stages, actions, order, places, artifacts, conditions: the same for every name and account in platform.toml."""
    shape = describe(pipeline, projects, settings)
    if os.environ.get("UPDATE_SNAPSHOT"):
        SNAPSHOT.write_text(shape, encoding="utf-8")
    expected = SNAPSHOT.read_text(encoding="utf-8")
    difference = "\n".join(
        difflib.unified_diff(
            expected.splitlines(), shape.splitlines(), "reviewed", "synthesized", lineterm=""
        )
    )
    assert not difference, (
        f"the pipeline's shape is not {SNAPSHOT.name}:\n{difference}\n"
        "If this is what you want, run `UPDATE_SNAPSHOT=1 make unit` and commit the file."
    )


def describe(pipeline: Json, projects: dict[str, Json], settings: Settings) -> str:
    """The pipeline as text, without hashes and without what a user's settings decide."""
    source = pipeline["Stages"][0]["Actions"][0]
    own_names = {
        source["OutputArtifacts"][0]["Name"]: "Source",
        source["Name"]: "{repository}",
        settings.source.repository: "{repository}",
        settings.source.branch: "{branch}",
    }

    def plain(text: str) -> str:
        text = own_names.get(text, text)
        for environment in ENVIRONMENTS:
            text = text.replace(f"{settings.name}-{environment}", f"{{name}}-{environment}")
        text = text.replace(f"{settings.name}-pipeline", "{name}-pipeline").replace(
            "${AWS::Partition}", "aws"
        )
        text = re.sub(
            r'--path "\S+" --verbose publish "[0-9a-f]{64}:(\d{12})-\S+"', r"publish {image} to \1", text
        )
        return without_accounts(text, settings)

    lines = [
        f"type {pipeline['PipelineType']}, execution mode {pipeline['ExecutionMode']}, "
        + ("restarts" if pipeline["RestartExecutionOnUpdate"] else "does not restart")
        + " when it has changed itself",
        f"artifacts encrypted with {pipeline['ArtifactStore']['EncryptionKey']['Id']}",
    ]
    for stage in pipeline["Stages"]:
        conditions = sorted(stage.keys() & {"BeforeEntry", "OnSuccess", "OnFailure"})
        lines += ["", stage["Name"] if conditions else f"{stage['Name']} (no conditions)"]
        lines += [f"     {name}: {json.dumps(stage[name], sort_keys=True)}" for name in conditions]
        for action in stage["Actions"]:
            configuration = action["Configuration"]
            project = configuration.get("ProjectName", "")
            account = re.search(r"::(\d{12}):role/", action["RoleArn"])
            parts = [
                f"  {action['RunOrder']}  {plain(action['Name'])}",
                action["ActionTypeId"]["Provider"],
                _what(action["ActionTypeId"]["Provider"], configuration, plain),
                f"in {plain(account[1]) if account else 'tooling'}",
                *(f"from {plain(artifact['Name'])}" for artifact in action.get("InputArtifacts", [])),
                *(f"to {plain(artifact['Name'])}" for artifact in action.get("OutputArtifacts", [])),
            ]
            lines.append(", ".join(part for part in parts if part))
            lines += [
                f"         $ {plain(command)}" for command in commands(projects.get(project, {"phases": {}}))
            ]
    return "\n".join(lines) + "\n"


def _what(provider: str, configuration: Json, plain: Any) -> str:
    if provider == "CloudFormation":
        return f"{configuration['ActionMode']} {plain(configuration['StackName'])}"
    if provider == "CodeStarSourceConnection":
        pushes = "on push" if configuration["DetectChanges"] else "by hand"
        return f"{plain(configuration['FullRepositoryId'])} {plain(configuration['BranchName'])} {pushes}"
    if provider == "CodeBuild" and not configuration["ProjectName"].startswith("<"):
        return str(plain(configuration["ProjectName"]))
    return ""


# What starts it, and what it runs on


def test_a_push_to_the_settings_branch_starts_it(stages: dict[str, list[Json]], settings: Settings) -> None:
    (source,) = stages["Source"]
    assert source["Configuration"] == {
        "ConnectionArn": settings.source.connection_arn,
        "FullRepositoryId": settings.source.repository,
        "BranchName": settings.source.branch,
        "DetectChanges": True,
    }


def test_build_runs_what_a_laptop_runs(stages: dict[str, list[Json]], projects: dict[str, Json]) -> None:
    (check,) = stages["Build"]
    spec = projects[check["Configuration"]["ProjectName"]]
    assert commands(spec) == ["make check"]
    assert spec["artifacts"] == {"base-directory": "cdk.out", "files": "**/*"}


def test_tools_are_pinned_once(stages: dict[str, list[Json]], projects: dict[str, Json]) -> None:
    """The laptop's package.json and the pipeline's own steps name the same exact versions."""
    pins = json.loads((ROOT / "package.json").read_text(encoding="utf-8"))["devDependencies"]
    installed = [command for spec in projects.values() for command in commands(spec) if "npm" in command]
    assert sorted(installed) == [
        f"npm install -g aws-cdk@{pins['aws-cdk']}",
        f"npm install -g cdk-assets@{pins['cdk-assets']}",
    ]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", pin) for pin in pins.values())


# The image


def test_the_image_is_built_once_and_is_the_same_everywhere(
    assembly: Assembly, stages: dict[str, list[Json]], projects: dict[str, Json]
) -> None:
    (publisher,) = stages["Assets"]
    published = [
        re.findall(r'publish "([0-9a-f]{64}):(\d{12})-', command)
        for command in commands(projects[publisher["Configuration"]["ProjectName"]])
        if "publish" in command
    ]
    hashes = {hash_ for command in published for hash_, _ in command}
    accounts = [account for command in published for _, account in command]
    platforms = [assembly.platform(environment) for environment in ENVIRONMENTS]
    assert len(hashes) == 1
    assert accounts == [platform.settings.account for platform in platforms]
    for platform in platforms:
        for task in platform.all("AWS::ECS::TaskDefinition"):
            (container,) = task.properties["ContainerDefinitions"]
            assert container["Image"].endswith(f":{next(iter(hashes))}")
            assert container["Image"].startswith(
                f"{platform.settings.account}.dkr.ecr.{platform.settings.region}."
            )


def test_an_image_only_release_leaves_the_pipeline_as_it_is(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it does not mutate the pipeline, and the executions before it stay what a rollback can go back to."""
    import stages.mlflow_task

    image = tmp_path / "mlflow_image"
    shutil.copytree(ROOT / "mlflow_image", image)
    monkeypatch.setattr(stages.mlflow_task, "IMAGE_DIRECTORY", image)
    before = templates(settings, tmp_path / "before")
    with (image / "entrypoint.py").open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    after = templates(settings, tmp_path / "after")

    changed = {name for name, template in after.items() if before[name] != template}
    assert len(changed) == 2 * len(ENVIRONMENTS)
    assert all("Migration" in name or "Tracking" in name for name in changed), changed


def templates(settings: Settings, output: Path) -> dict[str, bytes]:
    """Every template of the pipeline, synthesized in this process, by its file's name."""
    from aws_cdk import App
    from aws_cdk import Environment as AwsEnvironment

    from pipeline_app import PipelineStack

    app = App(outdir=str(output), context=context(), analytics_reporting=False)
    tooling = AwsEnvironment(account=settings.tooling.account, region=settings.tooling.region)
    PipelineStack(app, f"{settings.name}-pipeline", settings=settings, env=tooling)
    app.synth()
    return {file.name: file.read_bytes() for file in output.rglob("*.template.json")}


# The way to production


def test_stages_come_in_the_order_of_promotion(stages: dict[str, list[Json]]) -> None:
    assert list(stages) == [
        "Source", "Build", "UpdatePipeline", "Assets", "Dev", "Staging", "Promote", "Prod",
    ]  # fmt: skip


def test_the_approval_has_a_stage_of_its_own(stages: dict[str, list[Json]]) -> None:
    approvals = [
        (stage, action["Name"])
        for stage, actions in stages.items()
        for action in actions
        if action["ActionTypeId"]["Category"] == "Approval"
    ]
    assert approvals == [("Promote", "Approve")]
    assert len(stages["Promote"]) == 1


def test_the_approval_shows_what_staging_s_builds_export(stages: dict[str, list[Json]]) -> None:
    """Each variable in its text is one that the buildspec of an action before it exports."""
    (approval,) = stages["Promote"]
    text = approval["Configuration"]["CustomData"]
    assert len(text) < 1000, "CodePipeline's limit"
    builds = {action["Namespace"]: action for action in stages["Staging"] if "Namespace" in action}
    shown = re.findall(r"#\{([^}]*)\.([^}.]*)\}", text)
    assert [variable for _, variable in shown] == ["VERDICT", "SCHEMA"]
    for namespace, variable in shown:
        project = builds[namespace]["Configuration"]["ProjectName"]
        assert project == namespace
        folder = {"load": "load_tests/buildspec.yml", "migrate": "operations/migrate.buildspec.yml"}
        spec = yaml.safe_load((ROOT / folder[project.rpartition("-")[2]]).read_text(encoding="utf-8"))
        assert spec["env"]["exported-variables"] == [variable]


def test_environments_roll_back_by_themselves_and_no_other_stage(pipeline: Json) -> None:
    """Source cannot be rolled back; an approval that says no leaves Staging and Prod as they are."""
    failing = {stage["Name"]: stage["OnFailure"] for stage in pipeline["Stages"] if "OnFailure" in stage}
    assert failing == {environment.title(): {"Result": "ROLLBACK"} for environment in ENVIRONMENTS}
    assert all("Actions" in stage for stage in pipeline["Stages"]), "an override beside the stages"


def test_a_stage_that_is_not_there_cannot_be_rolled_back() -> None:
    from aws_cdk import App, Stack
    from aws_cdk import aws_codepipeline as codepipeline

    from stages.pipeline_conditions import roll_back_on_failure

    pipeline = codepipeline.Pipeline(Stack(App(), "Somewhere"), "Pipeline")
    with pytest.raises(ValueError, match="has no stage Nowhere"):
        roll_back_on_failure(pipeline, ["Nowhere"])


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_an_environment_is_deployed_and_then_gated(
    environment: str, stages: dict[str, list[Json]], settings: Settings
) -> None:
    actions = sorted(stages[environment.title()], key=lambda action: action["RunOrder"])
    assert len({action["RunOrder"] for action in actions}) == len(actions), "one after the other"
    prefix = f"{settings.name}-{environment}"
    deployed = [f"{prefix}-{stack}.Deploy" for stack in ("network", "data", "migration", "tracking", "gates")]
    deployed.insert(3, f"{prefix}-migration.Migrate")  # before the service is touched
    assert [action["Name"] for action in actions] == [*deployed, "Smoke", "Load"]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_gates_run_in_the_environments_account_on_the_release_s_source(
    environment: str, stages: dict[str, list[Json]], settings: Settings
) -> None:
    account = dict(settings.environments.items())[environment].account
    prefix = f"{settings.name}-{environment}"
    gates = [a for a in stages[environment.title()] if a["ActionTypeId"]["Provider"] == "CodeBuild"]
    assert gates
    for gate in gates:
        name = gate["Name"].rpartition(".")[2].lower()
        assert gate["Configuration"]["ProjectName"] == f"{prefix}-{name}"
        assert gate["RoleArn"] == f"arn:aws:iam::{account}:role/{prefix}-{name}-starter"
        assert gate["InputArtifacts"] == stages["Source"][0]["OutputArtifacts"]


def test_the_pipeline_may_take_on_every_role_its_actions_name(
    assembly: Assembly, stages: dict[str, list[Json]]
) -> None:
    assumable = {
        resource
        for policy in of_type(assembly.pipeline, "AWS::IAM::Policy")
        if "<pipeline/PipelineRole>" in policy.properties["Roles"]
        for statement in policy.properties["PolicyDocument"]["Statement"]
        if statement["Action"] == "sts:AssumeRole"
        for resource in as_list(statement["Resource"])
    }
    assert {action["RoleArn"] for actions in stages.values() for action in actions} == assumable


# Across accounts


def test_artifacts_are_under_a_key_that_other_accounts_can_be_let_use(
    assembly: Assembly, pipeline: Json, settings: Settings
) -> None:
    (key,) = of_type(assembly.pipeline, "AWS::KMS::Key")
    assert pipeline["ArtifactStore"]["EncryptionKey"] == {"Type": "KMS", "Id": f"<{key.path}.Arn>"}
    assert key.properties["EnableKeyRotation"] is True
    admitted = json.dumps(key.properties["KeyPolicy"])
    for environment in dict(settings.environments.items()).values():
        assert environment.account in admitted


def documents(assembly: Assembly) -> dict[str, list[Json]]:
    """The statements of the policies of the artifact bucket and of its key."""
    (key,) = of_type(assembly.pipeline, "AWS::KMS::Key")
    (policy,) = (
        policy
        for policy in of_type(assembly.pipeline, "AWS::S3::BucketPolicy")
        if policy.properties["Bucket"] == "<pipeline/ArtifactStore/Bucket>"
    )
    return {
        "key": key.properties["KeyPolicy"]["Statement"],
        "bucket": policy.properties["PolicyDocument"]["Statement"],
    }


@pytest.mark.parametrize("of", ["key", "bucket"])
def test_no_policy_names_a_role_that_the_first_deployment_has_yet_to_make(
    assembly: Assembly, of: str
) -> None:
    """Such a policy is refused. Accounts are there from the start, and so are the roles of the CDK's bootstrap."""
    exists = re.compile(r"arn:aws:iam::\d{12}:root|arn:\S+:iam::\d{12}:role/cdk-hnb659fds-deploy-role-\S+|\*")
    statements = documents(assembly)[of]
    principals = [p for statement in statements for p in as_list(statement["Principal"]["AWS"])]
    assert len(principals) >= 1 + len(ENVIRONMENTS)
    assert [p for p in principals if not exists.fullmatch(p)] == []
    assert all(s["Effect"] == "Deny" for s in statements if s["Principal"] == {"AWS": "*"})


@pytest.mark.parametrize(
    ("of", "actions"), [("key", ["kms:Decrypt"]), ("bucket", ["s3:GetObject", "s3:GetObjectVersion"])]
)
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_an_account_is_let_in_for_the_roles_of_its_gates_alone(
    assembly: Assembly, settings: Settings, environment: str, of: str, actions: list[str]
) -> None:
    own = dict(settings.environments.items())[environment]
    builds = ("migrate", "smoke", "load")
    root = {"AWS": f"arn:aws:iam::{own.account}:root"}
    (statement,) = (s for s in documents(assembly)[of] if s["Principal"] == root)
    assert as_list(statement["Action"]) == actions
    assert statement["Condition"] == {
        "ArnEquals": {
            "aws:PrincipalArn": [
                f"arn:${{AWS::Partition}}:iam::{own.account}:role/{settings.name}-{environment}-{build}-build"
                for build in builds
            ]
        }
    }


def test_the_artifact_bucket_is_private_versioned_and_speaks_tls_only(assembly: Assembly) -> None:
    (bucket,) = (b for b in assembly.pipeline if b.path == "pipeline/ArtifactStore/Bucket")
    assert set(bucket.properties["PublicAccessBlockConfiguration"].values()) == {True}
    assert bucket.properties["VersioningConfiguration"] == {"Status": "Enabled"}
    refusals = [s["Condition"] for s in documents(assembly)["bucket"] if s["Effect"] == "Deny"]
    assert refusals == [{"Bool": {"aws:SecureTransport": "false"}}]


# The same commit gives the same pipeline


def test_synthesis_elsewhere_gives_the_same(assembly: Assembly, tmp_path: Path) -> None:
    """Otherwise each run of the pipeline would find itself changed and begin again, for ever.

    The other folder is another checkout, as a build has one. `*.metadata.json` is not deployed; it has stack traces.
    """
    app = copy_of_the_app(tmp_path / "another checkout")
    again = synthesize(app, tmp_path / "cdk.out")
    here, there = contents(assembly.directory), contents(again)
    assert here.keys() == there.keys()
    assert [name for name, content in here.items() if there[name] != content] == []


def contents(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.name.endswith(".metadata.json") and path.name != "complete"
    }
