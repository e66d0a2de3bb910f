"""CodePipeline: one execution of the deployed pipeline for one commit.

Order, parallelism and artifacts are read from the deployed pipeline's definition. Nothing here knows what the pipeline
is for.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import groupby
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from rehearsal import names
from rehearsal.accounts import Accounts
from rehearsal.build import Build, Builder, BuildFailed
from rehearsal.cloudformation import CloudFormation, Interrupted, Resource, Stack, StackFailed
from rehearsal.executions import (
    Action,
    Approval,
    Executions,
    Record,
    StageRun,
    in_order,
    now,
    structure_version,
)

LOG_LINES = 40

Say = Callable[[str], None]
Decide = Callable[[str], bool]


class ActionFailed(Exception):
    """An action did not succeed; the message says why."""


class Rejected(Exception):
    """A person said no."""


class Mutated(Exception):
    """The pipeline changed itself: this execution ends, and one of the new pipeline begins."""


class Execution:
    """One execution; its record fills as it runs."""

    def __init__(
        self,
        *,
        record: Record,
        executions: Executions,
        repository: Path,
        stack: Stack,
        state: Path,
        accounts: Accounts,
        cloudformation: CloudFormation,
        builder: Builder,
        decide: Decide,
        approver: str,
        before_deploy: Callable[[Path], None],
        say: Say,
        changed: Callable[[], object],
    ) -> None:
        self.record = record
        self._executions = executions
        self._repository = repository
        self._stack = stack
        self._state = state
        self._accounts = accounts
        self._cloudformation = cloudformation
        self._builder = builder
        self._decide = decide
        self._approver = approver
        self._before_deploy = before_deploy
        self._say = say
        self._tell = changed
        self._folder = executions.folder(record)
        self._saving = threading.Lock()
        self._artifacts: dict[str, Path] = {}
        self._variables = {"codepipeline.PipelineExecutionId": record.id}
        self._stopped = threading.Event()
        self.pipeline = pipeline_of(stack)
        self.stages = record.stages
        self.deployed: dict[str, str] = {}

    @property
    def succeeded(self) -> bool:
        """Whether the release went through the last stage."""
        return all(stage.status == "succeeded" for stage in self.stages)

    @property
    def to_roll_back(self) -> str | None:
        """The stage that failed, if the pipeline says that it is then rolled back. A rollback that fails is not."""
        if self.record.is_rollback or self.record.status != "Failed":
            return None
        for stage in self.stages:
            if stage.status in ("failed", "rejected"):
                result = self._declared(stage.name).get("OnFailure", {}).get("Result")
                return stage.name if result == "ROLLBACK" else None
        return None

    def run(self) -> None:
        """Run stage after stage until one stops the release.

        Raises:
            Mutated: the pipeline changed itself; run the new one.
        """
        self.record.queued = False
        # AWS calls an execution cancelled if the pipeline's definition changed before it was through.
        status = "Stopped"
        try:
            if self.record.rollback_target is not None:
                self._take_artifacts_of(self.record.rollback_target)
            self._run_stages()
            status = "Succeeded" if self.succeeded else "Failed"
        except Mutated:
            status = "Cancelled"
            raise
        except Exception:
            status = "Failed"
            raise
        finally:
            self.record.status = "Stopped" if self._stopped.is_set() else status
            self.record.ended = now()
            self._changed()

    def _run_stages(self) -> None:
        for stage in self.stages:
            began = time.monotonic()
            self._say(f"\n{stage.name}")
            try:
                self._run_stage(stage, self._declared(stage.name))
                stage.status = "succeeded"
            except Rejected:
                stage.status = "rejected"
            except ActionFailed:
                stage.status = "failed"
            except Mutated:
                stage.status = "succeeded"
                raise
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
        for _, group in groupby(in_order(definition), key=lambda action: action.get("RunOrder", 1)):
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
        action.started = now()
        action.log = str(self._folder / "logs" / f"{stage}-{action.name}.log")
        Path(action.log).parent.mkdir(parents=True, exist_ok=True)
        self._changed()
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
        name = declared["OutputArtifacts"][0]["Name"]
        self._keep(name, export(self._repository, self.record.commit, self._folder / "artifacts" / name))
        action.summary = f"commit {self.record.commit[:12]}"

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
            exported = self._builder.run(
                Build(
                    name=f"{stage}-{action.name}",
                    project=project.properties,
                    source=source,
                    directory=self._folder / "builds" / f"{stage}-{action.name}",
                    log=Path(action.log),
                    variables={
                        "CODEBUILD_RESOLVED_SOURCE_VERSION": self.record.commit,
                        "CODEBUILD_INITIATOR": f"codepipeline/{self.pipeline.physical.id}",
                        **names.variables(self._names(account, region)),
                    },
                    aws={
                        **self._accounts.environment(region),
                        **self._accounts.assume(_role_arn(role, account), "codebuild").environment(),
                    },
                    state=self._state,
                    reports=reports,
                    output=output,
                    overrides={one["name"]: self._resolved(one["value"]) for one in overrides},
                )
            )
        finally:
            if reports.exists():
                action.reports = str(reports)
                action.summary = reported(reports)
        if namespace := declared.get("Namespace"):
            self._variables.update({f"{namespace}.{name}": value for name, value in exported.items()})
        if output is not None:
            self._keep(outputs[0], output)

    def _resolved(self, value: str) -> str:
        """A text with the variables of CodePipeline and of earlier builds filled in."""

        def fill(found: re.Match[str]) -> str:
            if (name := found[1]) not in self._variables:
                known = ", ".join(sorted(self._variables))
                raise ActionFailed(f"no action has exported the variable {name}; known are {known}")
            return self._variables[name]

        return re.sub(r"#\{([^}]*)\}", fill, value)

    def _mutate(self, action: Action, assembly: Path) -> None:
        """What `cdk deploy` of the pipeline's own stack would do."""
        template = json.loads((assembly / f"{self._stack.name}.template.json").read_text(encoding="utf-8"))
        deployed = self._cloudformation.deploy(
            self._stack.account, self._stack.region, self._stack.name, template, self._log(action)
        )
        action.summary = str(deployed)
        after = self._cloudformation.stack(self._stack.account, self._stack.region, self._stack.name)
        assert after is not None
        if structure_version(pipeline_of(after)) != structure_version(self.pipeline):
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
        approved = self._decide(self._resolved(declared["Configuration"].get("CustomData", "Go on?")))
        answer = "yes" if approved else "no"
        self.record.approvals.append(Approval(stage, action.name, self._approver, now(), answer))
        if not approved:
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

    def _names(self, account: str, region: str) -> list[names.Named]:
        """The environments of an account that have a name of their own."""
        found = (
            names.named(stack, self._state)
            for stack in self._cloudformation.stacks()
            if (stack.account, stack.region) == (account, region)
        )
        return [one for one in found if one]

    def _declared(self, stage: str) -> Mapping[str, Any]:
        stages = self.pipeline.properties["Stages"]
        return next(declared for declared in stages if declared["Name"] == stage)

    def _keep(self, artifact: str, path: Path) -> None:
        self._artifacts[artifact] = path
        self.record.artifacts[artifact] = path.relative_to(self._folder).as_posix()

    def _take_artifacts_of(self, target: str) -> None:
        """A rollback runs with what the execution it goes back to ran with."""
        record = self._executions.get(target)
        if record is None:
            raise RuntimeError(f"execution {target} is gone; there is nothing to go back to")
        folder = self._executions.folder(record)
        self._artifacts = {name: folder / path for name, path in record.artifacts.items()}

    def _changed(self) -> None:
        with self._saving:
            self._executions.save(self.record)
        self._tell()

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


def _mutates(project: Resource) -> bool:
    """Whether a project is CDK Pipelines' self-mutation: its buildspec deploys the pipeline's own stack."""
    return "cdk -a" in str(project.properties["Source"].get("BuildSpec")) and " deploy " in str(
        project.properties["Source"].get("BuildSpec")
    )


def _role_arn(role: str, account: str) -> str:
    return role if role.startswith("arn:") else f"arn:aws:iam::{account}:role/{role}"


def pipeline_of(stack: Stack) -> Resource:
    """The pipeline in a stack that has one."""
    found = [r for r in stack.resources.values() if r.type == "AWS::CodePipeline::Pipeline"]
    if len(found) != 1:
        raise RuntimeError(f"stack {stack.name} has {len(found)} pipelines; one is expected")
    return found[0]
