"""A rehearsal from beginning to end: accounts, the pipeline's own deployment, its executions, the report."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rehearsal.accounts import Accounts
from rehearsal.build import Builder
from rehearsal.cloudformation import CloudFormation, Interrupted, Stack
from rehearsal.host import HostClient, HostError
from rehearsal.images import ImageStore
from rehearsal.pipeline import Execution, Mutated, Revision, export
from rehearsal.postgres import Postgres
from rehearsal.processes import ProcessRegistry
from rehearsal.report import Report, declared_types, table
from rehearsal.resources import providers
from rehearsal.resources.declared import Declared

STOP_SECONDS = 20.0
KEPT_EXECUTIONS = 20
KEPT_ON_DOWN = ("images", "report.html", "report.json", "executions")


class CannotRehearse(Exception):
    """Something that a rehearsal needs is missing; the message says what to do."""


class Rehearsal:
    """One repository's rehearsal and its state folder."""

    def __init__(self, repository: Path, approve: bool | None) -> None:
        self._repository = repository
        self._state = repository / ".rehearsal"
        self._approve = approve
        self._processes = ProcessRegistry(self._state / "processes")
        self._accounts = Accounts(self._state)
        self.cloudformation = CloudFormation(self._state, self._accounts, providers(), Declared())
        self._printing = threading.Lock()

    def run(self) -> int:
        """Rehearse the checked-out commit. 0: the release reached prod; 1: it was stopped."""
        self._state.mkdir(exist_ok=True)
        with self._alone():
            commit = self._commit()
            self._say(f"Rehearsing commit {commit[:12]}: {self._git('log', '-1', '--format=%s', commit)}")
            report = Report(self._state, commit)
            if changes := self._git("status", "--porcelain"):
                count = len(changes.splitlines())
                report.notes.append(
                    f"{count} uncommitted change{'s are' if count > 1 else ' is'} not part of this release; commit first"
                    " to rehearse them."
                )
                self._say(report.notes[-1])
            source = export(self._repository, commit, self._state / "source")
            self._set_up(source)
            return self._execute(Revision(commit, source), report)

    def down(self) -> int:
        """Stop everything that a rehearsal left running, and forget its accounts."""
        with self._alone():
            stopped = self._stop_everything()
            for entry in self._state.iterdir() if self._state.exists() else ():
                if entry.name not in (*KEPT_ON_DOWN, "lock"):
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        print(
            f"Stopped {stopped} processes. The rehearsed accounts and their data are gone; the report stays."
        )
        return 0

    def _execute(self, revision: Revision, report: Report) -> int:
        interrupted = False
        execution = self._execution(revision, report)
        try:
            while True:
                try:
                    execution.run()
                    break
                except Mutated:
                    self._say("\nThe pipeline changed itself: it begins again as what it is now.")
                    execution = self._execution(revision, report)
        except KeyboardInterrupt:
            interrupted = True
            execution.stop()
            report.notes.append(
                "Interrupted. `make down` stops what is still running; `make rehearse` goes on."
            )
        content = self._write(report)
        self._say("\n" + table(execution.stages))
        for note in report.notes:
            self._say(f"\n{note}")
        if execution.succeeded:
            self._conclude(execution, content)
        self._say(f"\nReport: {os.path.relpath(self._state / 'report.html')}")
        if interrupted:
            return 130
        return 0 if execution.succeeded else 1

    def _conclude(self, execution: Execution, content: dict[str, Any]) -> None:
        if all(result == "no change" for result in execution.deployed.values()):
            self._say("\nNothing changed: every stack was up to date already.")
        self._say("")
        for name, environment in content["environments"].items():
            self._say(f"{name:<8} {environment['url']}   {environment['tasks']} tasks")
        self._say("They keep running; `make down` stops them.")

    def _execution(self, revision: Revision, report: Report) -> Execution:
        counter = self._state / "executions" / "last"
        number = int(counter.read_text(encoding="utf-8")) + 1 if counter.exists() else 1
        counter.parent.mkdir(parents=True, exist_ok=True)
        counter.write_text(str(number), encoding="utf-8")
        shutil.rmtree(counter.parent / str(number - KEPT_EXECUTIONS), ignore_errors=True)
        execution = Execution(
            number=number,
            revision=revision,
            stack=self._pipeline_stack(),
            state=self._state,
            accounts=self._accounts,
            cloudformation=self.cloudformation,
            builder=Builder(self._processes),
            decide=self.decide,
            before_deploy=self._bootstrap,
            say=self._say,
            changed=lambda: self._write(report),
        )
        report.executions.append(execution)
        return execution

    def _set_up(self, source: Path) -> None:
        if self._accounts.running() and (self._state / "pipeline.json").exists():
            dead = [name for name in self._expected() if name not in {p.name for p in self._alive()}]
            if not dead:
                return
            self._say(f"{', '.join(dead)} is no longer running: the rehearsed accounts are made anew.")
        elif (self._state / "pipeline.json").exists():
            self._say("The rehearsed accounts' server is no longer running: they are made anew.")
        self._forget()
        self._say("Starting the rehearsed accounts")
        self._accounts.start(self._processes)
        self._say("Synthesizing the pipeline for its first deployment")
        assembly = self._synthesize(source)
        self._bootstrap(assembly)
        stack = self._top_stack(assembly)
        template = json.loads((assembly / f"{stack.name}.template.json").read_text(encoding="utf-8"))
        self._say(f"Deploying {stack.name}, as `cdk deploy` does once by hand")
        self.cloudformation.deploy(stack.account, stack.region, stack.name, template, lambda line: None)
        (self._state / "pipeline.json").write_text(
            json.dumps({"account": stack.account, "region": stack.region, "stack": stack.name}),
            encoding="utf-8",
        )

    def _synthesize(self, source: Path) -> Path:
        assembly = self._state / "first-synth"
        shutil.rmtree(assembly, ignore_errors=True)
        done = subprocess.run(
            [
                str(self._repository / "node_modules" / ".bin" / "cdk"),
                "synth", "--quiet", "--output", str(assembly),
                "--app", f"{shlex.quote(sys.executable)} pipeline_app.py",
            ],
            cwd=source,
            capture_output=True,
            text=True,
            check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise CannotRehearse(
                f"{done.stdout}{done.stderr}\npipeline_app.py of this commit cannot be synthesized"
            )
        return assembly

    def _bootstrap(self, assembly: Path) -> None:
        """Bootstrap the accounts that an assembly deploys to, as the README has a person do, with the CDK's template."""
        places = {place for stack in _stacks(assembly) for place in [f"{stack.account}/{stack.region}"]}
        missing = sorted(places - set(self._accounts.bootstrapped))
        if not missing:
            return
        self._say(f"Bootstrapping {', '.join(missing)}")
        done = subprocess.run(
            [str(self._repository / "node_modules" / ".bin" / "cdk"), "bootstrap", "--show-template", "--json"],
            capture_output=True, text=True, check=True, cwd=self._state,
        )  # fmt: skip
        template = json.loads(done.stdout)
        tooling = self._top_stack(assembly).account
        for name in ("TrustedAccounts", "TrustedAccountsForLookup"):
            template["Parameters"][name]["Default"] = [tooling]
        template["Parameters"]["CloudFormationExecutionPolicies"]["Default"] = [
            "arn:aws:iam::aws:policy/AdministratorAccess"
        ]
        self._accounts.enforce(False)
        for place in missing:
            account, region = place.split("/")
            self.cloudformation.deploy(account, region, "CDKToolkit", template, lambda line: None)
        self._accounts.bootstrapped_now(missing)
        self._accounts.enforce(True)

    def decide(self, question: str) -> bool:
        """What a person says to a question: beforehand by APPROVE, or at the terminal.

        Raises:
            Interrupted: the rehearsal was stopped while it waited for an answer.
        """
        if self._approve is not None:
            self._say(f"    {question} {'yes' if self._approve else 'no'}, says APPROVE")
            return self._approve
        if not sys.stdin.isatty():
            self._say(
                f"    {question} Nobody is there to ask: no. APPROVE=yes or APPROVE=no answers beforehand."
            )
            return False
        with self._printing:
            print(f"    {question} [yes/no] ", end="", flush=True)
            # Not input(): it would hold this thread, and with it Ctrl-C, until somebody presses Enter.
            while not select.select([sys.stdin], [], [], 0.2)[0]:
                if self.cloudformation.stopping.is_set():
                    raise Interrupted
            return sys.stdin.readline().strip().lower() in ("y", "yes")

    def _write(self, report: Report) -> dict[str, Any]:
        environments = self._environments()
        images = [environment["image"] for environment in environments.values() if environment["image"]]
        return report.write(
            image=images[0] if images else None,
            environments=environments,
            declared=declared_types(self.cloudformation.stacks()),
        )

    def _environments(self) -> dict[str, Any]:
        """Every environment that has a URL, by the name in its stack's tags."""
        found: dict[str, Any] = {}
        store = ImageStore(self._state / "images")
        for stack in self.cloudformation.stacks():
            if "Url" not in stack.outputs:
                continue
            task = next(r for r in stack.resources.values() if r.type == "AWS::ECS::TaskDefinition")
            service = next(r for r in stack.resources.values() if r.type == "AWS::ECS::Service")
            tags = {tag["Key"]: tag["Value"] for tag in task.properties.get("Tags", [])}
            host = HostClient(self._state / "accounts" / f"{stack.account}-{stack.region}" / "host")
            try:
                tasks = [
                    t for t in host.get("service", service.physical.id)["tasks"] if t["status"] == "RUNNING"
                ]
            except HostError:
                tasks = []
            found[tags.get("environment", stack.name)] = {
                "url": stack.outputs["Url"],
                "account": stack.account,
                "region": stack.region,
                "tasks": len(tasks),
                "image": store.find(task.properties["ContainerDefinitions"][0]["Image"]).digest,
            }
        order = {"dev": 0, "staging": 1, "prod": 2}
        return dict(sorted(found.items(), key=lambda item: order.get(item[0], 9)))

    def _pipeline_stack(self) -> Stack:
        where = json.loads((self._state / "pipeline.json").read_text(encoding="utf-8"))
        stack = self.cloudformation.stack(where["account"], where["region"], where["stack"])
        assert stack is not None
        return stack

    def _top_stack(self, assembly: Path) -> Stack:
        manifest = json.loads((assembly / "manifest.json").read_text(encoding="utf-8"))
        return next(_manifest_stacks(manifest))

    def _expected(self) -> list[str]:
        names = ["accounts"]
        for stack in self.cloudformation.stacks():
            for resource in stack.resources.values():
                if resource.type == "AWS::RDS::DBInstance":
                    names.append(f"postgres-{resource.physical.id}")
                if resource.type == "AWS::ECS::Service":
                    names.append("host")
        return names

    def _registries(self) -> list[ProcessRegistry]:
        return [*(ProcessRegistry(d) for d in self._state.glob("accounts/*/host/processes")), self._processes]

    def _alive(self) -> list[Any]:
        return [process for registry in self._registries() for process in registry.alive()]

    def _stop_everything(self) -> int:
        count = len(self._alive())
        for directory in self._state.glob("accounts/*/host"):
            with suppress(HostError):  # it may be gone already; its tasks are stopped below
                HostClient(directory).stop()
        for registry in self._registries():
            registry.stop_all(STOP_SECONDS)
        for server in self._state.glob("accounts/*/databases/*"):
            Postgres(server, self._processes).remove()
        return count

    def _forget(self) -> None:
        self._stop_everything()
        for name in ("accounts", "accounts.json", "pipeline.json", "logs"):
            path = self._state / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        (self._state / "images" / "tags.json").unlink(missing_ok=True)

    def _commit(self) -> str:
        try:
            return self._git("rev-parse", "HEAD")
        except subprocess.CalledProcessError:
            raise CannotRehearse(
                f"{self._repository} has no commit to rehearse: a release is a commit; run this in a git clone"
            ) from None

    def _git(self, *arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(self._repository), *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One rehearsal at a time, as the pipeline's execution mode QUEUED has it."""
        self._state.mkdir(exist_ok=True)
        with (self._state / "lock").open("w", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise CannotRehearse(
                    "another rehearsal runs in this folder; wait for it, or stop it with Ctrl-C"
                ) from None
            yield

    def _say(self, line: str) -> None:
        with self._printing:
            print(line, flush=True)


def _stacks(assembly: Path) -> Iterator[Stack]:
    for manifest in sorted(assembly.glob("**/manifest.json")):
        yield from _manifest_stacks(json.loads(manifest.read_text(encoding="utf-8")))


def _manifest_stacks(manifest: dict[str, Any]) -> Iterator[Stack]:
    for artifact in manifest["artifacts"].values():
        if artifact["type"] == "aws:cloudformation:stack":
            account, region = artifact["environment"].removeprefix("aws://").split("/")
            name = artifact["properties"].get("stackName") or artifact.get("displayName")
            yield Stack(name, account, region, "SYNTHESIZED")


def interruptible() -> None:
    """Make SIGTERM end a rehearsal as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
