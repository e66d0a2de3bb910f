"""Ctrl-C half way: what runs is ended, what serves is stopped by `make down`, and the next rehearsal works."""

from __future__ import annotations

import pytest

from .conftest import Interruptions
from .workspace import Release

pytestmark = pytest.mark.drill


def test_ctrl_c_while_a_service_is_deployed(interruptions: Interruptions) -> None:
    """The rehearsal ends at once, not when the service is steady, and its report says why it ended there."""
    release = interruptions.deploying.release
    assert release.status != 0
    assert any("Interrupted" in note for note in release.report["notes"])
    assert release.report["status"] == "failed"
    assert release.stages["Assets"] == "succeeded"
    assert release.stages["Staging"] == release.stages["Prod"] == "not run"
    assert release.action("Dev", "mlflow-dev-tracking.Deploy")["summary"] == "interrupted"


def test_ctrl_c_while_a_gate_runs(interruptions: Interruptions) -> None:
    """The rehearsal after an interrupted one goes on from there; interrupted in its turn, it ends the build it ran."""
    release = interruptions.testing.release
    assert release.status != 0
    assert release.action("Dev", "mlflow-dev-tracking.Deploy")["status"] == "succeeded"
    assert release.action("Dev", "Smoke")["summary"] == "interrupted"
    assert interruptions.testing.builds == []


def test_nothing_is_left_after_make_down(interruptions: Interruptions) -> None:
    """No server, no PostgreSQL, no load balancer, no build."""
    assert interruptions.down == 0
    assert interruptions.left == []


def test_the_next_rehearsal_works(base: Release) -> None:
    """After all that, the same commit reaches prod."""
    assert base.status == 0
