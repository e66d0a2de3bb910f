"""GraphQL questions that are read once: answered to the byte as MLflow answers them, the first time and after."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Response
from mlflow.server import app as flask
from mlflow.server import handlers

from .test_image_entrypoint import IMAGE

sys.path.insert(0, str(IMAGE))

import speed_graphql

ECHO = 'query Echo($text: String = "b") { test(inputString: $text) { output } }'
BODIES: list[Any] = [
    {"query": '{ test(inputString: "a") { output } }'},
    {"query": ECHO, "variables": {"text": "ü"}},
    {"query": ECHO, "variables": {"text": None}},
    {"query": ECHO},
    {"query": ECHO, "variables": {"text": 7}},
    {"query": ECHO, "operationName": "Echo"},
    {"query": ECHO, "operationName": "Other"},
    {"query": ECHO + " query Other { test { output } }"},
    {"query": ECHO + " query Other { test { output } }", "operationName": "Other"},
    {"query": 'mutation { testMutation(inputString: "a") { output } }'},
    {"query": "{ test { nothing } }"},
    {"query": "{ nothing }"},
    {"query": "{ test { output "},
    {"query": ""},
    {"query": "{" + " ".join(f"a{n}: test {{ output }}" for n in range(100)) + "}"},
    {"query": "{ test " * 12 + "{ output }" + "}" * 12},
    {"query": f'{{ test(inputString: "{"x" * speed_graphql.LONGEST}") {{ output }} }}'},
    {"query": "query ($none: Nothing) { test { output } }"},
    {"query": None},
    {"query": ["{ test { output } }"]},
    {},
    {"query": '{ __type(name: "MlflowRun") { name fields { name } } }'},
]  # fmt: skip


def answers(view: Callable[[], Response], body: Any) -> tuple[int, bytes] | str:
    with flask.test_request_context("/graphql", method="POST", json=body):
        try:
            answer = view()
        except Exception as error:  # which Flask makes a 500 of
            return repr(error)
        return answer.status_code, answer.get_data()


@pytest.fixture
def fast() -> Iterator[Callable[[], Response]]:
    before = flask.view_functions[speed_graphql.VIEW]
    speed_graphql.read.cache_clear()
    speed_graphql.apply()
    yield flask.view_functions[speed_graphql.VIEW]
    flask.view_functions[speed_graphql.VIEW] = before


@pytest.mark.parametrize("body", BODIES, ids=lambda body: str(body)[:60])
def test_the_answers_are_mlflows_own(fast: Callable[[], Response], body: Any) -> None:
    expected = answers(handlers._graphql, body)
    assert [answers(fast, body) for _ in range(3)] == [expected] * 3


def test_the_bodies_have_answers_of_their_own() -> None:
    assert len({answers(handlers._graphql, body) for body in BODIES}) > 0.7 * len(BODIES)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What graphql-core is given to parse from now on."""
    told: list[str] = []

    def counted(parse: Any) -> Any:
        def tell(source: Any, *arguments: Any, **named: Any) -> Any:
            told.append(source)
            return parse(source, *arguments, **named)

        return tell

    for name in ("graphql", "graphql.graphql"):
        module = importlib.import_module(name)
        monkeypatch.setattr(module, "parse", counted(module.parse))
    return told


def test_a_question_is_read_once(fast: Callable[[], Response], parsed: list[str]) -> None:
    for text in ("a", "b", "c"):
        answer = answers(fast, {"query": ECHO, "variables": {"text": text}})
        assert f'"output":"{text}"' in str(answer).replace(": ", ":")
    assert parsed == [ECHO]


def test_mlflow_still_reads_it_each_time(parsed: list[str]) -> None:
    """When it no longer does, this change is not needed any more."""
    for _ in range(2):
        answers(handlers._graphql, {"query": ECHO})
    assert len(parsed) > 2


def test_what_is_beyond_the_limits_is_not_validated(
    fast: Callable[[], Response], monkeypatch: pytest.MonkeyPatch
) -> None:
    def validate(*_: Any) -> None:
        raise AssertionError("validated")

    monkeypatch.setattr(importlib.import_module("graphql"), "validate", validate)
    [aliases] = [body for body in BODIES if "a99:" in str(body)]
    assert answers(fast, aliases) == answers(handlers._graphql, aliases)


def test_what_is_kept_is_bounded(fast: Callable[[], Response]) -> None:
    answers(fast, {"query": f'{{ test(inputString: "{"x" * speed_graphql.LONGEST}") {{ output }} }}'})
    assert speed_graphql.read.cache_info().currsize == 0
    for number in range(speed_graphql.KEPT * 2):
        answers(fast, {"query": f'{{ test(inputString: "{number}") {{ output }} }}'})
    assert speed_graphql.read.cache_info().currsize == speed_graphql.KEPT
