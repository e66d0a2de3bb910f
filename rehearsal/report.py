"""The report of a rehearsal: report.json for programs, report.html for people, a table for the terminal."""

from __future__ import annotations

import json
import threading
from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from rehearsal.ecs import BAKE_SECONDS
from rehearsal.executions import StageRun
from rehearsal.pipeline import Execution, tail

NOT_PROVEN = (
    "IAM beyond the identity policies that moto enforces: resource policies, KMS key policies, most conditions,"
    " permission boundaries and service control policies",
    "network reachability: security groups, route tables, NAT and DNS are declared, every process is on loopback",
    "AWS's quotas, prices and timing; multi-zone failover; autoscaling",
    "CloudWatch's own delay, and the minutes for which ECS goes on watching the alarms of a deployment whose tasks all"
    f" serve: here that is {BAKE_SECONDS:g} s",
    "RDS itself: the database is PostgreSQL 18 from a wheel, without TLS but for who signs in by IAM, and MariaDB stands in"
    " for MySQL; no standby, no backups, no encryption at rest",
)
"""What a green rehearsal does not prove."""

NOT_PROVEN_OF_TASKS = {
    "processes": "the container's own limits (read-only root, user, CPU share): tasks are processes of the image's"
    " entrypoint",
    "containers": "a task's own network interface and its CPU share: its container shares this machine's",
}
"""What it does not prove besides, by what tasks are."""


class Report:
    """Written after each action, so that an interrupted rehearsal leaves one, too."""

    def __init__(self, state: Path, commit: str) -> None:
        self._state = state
        self._started = datetime.now(UTC)
        self._commit = commit
        self._writing = threading.Lock()
        pages = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
        pages.filters["relative"] = self._relative
        self._page = pages.get_template("report.html.j2")  # compiled once, not for each of fifty writes
        self.executions: list[Execution] = []
        self.rollback: Execution | None = None
        self.notes: list[str] = []

    def write(
        self, *, image: str | None, tasks: str, environments: dict[str, Any], declared: dict[str, int]
    ) -> dict[str, Any]:
        """Write both files and return what report.json holds. `tasks` are containers or processes.

        Actions that run side by side end side by side, and each writes: one at a time, so that the last is the newest.
        """
        with self._writing:
            return self._write(image, tasks, environments, declared)

    def _write(
        self, image: str | None, tasks: str, environments: dict[str, Any], declared: dict[str, int]
    ) -> dict[str, Any]:
        stages = self.executions[-1].stages if self.executions else []
        content = {
            "commit": self._commit,
            "image": image,
            "tasks": tasks,
            "status": "succeeded" if stages and all(s.status == "succeeded" for s in stages) else "failed",
            "started": self._started.isoformat(timespec="seconds"),
            "seconds": round((datetime.now(UTC) - self._started).total_seconds(), 1),
            "executions": len(self.executions),
            "stages": [asdict(stage) for stage in stages],
            "rollback": asdict(self.rollback.record) if self.rollback else None,
            "environments": environments,
            "declared_not_rehearsed": declared,
            "not_proven": [*NOT_PROVEN, NOT_PROVEN_OF_TASKS[tasks]],
            "notes": self.notes,
        }
        draft = self._state / "report.json.draft"
        draft.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        draft.replace(self._state / "report.json")
        html = self._page.render(**content, tail=lambda log: tail(log, 40))
        (self._state / "report.html").write_text(html, encoding="utf-8")
        return content

    def _relative(self, path: str) -> str:
        try:
            return Path(path).resolve().relative_to(self._state.resolve()).as_posix()
        except ValueError:
            return path


def declared_types(stacks: Any) -> dict[str, int]:
    """Resource types that were declared but not rehearsed, with how many there are."""
    counts = Counter(r.type for stack in stacks for r in stack.resources.values() if not r.rehearsed)
    return dict(sorted(counts.items()))


def table(stages: list[StageRun]) -> str:
    """Stages and actions with status and duration, as text."""
    width = max((len(action.name) for stage in stages for action in stage.actions), default=20) + 2
    lines = [f"{'stage / action':<{width + 2}} {'status':<10} {'seconds':>8}"]
    for stage in stages:
        lines.append(f"{stage.name:<{width + 2}} {stage.status:<10} {stage.seconds:8.1f}")
        for action in stage.actions:
            lines.append(
                f"  {action.name:<{width}} {action.status:<10} {action.seconds:8.1f}  {action.summary}".rstrip()
            )
    return "\n".join(lines)
