"""The kind of processor that the server runs on: what Fargate, the image and the image's build call it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aws_cdk import aws_codebuild as codebuild
from aws_cdk import aws_ecr_assets as ecr_assets
from aws_cdk import aws_ecs as ecs

from stages.toolchain import BUILD_IMAGE


@dataclass(frozen=True)
class Processor:
    """One kind, in the words of those who have to agree on it."""

    fargate: ecs.CpuArchitecture
    image: ecr_assets.Platform
    build: codebuild.IBuildImage
    """Of the same kind, so that the image is built without emulation."""


PROCESSORS: Mapping[str, Processor] = {
    "x86": Processor(ecs.CpuArchitecture.X86_64, ecr_assets.Platform.LINUX_AMD64, BUILD_IMAGE),
    "arm64": Processor(
        ecs.CpuArchitecture.ARM64,
        ecr_assets.Platform.LINUX_ARM64,
        codebuild.LinuxArmBuildImage.AMAZON_LINUX_2023_STANDARD_3_0,
    ),
}
"""By the setting `image.architecture`."""
