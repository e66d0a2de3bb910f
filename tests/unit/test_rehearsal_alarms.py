"""How the rehearsed alarms read a template and judge what was measured."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rehearsal.alarms import MEASURED, NAMESPACE, AlarmProperties, Metric
from rehearsal.properties import RefusedError, parse

from .assembly import Platform

NOW = 1000.0
ERRORS = {
    "Namespace": NAMESPACE,
    "MetricName": "HTTPCode_Target_5XX_Count",
    "Statistic": "Sum",
    "Period": 60,
    "EvaluationPeriods": 1,
    "Threshold": 10,
    "ComparisonOperator": "GreaterThanOrEqualToThreshold",
    "TreatMissingData": "notBreaching",
}


def state(points: list[tuple[float, float]], before: str = "OK", **changed: Any) -> str:
    """What an alarm makes of values, given with how many seconds ago each was measured."""
    alarm = parse(AlarmProperties, "alarm", {**ERRORS, **changed})
    measured = [(NOW - ago, value) for ago, value in points]
    return alarm.evaluate(measured, NOW, before)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("comparison", "alarms"),
    [
        ("GreaterThanOrEqualToThreshold", [False, True, True]),
        ("GreaterThanThreshold", [False, False, True]),
        ("LessThanOrEqualToThreshold", [True, True, False]),
        ("LessThanThreshold", [True, False, False]),
    ],
)
def test_comparisons(comparison: str, alarms: list[bool]) -> None:
    states = [state([(1, value)], ComparisonOperator=comparison) for value in (9, 10, 11)]
    assert [one == "ALARM" for one in states] == alarms


@pytest.mark.parametrize(
    ("statistic", "value"),
    [("Sum", 10), ("Average", 2.5), ("Minimum", 1), ("Maximum", 4), ("SampleCount", 4)],
)
def test_statistics(statistic: str, value: float) -> None:
    points: list[tuple[float, float]] = [(4, 1), (3, 2), (2, 3), (1, 4)]
    assert state(points, Statistic=statistic, Threshold=value) == "ALARM"
    assert state(points, Statistic=statistic, Threshold=value + 0.01) == "OK"


@pytest.mark.parametrize(("percentile", "slow"), [("p50", 51), ("p90", 11), ("p95", 6), ("p99.5", 1)])
def test_a_percentile_is_the_value_nearest_in_rank(percentile: str, slow: int) -> None:
    """So many slow answers of a hundred reach it; one less does not."""
    changed: Any = {"Statistic": None, "ExtendedStatistic": percentile, "Threshold": 2}
    for count, expected in ((slow - 1, "OK"), (slow, "ALARM")):
        assert state([(1, 3 if n < count else 0.1) for n in range(100)], **changed) == expected


def test_only_values_of_the_last_period_count() -> None:
    assert state([(61, 100), (59, 4), (1, 5)]) == "OK"
    assert state([(59, 5), (1, 5)]) == "ALARM"
    assert state([(59, 5), (1, 5)], Period=30) == "OK"


def test_every_period_must_breach_unless_fewer_are_enough() -> None:
    """Periods are minutes back from now: the first value is five minutes old."""
    long: list[tuple[float, float]] = [(270, 20), (210, 20), (150, 20), (90, 20), (30, 20)]
    assert state(long, EvaluationPeriods=5) == "ALARM"
    for gap in range(5):
        quiet = [(ago, 1 if n == gap else value) for n, (ago, value) in enumerate(long)]
        assert state(quiet, EvaluationPeriods=5) == "OK"
        assert state(quiet, EvaluationPeriods=5, DatapointsToAlarm=4) == "ALARM"
    assert state(long[2:], EvaluationPeriods=5, DatapointsToAlarm=4) == "OK"
    assert state(long, EvaluationPeriods=6) == "OK"


@pytest.mark.parametrize(
    ("treat", "nothing", "half"),
    [
        ("notBreaching", "OK", "OK"),
        ("breaching", "ALARM", "ALARM"),
        ("missing", "INSUFFICIENT_DATA", "OK"),
        ("ignore", "the one before", "OK"),
    ],
)
def test_missing_data(treat: str, nothing: str, half: str) -> None:
    """With no data at all, and with data in one of two periods, which breaches."""
    changed: Any = {"TreatMissingData": treat, "EvaluationPeriods": 2}
    assert state([], "the one before", **changed) == nothing
    assert state([(1, 20)], **changed) == half
    assert state([(1, 20)], **changed, DatapointsToAlarm=1) == "ALARM"


def test_the_reason_says_what_was_measured_and_what_would_have_been_too_much() -> None:
    alarm = parse(AlarmProperties, "alarm", {**ERRORS, "EvaluationPeriods": 2})
    assert alarm.evaluate([(NOW - 1, 7), (NOW - 2, 5)], NOW, "OK") == (
        "OK",
        "Sum of HTTPCode_Target_5XX_Count was 12, no data, in periods of 60 s, the newest first;"
        " >= 10 in 2 of 2 is an alarm",
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"ComparisonOperator": "GreaterThanUpperThreshold"}, "mlflow: ComparisonOperator: Input should be"),
        ({"Statistic": None, "ExtendedStatistic": "tm90"}, "mlflow: ExtendedStatistic: String should match"),
        ({"TreatMissingData": "guess"}, "mlflow: TreatMissingData: Input should be"),
        ({"Period": 0}, "mlflow: Period: Input should be greater than 0"),
        ({"EvaluationPeriods": 0}, "mlflow: EvaluationPeriods: Input should be greater"),
        ({"Threshold": None}, "mlflow: Threshold: Input should be a valid number"),
    ],
)
def test_what_is_not_understood_is_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RefusedError, match=sentence):
        parse(AlarmProperties, "mlflow", ERRORS | change)


def test_each_alarm_of_the_platform_is_understood_or_said_not_to_be_rehearsed(platform: Platform) -> None:
    understood = set()
    for alarm in platform.all("AWS::CloudWatch::Alarm"):
        metric = parse(Metric, "alarm", alarm.properties)
        if metric.not_rehearsed:
            assert metric.not_rehearsed == (
                f"{alarm.properties['Namespace']} {alarm.properties['MetricName']} is not measured in a rehearsal"
            )
            continue
        # The values of dimensions are references, which a deployment resolves.
        text = json.loads(json.dumps(alarm.properties))
        for dimension in text["Dimensions"]:
            dimension["Value"] = str(dimension["Value"])
        parsed = parse(AlarmProperties, "alarm", text)
        assert {dimension.name for dimension in parsed.dimensions} in MEASURED[parsed.metric_name]
        understood.add(parsed.metric_name)
    assert understood == set(MEASURED)
