"""What the image holds: nothing that is not said, nothing that is missed, and the same for the same commit."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from operations import image as built
from operations.containers import Engine, gzipped
from stages.settings import Settings
from tests.stand_in_base import base_name

from . import test_container as container

engine, image, pytestmark = container.engine, container.image, container.pytestmark

LOCK = (built.CONTEXT / "requirements.lock").read_text(encoding="utf-8")

MISSED = Path(__file__).with_name("missed_modules.py")
MISSING_IS_RIGHT = {
    "_curses": "for a terminal",
    "_curses_panel": "for a terminal",
    "_dbm": "dbm has other kinds of files",
    "lib2to3.refactor": "for code of Python 2",
    "numpy.distutils": "numpy hands it out to who asks for it by name",
    "numpy.distutils.cpuinfo": "numpy's tests",
    "numpy.distutils.misc_util": "numpy's tests",
    "numpy.f2py": "numpy hands it out to who asks for it by name",
    "pydoc_data.topics": "help() prints the language's manual from it",
    "readline": "for a terminal",
    "sitecustomize": "Python asks whether there is one",
    "test": "multiprocessing's tests",
    "test.support": "multiprocessing's tests",
}
"""Modules that are named by what is left, and why they may be missing there."""


def locked(*names: str) -> list[str]:
    """These packages as the image has them."""
    return re.findall(rf"^((?:{'|'.join(names)})==[^ ;]+)", LOCK, flags=re.MULTILINE)


def forget(engine: Engine, tag: str) -> None:
    """Remove an image and the layers that only it has."""
    subprocess.run([engine.program, "rmi", tag], capture_output=True)


def test_its_labels_say_where_it_comes_from(engine: Engine, image: str, settings: Settings) -> None:
    labels = engine.inspect(image)["Config"]["Labels"]
    told = {name.removeprefix("org.opencontainers.image."): value for name, value in labels.items()}
    commit = built.last_commit(built.CONTEXT)
    assert (told["revision"], told["created"]) == (commit.revision, commit.made)
    assert told["source"] == f"https://github.com/{settings.source.repository}"
    assert [f"mlflow=={told['version']}"] == locked("mlflow")


def test_it_says_what_is_in_it(engine: Engine, image: str) -> None:
    bill = json.loads(engine.read(image, "/usr/share/sbom/mlflow.cdx.json"))
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    named = {part["purl"].partition("?")[0] for part in bill["components"]}
    for package in locked("mlflow", "boto3", "psycopg-binary"):
        assert f"pkg:pypi/{package.replace('==', '@')}" in named
    kinds = {purl.split("/")[0] for purl in named}
    assert kinds == {"pkg:pypi", "pkg:deb", "pkg:generic"}
    assert not [part["name"] for part in bill["components"] if part["name"].lower() in ("pip", "setuptools")]
    licences = engine.read(image, "/usr/share/sbom/licences.txt").decode().splitlines()
    assert len(licences) == len([purl for purl in named if purl.startswith("pkg:pypi/")])


def test_nothing_that_is_left_imports_what_was_taken_out(
    engine: Engine, image: str, settings: Settings
) -> None:
    """The build stage has both: all that was installed, and what of it became the image. It stays: it is a cache."""
    both = "localhost/mlflow-platform-build:latest"
    built.build(engine, "--target=build", tag=both)
    hardened = ["--network=host", *engine.hardened(settings.environments.dev.memory)]
    command = [engine.program, "run", "--rm", "--interactive", *hardened, both, "python", "-"]
    looked = subprocess.run(command, input=MISSED.read_bytes(), capture_output=True)
    assert looked.returncode == 0, looked.stderr.decode()
    found = json.loads(looked.stdout)
    assert found["left"] > 3000
    assert {"numpy.f2py", "ensurepip", "pandas.tests"} <= set(found["taken out"])
    assert {name: who for name, who in found["missed"].items() if name not in MISSING_IS_RIGHT} == {}


def test_the_same_commit_is_the_same_image(engine: Engine, image: str) -> None:
    """Built anew, from nothing, it has the same layers and says the same of itself."""
    again = "localhost/mlflow-platform-again:latest"
    built.build(engine, "--no-cache", tag=again)
    try:
        first, second = engine.inspect(image), engine.inspect(again)
        for part in ("RootFS", "Config", "Created"):
            assert first[part] == second[part]
    finally:
        forget(engine, again)


def test_it_is_less_than_half_of_what_everybody_installs(
    engine: Engine, image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against the same base with `pip install mlflow` and the same drivers, each gzipped, as a registry stores it.

    No second image is built: its layers would be the base's and one with these packages. Their byte code is left out of
    the comparison, in the plain installation's favour.
    """
    venv = tmp_path / "venv"
    wanted = locked("mlflow", "boto3", "psycopg", "psycopg-binary", "pymysql")
    uv = str(Path(sys.executable).with_name("uv"))
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(venv)], check=True)
    # Copied, not linked to its cache: another installation that links there would change what tar is reading.
    install = [uv, "pip", "install", "--quiet", "--link-mode=copy", "--python", str(venv)]
    subprocess.run([*install, *wanted], check=True)
    lean, base = engine.compressed_bytes(image), engine.compressed_bytes(base_name())
    packages = gzipped(["tar", "--create", "--directory", str(venv), "lib"])
    with capsys.disabled():
        sizes = (
            f"{lean / 2**20:.0f} MiB against {base / 2**20:.0f} (base) and {packages / 2**20:.0f} (packages)"
        )
        print(f"\nthe image: {sizes}, ratio {lean / (base + packages):.2f}")
    assert lean < 0.45 * (base + packages), sizes
