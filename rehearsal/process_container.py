"""A container without a container engine: a process group that runs the image's command on this machine.

What a process cannot be held to (a read-only root, a user, CPU shares) the task definition lists as `not_enforced`.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from rehearsal.container import Container
from rehearsal.processes import ProcessRegistry, exact_session_memory, kill_session
from rehearsal.task_definition import ContainerDefinition, RehearsedContainer
from rehearsal.task_roles import CannotStartError

# Docker's own default search path; the image's environment may set another.
BASE_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
}


class ProcessContainer(Container):
    """A container that is a process of this machine, recorded in `registry`."""

    def __init__(
        self,
        definition: ContainerDefinition,
        image: RehearsedContainer,
        log_file: Path,
        registry: ProcessRegistry,
    ) -> None:
        super().__init__(definition, log_file)
        # An entry point of the definition's own leaves out the image's command, as a container engine does.
        command = definition.command or (() if definition.entry_point else image.command)
        self._argv = [*(definition.entry_point or image.entrypoint), *command]
        self._image = image
        self._registry = registry
        self._environment: dict[str, str] = {}
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """Its id, which is also that of its session."""
        return self._process.pid if self._process and self.exit_code is None else None

    async def start(
        self, name: str, home: Path, variables: Mapping[str, str], files: Sequence[Path] = ()
    ) -> None:
        """Start the process, with folders of its own for what it may write."""
        private = {
            "HOME": home / self.definition.name / "home",
            "TMPDIR": home / self.definition.name / "tmp",
        }
        for folder in private.values():
            folder.mkdir(parents=True)
        folders = {variable: str(folder) for variable, folder in private.items()}
        self._environment = {**BASE_ENVIRONMENT, **folders, **self._image.environment, **variables}
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self.log_file.open("ab") as output:
                self._process = await asyncio.create_subprocess_exec(
                    *self._argv,
                    cwd=self._image.directory,
                    env=self._environment,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=asyncio.subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            raise CannotStartError(
                f'CannotStartContainerError: exec: "{self._argv[0]}": {error.strerror}'
            ) from error
        self._record = self._registry.record(name, self._process.pid, self._argv[0])

    async def run(self) -> None:
        """Wait for the end of the process. Whatever it leaves behind ends with it, as in a container."""
        if self._process:
            code = await self._process.wait()
            self.exit_code = code if code >= 0 else 128 - code
            await asyncio.to_thread(kill_session, self._process.pid)
            self._registry.forget(self._record)

    async def signal(self, number: signal.Signals) -> None:
        """Signal the first process alone."""
        if self._process and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def run_inside(self, argv: list[str], timeout: float) -> bool:
        """Run a command with the same environment in the same folder."""
        try:
            probe = await asyncio.create_subprocess_exec(
                *argv,
                cwd=self._image.directory,
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError:
            return False
        try:
            return await asyncio.wait_for(probe.wait(), timeout) == 0
        except TimeoutError:
            return False
        finally:
            if probe.returncode is None:
                probe.kill()
                await probe.wait()


def limit_memory(containers: Sequence[Container], task_memory: int | None, used: Mapping[int, int]) -> None:
    """Kill what takes more memory than its container or its task (MiB) may.

    `used` is the resident memory in bytes of each session, by its leader.
    """
    mine = {c: used.get(c.pid, 0) for c in containers if c.pid is not None}
    limits = [([c], c.definition.memory) for c in mine] + [(list(mine), task_memory)]
    for together, mebibytes in limits:
        if mebibytes is None or sum(mine[c] for c in together) <= mebibytes * 2**20:
            continue
        # Resident memory counts shared pages more than once, so only a suspicion: measure.
        pids = [c.pid for c in together if c.pid is not None]
        if sum(map(exact_session_memory, pids)) > mebibytes * 2**20:
            for c in together:
                c.out_of_memory = True
            for pid in pids:
                kill_session(pid)
