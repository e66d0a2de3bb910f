"""Starts and stops the process that takes tokens for a rehearsed PostgreSQL."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil

from rehearsal.database_server import START_SECONDS, DatabaseServerError
from rehearsal.iam_postgres import beside
from rehearsal.ports import LOOPBACK
from rehearsal.processes import ProcessRegistry, came_up


class TokenProxy:
    """What is in front of the server that was made in a folder, if that takes tokens."""

    def __init__(self, directory: Path, processes: ProcessRegistry) -> None:
        self._directory = directory
        self._processes = processes
        self._name = f"tokens-{directory.parent.parent.name}-{directory.name}"

    def start(self) -> None:
        """Start it, unless it runs already or there is none.

        Raises:
            DatabaseServerError: it ended or did not listen in a minute.
        """
        told = beside(self._directory)
        if not told or _listens(told.port):
            return
        log = self._directory / "tokens.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "rehearsal.iam_postgres", "--directory", self._directory.resolve()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
                start_new_session=True,
            )
        self._processes.record(self._name, process.pid, "rehearsal.iam_postgres")
        if not came_up(lambda: _listens(told.port), process, START_SECONDS):
            raise DatabaseServerError(
                f"what takes tokens for {self._directory.name} did not start; read {log}"
            )

    def stop(self) -> None:
        """Stop it, if it runs."""
        for running in self._processes.alive():
            if running.name == self._name:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process = psutil.Process(running.pid)
                    process.kill()
                    process.wait()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=1):
        return True
    return False
