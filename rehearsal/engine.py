"""The container engine of a rehearsal: whether this machine has one that can run tasks, and what is left of it to remove.

An engine that is installed may still run nothing: no daemon, no memory limits, containers in a virtual machine that
cannot see this machine's loopback address. So one is tried before it is believed.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from pathlib import Path

from operations.containers import Engine, NoEngine, find_engine
from rehearsal.ports import LOOPBACK

LABEL = "mlflow-platform.rehearsal"
"""On every container that a rehearsal makes; its value is the folder of the host that made it."""

CLIENT_VARIABLES = (
    "CONTAINERS_CONF", "CONTAINERS_STORAGE_CONF", "CONTAINER_HOST", "DBUS_SESSION_BUS_ADDRESS", "DOCKER_CONFIG",
    "DOCKER_CONTEXT", "DOCKER_HOST", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR",
)  # fmt: skip
"""What an engine's command reads to find its daemon, its storage and its settings."""

PULL_SECONDS = 180
COMMAND_SECONDS = 120
TRIAL_MEMORY = 64
"""MiB; the trial takes four times as much and must be killed for it."""

TRIAL = f"""
import socket
socket.create_connection(("{LOOPBACK}", %d), 20).close()
bytearray(b"x") * ({TRIAL_MEMORY} * 4 * 2**20)
"""
KILLED = 137
"""The exit status of a container whose first process was killed by SIGKILL."""


def chosen(state: Path) -> Engine | None:
    """The engine that runs the tasks of the rehearsal in `state`; None when they are processes."""
    file = state / "engine.json"
    program = json.loads(file.read_text(encoding="utf-8"))["program"] if file.exists() else ""
    return Engine(program) if program else None


def choose(state: Path, engine: Engine | None) -> None:
    """Remember what runs the tasks of the rehearsal in `state`."""
    (state / "engine.json").write_text(
        json.dumps({"program": engine.program if engine else ""}), encoding="utf-8"
    )


def usable_engine(dockerfile: Path) -> Engine:
    """An engine that runs a container of the Dockerfile's base as tasks are run here.

    Raises:
        NoEngine: there is none; the message says what is missing.
    """
    engine = find_engine(to_run=True)
    base = _base(dockerfile)
    if _ask(engine, "image", "inspect", base).returncode != 0:
        pulled = _ask(engine, "pull", "--quiet", base, seconds=PULL_SECONDS)
        if pulled.returncode != 0:
            raise NoEngine(
                f"{engine.program} is there, but not the image's base, {base}, and it cannot be pulled"
                f" ({_last_line(pulled.stderr)})."
            )
    _try(engine, base)
    return engine


def run_arguments(engine: Engine, memory_mib: int) -> list[str]:
    """Arguments of `create` or `run` for a task of `memory_mib` MiB: hardened, on this machine's own network."""
    return ["--network=host", "--pull=never", f"--memory-swap={memory_mib}m", *engine.hardened(memory_mib)]


def remove_labelled(engine: Engine, host: Path) -> list[str]:
    """Remove, with their volumes, the containers that the host of the folder `host` made; returns their ids.

    Raises:
        RuntimeError: the engine does not answer, or would not remove one.
    """
    listed = _ask(engine, "ps", "--all", "--quiet", "--no-trunc", f"--filter=label={LABEL}={host.resolve()}")
    ids = listed.stdout.split()
    removed = _ask(engine, "rm", "--force", "--volumes", *ids) if ids and not listed.returncode else listed
    if removed.returncode != 0:
        raise RuntimeError(
            f"{engine.program} did not remove the containers labelled {LABEL}={host.resolve()}:"
            f" {_last_line(removed.stderr)}"
        )
    return ids


def _base(dockerfile: Path) -> str:
    found = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", dockerfile.read_text(encoding="utf-8"), re.MULTILINE)
    if not found:
        raise NoEngine(f"{dockerfile} names no base: it has no line ARG PYTHON_IMAGE=...")
    return found[1]


def _try(engine: Engine, base: str) -> None:
    """One tiny container must reach this machine's loopback address, and be held to its memory."""
    with socket.create_server((LOOPBACK, 0)) as listener:
        code = TRIAL % listener.getsockname()[1]
        arguments = [*run_arguments(engine, TRIAL_MEMORY), "--user=10001:10001", "--entrypoint=python", base]
        ran = _ask(engine, "run", "--rm", *arguments, "-c", code)
        listener.settimeout(0)
        try:
            listener.accept()[0].close()
            reached = True
        except BlockingIOError:
            reached = False
    if reached and ran.returncode == KILLED:
        return
    if reached:
        why = f"does not hold them to their memory (exit status {ran.returncode})"
    elif "create_connection" in ran.stderr:
        why = f"keeps them away from this machine's own address {LOOPBACK}, as Docker Desktop's virtual machine does"
    else:
        why = f"cannot run one as tasks are run: {_last_line(ran.stderr) or f'exit status {ran.returncode}'}"
    raise NoEngine(f"{engine.program} answers and knows containers, but {why}.")


def _ask(
    engine: Engine, *arguments: str, seconds: float = COMMAND_SECONDS
) -> subprocess.CompletedProcess[str]:
    command = [engine.program, *arguments]
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer within {seconds:g} s")
    except OSError as error:
        return subprocess.CompletedProcess(command, 1, "", f"{engine.program}: {error.strerror}")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def client_environment() -> dict[str, str]:
    """What an engine's command needs of this process's environment, and nothing else."""
    return {name: os.environ[name] for name in ("PATH", "HOME", *CLIENT_VARIABLES) if name in os.environ}
