"""`python -m tests.benchmarks.soak`: load this image's server for an hour, and see how much memory it takes."""

from __future__ import annotations

# First, because it makes sockets cooperative before anything else imports them.
import locust  # noqa: F401  # isort: skip

import argparse
import json
import sys
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import gevent

from tests.drills.old_versions import Server
from tests.drills.places import folder

from . import mix
from .fill import fill
from .measure import rounded
from .places import BenchmarkFailed, Places
from .report import render
from .run import commit, machine, say
from .servers import cpu_seconds, image, image_side, memory_mib, started

RUNS = 10_000
"""In the database; filled by MLflow's own tables, as in `make bench`."""
USERS = 8
CYCLE_SECONDS = 60
"""Each cycle makes its runs, reads back what was acknowledged, and removes them."""
SAMPLE_SECONDS = 5.0
LIMIT_MIB = 1024
"""The task that the server must fit into."""


def main() -> int:
    """Load the server; 1 if a request failed, something acknowledged was lost, or the memory went beyond the limit."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument(
        "--to", type=Path, default=Path("docs"), help="the folder to write soak.md and soak.json into"
    )
    asked = parser.parse_args()
    if asked.minutes < 1:
        parser.error(f"--minutes {asked.minutes}: give at least 1")
    asked.to.mkdir(parents=True, exist_ok=True)
    try:
        figures = soak(asked.minutes)
    except BenchmarkFailed as error:
        print(f"The load ended: {error}", file=sys.stderr)
        return 1
    (asked.to / "soak.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (asked.to / "soak.md").write_text(render("soak.md.j2", figures=figures), encoding="utf-8")
    say(f"wrote {asked.to / 'soak.md'}")
    return 0 if not figures["failures"] and figures["peak_mib"] < LIMIT_MIB else 1


def soak(minutes: int) -> dict[str, Any]:
    """Load one server with production settings for that long.

    Raises:
        BenchmarkFailed: The server cannot be had, or ended.
    """
    side = image_side(image())
    figures: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "machine": machine(),
        "settings": side.settings,
        "runs": RUNS,
        "users": USERS,
        "limit_mib": LIMIT_MIB,
        "cycles": [],
        "errors": {},
    }
    with folder() as place:
        places = Places(place)
        try:
            say(f"filling a database with {RUNS} runs")
            where = places.create("soaked")
            side.prepare(where)
            fill(where, RUNS)
            server, _ = started(side, where)
            try:
                figures["rest_mib"] = rounded(memory_mib(server))
                _load(server, minutes, figures)
            finally:
                server.kill()
        finally:
            places.remove()
    cycles = figures["cycles"]
    figures["peak_mib"] = max(cycle["peak_mib"] for cycle in cycles)
    figures["requests"] = sum(cycle["requests"] for cycle in cycles)
    figures["failures"] = sum(cycle["failures"] for cycle in cycles)
    return figures


def _load(server: Server, minutes: int, figures: dict[str, Any]) -> None:
    begin = time.monotonic()
    peak = 0.0

    def watch() -> None:
        nonlocal peak
        while True:
            peak = max(peak, memory_mib(server))
            gevent.sleep(SAMPLE_SECONDS)

    watching = gevent.spawn(watch)
    try:
        while (passed := (time.monotonic() - begin) / 60) < minutes:
            found = mix.load(server.url, USERS, CYCLE_SECONDS, partial(cpu_seconds, server))
            if server.process.poll() is not None:
                raise BenchmarkFailed(f"the server ended after {passed:.0f} minutes:\n{server.output}")
            cycle = {
                "minute": round(passed),
                "requests": found["requests"],
                "failures": found["failures"],
                "peak_mib": rounded(peak),
            }
            figures["cycles"].append(cycle)
            figures["errors"].update(found["errors"])
            say(
                f"minute {passed:.0f}: {found['requests']} requests, {found['failures']} failures, {peak:.0f} MiB at most"
            )
            peak = 0.0
    finally:
        watching.kill()


if __name__ == "__main__":
    sys.exit(main())
