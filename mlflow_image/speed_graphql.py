"""Reads a question of the UI's once, not with each request.

The UI asks the same few questions by GraphQL again and again, with other variables. MLflow parses the text of each twice and
validates it, which took a quarter of the time of a run's page. Limits, authorization and the answer stay the same.
"""

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from flask import Response, jsonify
from mlflow.server import app as flask
from mlflow.server import handlers

if TYPE_CHECKING:  # loading it takes half a second of CPU, for which a start does not wait
    from graphql import DocumentNode, ExecutionResult

VIEW = "_graphql"
# The UI asks a handful, of some two thousand characters at most. One as long as this takes up to a megabyte when parsed.
KEPT, LONGEST = 32, 4_000


def apply() -> None:
    _graphql.__name__ = VIEW  # MLflow's log lines tell it
    flask.view_functions[VIEW] = handlers.catch_mlflow_exception(_graphql)


def _graphql() -> Response:
    asked = handlers._get_request_json()
    question = asked.get("query")
    kept = isinstance(question, str) and len(question) <= LONGEST
    document, refusal = read(question) if kept else read.__wrapped__(question)
    result = refusal or _answer(document, asked)
    errors = [error.message for error in result.errors] if result.errors else None
    return jsonify({"data": result.data, "errors": errors})


@lru_cache(KEPT)
def read(question: Any) -> "tuple[DocumentNode, ExecutionResult | None]":
    """A question, parsed, and why it is not answered, if it is beyond MLflow's limits or asks for what there is not."""
    from graphql import ExecutionResult, parse, validate
    from mlflow.server.graphql.graphql_no_batching import check_query_safety
    from mlflow.server.graphql.graphql_schema_extensions import schema

    document = parse(question)
    # Before it is validated, which may take long for what is beyond them.
    if refusal := check_query_safety(document):
        return document, refusal
    errors = validate(schema.graphql_schema, document)
    return document, ExecutionResult(None, errors) if errors else None


def _answer(document: "DocumentNode", asked: dict[str, Any]) -> "ExecutionResult":
    from graphql import execute_sync
    from mlflow.server.graphql.graphql_schema_extensions import schema

    return execute_sync(
        schema.graphql_schema,
        document,
        variable_values=asked.get("variables"),
        operation_name=asked.get("operationName"),
        middleware=handlers._get_graphql_auth_middleware(),
    )
