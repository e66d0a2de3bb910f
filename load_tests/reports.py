"""The reports of a load check: a table for the log, JUnit XML for CodeBuild, JSON for programs, HTML."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from xml.etree import ElementTree

from load_tests.verdict import Figures, Verdict

_MOST_ERRORS = 10


def table(figures: Figures, verdict: Verdict) -> str:
    """What happened, operation by operation, then each check, then the verdict on a line of its own."""
    lines = []
    if figures.requests:
        lines.append(_row("operation", "kind", "requests", "failed", "p50 ms", "p95 ms", "max ms"))
        for name, operation in figures.operations.items():
            times = (operation.p50_ms, operation.p95_ms, operation.max_ms)
            shown = ("-" if ms is None else f"{ms:.0f}" for ms in times)
            lines.append(_row(name, operation.kind, operation.requests, operation.failures, *shown))
    for error, count in sorted(figures.errors.items(), key=lambda item: -item[1])[:_MOST_ERRORS]:
        lines.append(f"  {count} x {error}")
    lines.append("")
    lines += [f"{'ok ' if check.passed else 'NOT OK ':<8}{check.sentence}" for check in verdict.checks]
    return "\n".join([*lines, "", str(verdict)])


def write(folder: Path, figures: Figures, verdict: Verdict, html: str) -> None:
    """Write load.json, load.xml, verdict.txt and, if there was a load at all, load.html."""
    folder.mkdir(parents=True, exist_ok=True)
    checks = [asdict(check) for check in verdict.checks]
    content = {"verdict": "PASS" if verdict.passed else "FAIL", "summary": str(verdict), **asdict(figures)}
    (folder / "load.json").write_text(json.dumps({**content, "checks": checks}, indent=2) + "\n")
    (folder / "verdict.txt").write_text(f"{verdict}\n")
    junit = ElementTree.ElementTree(_junit(figures, verdict))
    junit.write(folder / "load.xml", "utf-8", xml_declaration=True)
    if html:
        (folder / "load.html").write_text(html)


def remove_old(folder: Path) -> None:
    """Remove an earlier check's reports, so that none can be taken for this one's."""
    for name in ("load.json", "load.xml", "load.html", "verdict.txt"):
        (folder / name).unlink(missing_ok=True)


def _row(name: str, kind: str, *figures: object) -> str:
    return f"{name:<20}{kind:<7}" + "".join(f"{figure:>9}" for figure in figures)


def _junit(figures: Figures, verdict: Verdict) -> ElementTree.Element:
    failed = sum(not check.passed for check in verdict.checks)
    suite = ElementTree.Element(
        "testsuite",
        name="load",
        tests=str(len(verdict.checks)),
        failures=str(failed),
        errors="0",
        time=f"{figures.seconds:.3f}",
    )
    for check in verdict.checks:
        case = ElementTree.SubElement(suite, "testcase", classname="load", name=check.name, time="0")
        if not check.passed:
            ElementTree.SubElement(case, "failure", message=_printable(check.sentence))
    ElementTree.SubElement(suite, "system-out").text = _printable(table(figures, verdict))
    return suite


def _printable(text: str) -> str:
    """A server's answer may hold control characters, which XML cannot."""
    return "".join(character if character.isprintable() or character in "\n\t" else "?" for character in text)
