"""The approval asks at the terminal, takes an answer given beforehand, and never keeps Ctrl-C waiting."""

from __future__ import annotations

import io
import os
import pty
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rehearsal.cloudformation import Interrupted
from rehearsal.run import Rehearsal


@pytest.fixture
def keyboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The end of a terminal at which a person types; standard input is the other."""
    person, program = pty.openpty()
    with os.fdopen(program) as terminal:
        monkeypatch.setattr("sys.stdin", terminal)
        yield person
    os.close(person)


@pytest.mark.parametrize(
    ("typed", "approved"), [("yes", True), ("Y", True), ("no", False), ("", False), ("maybe", False)]
)
def test_only_a_yes_is_a_yes(tmp_path: Path, keyboard: int, typed: str, approved: bool) -> None:
    os.write(keyboard, f"{typed}\n".encode())
    assert Rehearsal(tmp_path, approve=None).decide("Go on?") is approved


def test_an_interruption_does_not_wait_for_an_answer(tmp_path: Path, keyboard: int) -> None:
    rehearsal = Rehearsal(tmp_path, approve=None)
    threading.Timer(0.3, rehearsal.cloudformation.stop).start()
    with pytest.raises(Interrupted):
        rehearsal.decide("Go on?")


@pytest.mark.parametrize("answer", [True, False])
def test_an_answer_given_beforehand_is_taken(tmp_path: Path, answer: bool) -> None:
    assert Rehearsal(tmp_path, approve=answer).decide("Go on?") is answer


def test_where_nobody_can_be_asked_the_answer_is_no(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert Rehearsal(tmp_path, approve=None).decide("Go on?") is False
    assert "APPROVE=yes or APPROVE=no" in capsys.readouterr().out
