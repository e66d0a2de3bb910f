"""Registry of started processes: what a rehearsal starts, `make down` can stop, whatever happened in between.

Each process is one small file, written the moment it was started. A process id alone proves nothing (ids are
used again), so its creation time stands beside it and both must match before anything is signalled.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

log = logging.getLogger(__name__)

# The kernel counts a start from boot, psutil turns it into wall-clock time: a clock that was set moves it a
# little.
CLOCK_TOLERANCE = 2.0


@dataclass(frozen=True)
class StartedProcess:
    """A process this project started: its name here, id, creation (Unix time) and program."""

    name: str
    pid: int
    created: float
    program: str


class ProcessRegistry:
    """The processes recorded in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def record(self, name: str, pid: int, program: str) -> StartedProcess:
        """Remember a process. Call it right after the start; start it with `start_new_session=True`."""
        try:
            created = psutil.Process(pid).create_time()
        except psutil.NoSuchProcess:  # gone already, but what it started may live on in its session
            created = time.time()
        process = StartedProcess(name, pid, created, program)
        self.directory.mkdir(parents=True, exist_ok=True)
        file = self._file(process)
        draft = file.with_suffix(".draft")
        draft.write_text(json.dumps(asdict(process)))
        draft.replace(file)
        return process

    def forget(self, process: StartedProcess) -> None:
        """Drop the record of a process that has ended."""
        self._file(process).unlink(missing_ok=True)

    def alive(self) -> list[StartedProcess]:
        """The recorded processes of which something still runs, oldest first. Drops the others' records."""
        found = []
        for file in self.directory.glob("*.json"):
            try:
                process = StartedProcess(**json.loads(file.read_text()))
            except FileNotFoundError:  # dropped by its owner just now
                continue
            except (ValueError, TypeError) as error:
                log.warning("%s is not a process record (%s); delete it", file, error)
                continue
            if _members(process):
                found.append(process)
            else:
                self.forget(process)
        return sorted(found, key=lambda process: process.created)

    def stop_all(self, grace: float, *, spare: int | None = None) -> list[StartedProcess]:
        """Stop every recorded process: SIGTERM to its group, SIGKILL to what is left after `grace` seconds.

        A supervisor is older than what it supervises and so hears SIGTERM first; what it starts in its last
        moments is found because the directory is read again and again. `spare` is the id of a process to
        leave alone. Returns what was stopped. Raises RuntimeError when something is left even ten seconds
        after SIGKILL.
        """
        deadline = time.monotonic() + grace
        asked: dict[int, StartedProcess] = {}
        while remaining := [process for process in self.alive() if process.pid != spare]:
            overdue = time.monotonic() >= deadline
            if time.monotonic() >= deadline + 10:
                names = ", ".join(f"{process.name} (process {process.pid})" for process in remaining)
                raise RuntimeError(
                    f"still there after SIGKILL: {names}; look at its state with `ps`, then try again"
                )
            for process in remaining:
                if overdue:
                    for member in _members(process):
                        with contextlib.suppress(psutil.NoSuchProcess):
                            member.kill()
                elif process.pid not in asked:
                    _terminate(process)
                asked[process.pid] = process
            time.sleep(0.05)
        return list(asked.values())

    def _file(self, process: StartedProcess) -> Path:
        return self.directory / f"{re.sub(r'[^A-Za-z0-9._-]', '-', process.name)[:80]}.{process.pid}.json"


def came_up(ready: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait for what a process was started for. False if it ends before, or takes longer than those seconds."""
    deadline = time.monotonic() + seconds
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def session_members(leader: int) -> list[psutil.Process]:
    """The living processes of the session that process `leader` opened, whether or not it lives itself."""
    members = []
    for pid in psutil.pids():
        with contextlib.suppress(OSError, psutil.NoSuchProcess):
            if os.getsid(pid) == leader:
                members.append(psutil.Process(pid))
    return _living(members)


def kill_session(leader: int) -> None:
    """SIGKILL everything in the session of `leader`, as a container ends with its first process."""
    for member in session_members(leader):
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()


def session_memory(leaders: set[int]) -> dict[int, int]:
    """Resident memory in bytes of each session, by its leader. Shared pages count once per process."""
    used = dict.fromkeys(leaders, 0)
    for pid in psutil.pids():
        with contextlib.suppress(OSError, psutil.Error):
            session = os.getsid(pid)
            if session in used:
                used[session] += psutil.Process(pid).memory_info().rss
    return used


def exact_session_memory(leader: int) -> int:
    """Memory in bytes that the session of `leader` really takes: shared pages count once. Slow."""
    total = 0
    for member in session_members(leader):
        with contextlib.suppress(psutil.Error):
            full = member.memory_full_info()
            total += getattr(full, "pss", full.uss)  # macOS knows no proportional share
    return total


def _members(process: StartedProcess) -> list[psutil.Process]:
    """What is alive of a recorded process: itself, its descendants, and the rest of the session it opened."""
    try:
        leader = psutil.Process(process.pid)
        if abs(leader.create_time() - process.created) > CLOCK_TOLERANCE:
            return []  # the id is someone else's now, which the kernel allows only when our session is empty
        members = {member.pid: member for member in _living([leader, *leader.children(recursive=True)])}
    except psutil.NoSuchProcess:
        members = {}
    for member in session_members(process.pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            if member.create_time() >= process.created - CLOCK_TOLERANCE:
                members[member.pid] = member
    return list(members.values())


def _living(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Without those that have ended and only wait for their parent to notice."""
    living = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                living.append(process)
    return living


def _terminate(process: StartedProcess) -> None:
    with contextlib.suppress(ProcessLookupError):
        if os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, signal.SIGTERM)
        else:
            os.kill(process.pid, signal.SIGTERM)
        return
    for member in _members(process):  # the leader is gone; its group has no name but its members
        with contextlib.suppress(psutil.NoSuchProcess):
            member.terminate()
