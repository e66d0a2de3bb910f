"""`make audit`: the image's locked packages against published advisories, and which of them are accepted, why, until when.

pip-audit asks OSV (https://osv.dev), or what speaks its protocol at ADVISORIES. A finding fails the audit unless
`mlflow_image/accepted.toml` accepts it. So does an acceptance that is over, one for which nothing was found, and a service
that does not answer: what could not be asked is not clean.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from stages.settings.fields import Table

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "mlflow_image" / "requirements.lock"
POLICY = ROOT / "mlflow_image" / "accepted.toml"
OSV = "https://api.osv.dev/v1/query"
LONGEST = datetime.timedelta(days=180)  # who accepts a finding looks at it again within half a year


class AuditFailed(Exception):
    """The audit could not be made, or its policy cannot be read; the message says what to do."""


class Accepted(Table):
    """A finding that somebody looked at and that may stay for a time."""

    id: str
    reason: str
    until: datetime.date


@dataclass(frozen=True)
class Finding:
    """An advisory about a locked package."""

    package: str
    version: str
    names: frozenset[str]
    """The advisory's id and its aliases, such as a CVE."""
    fixed_in: tuple[str, ...]

    def __str__(self) -> str:
        mend = f"fixed in {', '.join(self.fixed_in)}" if self.fixed_in else "no fixed version yet"
        return f"{self.package} {self.version}: {', '.join(sorted(self.names))} ({mend})"


def read_policy(file: Path) -> list[Accepted]:
    """What is accepted.

    Raises:
        AuditFailed: the file cannot be used.
    """
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
        accepted = TypeAdapter(list[Accepted]).validate_python(table.pop("accepted", []))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise AuditFailed(f"{file.name}: cannot be read: {error}") from None
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise AuditFailed(
            f"{file.name}: accepted.{place}: {problem['msg']}; give each [[accepted]] id, reason and until = 2027-01-31"
        ) from None
    if table:
        raise AuditFailed(f"{file.name}: there is no key {', '.join(table)}; only [[accepted]] is read")
    return accepted


def ask(lock: Path, advisories: str) -> list[Finding]:
    """What is known about the locked packages.

    Raises:
        AuditFailed: the service did not answer.
    """
    with tempfile.TemporaryDirectory(prefix="audit-") as cache:
        command = [
            sys.executable, "-m", "pip_audit", "--requirement", str(lock), "--require-hashes", "--disable-pip", "--strict",
            "--vulnerability-service", "osv", "--osv-url", advisories, "--format", "json", "--aliases", "on",
            "--progress-spinner", "off", "--cache-dir", cache,
        ]  # fmt: skip
        told = subprocess.run(command, capture_output=True, text=True)
    try:
        packages = json.loads(told.stdout)["dependencies"]
    except (json.JSONDecodeError, KeyError):
        why = told.stderr.strip().splitlines() or ["it said nothing"]
        raise AuditFailed(
            f"{advisories} could not be asked ({why[-1]}): try again, or name another OSV service in ADVISORIES"
        ) from None
    return [
        Finding(
            package["name"],
            package["version"],
            frozenset({found["id"], *found["aliases"]}),
            tuple(found["fix_versions"]),
        )
        for package in packages
        for found in package["vulns"]
    ]


def judge(findings: list[Finding], accepted: list[Accepted], today: datetime.date) -> list[str]:
    """What stands against a release, a sentence each."""
    problems = []
    for entry in accepted:
        if entry.until < today:
            problems.append(
                f"{entry.id}: was accepted until {entry.until}; mend it, or decide anew ({entry.reason})"
            )
        elif entry.until > today + LONGEST:
            problems.append(f"{entry.id}: is accepted until {entry.until}; give at most {LONGEST.days} days")
        if not any(entry.id in finding.names for finding in findings):
            problems.append(f"{entry.id}: is accepted, but was not found; remove it from {POLICY.name}")
    names = {entry.id for entry in accepted}
    return problems + [
        f"{finding}: raise the pin and `make lock`, or accept it in {POLICY.name}"
        for finding in findings
        if not finding.names & names
    ]


def main() -> int:
    """The exit status: 0 nothing stands against a release; 1 something does; 2 it could not be found out."""
    try:
        accepted = read_policy(POLICY)
        findings = ask(LOCK, os.environ.get("ADVISORIES") or OSV)
    except AuditFailed as problem:
        print(problem, file=sys.stderr)
        return 2
    problems = judge(findings, accepted, datetime.datetime.now(datetime.UTC).date())
    for sentence in problems:
        print(sentence, file=sys.stderr)
    if not problems:
        print(f"{len(findings)} finding(s), all of them accepted" if findings else "No finding")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
