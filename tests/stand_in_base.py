"""The base of the image where no registry answers: Debian by debootstrap, under the name that the Dockerfile has.

    python -m tests.stand_in_base

As root, with debootstrap and Podman or Docker. Debian's own Python stands in for the one of the official image: the
same system libraries, another build and another minor version. Where the name is known already, nothing happens.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from operations.containers import Engine, NoEngine, find_engine

DOCKERFILE = Path(__file__).resolve().parents[1] / "mlflow_image" / "Dockerfile"
MIRROR = "http://deb.debian.org/debian"
PACKAGES = ("ca-certificates", "python3", "python3-pip", "python3-venv")
DOWNLOADED = ("var/cache/apt/archives", "var/lib/apt/lists")


def base_name() -> str:
    """The base as the Dockerfile names it."""
    found = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE)
    assert found, f"{DOCKERFILE} names no base"
    return found[1]


def make(engine: Engine, name: str) -> None:
    """Give the engine an image of that name, made from Debian's packages."""
    with tempfile.TemporaryDirectory(prefix="stand-in-base-") as folder:
        root = Path(folder) / "root"
        release = re.search(r"bookworm|trixie", name)
        command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
        # Nobody keeps what a power failure would spoil.
        environment = {**os.environ, "DPKG_FORCE": "unsafe-io"}
        command += [release[0] if release else "bookworm", str(root), MIRROR]
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        for place in DOWNLOADED:
            for file in (root / place).rglob("*"):
                if file.is_file():
                    file.unlink()
        (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as packed:
            subprocess.run([engine.program, "import", "-", name], stdin=packed.stdout, check=True)
        assert packed.returncode == 0, "tar could not read what debootstrap made"


def main() -> int:
    try:
        engine = find_engine(to_run=True)
    except NoEngine as problem:
        print(problem, file=sys.stderr)
        return 1
    name = base_name()
    known = subprocess.run([engine.program, "image", "inspect", name], capture_output=True)
    if known.returncode != 0:
        make(engine, name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
