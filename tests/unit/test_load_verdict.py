"""The load check's arithmetic: settings, figures, verdict, reports. No server, no clock."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from load_tests import reports
from load_tests.api import Api
from load_tests.ledger import history_holds
from load_tests.place import Place
from load_tests.settings import LoadSettings, SettingsError
from load_tests.verdict import UNNOTICED_MS, Baseline, Kind, Sample, Verdict, judge, measure, percentile

ENVIRONMENT = {
    "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000/",
    "LOAD_USERS": "4",
    "LOAD_SPAWN_RATE": "2",
    "LOAD_SECONDS": "20",
    "LOAD_MAX_ERROR_RATE": "0.01",
    "LOAD_MAX_READ_P95_MS": "400",
    "LOAD_MAX_WRITE_P95_MS": "500",
    "LOAD_MIN_RPS": "9",
    "LOAD_MAX_SLOWDOWN": "4",
}
SETTINGS = LoadSettings.from_environment(ENVIRONMENT)
MIX: dict[str, Kind] = {"get run": "read", "search runs": "read", "log metric": "write"}
FINE = (
    [Sample("get run", 10.0)] * 60 + [Sample("search runs", 300.0)] * 20 + [Sample("log metric", 20.0)] * 20
)


def verdict(
    samples: list[Sample],
    settings: LoadSettings = SETTINGS,
    problems: Mapping[str, list[str]] | None = None,
    before: Baseline | None = None,
) -> Verdict:
    return judge(measure(samples, 10.0, MIX), settings, problems or {}, before)


def test_a_load_within_its_thresholds_passes() -> None:
    assert str(verdict(FINE)).startswith("PASS: error rate 0.00% <= ")
    assert verdict(FINE).passed


def test_figures() -> None:
    figures = measure(
        [*FINE, Sample("get run", 10.0, "HTTP 503"), Sample("get run", 10.0, "HTTP 503")], 10.0, MIX
    )
    assert (figures.requests, figures.failures, figures.rps) == (102, 2, 10.0)
    assert figures.error_rate == pytest.approx(2 / 102)
    assert (figures.read_p95_ms, figures.write_p95_ms) == (300.0, 20.0)
    assert figures.errors == {"get run: HTTP 503": 2}
    assert figures.operations["get run"].failures == 2
    assert figures.operations["search runs"].requests == 20


@pytest.mark.parametrize(
    ("samples", "sentence"),
    [
        ([*FINE, *[Sample("log metric", 812.4)] * 2], "write p95 812 ms > 500 ms"),
        ([*FINE, *[Sample("search runs", 450.0)] * 6], "read p95 450 ms > 400 ms"),
        ([*FINE, *[Sample("get run", 1.0, "HTTP 500")] * 2], "error rate 1.96% > 1.00%"),
        (FINE[::2] + FINE[:35], "throughput 8.5 requests/s < 9 requests/s"),
        ([s for s in FINE * 3 if s.operation != "search runs"], "never exercised: search runs"),
    ],
)
def test_each_threshold_stops_alone_and_names_its_number(samples: list[Sample], sentence: str) -> None:
    result = verdict(samples)
    assert not result.passed
    assert str(result).startswith(f"FAIL: {sentence}")
    assert [check.passed for check in result.checks].count(False) == 1


def _steady(milliseconds: float) -> list[Sample]:
    return [Sample(name, milliseconds) for name in MIX] * 40


BEFORE = Baseline("0a1b2c3d4e5f", users=4, read_p50_ms=20.0, write_p50_ms=30.0)


@pytest.mark.parametrize(
    ("milliseconds", "failed"),
    [
        (80.0, []),
        (81.0, ["read slowdown"]),
        (120.0, ["read slowdown"]),
        (121.0, ["read slowdown", "write slowdown"]),
    ],
)
def test_a_release_that_is_much_slower_than_the_one_before_fails(
    milliseconds: float, failed: list[str]
) -> None:
    """Also when it meets every absolute threshold."""
    result = verdict(_steady(milliseconds), before=BEFORE)
    assert [check.name for check in result.checks if not check.passed] == failed
    assert verdict(_steady(milliseconds)).passed


def test_a_slowdown_says_what_to_do() -> None:
    assert (
        "read median 200 ms, 10.0 times the 20 ms of release 0a1b2c3d4e5f (at most 4 times; if it is meant to be slower,"
        " raise max_slowdown)"
    ) in str(verdict(_steady(200.0), before=BEFORE))


def test_a_median_that_nobody_notices_passes() -> None:
    quick = replace(BEFORE, read_p50_ms=1.0, write_p50_ms=1.0)
    assert verdict(_steady(UNNOTICED_MS), before=quick).passed
    assert not verdict(_steady(UNNOTICED_MS + 1), before=quick).passed


def test_another_number_of_users_is_not_compared() -> None:
    result = verdict(_steady(300.0), before=replace(BEFORE, users=8))
    assert result.passed
    assert any(
        check.sentence == "not compared with release 0a1b2c3d4e5f, which had 8 users and not 4"
        for check in result.checks
    )


def test_all_failed_numbers_are_named_at_once() -> None:
    text = str(verdict([Sample("log metric", 900.0, "timed out")] * 10))
    for part in (
        "never exercised: get run, search runs",
        "error rate 100.00%",
        "write p95 900 ms",
        "throughput 0.0",
    ):
        assert part in text


def test_a_value_at_its_threshold_passes() -> None:
    settings = replace(
        SETTINGS, max_read_p95_ms=300.0, max_write_p95_ms=20.0, min_rps=10.0, max_error_rate=0.0
    )
    assert verdict(FINE, settings).passed


def test_no_request_at_all_fails() -> None:
    lax = replace(SETTINGS, min_rps=0.0, max_error_rate=1.0)
    result = verdict([], lax)
    assert not result.passed
    assert "no request was made" in str(result)
    assert not judge(measure([], 0.0, {}), lax, {}).passed


def test_nothing_checked_is_not_a_pass() -> None:
    assert not Verdict([]).passed
    assert str(Verdict([])) == "FAIL: nothing was checked"


def test_timeouts_count_as_slow_and_as_failed() -> None:
    figures = measure([*FINE, *[Sample("log metric", 10_000.0, "timed out")] * 2], 10.0, MIX)
    assert figures.write_p95_ms == 10_000.0
    assert figures.failures == 2


def test_refusing_quickly_is_not_throughput() -> None:
    assert measure([Sample("get run", 1.0, "HTTP 503")] * 1000, 10.0, MIX).rps == 0.0


@pytest.mark.parametrize("problem", ["wrong answers", "acknowledged but lost", "left behind", "cut short"])
def test_any_problem_stops(problem: str) -> None:
    result = verdict(FINE, problems={problem: ["run 1: param a is None", "b", "c", "d", "e"], "other": []})
    assert str(result) == f"FAIL: {problem}: run 1: param a is None, b, c and 2 more"


def test_a_sample_outside_the_mix_is_refused() -> None:
    with pytest.raises(ValueError, match="delete everything"):
        measure([Sample("delete everything", 1.0)], 10.0, MIX)


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([], 0.95, None),
        ([7.0], 0.95, 7.0),
        ([float(n) for n in range(1, 101)], 0.95, 95.0),
        ([float(n) for n in range(20, 0, -1)], 0.95, 19.0),
        ([1.0, 2.0], 0.5, 1.0),
    ],
)
def test_percentile_is_the_nearest_rank(values: list[float], share: float, expected: float | None) -> None:
    assert percentile(values, share) == expected


def test_what_cannot_be_removed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("load_tests.place.time.sleep", waited.append)
    place = Place("load-check-1", experiment_id="57", artifacts="57", models=["load-check-1-0"])
    left = place.remove(Api("http://127.0.0.1:9", None))
    for what, sentence in zip(
        ("registered model load-check-1-0", "traces", "artifact", "experiment"), left, strict=True
    ):
        assert sentence.startswith(what)
        assert "remove it by hand" in sentence
    assert sum(waited) < 10


def test_history_must_hold_every_acknowledged_value() -> None:
    history: list[dict[str, Any]] = [{"step": "1", "value": 0.5}, {"step": 2, "value": 0.25}, {"value": 1.0}]
    assert history_holds(history, {0: 1.0, 1: 0.5})
    assert not history_holds(history, {1: 0.5, 3: 0.5})
    assert not history_holds(history, {1: 0.5, 2: 0.5})


def test_settings_as_the_environment_has_them() -> None:
    assert SETTINGS.url == "http://127.0.0.1:5000"
    assert SETTINGS.authorization is None
    assert (SETTINGS.users, SETTINGS.spawn_rate, SETTINGS.seconds) == (4, 2.0, 20.0)


@pytest.mark.parametrize(
    ("signed_in", "header"),
    [
        ({"MLFLOW_TRACKING_TOKEN": "t"}, "Bearer t"),
        ({"MLFLOW_TRACKING_USERNAME": "gates", "MLFLOW_TRACKING_PASSWORD": "ü:p"}, "Basic Z2F0ZXM6w7w6cA=="),
        ({"MLFLOW_TRACKING_USERNAME": "gates", "MLFLOW_TRACKING_PASSWORD": ""}, None),
    ],
)
def test_the_load_signs_in_as_a_client_would(signed_in: dict[str, str], header: str | None) -> None:
    assert LoadSettings.from_environment({**ENVIRONMENT, **signed_in}).authorization == header


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("MLFLOW_TRACKING_URI", "", "MLFLOW_TRACKING_URI is not set: set it to the environment's URL"),
        (
            "MLFLOW_TRACKING_URI",
            "sqlite:///a.db",
            "MLFLOW_TRACKING_URI=sqlite:///a.db is not an http or https URL",
        ),
        ("MLFLOW_TRACKING_URI", "http://", "is not an http or https URL"),
        ("LOAD_USERS", " ", "LOAD_USERS is not set: set it to how many users"),
        ("LOAD_USERS", "0", "LOAD_USERS=0 is not a whole number from 1 to 500"),
        ("LOAD_USERS", "2.5", "LOAD_USERS=2.5 is not a whole number"),
        ("LOAD_SPAWN_RATE", "fast", "LOAD_SPAWN_RATE=fast is not a number from 0.1 to 100"),
        ("LOAD_SPAWN_RATE", "0.1", "LOAD_USERS=4 at LOAD_SPAWN_RATE=0.1 are not all there before half"),
        ("LOAD_SECONDS", "nan", "LOAD_SECONDS=nan is not a number from 5 to 3600"),
        ("LOAD_SECONDS", "inf", "LOAD_SECONDS=inf is not a number"),
        ("LOAD_MAX_ERROR_RATE", "5", "LOAD_MAX_ERROR_RATE=5 is not a number from 0 to 1"),
        ("LOAD_MAX_READ_P95_MS", "0", "LOAD_MAX_READ_P95_MS=0 is not a number"),
        ("LOAD_MAX_WRITE_P95_MS", "-1", "LOAD_MAX_WRITE_P95_MS=-1 is not a number"),
        ("LOAD_MIN_RPS", "-0.5", "LOAD_MIN_RPS=-0.5 is not a number"),
    ],
)
def test_wrong_settings_are_refused_in_one_sentence(name: str, value: str, part: str) -> None:
    with pytest.raises(SettingsError) as refused:
        LoadSettings.from_environment({**ENVIRONMENT, name: value})
    assert part in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_all_wrong_settings_are_named_at_once() -> None:
    with pytest.raises(SettingsError) as refused:
        LoadSettings.from_environment({})
    assert [line.split()[0] for line in str(refused.value).splitlines()] == list(ENVIRONMENT)


def test_reports_say_what_the_verdict_says(tmp_path: Path) -> None:
    samples = [*FINE, *[Sample("log metric", 812.0, "HTTP 500: \x00<oops>")] * 2]
    figures = measure(samples, 10.0, MIX)
    result = judge(figures, SETTINGS, {"left behind": []})
    reports.write(tmp_path, figures, result, "<html>")

    content = json.loads((tmp_path / "load.json").read_text())
    assert content["verdict"] == "FAIL"
    assert (content["requests"], content["failures"], content["rps"]) == (102, 2, 10.0)
    assert (content["read_p95_ms"], content["write_p95_ms"]) == (300.0, 812.0)
    assert content["operations"]["log metric"]["kind"] == "write"

    suite = ElementTree.parse(tmp_path / "load.xml").getroot()
    cases = {case.get("name"): case.find("failure") for case in suite.iter("testcase")}
    assert set(cases) == {check.name for check in result.checks}
    failed = {name for name, failure in cases.items() if failure is not None}
    assert failed == {"error rate", "write p95"}
    assert suite.get("failures") == "2"

    table = reports.table(figures, result)
    assert table.splitlines()[-1] == str(result)
    assert "2 x log metric: HTTP 500" in table

    reports.remove_old(tmp_path)
    assert not list(tmp_path.iterdir())
