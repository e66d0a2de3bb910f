"""Answers 400 where MLflow answers 500 to a request that holds something wrong.

MLflow takes a request's values as they come: text goes into int(), a list is asked for its keys, an unknown name into an
enumeration. What that raises reaches the client as "500 Internal Server Error", which clients repeat and alarms count. A
failure of the server itself, say of the database or the bucket, stays a 5xx.

Such an error can be a fault of MLflow's own instead. So each one is logged with its traceback, and the gates fail on a 400
as they do on a 500.
"""

import errno
import functools
import logging
from typing import Any

from botocore.exceptions import ClientError, ParamValidationError
from mlflow.exceptions import ERROR_CODE_TO_HTTP_STATUS, MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, NOT_IMPLEMENTED, RESOURCE_DOES_NOT_EXIST
from sqlalchemy.exc import DataError, IntegrityError, StatementError

_logger = logging.getLogger("mlflow.server.inputs")

# What reading a value raises that is of another type, shape or size than expected. RecursionError: JSON that is nested too
# deeply. StatementError: a value that no driver can send; DBAPIError, which derives from it, is the database's own.
WRONG_VALUES = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    AssertionError,
    ParamValidationError,
)
WRONG_FOR_DATABASE = (DataError, IntegrityError)
# What S3 answers to an object, an upload or a part that is not there, or that the request named wrongly. A right that the
# task lacks is no fault of the client's, and stays a 5xx.
WRONG_FOR_BUCKET = (400, 404)
# MLflow's own refusals that it gave no code, by how they begin.
UNCODED = {
    "`order_by` contains duplicate fields": INVALID_PARAMETER_VALUE,
    "Mlflow server job execution feature is not enabled": NOT_IMPLEMENTED,
}
NOT_THERE = "The artifact store has no such object or upload."
LONGEST_REASON = 200


def refuse_wrong_values(application: Any) -> None:
    """Replace the 500 in both of MLflow's web frameworks, and in the errors that MLflow made of such errors itself."""
    from mlflow.server import app as flask

    # "Cannot rename a non-active experiment": the state is the resource's, not the server's.
    ERROR_CODE_TO_HTTP_STATUS["INVALID_STATE"] = 409
    _judge_by_cause()
    _tell_what_is_missing()
    _drop_nothing_silently()
    flask.register_error_handler(MlflowException, _flask_answer)  # some handlers let it through
    for kind in (*WRONG_VALUES, StatementError, ClientError, OSError):
        flask.register_error_handler(kind, _flask_answer)
        application.add_exception_handler(kind, _answer)


def is_wrong_value(error: BaseException | None) -> bool:
    if isinstance(error, StatementError):
        # psycopg refuses a text with a NUL byte before it is sent; SQLAlchemy names no kind of its own for others.
        return isinstance(error, WRONG_FOR_DATABASE) or type(error) is StatementError
    if isinstance(error, ClientError):
        return _status(error) in WRONG_FOR_BUCKET
    if isinstance(error, OSError):
        return error.errno == errno.ENAMETOOLONG  # of an artifact, which goes through a file
    return isinstance(error, WRONG_VALUES)


def _status(error: ClientError) -> int:
    return int(error.response["ResponseMetadata"]["HTTPStatusCode"])


def explain(error: BaseException) -> str:
    """A sentence for the client. `failures.py` has put one in the place of the database's own words."""
    if isinstance(error, StatementError):
        return str(error)
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return f"The request holds a value that does not fit ({reason[:LONGEST_REASON]})."


def _refusal(error: BaseException) -> MlflowException:
    if isinstance(error, MlflowException):
        return error
    _logger.error("A request was refused for what it holds", exc_info=error)
    if isinstance(error, ClientError) and _status(error) == 404:
        return MlflowException(NOT_THERE, RESOURCE_DOES_NOT_EXIST)
    return MlflowException.invalid_parameter_value(explain(error))


def _flask_answer(error: Exception) -> Any:
    from flask import Response

    if not isinstance(error, MlflowException) and not is_wrong_value(error):
        raise error
    refusal = _refusal(error)
    return Response(refusal.serialize_as_json(), refusal.get_http_status_code(), mimetype="application/json")


async def _answer(_: Any, error: Exception) -> Any:
    from starlette.responses import Response

    if not is_wrong_value(error):
        raise error
    refusal = _refusal(error)
    return Response(
        refusal.serialize_as_json(), refusal.get_http_status_code(), media_type="application/json"
    )


def _judge_by_cause() -> None:
    """MLflow's stores turn what is raised in a session into an INTERNAL_ERROR, and keep it as the cause."""
    status, serialize = MlflowException.get_http_status_code, MlflowException.serialize_as_json

    def judge(error: MlflowException) -> None:
        if error.error_code != "INTERNAL_ERROR":
            return
        if error.__cause__ and is_wrong_value(error.__cause__):
            error.__dict__.update(_refusal(error.__cause__).__dict__)
        for begin, code in UNCODED.items():
            if error.message.startswith(begin):
                error.__dict__.update(MlflowException(error.message, code).__dict__)

    def judged_status(error: MlflowException) -> Any:
        judge(error)
        return status(error)

    def judged_json(error: MlflowException) -> Any:
        judge(error)
        return serialize(error)

    MlflowException.get_http_status_code, MlflowException.serialize_as_json = judged_status, judged_json


def _drop_nothing_silently() -> None:
    """MLflow goes on with what it could read of a body. Of a batch it would store a part, and acknowledge it all."""
    from mlflow.server import handlers

    # By this name since 2.22.
    if validate := getattr(handlers, "_validate_request_json_with_schema", None):

        def validate_whole(request_json: Any, schema: Any, proto_parsing_succeeded: bool | None) -> None:
            validate(request_json, schema, proto_parsing_succeeded)
            if proto_parsing_succeeded is False:
                raise MlflowException.invalid_parameter_value(
                    "The request holds a value of another type than its field, or one that is out of range."
                )

        handlers._validate_request_json_with_schema = validate_whole


def _tell_what_is_missing() -> None:
    """MLflow drops the reason why a download failed, and answers 500 when there is no such artifact."""
    from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository

    download = S3ArtifactRepository._download_file

    @functools.wraps(download)
    def told(repository: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return download(repository, *arguments, **named)
        except ClientError as error:
            if _status(error) == 404:
                raise MlflowException(NOT_THERE, RESOURCE_DOES_NOT_EXIST) from None
            raise

    S3ArtifactRepository._download_file = told
