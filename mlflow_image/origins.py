"""Refuses what another site's page sends, on every path.

MLflow refuses a write whose Origin it does not know under /api/ and /ajax-api/ alone. Runs are searched by /graphql, spans
come in by /v1/traces, and a browser sends the reader's cookies there as well.
"""


def refuse_others_everywhere() -> None:
    """Let MLflow's own check, which asks for the path first, take every path."""
    from mlflow.server import fastapi_security

    fastapi_security.is_api_endpoint = lambda _path: True
