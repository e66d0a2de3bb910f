"""`python -m load_tests`: load the MLflow server at MLFLOW_TRACKING_URI, then pass or fail."""

from __future__ import annotations

# First, because it makes sockets cooperative before anything else imports them.
import locust  # noqa: F401  # isort: skip

import argparse
import os
import signal
import sys
from pathlib import Path

import gevent
from gevent.event import Event

from load_tests import baseline, reports
from load_tests.api import Api, ApiError
from load_tests.ledger import Ledger
from load_tests.mix import OPERATIONS
from load_tests.place import Place
from load_tests.run import Load, run_load
from load_tests.settings import OPTIONAL, VARIABLES, LoadSettings, SettingsError
from load_tests.verdict import Baseline, Check, Figures, Verdict, judge, measure

PASSED, FAILED, BAD_SETTINGS = 0, 1, 2
REPORTS = Path("reports")

_HELP = f"""\
Puts a mixed MLflow workload on a server, compares what it measures with thresholds, and removes what it made.
It is steered by environment variables:

{"".join(f"  {name:<25}{meaning}{chr(10)}" for name, meaning in VARIABLES.items())}\
{"".join(f"  {name:<25}optional: {meaning}{chr(10)}" for name, meaning in OPTIONAL.items())}
Only requests after the last user's start are measured. A release that passes leaves its medians for the next one.
Reports, in reports/: load.html, load.xml (JUnit), load.json, verdict.txt.
Exit status: {PASSED} PASS, {FAILED} FAIL, {BAD_SETTINGS} wrong settings.

For example:

  MLFLOW_TRACKING_URI=http://127.0.0.1:5000 LOAD_USERS=4 LOAD_SPAWN_RATE=4 LOAD_SECONDS=20 \\
  LOAD_MAX_ERROR_RATE=0 LOAD_MAX_READ_P95_MS=1000 LOAD_MAX_WRITE_P95_MS=1000 LOAD_MIN_RPS=3 LOAD_MAX_SLOWDOWN=5 \\
  python -m load_tests
"""


def main() -> int:
    """Run the check and return the exit status."""
    argparse.ArgumentParser(
        prog="python -m load_tests",
        usage="%(prog)s",
        description=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    try:
        settings = LoadSettings.from_environment(os.environ)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return BAD_SETTINGS
    stop = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, stop.set)
    parameter = settings.baseline_parameter
    try:
        before = baseline.read(parameter) if parameter else None
        figures, verdict = check(settings, stop, before)
        if verdict.passed and parameter:
            baseline.write(parameter, _kept(figures, settings))
    except baseline.BaselineError as error:
        print(f"FAIL: {error}", file=sys.stderr)
        return FAILED
    return PASSED if verdict.passed else FAILED


def check(settings: LoadSettings, stop: Event, before: Baseline | None) -> tuple[Figures, Verdict]:
    """Prepare, load, read back, remove, judge and report."""
    reports.remove_old(REPORTS)
    api, place, ledger, load = Api(settings.url, settings.authorization), Place(), Ledger(), Load()
    unprepared, lost = "", []
    size = f"{settings.users} users, {settings.seconds:g} s"
    print(f"Load check of {settings.url}: {size}, as {place.name}", flush=True)
    try:
        place.prepare(api, settings.users)
        load = run_load(settings, place, ledger, stop)
        lost = ledger.read_back(api)
    except ApiError as error:
        unprepared = f"the load could not be prepared: {error}"
    finally:
        leftovers = place.remove(api)
    figures = measure(load.samples, load.seconds, OPERATIONS)
    if unprepared:
        left_behind = [Check("left behind", False, leftover) for leftover in leftovers]
        verdict = Verdict([Check("prepared", False, unprepared), *left_behind])
    else:
        verdict = judge(
            figures,
            settings,
            {
                "cut short": load.incomplete,
                "wrong answers": ledger.wrong_answers,
                "acknowledged but lost": lost,
                "left behind": leftovers,
            },
            before,
        )
    reports.write(REPORTS, figures, verdict, load.html)
    print(reports.table(figures, verdict), flush=True)
    return figures, verdict


def _kept(figures: Figures, settings: LoadSettings) -> Baseline:
    """What this release, which has passed, leaves for the next one."""
    assert figures.read_p50_ms is not None
    assert figures.write_p50_ms is not None
    return Baseline(
        release=os.environ.get("CODEBUILD_RESOLVED_SOURCE_VERSION", "by hand")[:12],
        users=settings.users,
        read_p50_ms=round(figures.read_p50_ms, 1),
        write_p50_ms=round(figures.write_p50_ms, 1),
    )


if __name__ == "__main__":
    sys.exit(main())
