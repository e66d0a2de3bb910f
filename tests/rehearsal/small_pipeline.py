"""A small pipeline that is really rehearsed: commits of a git repository, builds that run, an approval, self-mutation.

Its environments are shell commands instead of MLflow, so that a release takes a second. All else is the rehearsal's own:
the accounts' server, CodePipeline's API, executions, records, artifacts, rollbacks.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from rehearsal.accounts import Accounts
from rehearsal.executions import Executions, Record
from rehearsal.processes import ProcessRegistry
from rehearsal.run import Rehearsal
from stages.settings import Settings

STACK = "small-pipeline"
HOLD = '[ ! -e "$REHEARSAL_STATE/served-hold-$(cat version)" ] || sleep 600'
"""A build of a version that a test holds goes on until it is stopped."""

SERVE = 'cat version >> "$REHEARSAL_STATE/served-$ENVIRONMENT"'
"""What stands for a deployment: the version of the source that the build was given, in the order of deployments."""


class Small:
    """The repository, and the accounts that its releases are rehearsed in."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.root = folder
        self.state = folder / ".rehearsal"
        self.settings = settings
        self.executions = Executions(self.state)
        self.accounts = Accounts(self.state)
        self._registry = ProcessRegistry(self.state / "processes")
        self.state.mkdir()
        self.git("init", "--quiet", "--initial-branch", "main")
        self.git("config", "user.name", "Somebody")
        self.git("config", "user.email", "somebody@example.org")
        (folder / ".gitignore").write_text(".rehearsal\n", encoding="utf-8")
        self.accounts.start(self._registry)

    def stop(self) -> None:
        """Stop the accounts' server."""
        self._registry.stop_all(5)

    def renew(self) -> None:
        """A pipeline that was just deployed, without history."""
        self.executions.forget()
        (self.state / "executions" / "last").unlink(missing_ok=True)
        for file in (*self.state.glob("served-*"), *self.state.glob("accounts/*/stacks/*.json")):
            file.unlink()
        for _, environment in self.settings.environments.items():
            ssm = self.accounts.client("ssm", environment.account, environment.region)
            for parameter in ssm.describe_parameters()["Parameters"]:
                ssm.delete_parameter(Name=parameter["Name"])
        tooling = self.settings.tooling
        self.rehearsal().cloudformation.deploy(
            tooling.account, tooling.region, STACK, self.template(), lambda line: None
        )
        where = {"account": tooling.account, "region": tooling.region, "stack": STACK}
        (self.state / "pipeline.json").write_text(json.dumps(where), encoding="utf-8")

    def rehearsal(self, *, approve: bool = True) -> Rehearsal:
        """`make rehearse` and its kin in the repository."""
        return Rehearsal(self.root, approve)

    def release(self, version: str, *, check: str = "true", approve: bool = True, stage: str = "") -> str:
        """Commit a version and rehearse it. `check` is what the smoke tests do, `stage` another stage's name."""
        (self.root / "version").write_text(f"{version}\n", encoding="utf-8")
        (self.root / "check").write_text(f"{check}\n", encoding="utf-8")
        template = json.dumps(self.template(stage))
        (self.root / f"{STACK}.template.json").write_text(template, encoding="utf-8")
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", f"Version {version}")
        self.rehearsal(approve=approve).run()
        return self.git("rev-parse", "HEAD")

    def migrated(self, environment: str, commit: str, kind: str = "none", **others: Any) -> None:
        """Write a release record, as the migrate step does."""
        own = dict(self.settings.environments.items())[environment]
        record = {
            "commit": commit,
            "image": "an-image",
            "image_digest": f"sha256:{commit[:6] * 10}abcd",
            "revision": f"rev{commit[:8]}",
            "kind": kind,
            "snapshot": None,
            "execution": self.newest().id,
            "at": "2026-11-21T06:00:00+00:00",
            **others,
        }
        self.accounts.client("ssm", own.account, own.region).put_parameter(
            Name=f"/{self.settings.name}-{environment}/release",
            Value=json.dumps(record),
            Type="String",
            Overwrite=True,
        )

    def hold(self, version: str) -> None:
        """Let no build of a version end from now on."""
        (self.state / f"served-hold-{version}").touch()

    def newest(self) -> Record:
        """The execution that was begun last."""
        return self.executions.all()[0]

    def served(self, environment: str) -> list[str]:
        """The versions that were deployed, in order."""
        file = self.state / f"served-{environment}"
        return file.read_text(encoding="utf-8").split() if file.exists() else []

    def git(self, *arguments: str) -> str:
        """Run git in the repository."""
        done = subprocess.run(
            ["git", "-C", str(self.root), *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def template(self, stage: str = "") -> dict[str, Any]:
        """The pipeline's stack. A stage's name more changes the pipeline's definition and nothing else."""
        name, tooling = self.settings.name, self.settings.tooling
        role = f"arn:aws:iam::{tooling.account}:role/builds"

        def action(
            action: str, category: str, provider: str, order: int = 1, **configuration: Any
        ) -> dict[str, Any]:
            kind = {"Category": category, "Owner": "AWS", "Provider": provider, "Version": "1"}
            return {
                "Name": action,
                "ActionTypeId": kind,
                "RunOrder": order,
                "RoleArn": role,
                "Configuration": configuration,
                **({"InputArtifacts": [{"Name": "Source"}]} if provider == "CodeBuild" else {}),
            }

        def build(title: str, project: str, order: int = 1, environment: str = "") -> dict[str, Any]:
            variables = json.dumps([{"name": "ENVIRONMENT", "value": environment}])
            return action(
                title, "Build", "CodeBuild", order, ProjectName=project, EnvironmentVariables=variables
            )

        def platform(environment: str) -> dict[str, Any]:
            return {
                "Name": environment.title(),
                "OnFailure": {"Result": "ROLLBACK"},
                "Actions": [
                    build(f"{name}-{environment}-tracking.Deploy", "serve", 1, environment),
                    build("Smoke", "smoke", 2, environment),
                ],
            }

        source = action("repository", "Source", "CodeStarSourceConnection")
        source["OutputArtifacts"] = [{"Name": "Source"}]
        stages = [
            {"Name": "Source", "Actions": [source]},
            {"Name": "Build", "Actions": [build("Check", "hold")]},
            {"Name": "UpdatePipeline", "Actions": [build("SelfMutate", "mutate")]},
            *([{"Name": stage, "Actions": [build("Another", "nothing")]}] if stage else []),
            platform("dev"),
            {"Name": "Promote", "Actions": [action("Approve", "Approval", "Manual", CustomData="Go on?")]},
            platform("prod"),
        ]

        def project(name: str, command: str) -> dict[str, Any]:
            spec = json.dumps({"version": "0.2", "phases": {"build": {"commands": [command]}}})
            return {
                "Type": "AWS::CodeBuild::Project",
                "Properties": {
                    "Name": name,
                    "ServiceRole": role,
                    "Environment": {},
                    "Source": {"Type": "CODEPIPELINE", "BuildSpec": spec},
                },
            }

        return {
            "Resources": {
                "Hold": project("hold", HOLD),
                "Serve": project("serve", SERVE),
                "Smoke": project("smoke", ". ./check"),
                "Nothing": project("nothing", "true"),
                "Mutate": project("mutate", f"cdk -a . deploy {STACK}"),
                "Pipeline": {
                    "Type": "AWS::CodePipeline::Pipeline",
                    "Properties": {"Name": name, "Stages": stages},
                },
            }
        }
