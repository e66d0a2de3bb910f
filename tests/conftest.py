"""What holds for every test: what it means to skip one, and what a synthesis inside of one leaves out."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

os.environ.setdefault("CDK_VALIDATION", "false")
"""The CDK's own look at the templates takes more than half of a synthesis. `make synth` has it; tests have cfn-lint's."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI, where every part is installed, a test that is skipped has failed."""
    report = yield
    if report.skipped and os.environ.get("NOTHING_SKIPPED") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, but nothing may be: {report.longrepr}"
    return report
