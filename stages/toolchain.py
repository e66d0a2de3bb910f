"""The tools that builds use, pinned in one place each: `package.json` for npm, here for the build image."""

from __future__ import annotations

import json
from pathlib import Path

from aws_cdk import aws_codebuild as codebuild

PACKAGE_JSON = Path(__file__).resolve().parent.parent / "package.json"

BUILD_IMAGE = codebuild.LinuxBuildImage.AMAZON_LINUX_2023_5


def npm_pin(package: str) -> str:
    """The exact version of an npm package that laptop, pipeline and rehearsal share."""
    pins: dict[str, str] = json.loads(PACKAGE_JSON.read_text(encoding="utf-8"))["devDependencies"]
    return pins[package]
