"""A rehearsal from beginning to end: accounts, the pipeline's own deployment, its executions, the report."""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

from operations.containers import Engine, NoEngine
from rehearsal.accounts import Accounts, account_directory
from rehearsal.build import Builder
from rehearsal.cloudformation import CloudFormation, Interrupted, Stack
from rehearsal.database_server import remove_files
from rehearsal.engine import choose, chosen, remove_labelled, usable_engine
from rehearsal.executions import AUTOMATED_ROLLBACK, PUSH, START, Executions, Record
from rehearsal.host import HostClient, HostError
from rehearsal.images import ImageStore
from rehearsal.names import named
from rehearsal.pipeline import Execution, Mutated, Say, export, pipeline_of
from rehearsal.processes import ProcessRegistry
from rehearsal.report import Report, declared_types, table
from rehearsal.resources import providers
from rehearsal.resources.declared import Declared

STOP_SECONDS = 20.0
DOCKERFILE = Path("mlflow_image", "Dockerfile")
LAST_LOGS = "last-logs"
KEPT_ON_DOWN = ("images", "report.html", "report.json", "executions", LAST_LOGS)


class CannotRehearse(Exception):
    """Something that a rehearsal needs is missing; the message says what to do."""


class Rehearsal:
    """One repository's rehearsal and its state folder."""

    def __init__(self, repository: Path, approve: bool | None, containers: bool | None = False) -> None:
        """`approve` answers the approval; None asks. `containers`: whether tasks are; None: where an engine can run them."""
        self._repository = repository
        self._containers = containers
        self._state = repository / ".rehearsal"
        self._approve = approve
        self._processes = ProcessRegistry(self._state / "processes")
        self._accounts = Accounts(self._state)
        self.cloudformation = CloudFormation(self._state, self._accounts, providers(), Declared())
        self._executions = Executions(self._state)
        self._printing = threading.Lock()

    def run(self) -> int:
        """Rehearse the checked-out commit. 0: the release reached prod; 1: it was stopped."""
        self._state.mkdir(exist_ok=True)
        with self._alone():
            commit = self._commit()
            self._say(f"Rehearsing commit {commit[:12]}: {self._subject(commit)}")
            report = Report(self._state, commit)
            if changes := self._git("status", "--porcelain"):
                count = len(changes.splitlines())
                report.notes.append(
                    f"{count} uncommitted change{'s are' if count > 1 else ' is'} not part of this release; commit first"
                    " to rehearse them."
                )
                self._say(report.notes[-1])
            report.notes.append(self._set_up(commit))
            self._executions.give_up_unfinished()
            record = self._begin(commit, PUSH, getpass.getuser())
            return self._execute(record, report, self._say, head=commit)

    def operate(self, arguments: list[str]) -> int:
        """Run `python -m operations` against the rehearsed accounts, and carry out the executions that it asks for.

        What an execution says goes to a file in its folder: operations tells how it goes, as it does on AWS. The exit
        status is that of operations.
        """
        if not self._accounts.running() or not (self._state / "pipeline.json").exists():
            raise CannotRehearse("there is no rehearsed pipeline to operate: run `make rehearse` first")
        looks_only = arguments[:1] == ["releases"]
        with nullcontext() if looks_only else self._alone():
            if not looks_only:
                self._executions.give_up_unfinished()
            operations = subprocess.Popen(
                [sys.executable, "-m", "operations", *arguments],
                cwd=self._repository,
                env=self._operator(),
            )
            try:
                while operations.poll() is None:
                    if not looks_only:
                        self._carry_out_queued()
                    time.sleep(0.1)
            except KeyboardInterrupt:
                operations.terminate()  # Ctrl-C has reached it, too; SIGTERM has not
                raise
            finally:
                status = operations.wait()
        return status

    def _operator(self) -> dict[str, str]:
        """The environment of somebody who has credentials for the tooling account, and nothing of the real AWS."""
        place = json.loads((self._state / "pipeline.json").read_text(encoding="utf-8"))
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
            **self._accounts.environment(place["region"]),
            **self._accounts.administrator(place["account"], place["region"]).environment(),
            "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
        }

    def _carry_out_queued(self) -> None:
        for record in reversed(self._executions.all()):
            if record.queued:
                record.who = getpass.getuser()
                record.subject = self._subject(record.commit)
                report = Report(self._state, record.commit)
                log = self._executions.folder(record) / "execution.log"
                if record.is_rollback:
                    report.notes.append(f"{record.who} had {record.rollback_stage} rolled back.")
                with log.open("a", encoding="utf-8", buffering=1) as output:
                    say = partial(print, file=output)
                    self._execute(record, report, say, head=self._commit())

    def down(self) -> int:
        """Stop everything that a rehearsal left running, and forget its accounts."""
        with self._alone():
            stopped = self._stop_everything()
            self._executions.forget()
            self._keep_logs()
            for entry in self._state.iterdir() if self._state.exists() else ():
                if entry.name not in (*KEPT_ON_DOWN, "lock"):
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        print(
            f"Stopped {stopped} processes. The rehearsed accounts and their data are gone; the report stays, and the"
            f" tasks' logs are in {os.path.relpath(self._state / LAST_LOGS)} until the next time."
        )
        return 0

    def _keep_logs(self) -> None:
        """What tasks and hosts said, for whoever asks afterwards why a release failed."""
        logs = [*self._state.glob("accounts/*/logs")]
        if logs:
            shutil.rmtree(self._state / LAST_LOGS, ignore_errors=True)
        for folder in logs:
            shutil.move(folder, self._state / LAST_LOGS / folder.parent.name)

    def _execute(self, record: Record, report: Report, say: Say, *, head: str) -> int:
        running: list[Execution] = []
        interrupted = False
        try:
            with self._stopped_when_asked(running):
                self._run_to_the_end(record, report, say, running, head)
        except Interrupted:
            report.notes.append("Stopped, as StopPipelineExecution asked.")
        except KeyboardInterrupt:
            interrupted = True
            running[-1].stop()
            report.notes.append(
                "Interrupted. `make down` stops what is still running; `make rehearse` goes on."
            )
        content = self._write(report)
        for execution in (report.executions[-1], report.rollback):
            if execution is not None:
                say("\n" + table(execution.stages))
        for note in report.notes:
            say(f"\n{note}")
        succeeded = report.executions[-1].succeeded
        self._conclude(report, content, say)
        say(f"\nReport: {os.path.relpath(self._state / 'report.html')}")
        if interrupted:
            return 130
        return 0 if succeeded else 1

    def _run_to_the_end(
        self, record: Record, report: Report, say: Say, running: list[Execution], head: str
    ) -> None:
        """Run an execution, the one that follows if the pipeline changes itself, and the rollback if a stage asks for it.

        A pipeline that changed is started anew by CloudFormation, which takes the branch's newest commit: `head`.
        """
        while True:
            execution = self._execution(record, report, say)
            report.executions.append(execution)
            running.append(execution)
            try:
                execution.run()
                break
            except Mutated:
                say("\nThe pipeline changed itself: it begins again as what it is now.")
                record = self._begin(head, START, "CloudFormation")
        stage = execution.to_roll_back
        if stage is None:
            return
        target = self._executions.target(stage, record.pipeline_version)
        if target is None:
            report.notes.append(
                f"{stage} failed. Nothing to roll it back to: no execution has succeeded in it since the pipeline's"
                " definition last changed."
            )
            return
        to = f"execution {target.number} (commit {target.commit[:12]}, {target.subject})"
        say(f"\n{stage} failed; rolling the stage back to {to}")
        record = self._executions.begin(
            pipeline_of(self._pipeline_stack()),
            commit=target.commit,
            subject=target.subject,
            trigger=AUTOMATED_ROLLBACK,
            who="CodePipeline",
            target=target,
            stage=stage,
        )
        rollback = report.rollback = self._execution(record, report, say)
        running.append(rollback)
        rollback.run()
        report.notes.append(
            f"{stage} failed and was rolled back to {to}."
            if rollback.succeeded
            else f"{stage} failed, and so did rolling it back to {to}. That is not tried again: read the log of"
            " what failed, and mend it by hand or with a new release."
        )

    @contextmanager
    def _stopped_when_asked(self, running: list[Execution]) -> Iterator[None]:
        """StopPipelineExecution, for whichever execution runs last; what it stopped does not stop the next one."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.1):
                if running and self._executions.stop_asked(running[-1].record):
                    running[-1].stop()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()
            self.cloudformation.stopping.clear()

    def _conclude(self, report: Report, content: dict[str, Any], say: Say) -> None:
        execution = report.executions[-1]
        if (
            execution.succeeded
            and execution.deployed
            and all(result == "no change" for result in execution.deployed.values())
        ):
            say("\nNothing changed: every stack was up to date already.")
        say("")
        for name, environment in content["environments"].items():
            commit = environment["commit"]
            say(
                f"{name:<8} {environment['url']}   {environment['tasks']} tasks"
                f"   {f'commit {commit[:12]}' if commit else ''}".rstrip()
            )
            if environment["ask"]:
                say(f"{'':<8} {environment['ask']}")
            for alarm in environment["alarms"]:
                say(f"{'':<8} alarm {alarm['alarm']} went off at {alarm['at']}: {alarm['reason']}")
        if content["environments"]:
            say("They keep running; `make down` stops them.")

    def _begin(self, commit: str, trigger: str, who: str) -> Record:
        pipeline = pipeline_of(self._pipeline_stack())
        return self._executions.begin(
            pipeline, commit=commit, subject=self._subject(commit), trigger=trigger, who=who
        )

    def _execution(self, record: Record, report: Report, say: Say) -> Execution:
        return Execution(
            record=record,
            executions=self._executions,
            repository=self._repository,
            stack=self._pipeline_stack(),
            state=self._state,
            accounts=self._accounts,
            cloudformation=self.cloudformation,
            builder=Builder(self._processes),
            decide=self.decide,
            approver=getpass.getuser() if self._approve is None else "APPROVE",
            before_deploy=self._bootstrap,
            say=say,
            changed=lambda: self._write(report),
        )

    def _set_up(self, commit: str) -> str:
        """Make the accounts, unless they run from before. Returns what their tasks are, in a sentence."""
        if self._accounts.running() and (self._state / "pipeline.json").exists():
            dead = [name for name in self._expected() if name not in {p.name for p in self._alive()}]
            if not dead:
                return self._keep_tasks()
            self._say(f"{', '.join(dead)} is no longer running: the rehearsed accounts are made anew.")
        elif (self._state / "pipeline.json").exists():
            self._say("The rehearsed accounts' server is no longer running: they are made anew.")
        engine, sentence = self._choose_tasks()
        self._forget()
        choose(self._state, engine)
        self._say("Starting the rehearsed accounts")
        self._accounts.start(self._processes)
        self._say("Synthesizing the pipeline for its first deployment")
        assembly = self._synthesize(export(self._repository, commit, self._state / "first-source"))
        self._bootstrap(assembly)
        stack = self._top_stack(assembly)
        template = json.loads((assembly / f"{stack.name}.template.json").read_text(encoding="utf-8"))
        self._say(f"Deploying {stack.name}, as `cdk deploy` does once by hand")
        self.cloudformation.deploy(stack.account, stack.region, stack.name, template, lambda line: None)
        (self._state / "pipeline.json").write_text(
            json.dumps({"account": stack.account, "region": stack.region, "stack": stack.name}),
            encoding="utf-8",
        )
        return sentence

    def _choose_tasks(self) -> tuple[Engine | None, str]:
        """The engine for containers, or None for processes, and the sentence about it."""
        engine, sentence = None, "Tasks are processes, as CONTAINERS=no asks."
        if self._containers is not False:
            try:
                engine = usable_engine(self._repository / DOCKERFILE)
                sentence = _what_tasks_are(engine)
            except NoEngine as none:
                if self._containers:
                    raise CannotRehearse(
                        f"CONTAINERS=yes cannot be: {none} Without CONTAINERS=yes, tasks are processes."
                    ) from None
                sentence = f"Tasks are processes, not containers: {none}"
        self._say(sentence)
        return engine, sentence

    def _keep_tasks(self) -> str:
        """What the tasks of the environments that run from before are; they stay that."""
        engine = chosen(self._state)
        sentence = f"{_what_tasks_are(engine)} They are what they were before; `make down` lets them become another kind."
        if self._containers is not None and self._containers != bool(engine):
            raise CannotRehearse(
                f"CONTAINERS={'yes' if self._containers else 'no'} comes too late: {sentence[0].lower()}{sentence[1:]}"
            )
        self._say(sentence)
        return sentence

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
            env={**os.environ, "CDK_VALIDATION": "false"},  # half of the time; Build validates the same templates
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
            tasks="containers" if chosen(self._state) else "processes",
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
            host = HostClient(account_directory(self._state, stack.account, stack.region) / "host")
            alarms = [r.physical.id for r in stack.resources.values() if r.type == "AWS::CloudWatch::Alarm"]
            try:
                tasks = [
                    t for t in host.get("service", service.physical.id)["tasks"] if t["status"] == "RUNNING"
                ]
                changes = [
                    {"alarm": name, **change}
                    for name in alarms
                    for change in host.get("alarm", name)["changes"]
                ]
            except HostError:
                tasks, changes = [], []
            found[tags.get("environment", stack.name)] = {
                "url": stack.outputs["Url"],
                "ask": own_name.ask if (own_name := named(stack, self._state)) else None,
                "account": stack.account,
                "region": stack.region,
                "tasks": len(tasks),
                "alarms": sorted((c for c in changes if c["state"] == "ALARM"), key=lambda c: str(c["at"])),
                "commit": deployer.commit if (deployer := self._executions.deployer(stack.name)) else None,
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
                    names.append(f"database-{resource.physical.id}")
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
        self._remove_containers()
        for kept in ("databases", "snapshots"):
            for server in self._state.glob(f"accounts/*/{kept}/*"):
                remove_files(server)
        return count

    def _remove_containers(self) -> None:
        """Those that no host has removed, because it was killed."""
        engine = chosen(self._state)
        if engine is None:
            return
        for host in self._state.glob("accounts/*/host"):
            try:
                remove_labelled(engine, host)
            except RuntimeError as left:
                raise CannotRehearse(
                    f"{left}; once {engine.program} answers, run `make down` again"
                ) from None

    def _forget(self) -> None:
        self._stop_everything()
        self._executions.forget()
        for name in ("accounts", "accounts.json", "engine.json", "pipeline.json", "logs"):
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

    def _subject(self, commit: str) -> str:
        return self._git("log", "-1", "--format=%s", commit)

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


def _what_tasks_are(engine: Engine | None) -> str:
    return f"Tasks are containers, run by {engine.program}." if engine else "Tasks are processes."


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
