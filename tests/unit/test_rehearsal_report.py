"""The report: what programs read, what people read, and that it tells a failure from a success."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rehearsal.cloudformation import Physical, Resource, Stack
from rehearsal.executions import Action, StageRun
from rehearsal.pipeline import Execution, reported
from rehearsal.report import NOT_PROVEN, NOT_PROVEN_OF_TASKS, Report, declared_types, table

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DIGEST = f"sha256:{'ab' * 32}"
DEV = {
    "url": "http://127.0.0.1:4711",
    "account": "222222222222",
    "region": "eu-west-1",
    "tasks": 2,
    "alarms": [],
    "image": DIGEST,
}


def stages(state: Path, *, failed: bool = False) -> list[StageRun]:
    log = state / "logs" / "Dev-Smoke.log"
    log.parent.mkdir(exist_ok=True)
    log.write_text(
        "".join(f"line {n}\n" for n in range(100)) + "<b>E  assert 500 == 200</b>\n", encoding="utf-8"
    )
    prod = ("not run", 0.0) if failed else ("succeeded", 3.0)
    smoke = Action("Smoke", "CodeBuild", "failed" if failed else "succeeded", 12.34, "1 passed", str(log))
    return [
        StageRun(
            "Source", "succeeded", 0.1, [Action("source", "CodeStarSourceConnection", "succeeded", 0.1)]
        ),
        StageRun("Dev", "failed" if failed else "succeeded", 20.0, [smoke]),
        StageRun("Prod", *prod, [Action("Deploy", "CloudFormation")]),
    ]


def written(state: Path, *runs: list[StageRun], notes: tuple[str, ...] = ()) -> dict[str, Any]:
    """What report.json holds of a rehearsal with these executions."""
    report = Report(state, COMMIT)
    report.executions = [cast(Execution, SimpleNamespace(stages=run)) for run in runs]
    report.notes.extend(notes)
    report.write(
        image=DIGEST, tasks="processes", environments={"dev": DEV}, declared={"AWS::CloudWatch::Alarm": 8}
    )
    content: dict[str, Any] = json.loads((state / "report.json").read_text(encoding="utf-8"))
    return content


class Page(HTMLParser):
    """The text, the links and the tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = ""
        self.links: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name == "href" and value]

    def handle_data(self, data: str) -> None:
        self.text += data


def page(state: Path) -> Page:
    return Page((state / "report.html").read_text(encoding="utf-8"))


def test_what_programs_read(tmp_path: Path) -> None:
    content = written(tmp_path, stages(tmp_path))
    assert (content["commit"], content["image"], content["status"]) == (COMMIT, DIGEST, "succeeded")
    assert [(s["name"], s["status"], s["seconds"]) for s in content["stages"]] == [
        ("Source", "succeeded", 0.1),
        ("Dev", "succeeded", 20.0),
        ("Prod", "succeeded", 3.0),
    ]
    (smoke,) = content["stages"][1]["actions"]
    assert (smoke["name"], smoke["status"], smoke["seconds"], smoke["summary"]) == (
        "Smoke",
        "succeeded",
        12.34,
        "1 passed",
    )
    assert content["environments"] == {"dev": DEV}
    assert content["declared_not_rehearsed"] == {"AWS::CloudWatch::Alarm": 8}
    assert content["tasks"] == "processes"
    assert content["not_proven"] == [*NOT_PROVEN, NOT_PROVEN_OF_TASKS["processes"]]


@pytest.mark.parametrize("status", ["failed", "rejected", "not run"])
def test_a_release_succeeded_only_if_every_stage_did(tmp_path: Path, status: str) -> None:
    runs = stages(tmp_path)
    runs[-1].status = status
    assert written(tmp_path, runs)["status"] == "failed"


def test_a_rehearsal_that_did_not_begin_is_no_success(tmp_path: Path) -> None:
    content = written(tmp_path)
    assert (content["status"], content["stages"], content["executions"]) == ("failed", [], 0)


def test_the_last_execution_counts(tmp_path: Path) -> None:
    content = written(tmp_path, stages(tmp_path, failed=True), stages(tmp_path))
    assert (content["status"], content["executions"]) == ("succeeded", 2)
    assert "2 executions (the pipeline changed itself and began again)" in page(tmp_path).text


def test_what_people_read(tmp_path: Path) -> None:
    written(tmp_path, stages(tmp_path), notes=("3 uncommitted changes are not part of this release.",))
    shown = page(tmp_path)
    for text in (
        COMMIT[:12],
        "succeeded",
        DIGEST,
        "12.3 s",
        "AWS::CloudWatch::Alarm",
        "3 uncommitted changes",
        *NOT_PROVEN,
        "its tasks are processes",
        NOT_PROVEN_OF_TASKS["processes"],
    ):
        assert text in shown.text, text
    assert "line 99" not in shown.text, "a log is shown only of what failed"
    assert DEV["url"] in shown.links


def test_a_failure_shows_the_end_of_its_log(tmp_path: Path) -> None:
    written(tmp_path, stages(tmp_path, failed=True))
    shown = page(tmp_path)
    assert "line 99" in shown.text
    assert "line 10\n" not in shown.text
    assert "<b>E  assert 500 == 200</b>" in shown.text, "what a log holds is text, not markup"
    assert "b" not in shown.tags
    assert "logs/Dev-Smoke.log" in shown.links, "links work wherever the folder is moved"


def test_an_action_that_failed_before_it_had_a_log(tmp_path: Path) -> None:
    runs = stages(tmp_path, failed=True)
    runs[1].actions[0].log = None
    written(tmp_path, runs)
    assert "failed" in page(tmp_path).text


def test_alarms_that_went_off(tmp_path: Path) -> None:
    written(tmp_path, stages(tmp_path))
    assert "none" in page(tmp_path).text.split("Alarms that went off")[1].split("Declared")[0]
    alarm = {
        "alarm": "mlflow-dev-Slow",
        "state": "ALARM",
        "at": "2026-11-21T10:00:00Z",
        "reason": "p95 was 3",
    }
    report = Report(tmp_path, COMMIT)
    report.write(
        image=None,
        tasks="processes",
        environments={"dev": DEV, "prod": {**DEV, "alarms": [alarm]}},
        declared={},
    )
    row = "".join(page(tmp_path).text.split("Alarms that went off")[1].split("Declared")[0].splitlines())
    assert "prodmlflow-dev-Slow2026-11-21T10:00:00Zp95 was 3" in row
    assert "none" not in row


def test_an_environment_without_an_image(tmp_path: Path) -> None:
    report = Report(tmp_path, COMMIT)
    report.write(image=None, tasks="processes", environments={"dev": {**DEV, "image": None}}, declared={})
    assert "Image none" in page(tmp_path).text


def test_actions_that_end_side_by_side_write_one_after_the_other(tmp_path: Path) -> None:
    report = Report(tmp_path, COMMIT)
    report.executions = [cast(Execution, SimpleNamespace(stages=stages(tmp_path)))]

    def write(_: int) -> None:
        report.write(image=DIGEST, tasks="processes", environments={"dev": DEV}, declared={})

    with ThreadPoolExecutor(8) as actions:
        assert len(list(actions.map(write, range(40)))) == 40
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["image"] == DIGEST


def test_declared_types_are_counted() -> None:
    def resource(type_: str, rehearsed: bool) -> Resource:
        return Resource("A", type_, {}, Physical("a", rehearsed=rehearsed))

    one = {"A": resource("AWS::EC2::VPC", False), "B": resource("AWS::S3::Bucket", True)}
    two = {"A": resource("AWS::EC2::VPC", False), "B": resource("AWS::CloudWatch::Alarm", False)}
    stacks = [Stack("s", "1", "r", "CREATE_COMPLETE", resources) for resources in (one, two)]
    assert declared_types(stacks) == {"AWS::CloudWatch::Alarm": 1, "AWS::EC2::VPC": 2}


def test_the_table_at_the_terminal(tmp_path: Path) -> None:
    lines = table(stages(tmp_path, failed=True)).splitlines()
    assert [line.split() for line in lines] == [
        ["stage", "/", "action", "status", "seconds"],
        ["Source", "succeeded", "0.1"],
        ["source", "succeeded", "0.1"],
        ["Dev", "failed", "20.0"],
        ["Smoke", "failed", "12.3", "1", "passed"],
        ["Prod", "not", "run", "0.0"],
        ["Deploy", "not", "run", "0.0"],
    ]
    assert table([]).startswith("stage / action")


def test_skipped_tests_are_not_told_as_passed(tmp_path: Path) -> None:
    suite = '<testsuites><testsuite tests="14" failures="1" errors="1" skipped="5"/></testsuites>'
    (tmp_path / "smoke.xml").write_text(suite, encoding="utf-8")
    assert reported(tmp_path) == "7 passed, 2 failed, 5 skipped"


def test_a_suite_that_ends_with_a_verdict_is_told_by_it(tmp_path: Path) -> None:
    suite = '<testsuite tests="10"><system-out>figures\n\nPASS: error rate 0.00%</system-out></testsuite>'
    (tmp_path / "load.xml").write_text(suite, encoding="utf-8")
    assert reported(tmp_path) == "PASS: error rate 0.00%"
