"""The image's locked packages can be installed on both of Fargate's architectures, and only as they were locked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("mlflow_image/requirements.lock", "mlflow_image/build/tools.lock")


def planned(lock: str, platform: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What uv would do for that platform; it fetches no package."""
    command = [
        str(Path(sys.executable).with_name("uv")),
        "pip",
        "install",
        "--dry-run",
        "--no-deps",
        "--require-hashes",
        "--only-binary",
        ":all:",
    ]
    where = ["--python-platform", platform, "--python-version", "3.12", "--target", str(folder)]
    return subprocess.run([*command, *where, "-r", lock], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])  # aarch64: Graviton
def test_every_package_has_a_wheel(lock: str, machine: str, tmp_path: Path) -> None:
    plan = planned(lock, f"{machine}-manylinux_2_28", tmp_path)
    assert plan.returncode == 0, plan.stderr


def test_a_package_without_one_is_noticed(tmp_path: Path) -> None:
    plan = planned(LOCKS[0], "aarch64-pc-windows-msvc", tmp_path)
    assert plan.returncode != 0
    assert "building from source is disabled" in plan.stderr
