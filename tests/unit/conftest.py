"""One synthesized assembly for all unit tests."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from stages.settings import Settings, load_settings

from .assembly import ENVIRONMENTS, ROOT, Assembly, Platform, context, synthesize


@pytest.fixture(scope="session")
def settings() -> Settings:
    return load_settings()


@pytest.fixture(scope="session")
def assembly(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Assembly:
    """What `make synth` wrote a moment ago, if ASSEMBLY says where; else synthesized here, once for all workers."""
    if given := os.environ.get("ASSEMBLY"):
        directory = ROOT / given
        if not (directory / "manifest.json").exists():
            raise pytest.UsageError(f"ASSEMBLY={given}: there is no cloud assembly; run `make synth` first")
        return Assembly(directory, settings)
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    directory = shared / "assembly"
    with (shared / "assembly.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "complete").exists():
            synthesize(ROOT, directory)
            (directory / "complete").touch()
    return Assembly(directory, settings)


@pytest.fixture(scope="session", params=ENVIRONMENTS)
def platform(request: pytest.FixtureRequest, assembly: Assembly) -> Platform:
    """Each environment in turn."""
    return assembly.platform(request.param)


@pytest.fixture(scope="session")
def public_platform(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Platform:
    """Dev as it would be on the internet; a cdk-nag finding that is not acknowledged fails its synthesis."""
    from aws_cdk import App, Validations
    from cdk_nag import AwsSolutionsChecks

    from stages.platform import PlatformStage

    dev = settings.environments.dev.model_dump() | {
        "exposure": "internet-facing",
        "certificate_arn": f"arn:aws:acm:{settings.tooling.region}:{settings.environments.dev.account}:certificate/c0ffee",
        "host_name": "mlflow.example.com",
        "ingress_cidrs": ["198.51.100.0/24", "203.0.113.7/32"],
    }
    content = settings.model_dump()
    content["environments"]["dev"] = dev
    public = Settings.model_validate(content)
    directory: Path = tmp_path_factory.mktemp("public")
    app = App(outdir=str(directory), context=context(), analytics_reporting=False)
    PlatformStage(app, "Dev", settings=public, environment="dev")
    Validations.of(app).add_plugins(AwsSolutionsChecks(app, verbose=True))
    app.synth()
    return Assembly(directory, public).platform("dev")
