"""The server's image as an asset: what makes it another image, and what does not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from aws_cdk import App, Stack

from stages.mlflow_task import IMAGE_DIRECTORY, _server_image
from stages.settings.image import Image

SOURCE = "https://github.com/example-org/mlflow-platform"
BASE = f"registry.example.com/python:3.12-slim@sha256:{'0123456789abcdef' * 4}"


def asset(
    folder: Path, monkeypatch: pytest.MonkeyPatch, base: str | None, commit: str
) -> tuple[str, dict[str, Any]]:
    """The asset's name and what `docker build` is told, when that commit is built."""
    monkeypatch.setenv("CODEBUILD_RESOLVED_SOURCE_VERSION", commit)
    app = App(outdir=str(folder / commit / str(bool(base))))
    name = _server_image(Stack(app, "Stack"), Image(base=base), SOURCE).asset_hash
    app.synth()
    manifest = json.loads((Path(app.outdir) / "Stack.assets.json").read_text(encoding="utf-8"))
    source: dict[str, Any] = manifest["dockerImages"][name]["source"]
    return name, source["dockerBuildArgs"]


def test_another_commit_with_the_same_content_is_the_same_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, told = asset(tmp_path, monkeypatch, None, "1" * 40)
    other, told_later = asset(tmp_path, monkeypatch, None, "2" * 40)
    assert one == other
    assert told == {"REVISION": "1" * 40, "SOURCE": SOURCE}
    assert told_later == {"REVISION": "2" * 40, "SOURCE": SOURCE}


def test_the_image_s_version_is_mlflow_s() -> None:
    lock = (IMAGE_DIRECTORY / "requirements.lock").read_text(encoding="utf-8")
    dockerfile = (IMAGE_DIRECTORY / "Dockerfile").read_text(encoding="utf-8")
    [locked] = re.findall(r"^mlflow==(\S+)", lock, flags=re.MULTILINE)
    assert re.findall(r'image\.version="(.*)"', dockerfile) == [locked]


def test_another_base_is_another_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = asset(tmp_path, monkeypatch, None, "1" * 40)
    other, told = asset(tmp_path, monkeypatch, BASE, "1" * 40)
    assert one != other
    assert told == {"PYTHON_IMAGE": BASE, "REVISION": "1" * 40, "SOURCE": SOURCE}
