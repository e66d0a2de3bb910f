"""`python -m operations.migrate` around its task: what it needs, what it shows. The task runs in tests/rehearsal."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from operations.migrate import VARIABLES, _Log, migrate, schema_sentence

from .assembly import ROOT

GIVEN = dict.fromkeys(VARIABLES, "given")


@pytest.mark.parametrize("missing", VARIABLES)
def test_each_variable_is_needed_and_named(missing: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert migrate({**GIVEN, missing: ""}) == 2
    assert capfd.readouterr().err.startswith(f"{missing} not set: this command runs inside the pipeline's")


def test_outside_the_pipeline_the_command_says_so() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    done = subprocess.run(
        [sys.executable, "-m", "operations.migrate"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("MIGRATION_CLUSTER, MIGRATION_TASK_DEFINITION, ")
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("aws_that_does_not_answer")
def test_without_aws_the_service_is_not_touched(capfd: pytest.CaptureFixture[str]) -> None:
    assert migrate(GIVEN) == 1
    said = capfd.readouterr().err
    assert said.startswith("AWS refused or did not answer: Could not connect")
    assert said.endswith("The service was not touched.\n")


def test_the_last_line_of_json_is_the_result_and_all_else_is_shown(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    log = _Log("/group", "arn:aws:ecs:eu-west-1:222222222222:task/cluster/0a1b")
    for message in ("one", '{"after": "first"}', "{not json}", '{"after": "last"}'):
        log._take(message)
    assert log.stream == "migrate/mlflow/0a1b"
    assert log.result == {"after": "last"}
    assert capfd.readouterr().out == "  one\n  {not json}\n"


ADDITIVE, BREAKING = {"kind": "additive"}, {"kind": "breaking"}


@pytest.mark.parametrize(
    ("result", "allowed", "sentence"),
    [
        (
            {"kind": "none", "applied": []},
            None,
            "at 1b2c as before; breaking migrations are not allowed.",
        ),
        (
            {"kind": "created", "applied": [ADDITIVE, BREAKING]},
            None,
            "made new, at 1b2c; breaking migrations are not allowed.",
        ),
        (
            {"kind": "additive", "applied": [ADDITIVE] * 2},
            None,
            "from 0a1b to 1b2c, 2 migration(s), all additive, snapshot s taken first; breaking migrations are not allowed.",
        ),
        (
            {"kind": "breaking", "applied": [ADDITIVE, BREAKING]},
            "1b2c",
            "from 0a1b to 1b2c, 2 migration(s), 1 of them BREAKING, snapshot s taken first; BREAKING migrations up to 1b2c"
            " are allowed: where one is pending, the release before cannot be rolled back to, only restored from the"
            " snapshot.",
        ),
        (
            {"kind": "none", "applied": []},
            "1b2c",
            "at 1b2c as before; BREAKING migrations up to 1b2c are allowed: where one is pending, the release before cannot"
            " be rolled back to, only restored from the snapshot.",
        ),
    ],
)
def test_the_approval_s_sentence(result: dict[str, Any], allowed: str | None, sentence: str) -> None:
    """The last: staging has it already, prod may still have it to come."""
    assert (
        schema_sentence({"before": "0a1b", "after": "1b2c", "snapshot": "s", **result}, allowed) == sentence
    )
