"""One container of a rehearsed task: what is the same whether an engine runs it or it is a process.

`engine_container.py` has Docker or Podman run it, `process_container.py` runs the image's command as a process.
"""

from __future__ import annotations

import asyncio
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from rehearsal.task_definition import ContainerDefinition


class Container(ABC):
    """One container of a task: its log file, its end, its health. `out_of_memory`: it ended for want of memory."""

    def __init__(self, definition: ContainerDefinition, log_file: Path) -> None:
        self.definition = definition
        self.log_file = log_file
        self.exit_code: int | None = None
        self.health: Literal["HEALTHY", "UNHEALTHY", "UNKNOWN"] = "UNKNOWN"
        self.out_of_memory = False

    @property
    @abstractmethod
    def pid(self) -> int | None:
        """The process id, on this machine, of its first process; None when nothing runs."""

    @abstractmethod
    async def start(
        self, name: str, home: Path, variables: Mapping[str, str], files: Sequence[Path] = ()
    ) -> None:
        """Start it with these variables besides its image's own; `home` is the task's private folder.

        It can read these `files` of this machine, under the same names.

        Raises:
            CannotStartError: with the reason in ECS's words.
        """

    @abstractmethod
    async def run(self) -> None:
        """Wait for the end of its first process, with which all of it ends, and set `exit_code`."""

    @abstractmethod
    async def signal(self, number: signal.Signals) -> None:
        """Signal the first process alone, as ECS does; it must tell its children itself."""

    @abstractmethod
    async def run_inside(self, argv: list[str], timeout: float) -> bool:
        """Whether a command that runs beside the first process succeeds within `timeout` seconds."""

    async def check_health(self, changed: Callable[[], None]) -> None:
        """Run the health check command again and again; UNHEALTHY after `retries` failures in a row."""
        check = self.definition.health_check
        if check is None:
            return
        kind, *words = check.command
        if kind == "NONE":
            return
        argv = ["/bin/sh", "-c", *words] if kind == "CMD-SHELL" else words
        started, failures = time.monotonic(), 0
        while True:
            await asyncio.sleep(check.interval)
            passed = await self.run_inside(argv, check.timeout)
            if not passed and time.monotonic() - started < check.start_period:
                continue
            failures = 0 if passed else failures + 1
            if passed or failures >= check.retries:
                self.health = "HEALTHY" if passed else "UNHEALTHY"
                changed()
