"""One kind of processor for everything: the tasks, the image that they run, the machine that builds it."""

from __future__ import annotations

import json
from typing import Any

from .assembly import ENVIRONMENTS, Assembly, Json, of_type


def processors(assembly: Assembly) -> set[str]:
    """What the tasks of all environments ask for."""
    definitions = [
        definition.properties["RuntimePlatform"]
        for environment in ENVIRONMENTS
        for definition in assembly.platform(environment).all("AWS::ECS::TaskDefinition")
    ]
    assert len(definitions) == 2 * len(ENVIRONMENTS), "the service's and the migration's"
    assert {platform["OperatingSystemFamily"] for platform in definitions} == {"LINUX"}
    return {platform["CpuArchitecture"] for platform in definitions}


def images(assembly: Assembly) -> dict[str, str]:
    """Every image of the assembly by its hash, and the platform it is built for."""
    found: dict[str, str] = {}
    for file in assembly.directory.glob("**/*.assets.json"):
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        found |= {name: image["source"]["platform"] for name, image in content["dockerImages"].items()}
    return found


def publisher(assembly: Assembly) -> Json:
    """The machine that builds and publishes the image."""
    (found,) = (
        project.properties["Environment"]
        for project in of_type(assembly.pipeline, "AWS::CodeBuild::Project")
        if "/Assets/" in project.path
    )
    assert isinstance(found, dict)
    assert found["PrivilegedMode"] is True
    return found


def test_everything_is_x86_unless_the_settings_say_so(assembly: Assembly) -> None:
    assert processors(assembly) == {"X86_64"}
    assert list(images(assembly).values()) == ["linux/amd64"]
    assert publisher(assembly)["Type"] == "LINUX_CONTAINER"


def test_graviton_is_one_image_for_all_environments_built_on_arm(strict_delivery: Assembly) -> None:
    assert processors(strict_delivery) == {"ARM64"}
    assert list(images(strict_delivery).values()) == ["linux/arm64"], "one image, the same digest everywhere"
    built_by = publisher(strict_delivery)
    assert built_by["Type"] == "ARM_CONTAINER"
    assert "aarch64" in built_by["Image"]


def test_another_processor_is_another_image(assembly: Assembly, strict_delivery: Assembly) -> None:
    assert images(assembly).keys() != images(strict_delivery).keys()
