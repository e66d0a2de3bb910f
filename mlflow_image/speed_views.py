"""Answers a route of MLflow's with JSON that is written here. All else about the route stays MLflow's."""

from collections.abc import Callable
from typing import Any

from flask import Response
from mlflow.server import app as flask
from mlflow.server import handlers


def replace(name: str, answer: Callable[[], str]) -> None:
    """Put what answers with that JSON in the place of MLflow's view of that name, within MLflow's own wrappers."""

    def view() -> Response:
        return Response(answer(), mimetype="application/json")

    view.__name__ = name  # MLflow's log lines tell it
    flask.view_functions[name] = handlers.catch_mlflow_exception(handlers._disable_if_artifacts_only(view))


def at_most(most: int) -> list[Callable[[Any], None]]:
    """What a schema of MLflow's demands of `max_results`."""
    return [handlers._assert_intlike, lambda asked: handlers._assert_less_than_or_equal(int(asked), most)]
