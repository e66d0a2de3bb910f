"""A small pipeline for the tests of executions, releases and rollbacks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from stages.settings import Settings, load_settings

from .small_pipeline import Small


@pytest.fixture(scope="session")
def settings() -> Settings:
    return load_settings()


@pytest.fixture(scope="session")
def small_pipeline(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    small = Small(tmp_path_factory.mktemp("small"), settings)
    try:
        yield small
    finally:
        small.stop()


@pytest.fixture
def small(small_pipeline: Small) -> Small:
    """A small pipeline that is really rehearsed; it has no history yet."""
    small_pipeline.renew()
    return small_pipeline


@pytest.fixture
def credentials(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of somebody in the tooling account, in this process's environment."""
    tooling = small.settings.tooling
    key = small.accounts.administrator(tooling.account, tooling.region)
    for name, value in {**small.accounts.environment(tooling.region), **key.environment()}.items():
        monkeypatch.setenv(name, value)
