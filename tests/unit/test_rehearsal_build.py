"""Builds, with a real bash: phases, variables, artifacts and reports, what a build cannot see, and how it ends."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from rehearsal.build import Build, Builder, BuildFailed
from rehearsal.processes import ProcessRegistry

Phases = dict[str, list[str]]


class Room:
    """A place for builds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = folder / "the source"
        self.source.mkdir()
        self.processes = ProcessRegistry(folder / "processes")
        self.builder = Builder(self.processes)
        self.reports = folder / "reports"
        self.output = folder / "output"

    def run(
        self,
        phases: Phases,
        *,
        project: dict[str, Any] | None = None,
        output: bool = False,
        aws: dict[str, str] | None = None,
        variables: dict[str, str] | None = None,
        overrides: dict[str, str] | None = None,
        **sections: Any,
    ) -> str:
        """Run a build of this buildspec and return its log."""
        declared = {name: {"commands": commands} for name, commands in phases.items()}
        spec = {"version": "0.2", "phases": declared, **sections}
        return self.run_spec(
            json.dumps(spec), project or {}, output, aws or {}, variables or {}, overrides or {}
        )

    def run_spec(
        self,
        spec: str,
        project: dict[str, Any],
        output: bool = False,
        aws: dict[str, str] | None = None,
        variables: dict[str, str] | None = None,
        overrides: dict[str, str] | None = None,
    ) -> str:
        try:
            self.exported = self.builder.run(
                Build(
                    name="Build-Check",
                    project={"Source": {"BuildSpec": spec}, "Environment": {}, "Name": "check", **project},
                    source=self.source,
                    directory=self.folder / "a build",
                    log=self.folder / "build.log",
                    variables=variables or {},
                    aws=aws or {},
                    state=self.folder,
                    reports=self.reports,
                    output=self.output if output else None,
                    overrides=overrides or {},
                )
            )
        finally:
            log = self.folder / "build.log"
            self.log = log.read_text(encoding="utf-8") if log.exists() else ""
        return self.log

    def fail(self, phases: Phases, **options: Any) -> str:
        with pytest.raises(BuildFailed) as failed:
            self.run(phases, **options)
        return str(failed.value)


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


# Phases


def test_phases_run_in_order_in_one_shell(room: Room) -> None:
    log = room.run(
        {
            "post_build": ['echo "and $GREETING, $plain"'],
            "build": ['echo "$GREETING from $(basename "$PWD")"', "plain=later"],
            "install": ["export GREETING=hello", "mkdir deeper && cd deeper"],
            "pre_build": ["hail() { echo hailed; }"],
        }
    )
    said = [line for line in log.splitlines() if not line.startswith("[")]
    assert said == ["hello from deeper", "and hello, later"]
    phases = [line.split("]")[0].strip("[") for line in log.splitlines() if line.startswith("[")]
    assert phases == ["install", "install", "pre_build", "build", "build", "post_build"]


def test_a_build_exports_the_variables_that_it_names(room: Room) -> None:
    """As they are at its end; one that was never exported is empty."""
    names = {"exported-variables": ["SAID", "PLAIN", "NEVER"]}
    room.run({"build": ["set -e; export SAID='one line'", "PLAIN=x", 'SAID="$SAID, and more"']}, env=names)
    assert room.exported == {"SAID": "one line, and more", "PLAIN": "", "NEVER": ""}


def test_a_build_starts_in_a_clean_copy_of_its_source(room: Room) -> None:
    (room.source / "file").write_text("one\n", encoding="utf-8")
    for _ in range(2):
        log = room.run({"build": ["cat file", "echo two >> file"]})
    assert [line for line in log.splitlines() if not line.startswith("[")] == ["one", "one"]
    assert (room.source / "file").read_text(encoding="utf-8") == "one\n"
    assert not (room.folder / "a build").exists()


def test_a_command_may_have_several_lines_and_any_quotes(room: Room) -> None:
    log = room.run(
        {"build": ["""for x in a b; do\n  echo "it's $x"\ndone""", """echo 'single' "double" \\$x"""]}
    )
    assert [line for line in log.splitlines() if not line.startswith("[")] == [
        "it's a",
        "it's b",
        "single double $x",
    ]


@pytest.mark.parametrize("phase", ["install", "pre_build"])
def test_nothing_follows_a_failed_preparation(room: Room, phase: str) -> None:
    said = room.fail(
        {
            phase: ["true", "exit_with() { return 7; }; exit_with", "echo never"],
            "build": ["echo never"],
            "post_build": ["echo never"],
        }
    )
    assert said == f"phase {phase} failed at `exit_with() {{ return 7; }}; exit_with` (exit status 7)"
    assert "never" not in [line for line in room.log.splitlines() if not line.startswith("[")]


def test_post_build_follows_a_failed_build_and_knows_it(room: Room) -> None:
    said = room.fail(
        {"build": ["(exit 3)", "echo never"], "post_build": ["echo after $CODEBUILD_BUILD_SUCCEEDING"]}
    )
    assert said == "phase build failed at `(exit 3)` (exit status 3)"
    assert "after 0" in room.log.splitlines()
    assert "never" not in room.log


def test_post_build_does_not_follow_a_build_that_aborts(room: Room) -> None:
    spec = {
        "version": "0.2",
        "phases": {
            "build": {"commands": ["(exit 3)"], "on-failure": "ABORT"},
            "post_build": {"commands": ["echo after"]},
        },
    }
    with pytest.raises(BuildFailed, match=r"phase build failed at `\(exit 3\)` \(exit status 3\)"):
        room.run_spec(yaml.safe_dump(spec), {})
    assert "after" not in room.log


def test_a_failed_post_build_fails_the_build(room: Room) -> None:
    said = room.fail(
        {"build": ["echo well $CODEBUILD_BUILD_SUCCEEDING"], "post_build": ["(exit 4)", "echo never"]}
    )
    assert said == "phase post_build failed at `(exit 4)` (exit status 4)"
    assert "well 1" in room.log
    assert "never" not in room.log


def test_the_first_failure_is_the_one_that_is_named(room: Room) -> None:
    said = room.fail({"build": ["(exit 3)"], "post_build": ["(exit 4)"]})
    assert said == "phase build failed at `(exit 3)` (exit status 3)"


def test_a_command_s_own_variables_do_not_decide_the_outcome(room: Room) -> None:
    assert room.fail({"build": ["(exit 3)"], "post_build": ["status=0"]}).startswith("phase build failed")


# Variables


def test_the_user_s_keys_and_secrets_are_not_visible(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "GITHUB_TOKEN", "MY_PASSWORD"):
        monkeypatch.setenv(name, f"the user's {name}")
    monkeypatch.setenv("PIP_INDEX_URL", "https://index.example/simple")
    log = room.run({"build": ["env"]}, aws={"AWS_ACCESS_KEY_ID": "the role's", "AWS_REGION": "eu-west-1"})
    assert "the user's" not in log
    assert "AWS_ACCESS_KEY_ID=the role's" in log.splitlines()
    assert "PIP_INDEX_URL=https://index.example/simple" in log.splitlines()


def test_the_nearest_declaration_of_a_variable_wins(room: Room) -> None:
    """As in CodeBuild: the action's before the project's before the buildspec's."""
    project = {
        "Environment": {
            "EnvironmentVariables": [
                {"Name": "B", "Value": "project", "Type": "PLAINTEXT"},
                {"Name": "C", "Value": "project"},
            ]
        }
    }
    log = room.run(
        {"build": ['echo "$A $B $C $D"']},
        env={"variables": {"A": "spec", "B": "spec", "C": "spec"}},
        project=project,
        variables={"D": "codebuild"},
        overrides={"C": "action"},
    )
    assert "spec project action codebuild" in log.splitlines()


def test_a_package_repository_that_is_declared_alone_is_not_asked(room: Room) -> None:
    """Nothing answers there: packages come from where this machine gets them."""
    variable = {"Name": "PACKAGES", "Value": "mlflow-dev"}
    commands = ['echo "[${PACKAGES:-no repository}]"']
    log = room.run({"build": commands}, project={"Environment": {"EnvironmentVariables": [variable]}})
    assert "[no repository]" in log.splitlines()


def test_a_build_knows_itself(room: Room) -> None:
    log = room.run({"build": ['echo "$CODEBUILD_BUILD_ID"', 'test "$CODEBUILD_SRC_DIR" = "$PWD"']})
    assert "check:Build-Check" in log.splitlines()


@pytest.mark.parametrize("kind", ["PARAMETER_STORE", "SECRETS_MANAGER"])
def test_a_variable_that_lies_elsewhere_is_refused(room: Room, kind: str) -> None:
    variable = {"Name": "TOKEN", "Value": "/token", "Type": kind}
    said = room.fail({"build": ["true"]}, project={"Environment": {"EnvironmentVariables": [variable]}})
    assert said == f"variable TOKEN: {kind} is not rehearsed; PLAINTEXT is"


# The buildspec


def test_a_buildspec_in_the_source(room: Room) -> None:
    (room.source / "gate.yml").write_text(
        "version: 0.2\nphases: {build: {commands: [echo found]}}\n", encoding="utf-8"
    )
    assert "found" in room.run_spec("gate.yml", {})


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("gate.yml", "the buildspec gate.yml is not in the build's source"),
        ('{"version": 0.1}', "buildspec version 0.1 is not rehearsed; write version 0.2"),
        (
            '{"version": 0.2, "phases": {"build": {"commands": [], "finally": ["echo"]}}}',
            "buildspec.phases.build: finally is not rehearsed; rehearsal/build.py knows commands, runtime-versions,"
            " on-failure",
        ),
        (
            '{"version": 0.2, "env": {"secrets-manager": {}}}',
            "buildspec.env: secrets-manager is not rehearsed; rehearsal/build.py knows shell, variables,"
            " exported-variables",
        ),
        (
            '{"version": 0.2, "batch": {}}',
            "buildspec: batch is not rehearsed; rehearsal/build.py knows version, env, phases, reports, artifacts",
        ),
    ],
)
def test_buildspecs_that_are_refused(room: Room, spec: str, sentence: str) -> None:
    with pytest.raises(BuildFailed) as failed:
        room.run_spec(spec, {})
    assert str(failed.value) == sentence


# What is kept


MAKE = "mkdir -p out/deep reports && echo one > out/one && echo two > out/deep/two && echo '<x/>' > reports/smoke.xml"
REPORTS = {"smoke": {"files": ["*.xml"], "base-directory": "reports", "file-format": "JUNITXML"}}


def kept(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_artifacts_keep_their_folders(room: Room) -> None:
    room.output.mkdir()
    (room.output / "of the last build").touch()
    room.run({"build": [MAKE]}, output=True, artifacts={"base-directory": "out", "files": "**/*"})
    assert kept(room.output) == {"one", "deep/two"}


def test_an_output_without_files_is_a_failure(room: Room) -> None:
    said = room.fail({"build": [MAKE]}, output=True, artifacts={"files": ["nothing/*"]})
    assert said == "no file matches the buildspec's artifacts: {'files': ['nothing/*']}"
    assert "no artifacts" in room.fail({"build": [MAKE]}, output=True)


def test_reports_are_kept_also_of_a_build_that_failed(room: Room) -> None:
    room.fail({"build": [MAKE, "false"]}, reports=REPORTS)
    assert kept(room.reports) == {"smoke.xml"}


def test_no_artifacts_of_a_build_that_failed(room: Room) -> None:
    room.fail({"build": [MAKE, "false"]}, output=True, artifacts={"base-directory": "out", "files": "**/*"})
    assert not room.output.exists()


# The end


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within ten seconds"
        time.sleep(0.02)


def runs(pid_file: Path) -> bool:
    """Whether a process lives; one that has ended may wait a while for whoever inherited it."""
    try:
        return psutil.Process(int(pid_file.read_text(encoding="utf-8"))).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_stop_ends_a_build_and_all_it_started(room: Room) -> None:
    failure: list[str] = []
    pids = room.folder / "pids"
    commands = [f"sleep 60 & echo $! > '{pids}'; sleep 60"]
    thread = threading.Thread(target=lambda: failure.append(room.fail({"build": commands})))
    thread.start()
    until(lambda: pids.exists() and pids.read_text(encoding="utf-8").strip() != "")
    until(lambda: [process.name for process in room.processes.alive()] == ["build-Build-Check"])
    room.builder.stop()
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert failure[0].startswith("phase build failed at `sleep 60 & ")
    until(lambda: not runs(pids))
    assert room.processes.alive() == []


def test_what_a_build_leaves_in_the_background_ends_with_it(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even when it does not listen to SIGTERM."""
    monkeypatch.setattr("rehearsal.build.STOP_SECONDS", 0.3)
    deaf = room.folder / "deaf.pid"
    room.run(
        {
            "build": [
                f"(trap '' TERM; echo $BASHPID > '{deaf}'; while true; do sleep 1; done) &",
                f"until [ -s '{deaf}' ]; do sleep 0.05; done",
            ]
        }
    )
    until(lambda: not runs(deaf))
