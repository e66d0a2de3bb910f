"""CodePipeline: one execution of the deployed pipeline for one commit.

Order, parallelism and artifacts are read from the deployed pipeline's definition. Nothing here knows what the pipeline
is for.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from rehearsal.accounts import Accounts
from rehearsal.build import Build, Builder, BuildFailed
from rehearsal.cloudformation import CloudFormation, Interrupted, Resource, Stack, StackFailed

LOG_LINES = 40

Say = Callable[[str], None]
Decide = Callable[[str], bool]


class ActionFailed(Exception):
    """An action did not succeed; the message says why."""


class Rejected(Exception):
    """A person said no."""


class Mutated(Exception):
    """The pipeline changed itself: this execution ends, and one of the new pipeline begins."""


@dataclass
class Action:
    """What happened to one action of a stage."""

    name: str
    provider: str
    status: str = "not run"
    seconds: float = 0.0
    summary: str = ""
    log: str | None = None
    reports: str | None = None


@dataclass
class StageRun:
    """What happened to one stage; `status` is succeeded, failed, rejected or not run."""

    name: str
    status: str = "not run"
    seconds: float = 0.0
    actions: list[Action] = field(default_factory=list)


@dataclass(frozen=True)
class Revision:
    """The commit that an execution takes through the pipeline."""

    commit: str
    source: Path
    """A clean export of it."""


class Execution:
    """One execution; `stages` fills as it runs."""

    def __init__(
        self,
        *,
        number: int,
        revision: Revision,
        stack: Stack,
        state: Path,
        accounts: Accounts,
        cloudformation: CloudFormation,
        builder: Builder,
        decide: Decide,
        before_deploy: Callable[[Path], None],
        say: Say,
        changed: Callable[[], object],
    ) -> None:
        self._revision = revision
        self._stack = stack
        self._state = state
        self._accounts = accounts
        self._cloudformation = cloudformation
        self._builder = builder
        self._decide = decide
        self._before_deploy = before_deploy
        self._say = say
        self._changed = changed
        self._folder = state / "executions" / str(number)
        self._artifacts: dict[str, Path] = {}
        self._stopped = threading.Event()
        self.number = number
        self.pipeline = _only(stack, "AWS::CodePipeline::Pipeline")
        self.stages = [
            StageRun(
                stage["Name"],
                actions=[Action(a["Name"], a["ActionTypeId"]["Provider"]) for a in _in_order(stage)],
            )
            for stage in self.pipeline.properties["Stages"]
        ]
        self.deployed: dict[str, str] = {}

    @property
    def succeeded(self) -> bool:
        """Whether the release went through the last stage."""
        return all(stage.status == "succeeded" for stage in self.stages)

    def run(self) -> None:
        """Run stage after stage until one stops the release.

        Raises:
            Mutated: the pipeline changed itself; run the new one.
        """
        definitions = {stage["Name"]: stage for stage in self.pipeline.properties["Stages"]}
        for stage in self.stages:
            began = time.monotonic()
            self._say(f"\n{stage.name}")
            try:
                self._run_stage(stage, definitions[stage.name])
                stage.status = "succeeded"
            except Rejected:
                stage.status = "rejected"
            except ActionFailed:
                stage.status = "failed"
            except BaseException:
                stage.status = "failed"
                raise
            finally:
                stage.seconds = round(time.monotonic() - began, 1)
                self._changed()
            if stage.status != "succeeded":
                return

    def stop(self) -> None:
        """End what runs: builds are terminated, and nothing new is started."""
        self._stopped.set()
        self._cloudformation.stop()
        self._builder.stop()

    def _run_stage(self, stage: StageRun, definition: Mapping[str, Any]) -> None:
        actions = {action.name: action for action in stage.actions}
        for _, group in groupby(_in_order(definition), key=lambda action: action.get("RunOrder", 1)):
            together = list(group)
            with ThreadPoolExecutor(max_workers=len(together)) as pool:
                futures = [
                    pool.submit(self._run_action, stage.name, actions[declared["Name"]], declared)
                    for declared in together
                ]
                try:
                    failures = [future.exception() for future in futures]
                except KeyboardInterrupt:
                    self.stop()  # before the pool waits for its threads
                    raise
            for failure in failures:
                if failure is not None:
                    raise failure

    def _run_action(self, stage: str, action: Action, declared: Mapping[str, Any]) -> None:
        if self._stopped.is_set():
            raise ActionFailed("stopped")
        carry_out = {
            "CodeStarSourceConnection": self._source,
            "CodeBuild": self._build,
            "CloudFormation": self._deploy,
            "Manual": self._approve,
        }.get(action.provider)
        if carry_out is None:
            raise ActionFailed(f"{action.provider} actions are not rehearsed: teach rehearsal/pipeline.py")
        action.status = "running"
        action.log = str(self._folder / "logs" / f"{stage}-{action.name}.log")
        Path(action.log).parent.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        heartbeat = nullcontext() if action.provider == "Manual" else _Heartbeat(self._say, action.name)
        try:
            with heartbeat:
                carry_out(stage, action, declared)
            action.status = "succeeded"
        except Mutated:
            action.status = "succeeded"
            raise
        except Rejected:
            action.status = "rejected"
            raise
        except Interrupted:
            action.status = "failed"
            action.summary = "interrupted"
            raise
        except (ActionFailed, BuildFailed, StackFailed) as failure:
            action.status = "failed"
            reason = "interrupted" if self._stopped.is_set() else str(failure).splitlines()[0]
            action.summary = f"{action.summary}; {reason}" if action.summary else reason
            _append(action.log, str(failure))
            raise ActionFailed(str(failure)) from failure
        except BaseException as failure:
            action.status = "failed"
            action.summary = f"{type(failure).__name__}: {failure}"
            _append(action.log, traceback.format_exc())
            raise
        finally:
            action.seconds = round(time.monotonic() - began, 1)
            mark = {"succeeded": "✓", "rejected": "✗"}.get(action.status, "✗")
            self._say(f"  {mark} {action.name:<34} {action.seconds:7.1f} s  {action.summary}".rstrip())
            if action.status == "failed":
                for line in tail(action.log, LOG_LINES):
                    self._say(f"      {line}")
                self._say(f"    all of it: {action.log}")
            self._changed()

    def _source(self, stage: str, action: Action, declared: Mapping[str, Any]) -> None:
        self._artifacts[declared["OutputArtifacts"][0]["Name"]] = self._revision.source
        action.summary = f"commit {self._revision.commit[:12]}"

    def _build(self, stage: str, action: Action, declared: Mapping[str, Any]) -> None:
        configuration = declared["Configuration"]
        account, region = self._account(declared)
        project = self._project(account, region, configuration["ProjectName"])
        source = self._artifacts[declared["InputArtifacts"][0]["Name"]]
        if _mutates(project):
            self._mutate(action, source)
            return
        if project.properties["Environment"].get("PrivilegedMode"):
            self._before_deploy(source)
        outputs = [artifact["Name"] for artifact in declared.get("OutputArtifacts", [])]
        output = self._folder / "artifacts" / outputs[0] if outputs else None
        role = project.properties["ServiceRole"]
        assert action.log is not None
        reports = self._folder / "reports" / f"{stage}-{action.name}"
        overrides = json.loads(configuration.get("EnvironmentVariables", "[]"))
        try:
            self._builder.run(
                Build(
                    name=f"{stage}-{action.name}",
                    project=project.properties,
                    source=source,
                    directory=self._folder / "builds" / f"{stage}-{action.name}",
                    log=Path(action.log),
                    variables={
                        "CODEBUILD_RESOLVED_SOURCE_VERSION": self._revision.commit,
                        "CODEBUILD_INITIATOR": f"codepipeline/{self.pipeline.physical.id}",
                    },
                    aws={
                        **self._accounts.environment(region),
                        **self._accounts.assume(_role_arn(role, account), "codebuild").environment(),
                    },
                    state=self._state,
                    reports=reports,
                    output=output,
                    overrides={variable["name"]: variable["value"] for variable in overrides},
                )
            )
        finally:
            if reports.exists():
                action.reports = str(reports)
                action.summary = reported(reports)
        if output is not None:
            self._artifacts[outputs[0]] = output

    def _mutate(self, action: Action, assembly: Path) -> None:
        """What `cdk deploy` of the pipeline's own stack would do."""
        before = self.pipeline.physical.attributes["Version"]
        template = json.loads((assembly / f"{self._stack.name}.template.json").read_text(encoding="utf-8"))
        deployed = self._cloudformation.deploy(
            self._stack.account, self._stack.region, self._stack.name, template, self._log(action)
        )
        action.summary = str(deployed)
        after = self._cloudformation.stack(self._stack.account, self._stack.region, self._stack.name)
        assert after is not None
        if _only(after, "AWS::CodePipeline::Pipeline").physical.attributes["Version"] != before:
            action.summary += "; the pipeline itself changed"
            raise Mutated

    def _deploy(self, stage: str, action: Action, declared: Mapping[str, Any]) -> None:
        configuration = declared["Configuration"]
        if configuration["ActionMode"] != "CREATE_UPDATE":
            raise ActionFailed(f"CloudFormation's {configuration['ActionMode']} is not rehearsed")
        artifact, _, path = configuration["TemplatePath"].partition("::")
        template = json.loads((self._artifacts[artifact] / path).read_text(encoding="utf-8"))
        account, region = self._account(declared)
        deployed = self._cloudformation.deploy(
            account, region, configuration["StackName"], template, self._log(action)
        )
        action.summary = str(deployed)
        self.deployed[configuration["StackName"]] = str(deployed)

    def _approve(self, stage: str, action: Action, declared: Mapping[str, Any]) -> None:
        for before in self.stages[: [s.name for s in self.stages].index(stage)][-1:]:
            for evidence in before.actions:
                if evidence.reports:
                    self._say(f"    {before.name} {evidence.name}: {evidence.summary} ({evidence.reports})")
        if not self._decide(declared["Configuration"].get("CustomData", "Go on?")):
            action.summary = "a person said no"
            raise Rejected
        action.summary = "approved"

    def _account(self, declared: Mapping[str, Any]) -> tuple[str, str]:
        """Where an action happens: the account of its role; CDK names the region where it is not the pipeline's."""
        return declared["RoleArn"].split(":")[4], declared.get("Region", self._stack.region)

    def _project(self, account: str, region: str, name: str) -> Resource:
        for stack in self._cloudformation.stacks():
            if (stack.account, stack.region) == (account, region):
                for resource in stack.resources.values():
                    if resource.type == "AWS::CodeBuild::Project" and resource.physical.id == name:
                        return resource
        raise ActionFailed(f"there is no CodeBuild project {name} in {account}/{region}")

    def _log(self, action: Action) -> Say:
        assert action.log is not None
        log = action.log
        return lambda line: _append(log, line)


class _Heartbeat:
    """Says that a long action still runs."""

    EVERY_SECONDS = 20

    def __init__(self, say: Say, name: str) -> None:
        self._say = say
        self._name = name
        self._over = threading.Event()

    def __enter__(self) -> None:
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _beat(self) -> None:
        began = time.monotonic()
        while not self._over.wait(self.EVERY_SECONDS):
            self._say(f"  … {self._name:<34} {time.monotonic() - began:7.0f} s")


def export(repository: Path, commit: str, target: Path) -> Path:
    """A clean export of a commit: what CodePipeline's source action delivers, without `.git`."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    archive = subprocess.Popen(
        ["git", "-C", str(repository), "archive", "--format=tar", commit], stdout=subprocess.PIPE
    )
    subprocess.run(["tar", "-x", "-C", str(target)], stdin=archive.stdout, check=True)
    if archive.wait() != 0:
        raise RuntimeError(f"git archive {commit} failed in {repository}")
    return target


def tail(log: str | None, lines: int) -> list[str]:
    """The last lines of a log."""
    if log is None or not Path(log).exists():
        return []
    return Path(log).read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]


def reported(reports: Path) -> str:
    """What a build's JUnit files say: the verdict that a suite ends with, or how many tests passed."""
    said = []
    for file in sorted(reports.glob("*.xml")):
        for suite in ElementTree.parse(file).iter("testsuite"):  # noqa: S314 (written by this release's own tests)
            verdict = (suite.findtext("system-out") or "").strip().splitlines()
            failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
            skipped = int(suite.get("skipped", 0))
            passed = int(suite.get("tests", 0)) - failed - skipped
            counts = ((passed, "passed"), (failed, "failed"), (skipped, "skipped"))
            said.append(
                verdict[-1] if verdict else ", ".join(f"{count} {what}" for count, what in counts if count)
            )
    return "; ".join(said)


def _append(log: str, text: str) -> None:
    with Path(log).open("a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%H:%M:%S')} {text}\n")


def _in_order(stage: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return sorted(stage["Actions"], key=lambda action: int(action.get("RunOrder", 1)))


def _mutates(project: Resource) -> bool:
    """Whether a project is CDK Pipelines' self-mutation: its buildspec deploys the pipeline's own stack."""
    return "cdk -a" in str(project.properties["Source"].get("BuildSpec")) and " deploy " in str(
        project.properties["Source"].get("BuildSpec")
    )


def _role_arn(role: str, account: str) -> str:
    return role if role.startswith("arn:") else f"arn:aws:iam::{account}:role/{role}"


def _only(stack: Stack, type_: str) -> Resource:
    found = [resource for resource in stack.resources.values() if resource.type == type_]
    if len(found) != 1:
        raise RuntimeError(f"stack {stack.name} has {len(found)} resources of type {type_}; one is expected")
    return found[0]
