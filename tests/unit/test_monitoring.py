"""Alarms: each names its cause and what a person does about it, and watches what is there."""

from __future__ import annotations

import json

import pytest

from .assembly import Json, Platform

EXPECTED = {
    "ServerErrors": "HTTPCode_Target_5XX_Count",
    "BalancerErrors": "HTTPCode_ELB_5XX_Count",
    "UnhealthyTasks": "UnHealthyHostCount",
    "SlowAnswers": "TargetResponseTime",
    "ServiceCpu": "CPUUtilization",
    "ServiceMemory": "MemoryUtilization",
    "DatabaseCpu": "CPUUtilization",
    "DatabaseStorage": "FreeStorageSpace",
}


@pytest.fixture
def alarms(platform: Platform) -> dict[str, Json]:
    return {
        alarm.properties["AlarmName"].removeprefix(f"{platform.prefix}-"): alarm.properties
        for alarm in platform.all("AWS::CloudWatch::Alarm")
    }


def test_what_is_watched(alarms: dict[str, Json]) -> None:
    assert {name: alarm["MetricName"] for name, alarm in alarms.items()} == EXPECTED


def test_each_alarm_says_what_it_means(alarms: dict[str, Json]) -> None:
    for name, alarm in alarms.items():
        assert len(alarm["AlarmDescription"].split()) >= 8, name
        assert alarm["AlarmDescription"].endswith("."), name


def test_silence_is_no_alarm(alarms: dict[str, Json]) -> None:
    """A service without requests sends no data; it would wake somebody every night."""
    assert {alarm["TreatMissingData"] for alarm in alarms.values()} == {"notBreaching"}


def test_storage_alarms_when_little_is_left_and_the_rest_when_much_is_used(alarms: dict[str, Json]) -> None:
    for name, alarm in alarms.items():
        low = name == "DatabaseStorage"
        expected = "LessThanThreshold" if low else "GreaterThanOrEqualToThreshold"
        assert alarm["ComparisonOperator"] == expected, name
    assert alarms["DatabaseStorage"]["Threshold"] == 5 * 2**30


def test_alarms_watch_this_environment(platform: Platform, alarms: dict[str, Json]) -> None:
    watched = {
        "AWS/RDS": "<data/Database>",
        "AWS/ECS": "<tracking/Service/Service.Name>",
        "AWS/ApplicationELB": "<tracking/",
    }
    for name, alarm in alarms.items():
        assert watched[alarm["Namespace"]] in json.dumps(alarm["Dimensions"]), name


def test_the_cpu_alarm_is_above_what_scaling_aims_at(platform: Platform, alarms: dict[str, Json]) -> None:
    (cpu,) = (
        configuration["TargetValue"]
        for policy in platform.all("AWS::ApplicationAutoScaling::ScalingPolicy")
        if (configuration := policy.properties["TargetTrackingScalingPolicyConfiguration"])[
            "PredefinedMetricSpecification"
        ]["PredefinedMetricType"]
        == "ECSServiceAverageCPUUtilization"
    )
    assert alarms["ServiceCpu"]["Threshold"] > cpu
