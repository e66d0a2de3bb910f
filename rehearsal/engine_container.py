"""A container that Docker or Podman runs: of the image just built, and held to what Fargate holds it to.

It shares this machine's network, so that it listens on a loopback port like everything else in a rehearsal, and reaches
the rehearsed database and accounts there. Its variables are handed over by name: their values are in no command line.
Whoever may use the engine can still read them with its `inspect`, as everywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from operations.containers import Engine
from rehearsal.container import Container
from rehearsal.engine import KILLED, LABEL, client_environment, run_arguments
from rehearsal.processes import ProcessRegistry
from rehearsal.task_definition import ContainerDefinition
from rehearsal.task_roles import CannotStartError

START_SECONDS = 120.0
LOOK_SECONDS = 0.2
NEVER_RAN = ("created", "configured", "initialized")
"""What Docker, and Podman by version, call a container that was made and could not be started."""


class EngineContainer(Container):
    """A container of `engine`, held to `memory` MiB and labelled with the folder of the host that made it.

    `podman start --attach`, or Docker's, is a process of its own in `registry`: it writes the log and ends with the
    container.
    """

    def __init__(
        self,
        definition: ContainerDefinition,
        engine: Engine,
        image: str,
        memory: int,
        log_file: Path,
        registry: ProcessRegistry,
        host: Path,
    ) -> None:
        super().__init__(definition, log_file)
        self._engine = engine
        self._host = host
        self._image = image
        self._memory = memory
        self._registry = registry
        self._id = ""
        self._client: asyncio.subprocess.Process | None = None
        self._pid: int | None = None
        self._asked_to_die = False

    @property
    def pid(self) -> int | None:
        """What the engine says; on another kernel than this machine's, it means nothing here."""
        return self._pid if self.exit_code is None else None

    async def start(
        self, name: str, home: Path, variables: Mapping[str, str], files: Sequence[Path] = ()
    ) -> None:
        """Create the container, start it, and wait until it runs or has ended."""
        client = client_environment()
        if unfit := sorted(set(variables) & set(client)):
            raise CannotStartError(
                f"CannotCreateContainerError: {', '.join(unfit)} is {self._engine.program}'s own variable and cannot be"
                " handed to a rehearsed container; give it another name, or rehearse with CONTAINERS=no"
            )
        words = [
            "create",
            "--log-driver=none",  # the log is what `start --attach` writes
            f"--name=rehearsal-{home.name}-{self.definition.name}",
            f"--label={LABEL}={self._host.resolve()}",
            *(f"--env={variable}" for variable in variables),
            *(f"--mount=type=bind,source={file},destination={file},readonly" for file in files),
            *self._arguments(),
        ]
        try:
            status, said = await self._ask(*words, environment={**client, **variables}, seconds=START_SECONDS)
        except TimeoutError:
            status, said = 1, f"{self._engine.program} did not answer within {START_SECONDS:g} s"
        if status != 0:
            raise CannotStartError(f"CannotCreateContainerError: {said.strip()}")
        self._id = said.split()[-1]
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("ab") as output:
            self._client = await asyncio.create_subprocess_exec(
                self._engine.program, "start", "--attach", self._id,
                env=client,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        self._record = self._registry.record(name, self._client.pid, self._engine.program)
        await self._watch_it_start(self._client)

    async def _watch_it_start(self, client: asyncio.subprocess.Process) -> None:
        deadline = time.monotonic() + START_SECONDS
        while client.returncode is None and time.monotonic() < deadline:
            state = await self._state()
            if state["Running"] and state["Pid"]:
                self._pid = state["Pid"]
                return
            await asyncio.sleep(LOOK_SECONDS)
        if (await self._state())["Status"] in NEVER_RAN:
            await self._remove()
            said = self.log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise CannotStartError(
                f"CannotStartContainerError: {said[-1] if said else 'it did not start in time'}"
            )

    async def run(self) -> None:
        """Wait for its end, note how it came, and remove it with what it wrote."""
        if not self._id:
            return
        try:
            if self._client:
                await self._client.wait()
            while (state := await self._state())["Running"]:  # the client alone was killed
                await asyncio.sleep(LOOK_SECONDS)
            # Podman 4.3 on cgroups v1 keeps silent about the kernel's kill. Nobody else sends SIGKILL unasked.
            killed = state["ExitCode"] == KILLED and not self._asked_to_die
            self.out_of_memory = bool(state["OOMKilled"]) or killed
            self.exit_code = state["ExitCode"]
        finally:
            await self._remove()

    async def signal(self, number: signal.Signals) -> None:
        """Signal the first process alone."""
        if self._id and self.exit_code is None:
            self._asked_to_die = self._asked_to_die or number == signal.SIGKILL
            await self._ask("kill", f"--signal={number.name}", self._id)

    async def run_inside(self, argv: list[str], timeout: float) -> bool:
        """Run a command in the container."""
        try:
            return (await self._ask("exec", self._id, *argv, seconds=timeout))[0] == 0
        except TimeoutError:
            return False

    async def _remove(self) -> None:
        """Remove it with what it wrote, running or not."""
        await self._ask("rm", "--force", "--volumes", self._id)
        if self._client:
            await self._client.wait()
            self._registry.forget(self._record)

    def _arguments(self) -> list[str]:
        """What the task definition says, and the image; the command comes last."""
        definition = self.definition
        arguments = [f"--user={definition.user}"] if definition.user else []
        arguments += [
            word
            for word in run_arguments(self._engine, self._memory)
            if definition.readonly_root_filesystem or word != "--read-only"
        ]
        for mount in definition.mount_points:
            only = ",readonly" if mount.read_only else ""
            # Without a name: the engine makes it with the image's owner and mode, and removes it with the container.
            arguments.append(f"--mount=type=volume,destination={mount.container_path}{only}")
        first, *rest = definition.entry_point or ("",)
        entrypoint = [f"--entrypoint={first}"] if first else []
        return [*arguments, *entrypoint, self._image, *rest, *definition.command]

    async def _state(self) -> dict[str, Any]:
        status, said = await self._ask("inspect", "--type=container", self._id)
        if status != 0:  # removed behind our back: as good as killed
            return {"Status": "removed", "Running": False, "Pid": 0, "ExitCode": KILLED, "OOMKilled": False}
        state: dict[str, Any] = json.loads(said)[0]["State"]
        return state

    async def _ask(
        self, *words: str, environment: Mapping[str, str] | None = None, seconds: float | None = None
    ) -> tuple[int, str]:
        """The status of an engine's command, and what it printed (or, when it failed, complained of).

        Raises:
            TimeoutError: it took longer than `seconds`.
        """
        process = await asyncio.create_subprocess_exec(
            self._engine.program,
            *words,
            env=environment or client_environment(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            out, complaint = await asyncio.wait_for(process.communicate(), seconds)
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        status = process.returncode or 0
        return status, (complaint if status else out).decode(errors="replace")
