"""The synthesized cloud assembly as tests read it: resources by the path of their construct, references as text.

A reference reads `<stack/Construct>` or `<stack/Construct.Attribute>`, whichever stack it comes from: logical ids and
the outputs through which stacks hand values to each other are the CDK's business, not a test's.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stages.settings import Environment, Settings

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ("dev", "staging", "prod")

Json = dict[str, Any]


@dataclass(frozen=True)
class Resource:
    """A resource of a template, its references written out."""

    path: str
    type: str
    properties: Json
    deletion_policy: str

    @property
    def arn(self) -> str:
        """How a reference to this resource's ARN reads."""
        return f"<{self.path}.Arn>"


@dataclass(frozen=True)
class _Stack:
    """A stack of the assembly; `short` is what references call it."""

    name: str
    short: str
    path: str
    file: Path

    @cached_property
    def template(self) -> Json:
        content: Json = json.loads(self.file.read_text(encoding="utf-8"))
        return content


class Assembly:
    """A cloud assembly on disk."""

    def __init__(self, directory: Path, settings: Settings) -> None:
        self.directory = directory
        self.settings = settings
        self._stacks = {stack.name: stack for stack in self._read()}

    def _read(self) -> Iterator[_Stack]:
        for manifest in sorted(self.directory.glob("**/manifest.json")):
            for key, artifact in json.loads(manifest.read_text(encoding="utf-8"))["artifacts"].items():
                if artifact["type"] == "aws:cloudformation:stack":
                    name = artifact["properties"].get("stackName", key)
                    path = artifact["displayName"]
                    short = path.rpartition("/")[2].lower().removeprefix(f"{self.settings.name}-")
                    yield _Stack(name, short, path, manifest.parent / artifact["properties"]["templateFile"])

    @property
    def templates(self) -> list[Path]:
        """The files of all stacks' templates."""
        return [stack.file for stack in self._stacks.values()]

    @cached_property
    def pipeline(self) -> list[Resource]:
        """The resources of the pipeline's own stack."""
        return self._resources(self._stacks[f"{self.settings.name}-pipeline"])

    def platform(self, environment: str) -> Platform:
        """The stacks of one environment."""
        prefix = f"{self.settings.name}-{environment}"
        resources = [
            resource
            for stack in self._stacks.values()
            if stack.name.startswith(f"{prefix}-")
            for resource in self._resources(stack)
        ]
        return Platform(prefix, dict(self.settings.environments.items())[environment], resources)

    def _resources(self, stack: _Stack) -> list[Resource]:
        return [
            Resource(
                self._path(stack, logical_id),
                declaration["Type"],
                self._written_out(stack, declaration.get("Properties", {})),
                declaration.get("DeletionPolicy", "Delete"),
            )
            for logical_id, declaration in stack.template["Resources"].items()
        ]

    def _path(self, stack: _Stack, logical_id: str) -> str:
        path: str = stack.template["Resources"][logical_id]["Metadata"]["aws:cdk:path"]
        return f"{stack.short}/{path.removeprefix(f'{stack.path}/').removesuffix('/Resource')}"

    def _written_out(self, stack: _Stack, value: Any) -> Any:
        if isinstance(value, list):
            return [self._written_out(stack, item) for item in value]
        if not isinstance(value, dict):
            return value
        if len(value) != 1 or not (name := next(iter(value))).startswith(("Ref", "Fn::")):
            return {key: self._written_out(stack, item) for key, item in value.items()}
        argument = value[name]
        if name == "Ref":
            known = argument in stack.template["Resources"]
            return f"<{self._path(stack, argument)}>" if known else f"${{{argument}}}"
        if name == "Fn::GetAtt":
            return f"<{self._path(stack, argument[0])}.{argument[1]}>"
        if name == "Fn::Join":
            return argument[0].join(map(str, self._written_out(stack, argument[1])))
        if name == "Fn::Sub":
            return argument
        if name == "Fn::GetStackOutput":
            other = self._stacks[argument["StackName"]]
            return self._written_out(other, other.template["Outputs"][argument["OutputName"]]["Value"])
        return f"{name}({json.dumps(self._written_out(stack, argument))})"


@dataclass(frozen=True)
class Platform:
    """The resources of one environment."""

    prefix: str
    settings: Environment
    resources: list[Resource]

    def at(self, path: str) -> Resource:
        """The resource of the construct at `path`, such as `data/Artifacts`."""
        found = [resource for resource in self.resources if resource.path == path]
        assert len(found) == 1, f"{path}: found {len(found)} among {[r.path for r in self.resources]}"
        return found[0]

    def all(self, type_: str) -> list[Resource]:
        """Every resource of a type; an empty answer is an error, so that no loop over it can pass by not running."""
        found = of_type(self.resources, type_)
        assert found, f"{self.prefix} has no {type_}"
        return found

    def only(self, type_: str) -> Resource:
        """The one resource of a type."""
        found = self.all(type_)
        assert len(found) == 1, f"{self.prefix} has {len(found)} of {type_}"
        return found[0]

    def container(self, stack: str) -> Json:
        """The one container of the task of a stack, such as `tracking`."""
        (found,) = self.at(f"{stack}/Task/Definition").properties["ContainerDefinitions"]
        assert isinstance(found, dict)
        return found

    def variables(self, stack: str) -> dict[str, str]:
        """What that container's environment says, secrets aside."""
        return {one["Name"]: one["Value"] for one in self.container(stack)["Environment"]}

    def secrets(self, stack: str) -> dict[str, str]:
        """Where each of that container's secrets comes from."""
        return {one["Name"]: one["ValueFrom"] for one in self.container(stack)["Secrets"]}

    def permissions(self, role: str) -> list[tuple[str, str, Json]]:
        """What the role at a path may do, as (action, resource, condition), from its inline and managed policies."""
        declared = self.at(role)
        documents = [policy["PolicyDocument"] for policy in declared.properties.get("Policies", [])]
        for policy in self.resources:
            attached = policy.type in ("AWS::IAM::Policy", "AWS::IAM::ManagedPolicy") and (
                f"<{role}>" in policy.properties.get("Roles", [])
                or f"<{policy.path}>" in declared.properties.get("ManagedPolicyArns", [])
            )
            if attached:
                documents.append(policy.properties["PolicyDocument"])
        return [
            (action, resource, statement.get("Condition", {}))
            for document in documents
            for statement in document["Statement"]
            for action in as_list(statement["Action"])
            for resource in as_list(statement["Resource"])
        ]


def assert_valid(templates: Iterable[Path], empty: Path) -> None:
    """Let cfn-lint look at them by the repository's rules, in an empty folder: else it adds the assembly of `make synth`."""
    program = str(Path(sys.executable).with_name("cfn-lint"))
    rules = ["--config-file", str(ROOT / ".cfnlintrc.yaml"), "--non-zero-exit-code", "error"]
    done = subprocess.run(
        [program, *rules, "--template", *map(str, templates)],
        cwd=empty,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def of_type(resources: list[Resource], type_: str) -> list[Resource]:
    """Those of a type."""
    return [resource for resource in resources if resource.type == type_]


def as_list(value: Any) -> list[Any]:
    """IAM writes a list of one as the one."""
    return value if isinstance(value, list) else [value]


def attributes(resource: Resource, name: str) -> dict[str, str]:
    """A list of Key and Value as a dictionary."""
    return {entry["Key"]: entry["Value"] for entry in resource.properties[name]}


def copy_of_the_app(target: Path) -> Path:
    """The CDK app and what it reads, in another folder, with this checkout's tools."""
    target.mkdir()
    for name in ("pipeline_app.py", "platform.toml", "cdk.json", "package.json"):
        shutil.copy2(ROOT / name, target / name)
    for name in ("stages", "mlflow_image"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".venv", "node_modules"):
        (target / name).symlink_to(ROOT / name)
    return target


def synthesize(app: Path, output: Path) -> Path:
    """Synthesize the CDK app in the folder `app` with the pinned CLI, as the Build stage does."""
    done = subprocess.run(
        [str(app / "node_modules" / ".bin" / "cdk"), "synth", "--quiet", "--output", str(output)],
        cwd=app,
        env={"JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION": "20", **os.environ},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"cdk synth failed in {app}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return output


def context() -> Json:
    """The CDK's feature flags and what its CLI adds, for a synthesis inside a test."""
    flags: Json = json.loads((ROOT / "cdk.json").read_text(encoding="utf-8"))["context"]
    return {**flags, "aws:cdk:enable-path-metadata": True}


def without_accounts(text: str, settings: Settings) -> str:
    """`text` with account ids replaced by the names of what they hold."""
    names = {environment.account: name for name, environment in settings.environments.items()}
    names[settings.tooling.account] = "tooling"
    return re.sub(r"\b\d{12}\b", lambda match: names.get(match[0], match[0]), text)
