"""The settings of the load check, read from environment variables and checked once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from load_tests.api import authorization

VARIABLES = {
    "MLFLOW_TRACKING_URI": "the environment's URL, such as http://127.0.0.1:5000",
    "LOAD_USERS": "how many users work at the same time, 1 to 500",
    "LOAD_SPAWN_RATE": "how many of them start per second, 0.1 to 100",
    "LOAD_SECONDS": "how long the load lasts, from the first user's start, 5 to 3600",
    "LOAD_MAX_ERROR_RATE": "the share of requests that may fail, 0 to 1",
    "LOAD_MAX_READ_P95_MS": "95 of 100 reads answer within this many milliseconds",
    "LOAD_MAX_WRITE_P95_MS": "95 of 100 writes answer within this many milliseconds",
    "LOAD_MIN_RPS": "at least this many requests per second succeed",
    "LOAD_MAX_SLOWDOWN": "how many times the medians of the release before are allowed, 1 to 1000",
}
"""Every variable that must be set, and what it means."""

OPTIONAL = {
    "MLFLOW_TRACKING_TOKEN": "sent as a bearer token",
    "MLFLOW_TRACKING_USERNAME": "sent with MLFLOW_TRACKING_PASSWORD, in place of a token",
    "LOAD_BASELINE_PARAMETER": "the SSM parameter that keeps the figures of the release before",
}
"""What may be set. Without a place to keep them there are no figures to compare with."""


class SettingsError(Exception):
    """One or more variables are missing or wrong; the text has one sentence for each."""


@dataclass(frozen=True)
class LoadSettings:
    """What to load, how hard, and which figures pass."""

    url: str
    authorization: str | None
    users: int
    spawn_rate: float
    seconds: float
    max_error_rate: float
    max_read_p95_ms: float
    max_write_p95_ms: float
    min_rps: float
    max_slowdown: float
    baseline_parameter: str | None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> LoadSettings:
        """Read and check all variables.

        No threshold has a default, so a gate never passes on a number that nobody chose.

        Raises:
            SettingsError: With one sentence per problem, naming variable, value and mend.
        """
        reader = _Reader(environment)
        settings = cls(
            url=reader.url("MLFLOW_TRACKING_URI"),
            authorization=authorization(environment),
            users=int(reader.number("LOAD_USERS", 1, 500, whole=True)),
            spawn_rate=reader.number("LOAD_SPAWN_RATE", 0.1, 100),
            seconds=reader.number("LOAD_SECONDS", 5, 3600),
            max_error_rate=reader.number("LOAD_MAX_ERROR_RATE", 0, 1),
            max_read_p95_ms=reader.number("LOAD_MAX_READ_P95_MS", 0.001, 60_000),
            max_write_p95_ms=reader.number("LOAD_MAX_WRITE_P95_MS", 0.001, 60_000),
            min_rps=reader.number("LOAD_MIN_RPS", 0, 1_000_000),
            max_slowdown=reader.number("LOAD_MAX_SLOWDOWN", 1, 1000),
            baseline_parameter=environment.get("LOAD_BASELINE_PARAMETER") or None,
        )
        if not reader.problems and settings.users / settings.spawn_rate > settings.seconds / 2:
            reader.problems.append(
                f"LOAD_USERS={settings.users} at LOAD_SPAWN_RATE={settings.spawn_rate:g} are not all there"
                f" before half of LOAD_SECONDS={settings.seconds:g} is over: raise LOAD_SPAWN_RATE or"
                " LOAD_SECONDS."
            )
        if reader.problems:
            raise SettingsError("\n".join(reader.problems))
        return settings


class _Reader:
    """Reads variables and collects what is wrong, so that one run names every problem."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self.problems: list[str] = []

    def _text(self, name: str) -> str | None:
        text = self._environment.get(name, "").strip()
        if not text:
            self.problems.append(f"{name} is not set: set it to {VARIABLES[name]}.")
            return None
        return text

    def url(self, name: str) -> str:
        text = self._text(name)
        if text is None:
            return ""
        parts = urlsplit(text)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            self.problems.append(f"{name}={text} is not an http or https URL: set it to {VARIABLES[name]}.")
        return text.rstrip("/")

    def number(self, name: str, low: float, high: float, *, whole: bool = False) -> float:
        text = self._text(name)
        if text is None:
            return low
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high or (whole and value != int(value)):
            kind = "a whole number" if whole else "a number"
            self.problems.append(
                f"{name}={text} is not {kind} from {low:g} to {high:g}: set it to {VARIABLES[name]}."
            )
            return low
        return value
