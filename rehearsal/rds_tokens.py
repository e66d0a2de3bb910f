"""Whether a token of IAM database authentication is good: weighed where the rehearsed accounts' keys and policies are.

moto knows no `rds-db`, which is no API: on AWS it is RDS itself that asks IAM. Here the proxy in front of a server asks
(`rehearsal/iam_postgres.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from moto.iam.access_control import CreateAccessKeyFailure, IAMPolicy, PermissionResult, create_access_key
from moto.utilities.utils import get_partition

from rehearsal.iam_postgres import CHECK, Signer, problem


def answer_tokens(application: WSGIApplication) -> WSGIApplication:
    """The same application, which also says what is wrong with a token."""

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != CHECK:
            return application(environ, start_response)
        asked = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps({"problem": _problem(**asked)}).encode()]

    return answer


def _problem(*, token: str, user: str, database: str, region: str, address: str) -> str:
    account = database.split(":")[4]

    def signer(key_id: str, session: str) -> Signer | None:
        headers = {"X-Amz-Security-Token": session} if session else {}
        try:
            key = create_access_key(account, get_partition(region), key_id, headers)
        except CreateAccessKeyFailure:
            return None

        def may_connect(user: str) -> bool:
            weighed = [
                IAMPolicy(policy).is_action_permitted("rds-db:connect", f"{database}/{user}")
                for policy in key.collect_policies()
            ]
            return PermissionResult.PERMITTED in weighed and PermissionResult.DENIED not in weighed

        return Signer(key.create_credentials().secret_key, may_connect)

    return problem(token, user=user, address=address, region=region, signer=signer)
