"""Releases of MLflow, old ones and this repository's, as programs: their own server, their client, our entrypoint.

An old release is installed from its lock in `locks/` once for this machine and kept in the user's cache. A lock's first
lines say how it was made; old releases do not change, so nothing renews them.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rehearsal.images import ImageStore
from rehearsal.ports import free_port
from rehearsal.processes import kill_session

DRILLS = Path(__file__).parent
IMAGE = DRILLS.parents[1] / "mlflow_image"
START_SECONDS = 180
"""Bounds on a start and on a migration that only something that hangs can reach."""
MIGRATION_SECONDS = 300


@dataclass(frozen=True)
class Ended:
    """A program that ran to its end."""

    status: int
    output: str
    seconds: float

    @property
    def told(self) -> dict[str, Any]:
        """The JSON of the last line of output."""
        told: dict[str, Any] = json.loads(self.output.splitlines()[-1])
        return told


class Program:
    """A started program with a log, in a session and a folder of its own."""

    def __init__(self, command: list[str], variables: Mapping[str, str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="drill-program-"))
        self._log = self.folder / "log"
        self._began = time.monotonic()
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={
                    "PATH": f"{Path(command[0]).parent}:/usr/bin:/bin",
                    "HOME": str(self.folder),
                    "TMPDIR": str(self.folder),
                    "PYTHONUNBUFFERED": "1",
                    **variables,
                },
            )

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def wait(self, seconds: float = MIGRATION_SECONDS) -> Ended:
        """Wait for its end, and clean up after it."""
        try:
            status = self.process.wait(seconds)
            return Ended(status, self.output, time.monotonic() - self._began)
        finally:
            self.kill()

    def stop(self) -> Ended:
        """SIGTERM, as ECS stops a task, and wait."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.wait(180)

    def kill(self) -> None:
        """SIGKILL to it and all that it started, and delete its folder."""
        kill_session(self.process.pid)
        self.process.wait(120)
        shutil.rmtree(self.folder, ignore_errors=True)


class Server(Program):
    """A program that serves on a port of its own."""

    def __init__(self, command: list[str], variables: Mapping[str, str], port: int) -> None:
        super().__init__(command, variables)
        self.url = f"http://127.0.0.1:{port}"

    def healthy(self) -> Server:
        """Return once /health answers 200, or fail with its output."""
        deadline = time.monotonic() + START_SECONDS
        while not _answers(f"{self.url}/health"):
            assert self.process.poll() is None, f"the server ended\n{self.output}"
            assert time.monotonic() < deadline, f"the server is not healthy\n{self.output}"
            time.sleep(0.1)
        return self


@dataclass(frozen=True)
class Release:
    """An MLflow, and the image's files that run it."""

    name: str
    python: Path
    image: Path = IMAGE
    variables: Mapping[str, str] = field(default_factory=dict)
    """Set for every program of this release."""

    def own_server(self, place: Mapping[str, str]) -> Server:
        """`mlflow server`, as people run it without this repository. It makes its schema when there is none."""
        port = free_port()
        where = "{DATABASE_USER}@{DATABASE_HOST}:{DATABASE_PORT}/{DATABASE_NAME}".format_map(place)
        command = [
            *(str(self.python), "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
            *("--workers", "1", "--backend-store-uri", f"postgresql+psycopg2://{where}"),
            *("--serve-artifacts", "--artifacts-destination", place["ARTIFACTS_DESTINATION"]),
        ]
        variables = {
            "PGPASSWORD": place["DATABASE_PASSWORD"],
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "GIT_PYTHON_REFRESH": "quiet",
        }
        aws = {name: value for name, value in place.items() if name.startswith("AWS_")}
        return Server(command, {**variables, **aws, **self.variables}, port)

    def serve(self, place: Mapping[str, str], **variables: str) -> Server:
        """The image's `serve`."""
        port = free_port()
        where = {
            "MLFLOW_HOST": "127.0.0.1",
            "MLFLOW_PORT": str(port),
            "MLFLOW_CRYPTO_KEK_PASSPHRASE": "drill" * 8,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "drill" * 8,
        }
        return Server(
            [str(self.python), str(self.image / "entrypoint.py"), "serve"],
            self._variables(place, where, variables),
            port,
        )

    def migrate(self, place: Mapping[str, str], **variables: str) -> Program:
        """The image's `migrate`."""
        return Program(
            [str(self.python), str(self.image / "entrypoint.py"), "migrate"],
            self._variables(place, variables),
        )

    def make_data(self, url: str, name: str, *omit: str) -> dict[str, int]:
        """Write data through a server with this release's client; returns what was acknowledged, counted.

        `make_data.py` says what can be omitted.
        """
        variables = {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "GIT_PYTHON_REFRESH": "quiet",
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        }
        program = Program(
            [str(self.python), str(DRILLS / "make_data.py"), url, name, *omit],
            {**variables, **self.variables},
        )
        ended = program.wait()
        assert ended.status == 0, f"{self.name} could not write its data\n{ended.output}"
        made: dict[str, int] = ended.told
        return made

    def _variables(self, *parts: Mapping[str, str]) -> dict[str, str]:
        merged = {"RELEASE_COMMIT": self.name, "RELEASE_IMAGE": f"image-{self.name}", **self.variables}
        for part in parts:
            merged.update(part)
        return merged


PINNED = Release("pinned", Path(sys.executable))
"""This repository's image at this commit."""


def old(version: str) -> Release:
    """An old release of MLflow; with `serve` and `migrate` it is this repository's release that had it pinned."""
    return Release(version, installed(DRILLS / "locks" / f"mlflow-{version}.lock"))


def kept_images() -> Path:
    """Where images and their packages, which take long to install, are kept on this machine from one run to the next."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "mlflow-platform-drills" / "images"


def installed(lock: Path) -> Path:
    """The interpreter that has all of `lock`: the very one of an image with that lock."""
    return ImageStore(kept_images()).packages(lock) / "bin" / "python"


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False
