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
REPORTS = Path(__file__).resolve().parents[1] / "reports" / "image"
BILL = ("mlflow.cdx.json", "licences.txt")
"""What mlflow_image/build/bill.py leaves in the image."""


@dataclass(frozen=True)
class Commit:
    """The commit that last changed the image."""

    revision: str
    made: str
    """When it was committed, as RFC 3339 has it."""


def last_commit(folder: Path) -> Commit:
    """The commit that last changed `folder`; outside of git, none."""

    def git(*arguments: str) -> str:
        run = subprocess.run(["git", *arguments, "--", "."], cwd=folder, capture_output=True, text=True)
        return run.stdout.strip() if run.returncode == 0 else ""

    revision, _, made = git("log", "-1", "--format=%H %cI").partition(" ")
    return Commit(f"{revision}-changed" if revision and git("status", "--porcelain") else revision, made)


def build(engine: Engine, *options: str, tag: str = TAG) -> None:
    """Build the image and call it `tag`. `options` are the engine's own, such as `--no-cache`.

    Raises:
        BuildFailed: the engine said no.
        SettingsError: platform.toml cannot be used.
    """
    commit = last_commit(CONTEXT)
    settings = load_settings()
    arguments = {"PYTHON_IMAGE": settings.image.base} if settings.image.base else {}
    # Not as the Dockerfile's arguments: where nothing else has changed, Podman's cache gives the labels of before.
    said = {"revision": commit.revision, "created": commit.made, "source": settings.source.url}
    labels = [f"--label=org.opencontainers.image.{name}={value}" for name, value in said.items()]
    engine.build(CONTEXT, *labels, *options, tag=tag, arguments=arguments)


def main() -> int:
    """The exit status: 0 built; 1 the build failed; 2 it could not be begun."""
    try:
        engine = find_engine()
        print(f"Building {TAG} with {engine.program}", flush=True)
        build(engine)
    except (BuildFailed, NoEngine, SettingsError) as problem:
        print(problem, file=sys.stderr)
        return 1 if isinstance(problem, BuildFailed) else 2
    if engine.runs:
        REPORTS.mkdir(parents=True, exist_ok=True)
        for name in BILL:
            (REPORTS / name).write_bytes(engine.read(TAG, f"/usr/share/sbom/{name}"))
        size = engine.compressed_bytes(TAG) / 2**20
        print(
            f"Built {TAG}, {size:.1f} MiB compressed; its bill of materials and licences are in reports/image/"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
