"""The container engine of this machine: which one answers, how it builds the image, how it runs it as Fargate would.

Docker, Podman or Buildah, whichever is there. Buildah builds and cannot run.
"""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ANSWER_SECONDS = 30
OPEN_FILES = 65535  # Fargate's own limit for a task; less where this machine allows less
PROCESSES = 512  # threads count; a server of 16 workers has some 300

NO_ENGINE = (
    "No container engine answers here. Install one (Debian: apt-get install buildah podman runc; macOS: Docker Desktop"
    " or podman), or start Docker's daemon if `docker version` shows no server."
)


class NoEngine(Exception):
    """There is no engine that can do what is asked; the message says what to install."""


class BuildFailed(Exception):
    """The engine could not build the image; what it said went to the terminal."""


@dataclass(frozen=True)
class Engine:
    """A container engine that answered."""

    program: str
    """`docker`, `podman` or `buildah`."""

    @property
    def runs(self) -> bool:
        """Whether it runs containers, too."""
        return self.program != "buildah"

    def build(self, context: Path, *options: str, tag: str, arguments: Mapping[str, str]) -> None:
        """Build the Dockerfile of `context`, all of it at one moment: another would be another image of the same content.

        `options` are the engine's own, such as `--no-cache`.

        Raises:
            BuildFailed: the engine said no.
        """
        told = [f"--build-arg={name}={value}" for name, value in arguments.items()]
        command = [self.program, "build", f"--tag={tag}", *self._making(), *told, *secrets(), *options]
        environment = {**os.environ, "DOCKER_BUILDKIT": "1"}
        if subprocess.run([*command, str(context)], env=environment).returncode != 0:
            raise BuildFailed(f"{self.program} could not build {context}: see above")

    def _making(self) -> list[str]:
        if self.program == "docker":
            return ["--build-arg=SOURCE_DATE_EPOCH=0"]
        # OCI's own format has no HEALTHCHECK. A chroot is isolation enough for steps that only this repository writes,
        # and the one kind that works inside containers and small virtual machines, too.
        return ["--format=docker", "--isolation=chroot", "--layers", "--timestamp=0"]

    def inspect(self, tag: str) -> dict[str, Any]:
        """What the engine knows about an image: `Id`, `Config`, `RootFS`."""
        command = [self.program, "image", "inspect", tag]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        [known] = json.loads(told)
        image: dict[str, Any] = known
        return image

    def read(self, tag: str, file: str) -> bytes:
        """A file of an image, which is not run for it."""
        container = subprocess.run(
            [self.program, "create", tag], capture_output=True, text=True, check=True
        ).stdout.strip()
        try:
            # Podman and Docker both write a tar file to standard output.
            packed = subprocess.run(
                [self.program, "cp", f"{container}:{file}", "-"], capture_output=True, check=True
            ).stdout
        finally:
            subprocess.run(
                [self.program, "rm", "--force", "--volumes", container], capture_output=True, check=True
            )
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            content = archive.extractfile(archive.getmembers()[0])
            assert content, f"{file} is a folder"
            return content.read()

    def compressed_bytes(self, tag: str) -> int:
        """What the image takes when it is stored or sent, as one gzip stream."""
        return gzipped([self.program, "save", tag])

    def hardened(self, memory_mib: int) -> list[str]:
        """Arguments of `run` that give a container no more than its task has on Fargate, and no capabilities either."""
        limits = {"nofile": (resource.RLIMIT_NOFILE, OPEN_FILES), "nproc": (resource.RLIMIT_NPROC, 4096)}
        arguments = [
            "--read-only",
            "--cap-drop=ALL",
            "--security-opt=no-new-privileges",
            "--no-healthcheck",  # ECS does not run it, and Podman would want systemd for it
            f"--memory={memory_mib}m",
            f"--pids-limit={PROCESSES}",
            # An engine asks for more by default, which a container of a container may not have.
            *(f"--ulimit={name}={_lowered(*limit)}" for name, limit in limits.items()),
        ]
        if self.program == "podman":
            arguments.append("--read-only-tmpfs=false")  # else /run, /dev/shm and /var/tmp can be written to
        return arguments


def gzipped(command: Sequence[str]) -> int:
    """How many bytes are left of what a command writes, compressed as registries do.

    Raises:
        subprocess.CalledProcessError: the command failed.
    """
    size = 0
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as written,
        subprocess.Popen(["gzip", "-6"], stdin=written.stdout, stdout=subprocess.PIPE) as packed,
    ):
        assert written.stdout
        assert packed.stdout
        written.stdout.close()  # gzip alone reads it: were it to end, the command would hear of it
        while block := packed.stdout.read(2**20):
            size += len(block)
    if status := written.returncode or packed.returncode:
        raise subprocess.CalledProcessError(status, command)
    return size


def secrets() -> list[str]:
    """Build secrets, which reach no layer: pip's configuration and its certificate authority, where this machine has any.

    They are read from the variables that pip itself reads, PIP_CONFIG_FILE and PIP_CERT.
    """
    files = {"pip": os.environ.get("PIP_CONFIG_FILE"), "ca": os.environ.get("PIP_CERT")}
    return [f"--secret=id={name},src={file}" for name, file in files.items() if file and Path(file).is_file()]


def find_engine(*, to_run: bool = False) -> Engine:
    """The first engine that answers; `to_run`: that can run containers, too.

    Raises:
        NoEngine: none does.
    """
    for engine in _candidates():
        if (engine.runs or not to_run) and _answers(engine.program):
            return engine
    raise NoEngine(NO_ENGINE)


def _candidates() -> Iterator[Engine]:
    yield from (Engine(program) for program in ("docker", "podman", "buildah") if shutil.which(program))


def _answers(program: str) -> bool:
    question: Sequence[str] = [program, "version"]
    if program == "docker":  # the client answers without a server, and then exits with 1
        question = [program, "version", "--format", "{{.Server.Version}}"]
    try:
        return subprocess.run(question, capture_output=True, timeout=ANSWER_SECONDS).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _lowered(kind: int, wanted: int) -> str:
    _, most = resource.getrlimit(kind)
    limit = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
    return f"{limit}:{limit}"
