"""Who serves an environment while a release comes and goes, looked at several times a second."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from .client import Client
from .workspace import Workspace

PAUSE_SECONDS = 0.2


@dataclass(frozen=True)
class Look:
    """What there was at one time between `began` and `ended`, by the clock that a client's failures are from."""

    began: float
    ended: float
    running: frozenset[str]
    healthy: frozenset[str]
    """Ids of the tasks that the load balancer sends requests to."""
    succeeded: int
    """Requests of the client that had gone well."""


Span = tuple[float, float]
"""From when to when, by the same clock."""


class Watch:
    """Looks at the tasks of an environment from the beginning of a `with` block to its end."""

    def __init__(self, workspace: Workspace, environment: str, client: Client) -> None:
        self.looks: list[Look] = []
        self.tasks: dict[str, dict[str, Any]] = {}
        """The last that was seen of each task that ran in this time, by its id."""
        self._past: set[str] = set()
        self._host = workspace.host(environment)
        self._service = workspace.resource(environment, "tracking", "AWS::ECS::Service")
        self._targets = workspace.resource(
            environment, "tracking", "AWS::ElasticLoadBalancingV2::TargetGroup"
        )
        self._client = client
        self._error: Exception | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watch:
        described = self._host.get("service", self._service)["tasks"]
        self._past = {task["id"] for task in described if task["status"] == "STOPPED"}
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self._error:
            raise self._error
        self._look()

    def image(self, task: str) -> str:
        """The image that a task runs, or ran."""
        [image] = self.tasks[task]["images"].values()
        return str(image)

    def seconds_of_others(self, image: str) -> float:
        """From the first start to the last end of tasks with any other image. All have ended."""
        others = [task for id_, task in self.tasks.items() if self.image(id_) != image]
        assert others, f"no task with another image than {image} was ever seen"
        started = min(datetime.fromisoformat(task["started_at"]) for task in others)
        return (max(datetime.fromisoformat(task["stopped_at"]) for task in others) - started).total_seconds()

    def with_others(self, image: str) -> Span:
        """From the first to the last look at a running task with any other image."""
        seen = [look for look in self.looks if any(self.image(task) != image for task in look.running)]
        return seen[0].began, seen[-1].ended

    def killed(self) -> list[Span]:
        """When tasks were killed at their memory limit: from two looks at the running task to one at the dead one."""
        dead = {id_ for id_, task in self.tasks.items() if "OutOfMemoryError" in task["stopped_reason"]}
        return [
            (first.began, last.ended)
            for first, second, last in zip(self.looks, self.looks[1:], self.looks[2:], strict=False)
            if dead & (second.running - last.running)
        ]

    def refused(self) -> list[Span]:
        """When there was no healthy task to send a request to: from one look at one to the next."""
        return [
            (first.began, last.ended)
            for first, second, last in zip(self.looks, self.looks[1:], self.looks[2:], strict=False)
            if not second.healthy
        ]

    def succeeded(self, span: Span) -> int:
        """How many requests went well within a time."""
        within = [look.succeeded for look in self.looks if span[0] <= look.began and look.ended <= span[1]]
        return max(within, default=0) - min(within, default=0)

    def _watch(self) -> None:
        try:
            while not self._over.wait(PAUSE_SECONDS):
                self._look()
        except Exception as error:  # raised where the block ends: nothing that was not seen may pass for good
            self._error = error

    def _look(self) -> None:
        began = time.monotonic()
        tasks = self._host.get("service", self._service)["tasks"]
        targets = self._host.get("target-group", self._targets)["targets"]
        self.tasks |= {task["id"]: task for task in tasks if task["id"] not in self._past}
        self.looks.append(
            Look(
                began,
                time.monotonic(),
                frozenset(task["id"] for task in tasks if task["status"] == "RUNNING"),
                frozenset(target["id"] for target in targets if target["state"] == "healthy"),
                self._client.succeeded,
            )
        )
