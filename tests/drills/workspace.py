"""A clone of this repository in which releases are rehearsed, broken and taken back."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from rehearsal.host import HostClient

from .old_versions import kept_images

REPOSITORY = Path(__file__).parents[2]
REHEARSAL_SECONDS = 30 * 60
"""A bound on one rehearsal that only something that hangs can reach."""

KEPT_PREFIXES = ("PIP_", "UV_", "NPM_CONFIG_", "npm_config_", "SSL_", "HTTP", "http", "NO_PROXY", "no_proxy")
KEPT = ("HOME", "LANG", "USER", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "CURL_CA_BUNDLE")


@dataclass(frozen=True)
class Edit:
    """A piece of a file and what it becomes. The piece must be there exactly once."""

    file: str
    old: str
    new: str

    def apply(self, root: Path) -> None:
        """Edit the file below `root`, or fail: a drill whose edit no longer applies drills nothing."""
        path = root / self.file
        text = path.read_text(encoding="utf-8")
        found = text.count(self.old)
        assert found == 1, (
            f"{self.file} has {found} times, not once, the text that this drill edits; adapt the drill:\n{self.old}"
        )
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")


@dataclass(frozen=True)
class Release:
    """What `make rehearse` did with one commit."""

    commit: str
    status: int
    output: str
    report: dict[str, Any]
    seconds: float

    @property
    def stages(self) -> dict[str, str]:
        """The stages' statuses by name."""
        return {stage["name"]: stage["status"] for stage in self.report["stages"]}

    @property
    def environments(self) -> dict[str, dict[str, Any]]:
        """What the report says of each environment."""
        return dict(self.report["environments"])

    def action(self, stage: str, name: str) -> dict[str, Any]:
        """What the report says of an action."""
        for entry in self.report["stages"]:
            if entry["name"] == stage:
                return next(dict(action) for action in entry["actions"] if action["name"] == name)
        raise KeyError(f"the report has no stage {stage}")

    @property
    def stopped_at(self) -> tuple[str, str] | None:
        """The stage and the action that stopped the release."""
        for stage in self.report["stages"]:
            for action in stage["actions"]:
                if action["status"] in ("failed", "rejected"):
                    return stage["name"], action["name"]
        return None


def borrow_layers(images: Path) -> None:
    """Have the packages of a rehearsal's images kept in the user's cache: made once, not in each workspace."""
    layers = kept_images() / "layers"
    layers.mkdir(parents=True, exist_ok=True)
    images.mkdir(parents=True)
    (images / "layers").symlink_to(layers)


class Workspace:
    """The clone, its rehearsed accounts, and the last commit that is known to be good.

    Its path has a space in it, as paths of laptops do.
    """

    def __init__(self) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="mlflow drills ")).resolve()
        self.base.chmod(0o755)  # root's PostgreSQL runs as nobody, who must get through here
        self.root = self.base / "repository"
        self.state = self.root / ".rehearsal"
        self._temporary = self.base / "tmp"
        self._temporary.mkdir()
        self._count = 0
        self.deployed = ""  # the commit that the last rehearsal took to prod, if it did
        subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(self.root)], check=True)
        self.git("config", "user.name", "Drills")
        self.git("config", "user.email", "drills@example.org")
        self.good = self.git("rev-parse", "HEAD")
        self._borrow_packages()

    def _borrow_packages(self) -> None:
        """This repository's own, which `make test` has installed and Python has compiled. `make rehearse` in CI installs."""
        folders = (".venv", "node_modules")
        for folder in folders:
            (self.root / folder).symlink_to(REPOSITORY / folder)
        (self.root / ".git/info/exclude").write_text("\n".join(folders), encoding="utf-8")
        for locked in ("requirements.lock", "package-lock.json"):
            shutil.copystat(REPOSITORY / locked, self.root / locked)  # make goes by the time of these
        self.git("update-index", "--refresh")  # and git must not write them anew for it
        borrow_layers(self.state / "images")

    def git(self, *arguments: str) -> str:
        """Run git in the clone and return what it says."""
        done = subprocess.run(
            ["git", "-C", str(self.root), *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def commit(self, title: str, *edits: Edit, on: str | None = None) -> str:
        """Commit edits on top of the good commit, or of another one; without edits that commit itself."""
        self.git("reset", "--quiet", "--hard", on or self.good)
        for edit in edits:
            edit.apply(self.root)
        if edits:
            self.git("commit", "--quiet", "--all", "--message", title)
        return self.git("rev-parse", "HEAD")

    def release(
        self, title: str, *edits: Edit, approve: bool, on: str | None = None, good: bool = False
    ) -> Release:
        """Commit edits and rehearse them. The next release starts from the good commit: this one, if `good`."""
        commit = self.commit(title, *edits, on=on)
        release = self.rehearse(title, approve=approve)
        if good:
            assert release.status == 0, f"{title}: this release must reach prod\n{release.output}"
            self.good = commit
        return release

    def rehearse(self, title: str, *, approve: bool) -> Release:
        """`make rehearse` of the checked-out commit."""
        with self.rehearsing(title, approve=approve) as running:
            running.wait()
        release = running.release()
        self.deployed = release.commit if release.status == 0 else ""
        return release

    @contextmanager
    def rehearsing(self, title: str, *, approve: bool) -> Iterator[Running]:
        """`make rehearse`, while it runs. It is ended at the end of the block, if it has not ended by then."""
        self._count += 1
        running = Running(self, self.base / f"{self._count}.log", approve=approve)
        try:
            yield running
        finally:
            running.end()
            print(f"--- {title}: {running.seconds:.0f} s\n{running.output}")

    def make(self, *targets: str) -> subprocess.CompletedProcess[str]:
        """Run make in the clone; its exit status is the caller's to look at."""
        return subprocess.run(
            ["make", *targets],
            cwd=self.root,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=REHEARSAL_SECONDS,
        )

    def environment(self) -> dict[str, str]:
        """A plain user's environment: nothing of the tests' own. Temporary files are the workspace's, too."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if name in KEPT or name.startswith(KEPT_PREFIXES)
        }
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**kept, "PATH": path, "TMPDIR": str(self._temporary)}

    def account(self, environment: str) -> Path:
        """The folder of an environment's rehearsed account."""
        settings = tomllib.loads((self.root / "platform.toml").read_text(encoding="utf-8"))
        own = settings["environments"][environment]
        return self.state / "accounts" / f"{own['account']}-{own['region']}"

    def stack(self, environment: str, part: str) -> dict[str, Any]:
        """What is remembered of a stack, such as `tracking`."""
        found = list((self.account(environment) / "stacks").glob(f"*-{environment}-{part}.json"))
        assert len(found) == 1, f"stacks of {environment} called {part}: {found}"
        content: dict[str, Any] = json.loads(found[0].read_text(encoding="utf-8"))
        return content

    def stacks(self, environment: str) -> dict[str, bytes]:
        """All that is remembered of an environment's stacks, to the byte."""
        return {file.name: file.read_bytes() for file in (self.account(environment) / "stacks").glob("*")}

    def resource(self, environment: str, part: str, type_: str) -> str:
        """The physical id of the resource of a type that a stack has."""
        resources = self.stack(environment, part)["resources"].values()
        return next(str(r["physical"]["id"]) for r in resources if r["type"] == type_)

    def host(self, environment: str) -> HostClient:
        """Who runs an environment's tasks and its load balancer."""
        return HostClient(self.account(environment) / "host")

    def tasks(self, environment: str) -> set[str]:
        """The ids of an environment's running tasks."""
        service = self.resource(environment, "tracking", "AWS::ECS::Service")
        described = self.host(environment).get("service", service)
        return {task["id"] for task in described["tasks"] if task["status"] == "RUNNING"}

    def processes(self) -> list[psutil.Process]:
        """Every process that was started from here or works in here."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                about = [process.cwd(), process.exe(), *process.cmdline()]
                if process.pid != os.getpid() and any(str(self.base) in entry for entry in about):
                    found.append(process)
        return found

    def remove(self) -> None:
        """Delete it all."""
        shutil.rmtree(self.base)


class Running:
    """A `make rehearse` that was started, in a process group of its own, as a terminal does."""

    def __init__(self, workspace: Workspace, log: Path, *, approve: bool) -> None:
        self._workspace = workspace
        self._log = log
        self._commit = workspace.git("rev-parse", "HEAD")
        self._began = time.monotonic()
        self.seconds = 0.0
        (workspace.state / "report.json").unlink(missing_ok=True)
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                ["make", "rehearse", f"APPROVE={'yes' if approve else 'no'}", "CONTAINERS=no"],
                cwd=workspace.root,
                env=workspace.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def wait_until(self, ready: Callable[[], bool], what: str) -> None:
        """Wait for something to happen while it runs."""
        wait_until(lambda: ready() or not self.alive, what, REHEARSAL_SECONDS)
        assert self.alive, f"the rehearsal ended before {what}\n{self.output}"

    def interrupt(self) -> None:
        """Ctrl-C: SIGINT to the whole group in the foreground."""
        os.killpg(self._process.pid, signal.SIGINT)

    def wait(self) -> None:
        """Wait for its end."""
        self._process.wait(timeout=REHEARSAL_SECONDS)
        self.seconds = time.monotonic() - self._began

    def end(self) -> None:
        """End it if it runs."""
        if self.alive:
            self.interrupt()
            self.wait()

    def release(self) -> Release:
        """What it did, once it has ended."""
        report = self._workspace.state / "report.json"
        return Release(
            self._commit,
            self._process.returncode,
            self.output,
            json.loads(report.read_text(encoding="utf-8")) if report.exists() else {},
            self.seconds,
        )


def wait_until(ready: Callable[[], bool], what: str, seconds: float) -> None:
    """Wait until `ready`, and fail after `seconds`, a bound that only something that hangs can reach."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:.0f} s"
        time.sleep(0.1)
