"""The server of the rehearsed accounts: moto, with running tasks and snapshots that are real, and three things about IAM
that it does not know.

Running tasks are `ecs_api`'s, snapshots `rds_api`'s, tokens for databases `rds_tokens`'s, pipeline executions
`codepipeline_api`'s, rotated passwords `secrets_api`'s.

Which resource a call is about: moto weighs a policy's resources only for services that say so (IAM, STS, SQS, S3); for
all others it asks about `*`, which a least-privilege policy does not allow. Its own hook tells it here for the services
that the platform's roles call.

Which objects a DeleteObjects call deletes: moto asks for s3:DeleteObject on the bucket, AWS for it on each object.

Presigned URLs: MLflow hands them to its clients for downloads. They carry their credentials in the query, where moto
does not look; it is shown them as the headers that it expects. Who signed is weighed, the signature itself is not.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment
from xml.sax.saxutils import unescape

from moto.ecr.responses import ECRResponse
from moto.iam.access_control import IAMRequestBase
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3.responses import S3Response
from moto.secretsmanager.responses import SecretsManagerResponse
from moto.ssm.responses import SimpleSystemManagerResponse
from werkzeug.serving import WSGIRequestHandler, run_simple

from rehearsal.codepipeline_api import answer_codepipeline
from rehearsal.ecs_api import answer_ecs
from rehearsal.rds_api import answer_rds
from rehearsal.rds_tokens import answer_tokens
from rehearsal.secrets_api import answer_secrets_manager

_PRESIGNED = "X-Rehearsal-Presigned"


def _secret(self: Any) -> str:
    wanted = self._get_param("SecretId")
    if not wanted:
        return "*"
    if str(wanted).startswith("arn:"):
        return str(wanted)
    known = {secret.name: secret.arn for secret in self.backend.secrets.values()}
    return str(known.get(wanted, wanted))


def _repository(self: Any) -> str:
    names = self._get_param("repositoryNames") or [self._get_param("repositoryName")]
    if not names or not names[0]:
        return "*"
    return f"arn:aws:ecr:{self.region}:{self.current_account}:repository/{names[0]}"


def _parameter(self: Any) -> str:
    name = self._get_param("Name") or next(iter(self._get_param("Names") or []), None)
    if not name:
        return "*"
    return (
        str(name)
        if name.startswith("arn:")
        else (f"arn:aws:ssm:{self.region}:{self.current_account}:parameter/{name.lstrip('/')}")
    )


def _with_presigned(application: WSGIApplication) -> WSGIApplication:
    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        query = {name: values[0] for name, values in parse_qs(environ.get("QUERY_STRING", "")).items()}
        if "X-Amz-Credential" in query and "HTTP_AUTHORIZATION" not in environ:
            environ["HTTP_AUTHORIZATION"] = (
                f"{query['X-Amz-Algorithm']} Credential={query['X-Amz-Credential']},"
                f" SignedHeaders={query['X-Amz-SignedHeaders']}, Signature={query['X-Amz-Signature']}"
            )
            environ["HTTP_X_AMZ_DATE"] = query["X-Amz-Date"]
            environ["HTTP_X_REHEARSAL_PRESIGNED"] = "yes"
            if "X-Amz-Security-Token" in query:
                environ["HTTP_X_AMZ_SECURITY_TOKEN"] = query["X-Amz-Security-Token"]
        return application(environ, start_response)

    return answer


def _check_signature(self: Any) -> None:
    if _PRESIGNED not in self._headers:
        _moto_check_signature(self)


_moto_check_signature = IAMRequestBase.check_signature


def _text(body: str | bytes) -> str:
    return body.decode() if isinstance(body, bytes) else body


def _authorize_s3(self: Any, bucket_name: str | None = None, key_name: str | None = None) -> None:
    keys: list[str | None] = [key_name]
    if key_name is None and self.data.get("Action") == "DeleteObject":
        keys = [unescape(key) for key in re.findall(r"<Key>(.*?)</Key>", _text(self.body))] or [None]
    for key in keys:
        _moto_authorize_s3(self, bucket_name, key)


_moto_authorize_s3 = S3Response._authenticate_and_authorize_s3_action


class _Quiet(WSGIRequestHandler):
    """One log line for each failed request, none for the others."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        if str(code) >= "400":
            super().log_request(code, size)


def main() -> None:
    """Serve all rehearsed accounts on a loopback port until stopped."""
    parser = argparse.ArgumentParser(prog="rehearsal.aws_server", description=main.__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--state", type=Path, required=True, help="the rehearsal's state folder")
    options = parser.parse_args()
    SecretsManagerResponse._determine_resource = _secret
    ECRResponse._determine_resource = _repository
    SimpleSystemManagerResponse._determine_resource = _parameter
    IAMRequestBase.check_signature = _check_signature
    S3Response._authenticate_and_authorize_s3_action = _authorize_s3
    answer_codepipeline(options.state)
    answer_ecs(options.state)
    answer_rds(options.state)
    answer_secrets_manager()
    application = DomainDispatcherApplication(create_backend_app)
    answered = answer_tokens(_with_presigned(application))
    run_simple("127.0.0.1", options.port, answered, threaded=True, request_handler=_Quiet)


if __name__ == "__main__":
    main()
