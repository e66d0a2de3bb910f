"""CodeBuild: a build runs its own buildspec's commands in a clean folder, as the role of its project."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rehearsal.engine import CLIENT_VARIABLES
from rehearsal.processes import ProcessRegistry, kill_session, session_members

PHASES = ("install", "pre_build", "build", "post_build")
STOP_SECONDS = 5.0
"""Between SIGTERM and SIGKILL for what a build left running."""

KEPT_VARIABLES = (
    "HOME", "LANG", "LC_ALL", "TERM", "TZ", "USER",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "CURL_CA_BUNDLE",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", *CLIENT_VARIABLES,
)  # fmt: skip
KEPT_PREFIXES = ("PIP_", "UV_", "npm_config_", "NPM_CONFIG_", "JSII_")
"""Variables of the user that a build sees: how packages are fetched, where the container engine is, and nothing else.

No AWS, no secrets.
"""

LEFT_OUT: Mapping[str, str] = {"PACKAGES": "packages come from where this machine gets them"}
"""Variables of a project that name what is declared alone, and what a build does without each."""

_PHASE: Mapping[str, Any] = {"commands": None, "runtime-versions": None, "on-failure": None}
_UNKNOWN = object()

KNOWN_KEYS: Mapping[str, Any] = {
    "version": None,
    "env": {"shell": None, "variables": None, "exported-variables": None},
    "phases": dict.fromkeys(PHASES, _PHASE),
    "reports": {"*": {"files": None, "base-directory": None, "file-format": None}},
    "artifacts": {"files": None, "base-directory": None},
}
"""What a rehearsal carries out of a buildspec. The runtime's version is this machine's, the shell is bash."""


class BuildFailed(Exception):
    """A build ended with an error; the message says in which phase and by which command."""


@dataclass(frozen=True)
class Build:
    """One build of a project."""

    name: str
    project: Mapping[str, Any]
    source: Path
    directory: Path
    log: Path
    variables: Mapping[str, str]
    aws: Mapping[str, str]
    state: Path
    reports: Path
    output: Path | None = None
    overrides: Mapping[str, str] = field(default_factory=dict)


class Builder:
    """Runs builds; `stop` ends those that run."""

    def __init__(self, processes: ProcessRegistry) -> None:
        self._processes = processes
        self._running: set[int] = set()
        self._lock = threading.Lock()

    def run(self, build: Build) -> dict[str, str]:
        """Run a build to its end; its output goes to the build's log. Returns the variables that it exports.

        Raises:
            BuildFailed: a command failed, or the buildspec cannot be used.
        """
        folder = build.directory
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(build.source, folder / "src", symlinks=True)
        spec = _buildspec(build)
        script = folder / "build.sh"
        script.write_text(_script(spec, folder), encoding="utf-8")
        environment = self._environment(build, spec)
        build.log.parent.mkdir(parents=True, exist_ok=True)
        with build.log.open("ab") as output:
            process = subprocess.Popen(
                ["bash", str(script)],
                cwd=folder / "src",
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            record = self._processes.record(f"build-{build.name}", process.pid, "bash")
            with self._lock:
                self._running.add(process.pid)
            try:
                status = process.wait()
            finally:
                with self._lock:
                    self._running.discard(process.pid)
                _end_session(process.pid)
                self._processes.forget(record)
        try:
            self._keep_reports(spec, folder / "src", build.reports)
            if status != 0:
                raise BuildFailed(f"{_failed_phase(folder)} (exit status {status})")
            if build.output is not None:
                self._keep_artifacts(spec, folder / "src", build.output)
            return {
                name: _export(folder, name).read_text(encoding="utf-8").strip() for name in _exported(spec)
            }
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def stop(self) -> None:
        """End the builds that run; `run` then raises in their threads."""
        with self._lock:
            for pid in self._running:
                _end_group(pid)

    def _environment(self, build: Build, spec: Mapping[str, Any]) -> dict[str, str]:
        tools = build.directory / "tools"
        tools.mkdir(parents=True, exist_ok=True)
        path = [
            str(build.directory / "npm" / "bin"),
            str(tools),
            str(Path(sys.executable).parent),
            os.environ["PATH"],
        ]
        kept = {
            name: value
            for name, value in os.environ.items()
            if name in KEPT_VARIABLES or name.startswith(KEPT_PREFIXES)
        }
        declared = {}
        for variable in build.project["Environment"].get("EnvironmentVariables", []):
            if variable.get("Type", "PLAINTEXT") != "PLAINTEXT":
                raise BuildFailed(
                    f"variable {variable['Name']}: {variable['Type']} is not rehearsed; PLAINTEXT is"
                )
            if variable["Name"] not in LEFT_OUT:
                declared[variable["Name"]] = str(variable["Value"])
        if build.project["Environment"].get("PrivilegedMode"):
            _docker(tools)
        temporary = build.directory / "tmp"
        temporary.mkdir()
        return {
            **kept,
            "PATH": ":".join(path),
            "TMPDIR": str(temporary),
            "npm_config_prefix": str(build.directory / "npm"),
            "npm_config_prefer_offline": "true",
            "CODEBUILD_BUILD_ID": f"{build.project.get('Name', build.name)}:{build.name}",
            "CODEBUILD_SRC_DIR": str(build.directory / "src"),
            "REHEARSAL_STATE": str(build.state.resolve()),
            **build.aws,
            **{name: str(value) for name, value in spec.get("env", {}).get("variables", {}).items()},
            **declared,
            **build.variables,
            **build.overrides,
        }

    def _keep_reports(self, spec: Mapping[str, Any], source: Path, target: Path) -> None:
        for group in spec.get("reports", {}).values():
            for file in _matching(source, group.get("base-directory", "."), group["files"]):
                target.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, target / file.name)
        wanted = spec.get("artifacts", {})
        if spec.get("reports") and wanted.get("files"):
            for file in _matching(source, wanted.get("base-directory", "."), wanted["files"]):
                target.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, target / file.name)

    def _keep_artifacts(self, spec: Mapping[str, Any], source: Path, target: Path) -> None:
        wanted = spec.get("artifacts")
        if not wanted:
            raise BuildFailed("the action has an output artifact, but the buildspec has no artifacts")
        shutil.rmtree(target, ignore_errors=True)
        base = source / wanted.get("base-directory", ".")
        files = list(_matching(source, wanted.get("base-directory", "."), wanted["files"]))
        if not files:
            raise BuildFailed(f"no file matches the buildspec's artifacts: {wanted}")
        for file in files:
            place = target / file.relative_to(base)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, place)


def _buildspec(build: Build) -> dict[str, Any]:
    text = build.project["Source"].get("BuildSpec", "buildspec.yml")
    if "\n" not in text and not text.lstrip().startswith("{"):
        file = build.directory / "src" / text
        if not file.exists():
            raise BuildFailed(f"the buildspec {text} is not in the build's source")
        text = file.read_text(encoding="utf-8")
    spec: dict[str, Any] = yaml.safe_load(text)
    if str(spec.get("version")) != "0.2":
        raise BuildFailed(f"buildspec version {spec.get('version')} is not rehearsed; write version 0.2")
    _refuse_unknown("buildspec", spec, KNOWN_KEYS)
    return spec


def _refuse_unknown(where: str, table: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """What is not carried out here must not be passed over in silence: AWS would do it."""
    for key, value in table.items():
        below = known.get(key, known.get("*", _UNKNOWN))
        if below is _UNKNOWN:
            raise BuildFailed(f"{where}: {key} is not rehearsed; rehearsal/build.py knows {', '.join(known)}")
        if below:
            _refuse_unknown(f"{where}.{key}", value, below)


def _script(spec: Mapping[str, Any], folder: Path) -> str:
    """All phases in one shell, as CodeBuild does; post_build runs after a failed build, too, but not after an install."""
    lines = [
        "_status=0 _after=0",
        "export CODEBUILD_BUILD_SUCCEEDING=1",
        'attempt() { echo "[$1] $3"; echo "$1: $3" > "$4"; . "$2" || return; }',
    ]
    for phase in PHASES:
        declared = spec.get("phases", {}).get(phase, {})
        aborts = phase in ("install", "pre_build") or declared.get("on-failure") == "ABORT"
        for number, command in enumerate(declared.get("commands", [])):
            file = folder / f"{phase}-{number}.sh"
            file.write_text(f"{command}\n", encoding="utf-8")
            shown = str(command).strip().partition("\n")[0]
            words = [shlex.quote(word) for word in (phase, str(file), shown, str(folder / "command"))]
            attempt = f"attempt {' '.join(words)}"
            failed = shlex.quote(str(folder / "failed"))
            keep = f"[ -e {failed} ] || cp {words[3]} {failed}"
            if aborts:
                lines.append(f"{attempt} || exit $?")
            elif phase == "build":
                lines.append(
                    f"[ $_status != 0 ] || {attempt} || {{ _status=$?; CODEBUILD_BUILD_SUCCEEDING=0; {keep}; }}"
                )
            else:
                lines.append(f"[ $_after != 0 ] || {attempt} || {{ _after=$?; {keep}; }}")
    for name in _exported(spec):
        lines.append(f"printenv {shlex.quote(name)} > {shlex.quote(str(_export(folder, name)))} || true")
    lines.append("[ $_status != 0 ] || _status=$_after")
    lines.append("exit $_status")
    return "\n".join(lines) + "\n"


def _exported(spec: Mapping[str, Any]) -> list[str]:
    names: list[str] = spec.get("env", {}).get("exported-variables", [])
    return names


def _export(folder: Path, name: str) -> Path:
    return folder / f"exported-{name}"


def _failed_phase(folder: Path) -> str:
    for name in ("failed", "command"):
        with contextlib.suppress(OSError):
            phase, _, command = (folder / name).read_text(encoding="utf-8").strip().partition(": ")
            return f"phase {phase} failed at `{command}`"
    return "the build did not start"


def _matching(source: Path, base: str, patterns: list[str] | str) -> Iterator[Path]:
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        yield from (path for path in sorted((source / base).glob(pattern)) if path.is_file())


def _docker(tools: Path) -> None:
    program = tools / "docker"
    root = Path(__file__).resolve().parent.parent
    # Without this very folder: who asks for docker from here means the machine's own.
    path = shlex.quote(f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    command = f"PATH={path} PYTHONPATH={shlex.quote(str(root))} exec {shlex.quote(sys.executable)}"
    program.write_text(f'#!/bin/sh\n{command} -m rehearsal.images "$@"\n', encoding="utf-8")
    program.chmod(0o755)


def _end_session(leader: int) -> None:
    """End what a build left running in the background, as its container would."""
    _end_group(leader)
    deadline = time.monotonic() + STOP_SECONDS
    while session_members(leader) and time.monotonic() < deadline:
        time.sleep(0.05)
    kill_session(leader)


def _end_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGTERM)
