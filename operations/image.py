"""`make image`: the pipeline's own Dockerfile, built on this machine.

The image says which commit it was made from (`org.opencontainers.image.revision`) and when that was committed. A folder
with changes that are not committed is marked as such.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from operations.containers import BuildFailed, Engine, NoEngine, find_engine
from stages.settings import SettingsError, load_settings

CONTEXT = Path(__file__).resolve().parents[1] / "mlflow_image"
TAG = "mlflow-platform:latest"


@dataclass(frozen=True)
class Commit:
    """The commit that last changed the image."""

    revision: str
    epoch: int
    """When it was committed, in seconds."""


def last_commit(folder: Path) -> Commit:
    """The commit that last changed `folder`; outside of git, none, at the beginning of time."""

    def git(*arguments: str) -> str:
        run = subprocess.run(["git", *arguments, "--", "."], cwd=folder, capture_output=True, text=True)
        return run.stdout.strip() if run.returncode == 0 else ""

    revision, _, epoch = git("log", "-1", "--format=%H %ct").partition(" ")
    if not revision:
        return Commit("", 0)
    return Commit(f"{revision}-changed" if git("status", "--porcelain") else revision, int(epoch))


def build(engine: Engine, tag: str = TAG, context: Path = CONTEXT) -> None:
    """Build the image and call it `tag`.

    Raises:
        BuildFailed: the engine said no.
        SettingsError: platform.toml cannot be used.
    """
    commit = last_commit(context)
    base = load_settings().image.base
    arguments = {"REVISION": commit.revision, **({"PYTHON_IMAGE": base} if base else {})}
    engine.build(context, tag=tag, arguments=arguments, epoch=commit.epoch)


def main() -> int:
    """The exit status: 0 built; 1 the build failed; 2 it could not be begun."""
    try:
        engine = find_engine()
        print(f"Building {TAG} with {engine.program}", flush=True)
        build(engine)
    except (BuildFailed, NoEngine, SettingsError) as problem:
        print(problem, file=sys.stderr)
        return 1 if isinstance(problem, BuildFailed) else 2
    print(f"Built {TAG}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
