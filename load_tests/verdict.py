"""From the requests of a load to a verdict: pure computation, no clock, no network."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from load_tests.settings import LoadSettings

Kind = Literal["read", "write"]
KINDS: tuple[Kind, Kind] = ("read", "write")

UNNOTICED_MS = 50
"""A median below this passes whatever it was before: nobody notices it, and so small a figure is easily multiplied by
what else the machine does."""


@dataclass(frozen=True)
class Sample:
    """One request: its operation, how long it took, and what went wrong, if anything did."""

    operation: str
    milliseconds: float
    error: str | None = None


@dataclass(frozen=True)
class OperationFigures:
    """The figures of one operation. Percentiles are None when it was never exercised."""

    kind: Kind
    requests: int
    failures: int
    p50_ms: float | None
    p95_ms: float | None
    max_ms: float | None


@dataclass(frozen=True)
class Figures:
    """The figures of one load over its steady period.

    Percentiles count failed requests too: one that ran into its timeout was slow, whatever else it was.
    `rps` counts successful requests only: refusing quickly is not throughput.
    """

    seconds: float
    requests: int
    failures: int
    rps: float
    error_rate: float
    read_p50_ms: float | None
    read_p95_ms: float | None
    write_p50_ms: float | None
    write_p95_ms: float | None
    operations: Mapping[str, OperationFigures]
    errors: Mapping[str, int]


@dataclass(frozen=True)
class Baseline:
    """The medians, in milliseconds, of the last release that passed, and under how many users they were measured."""

    release: str
    users: int
    read_p50_ms: float
    write_p50_ms: float


@dataclass(frozen=True)
class Check:
    """One condition of the verdict: what was measured, what was asked, and the sentence that says so.

    `threshold` marks a figure that the settings set a limit to; a verdict that passed is told by these.
    """

    name: str
    passed: bool
    sentence: str
    threshold: bool = False


@dataclass(frozen=True)
class Verdict:
    """PASS if every check passed, else FAIL with the sentence of each that did not."""

    checks: Sequence[Check]

    @property
    def passed(self) -> bool:
        """Whether the release may go on. No check at all is not a pass."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    def __str__(self) -> str:
        if self.passed:
            return "PASS: " + "; ".join(check.sentence for check in self.checks if check.threshold)
        failed = [check.sentence for check in self.checks if not check.passed]
        return "FAIL: " + "; ".join(failed or ["nothing was checked"])


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that `share` (0 to 1) of all values do not exceed: nearest rank; None if empty."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def measure(samples: Sequence[Sample], seconds: float, operations: Mapping[str, Kind]) -> Figures:
    """Compute the figures of the requests that began within a steady period of `seconds`.

    Raises:
        ValueError: If a sample names an operation that is not in `operations`.
    """
    if unknown := {sample.operation for sample in samples} - set(operations):
        raise ValueError(f"samples of operations that are not in the mix: {', '.join(sorted(unknown))}")
    errors = Counter(f"{sample.operation}: {sample.error}" for sample in samples if sample.error is not None)
    failures = errors.total()

    def times(*names: str) -> list[float]:
        return [sample.milliseconds for sample in samples if sample.operation in names]

    reads, writes = (times(*(name for name, kind in operations.items() if kind == one)) for one in KINDS)

    def of(name: str) -> OperationFigures:
        mine = times(name)
        return OperationFigures(
            kind=operations[name],
            requests=len(mine),
            failures=sum(sample.operation == name and sample.error is not None for sample in samples),
            p50_ms=percentile(mine, 0.50),
            p95_ms=percentile(mine, 0.95),
            max_ms=max(mine, default=None),
        )

    return Figures(
        seconds=seconds,
        requests=len(samples),
        failures=failures,
        rps=(len(samples) - failures) / seconds if seconds > 0 else 0.0,
        error_rate=failures / len(samples) if samples else 0.0,
        read_p50_ms=percentile(reads, 0.50),
        read_p95_ms=percentile(reads, 0.95),
        write_p50_ms=percentile(writes, 0.50),
        write_p95_ms=percentile(writes, 0.95),
        operations={name: of(name) for name in operations},
        errors=dict(errors),
    )


def judge(
    figures: Figures,
    settings: LoadSettings,
    problems: Mapping[str, Sequence[str]],
    before: Baseline | None = None,
) -> Verdict:
    """Compare the figures with the thresholds, and with those of the release before.

    Args:
        problems: What else was looked at, by name, each with the sentences that must not be there: wrong
            answers, writes that were acknowledged and lost, things that could not be removed.
    """
    made = (
        f"{figures.requests} requests in {figures.seconds:.0f} s"
        if figures.requests
        else "no request was made"
    )
    idle = [name for name, operation in figures.operations.items() if operation.requests == 0]
    checks = [
        Check("requests were made", figures.requests > 0, made),
        Check(
            "every operation was exercised",
            not idle,
            f"never exercised: {', '.join(idle)} (raise LOAD_SECONDS or LOAD_USERS)"
            if idle
            else f"{len(figures.operations)} operations exercised",
        ),
        _at_most("error rate", figures.error_rate, settings.max_error_rate, _percent),
        _at_most("read p95", figures.read_p95_ms, settings.max_read_p95_ms, _milliseconds),
        _at_most("write p95", figures.write_p95_ms, settings.max_write_p95_ms, _milliseconds),
        Check(
            "throughput",
            figures.rps >= settings.min_rps,
            f"throughput {figures.rps:.1f} requests/s {'>=' if figures.rps >= settings.min_rps else '<'}"
            f" {settings.min_rps:g} requests/s",
            threshold=True,
        ),
    ]
    if before is not None:
        checks += _slowdown(figures, settings, before)
    for name, sentences in problems.items():
        checks.append(Check(name, not sentences, _some(name, sentences)))
    return Verdict(checks)


def _slowdown(figures: Figures, settings: LoadSettings, before: Baseline) -> Iterator[Check]:
    if before.users != settings.users:
        sentence = f"not compared with release {before.release}, which had {before.users} users and not {settings.users}"
        yield Check("slowdown", True, sentence)
        return
    for kind, median, earlier in (
        ("read", figures.read_p50_ms, before.read_p50_ms),
        ("write", figures.write_p50_ms, before.write_p50_ms),
    ):
        if median is None:
            continue  # that nothing was measured has failed already
        limit = max(settings.max_slowdown * earlier, UNNOTICED_MS)
        passed = median <= limit
        sentence = (
            f"{kind} median {_milliseconds(median)}, {median / earlier:.1f} times the {_milliseconds(earlier)} of release"
            f" {before.release}"
        )
        if not passed:
            sentence += (
                f" (at most {settings.max_slowdown:g} times; if it is meant to be slower, raise max_slowdown)"
            )
        yield Check(f"{kind} slowdown", passed, sentence, threshold=True)


def _percent(share: float) -> str:
    return f"{share:.2%}"


def _milliseconds(value: float) -> str:
    return f"{value:.0f} ms" if value >= 10 else f"{value:.3g} ms"


def _at_most(name: str, value: float | None, limit: float, show: Callable[[float], str]) -> Check:
    if value is None:
        return Check(name, False, f"{name} unknown: nothing was measured")
    passed = value <= limit
    return Check(
        name, passed, f"{name} {show(value)} {'<=' if passed else '>'} {show(limit)}", threshold=True
    )


def _some(name: str, sentences: Sequence[str], shown: int = 3) -> str:
    if not sentences:
        return f"{name}: none"
    more = f" and {len(sentences) - shown} more" if len(sentences) > shown else ""
    return f"{name}: " + ", ".join(sentences[:shown]) + more
