"""The rehearsed CloudWatch alarms of one account, on what its load balancers measure.

Statistic, threshold, period, how many periods, and what missing data means are the template's own, in real seconds.
CloudWatch looks at minutes of the clock once they are over; here the periods end now, whenever that is. So an alarm goes
off sooner, by a minute or two. The metrics are those of the user guide for Application Load Balancers.

An alarm on any other metric is kept, too, and never has data: it is declared, not rehearsed.
"""

from __future__ import annotations

import asyncio
import logging
import math
import operator
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from pydantic import Field

from rehearsal.load_balancer import ElasticLoadBalancing, full_name
from rehearsal.properties import Properties, RefusedError, parse
from rehearsal.task import now

log = logging.getLogger(__name__)

EVALUATION_SECONDS = 1.0
CHANGES_KEPT = 20
NAMESPACE = "AWS/ApplicationELB"
BALANCER = frozenset({"LoadBalancer"})
GROUP = frozenset({"LoadBalancer", "TargetGroup"})
MEASURED = {
    "HTTPCode_ELB_5XX_Count": (BALANCER,),
    "HTTPCode_Target_5XX_Count": (BALANCER, GROUP),
    "TargetResponseTime": (BALANCER, GROUP),
    "UnHealthyHostCount": (GROUP,),
}
"""The metrics that are measured, with the dimensions by which CloudWatch has them."""

COMPARISONS: dict[str, tuple[Callable[[float, float], bool], str]] = {
    "GreaterThanOrEqualToThreshold": (operator.ge, ">="),
    "GreaterThanThreshold": (operator.gt, ">"),
    "LessThanOrEqualToThreshold": (operator.le, "<="),
    "LessThanThreshold": (operator.lt, "<"),
}
STATISTICS: dict[str, Callable[[list[float]], float]] = {
    "Average": statistics.fmean,
    "Maximum": max,
    "Minimum": min,
    "SampleCount": len,
    "Sum": math.fsum,
}

State = Literal["OK", "ALARM", "INSUFFICIENT_DATA"]


class Dimension(Properties):
    """One of the names by which a metric is looked up."""

    name: str
    value: str


class Metric(Properties):
    """What any alarm watches; both are empty when it computes its value from several metrics."""

    namespace: str = ""
    metric_name: str = ""

    @property
    def not_rehearsed(self) -> str:
        """Why nothing is measured for it, or nothing."""
        if self.namespace == NAMESPACE and self.metric_name in MEASURED:
            return ""
        metric = f"{self.namespace} {self.metric_name}".strip() or "what it computes from several metrics"
        return f"{metric} is not measured in a rehearsal"


class AlarmProperties(Metric):
    """AWS::CloudWatch::Alarm on a metric that is measured. The period is in seconds."""

    dimensions: tuple[Dimension, ...] = ()
    statistic: Literal["Average", "Maximum", "Minimum", "SampleCount", "Sum"] | None = None
    extended_statistic: str | None = Field(default=None, pattern=r"^p\d{1,2}(\.\d+)?$")
    period: float = Field(gt=0)
    evaluation_periods: int = Field(ge=1)
    datapoints_to_alarm: int | None = Field(default=None, ge=1)
    threshold: float
    comparison_operator: Literal[
        "GreaterThanOrEqualToThreshold",
        "GreaterThanThreshold",
        "LessThanOrEqualToThreshold",
        "LessThanThreshold",
    ]
    treat_missing_data: Literal["missing", "ignore", "breaching", "notBreaching"] = "missing"

    @property
    def horizon(self) -> float:
        """For how many seconds a value matters."""
        return self.period * self.evaluation_periods

    def value(self, values: list[float]) -> float:
        """The statistic of one period's values. A percentile is one of the values, the nearest in rank."""
        if self.statistic:
            return STATISTICS[self.statistic](values)
        rank = math.ceil(float(str(self.extended_statistic)[1:]) / 100 * len(values))
        return sorted(values)[max(0, rank - 1)]

    def evaluate(self, points: Iterable[tuple[float, float]], at: float, state: State) -> tuple[State, str]:
        """The state at a time, and why. `points` are times and values, `state` is the one before.

        While some periods have data and too few breach, CloudWatch looks further back, and may alarm early when data is
        missing. This does neither.
        """
        periods: list[list[float]] = [[] for _ in range(self.evaluation_periods)]
        for when, value in points:
            age = int((at - when) // self.period)
            if 0 <= age < len(periods):
                periods[age].append(value)
        data = [self.value(values) if values else None for values in periods]
        compare, sign = COMPARISONS[self.comparison_operator]
        missing = self.treat_missing_data == "breaching"
        breaching = sum(missing if value is None else compare(value, self.threshold) for value in data)
        enough = self.datapoints_to_alarm or self.evaluation_periods
        if all(value is None for value in data):
            if self.treat_missing_data == "ignore":
                return state, ""
            if self.treat_missing_data == "missing":
                return "INSUFFICIENT_DATA", f"{self.metric_name} has no data"
        shown = ", ".join("no data" if value is None else f"{value:.4g}" for value in data)
        why = (
            f"{self.statistic or self.extended_statistic} of {self.metric_name} was {shown}, in periods of"
            f" {self.period:g} s, the newest first; {sign} {self.threshold:g} in {enough} of {len(data)} is an alarm"
        )
        return "ALARM" if breaching >= enough else "OK", why


class Alarm:
    """An alarm: its state, when and why that changed, and the values that still matter."""

    def __init__(self, properties: AlarmProperties | None, why_not: str) -> None:
        self.properties = properties
        self.state: State = "INSUFFICIENT_DATA"
        self.reason = why_not or "not evaluated yet"
        self.changes: deque[dict[str, str]] = deque(maxlen=CHANGES_KEPT)
        self._points: deque[tuple[float, float]] = deque()

    def record(self, metric: str, value: float, dimensions: Mapping[str, str]) -> None:
        """Take a value, if it is one that this alarm watches."""
        mine = self.properties
        if mine is None or mine.metric_name != metric:
            return
        if all(dimensions.get(wanted.name) == wanted.value for wanted in mine.dimensions):
            self._points.append((time.monotonic(), value))

    def evaluate(self) -> bool:
        """Find the state anew; whether it changed."""
        if self.properties is None:
            return False
        at = time.monotonic()
        while self._points and self._points[0][0] < at - self.properties.horizon:
            self._points.popleft()
        state, why = self.properties.evaluate(self._points, at, self.state)
        if state == self.state:
            return False
        self.state, self.reason = state, why
        self.changes.appendleft({"at": now(), "state": state, "reason": why})
        return True


class Alarms:
    """The alarms of one rehearsed account, by name."""

    def __init__(self, balancing: ElasticLoadBalancing) -> None:
        self._balancing = balancing
        self._alarms: dict[str, Alarm] = {}
        balancing.watch(self._record)
        self._loop = asyncio.create_task(self._watch())

    async def put_alarm(self, name: str, properties: Mapping[str, Any]) -> dict[str, Any]:
        """Create or update an alarm. `not_rehearsed` says why it will never have data, or nothing."""
        why_not = parse(Metric, name, properties).not_rehearsed
        parsed = None if why_not else parse(AlarmProperties, name, properties)
        if parsed:
            self._check(name, parsed)
        known = self._alarms.get(name)
        if known and known.properties and parsed:
            known.properties = parsed  # its state stays, as PutMetricAlarm has it
        else:
            self._alarms[name] = Alarm(parsed, why_not)
        return {"not_rehearsed": why_not}

    async def delete(self, kind: str, name: str) -> None:
        """Remove an alarm if it is there."""
        self._alarms.pop(name, None)

    def describe(self, kind: str, name: str) -> dict[str, Any] | None:
        """Its state, and its changes since the host started, newest first; None when there is no such alarm."""
        if alarm := self._alarms.get(name):
            return {"state": alarm.state, "reason": alarm.reason, "changes": list(alarm.changes)}
        return None

    def __contains__(self, name: str) -> bool:
        return name in self._alarms

    def on(self, names: Iterable[str]) -> dict[str, str]:
        """Those of `names` that are in ALARM, and why."""
        found = {name: alarm for name in names if (alarm := self._alarms.get(name))}
        return {name: alarm.reason for name, alarm in found.items() if alarm.state == "ALARM"}

    async def close(self) -> None:
        """Evaluate no more."""
        self._loop.cancel()

    def _check(self, name: str, parsed: AlarmProperties) -> None:
        if (parsed.statistic is None) == (parsed.extended_statistic is None):
            raise RefusedError(f"{name}: give it a Statistic or an ExtendedStatistic, and not both")
        if (parsed.datapoints_to_alarm or 1) > parsed.evaluation_periods:
            raise RefusedError(
                f"{name}: DatapointsToAlarm is more than EvaluationPeriods; it would never go off"
            )
        given = {dimension.name: dimension.value for dimension in parsed.dimensions}
        by = MEASURED[parsed.metric_name]
        if given.keys() not in by:
            ways = "; or ".join(" and ".join(sorted(way)) for way in by)
            raise RefusedError(
                f"{name}: {parsed.metric_name} by {', '.join(given) or 'nothing'} is not rehearsed; its dimensions are"
                f" {ways}"
            )
        # On AWS an alarm on what is not there waits for data for ever; here it is taken for the mistake that it is.
        there = {full_name(arn) for arn in (*self._balancing.balancers, *self._balancing.target_groups)}
        for kind, value in given.items():
            if value not in there:
                raise RefusedError(f"{name}: there is no {kind} {value}; put it first, or mend the dimension")

    def _record(self, metric: str, value: float, dimensions: Mapping[str, str]) -> None:
        for alarm in self._alarms.values():
            alarm.record(metric, value, dimensions)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(EVALUATION_SECONDS)
            try:
                self._balancing.count_unhealthy()
                for name, alarm in self._alarms.items():
                    if alarm.evaluate():
                        log.info("alarm %s: %s, %s", name, alarm.state, alarm.reason)
            except Exception:  # alarms that nobody evaluates would look like a service that is well
                log.exception("the alarms could not be evaluated; that is tried again")
