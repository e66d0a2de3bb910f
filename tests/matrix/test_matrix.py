"""Few combinations that hold every pair: each is synthesized, without a finding of any pack, and linted."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from stages.packs import EVERYWHERE
from tests.matrix.axes import Combination, all_combinations, content, refusals
from tests.matrix.pairs import few
from tests.unit.assembly import Assembly, assert_valid
from tests.unit.conftest import synthesized_dev

CHOSEN = few(combination for combination in all_combinations() if not refusals(combination))
Synthesized = Callable[[Combination], Assembly]


@pytest.fixture(scope="module")
def synthesized(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Synthesized]:
    seconds: dict[Combination, float] = {}
    acknowledged: Counter[str] = Counter()

    @cache
    def of(combination: Combination) -> Assembly:
        began = time.monotonic()
        made = synthesized_dev(content(combination), tmp_path_factory.mktemp("combination"))
        seconds[combination] = time.monotonic() - began
        for report in reports(made):
            acknowledged[report["pluginName"]] += len(report.get("suppressedViolations", ()))
        return made

    yield of
    print(
        f"\n{len(seconds)} combinations in {sum(seconds.values()):.0f} s, {max(seconds.values()):.1f} s at most;"
        f" acknowledged: {dict(acknowledged)}"
    )


def reports(assembly: Assembly) -> list[dict[str, Any]]:
    content = json.loads((assembly.directory / "validation-report.json").read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = content["pluginReports"]
    return found


@pytest.mark.parametrize("combination", CHOSEN, ids=" + ".join)
def test_a_combination_has_no_open_finding(combination: Combination, synthesized: Synthesized) -> None:
    """Synthesis itself fails on a finding; this shows that the packs looked at all."""
    assembly = synthesized(combination)
    looked = {report["pluginName"]: report for report in reports(assembly)}
    wanted = {"AwsSolutions"} | ({"NIST.800.53.R5", "PCI.DSS.321"} if assembly.settings.compliance else set())
    assert wanted <= looked.keys()
    assert {name: report["violations"] for name, report in looked.items()} == {name: [] for name in looked}
    assert all(looked[name].get("suppressedViolations") for name in wanted)


def test_no_acknowledgement_of_the_packs_is_there_in_vain(synthesized: Synthesized) -> None:
    found = {
        finding["ruleName"].partition("-")[2]
        for combination in CHOSEN
        for report in reports(synthesized(combination))
        for finding in report.get("suppressedViolations", ())
    }
    assert not {rule for rules in EVERYWHERE.values() for rule, _ in rules} - found


def test_every_template_is_valid(synthesized: Synthesized, tmp_path: Path) -> None:
    """Each template once: combinations that differ elsewhere share some."""
    different: dict[str, Path] = {}
    for combination in CHOSEN:
        for template in synthesized(combination).templates:
            different.setdefault(hashlib.sha256(template.read_bytes()).hexdigest(), template)
    assert len(different) > len(CHOSEN)
    assert_valid(different.values(), tmp_path)
