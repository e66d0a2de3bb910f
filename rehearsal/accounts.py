"""The rehearsed AWS accounts: one moto server that holds them all and enforces their IAM policies.

moto lets anybody do anything until it is told otherwise. So accounts are bootstrapped first and enforcement begins
after; from then on every call is checked against the policies of the role that makes it. One key stands outside: the
services' own, with which CloudFormation, ECS and CodeBuild take on the roles they are given, as AWS's services do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from rehearsal.databases import authority
from rehearsal.ports import free_port
from rehearsal.processes import ProcessRegistry, came_up

QUALIFIER = "hnb659fds"
"""The CDK's default bootstrap qualifier; it is in the names of the bootstrap's roles."""

_ALLOW_ALL = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
_START_SECONDS = 60
_NEVER_ENFORCE = b"1000000000"
_ENFORCE_AT_ONCE = b"0"


@dataclass(frozen=True)
class Key:
    """An access key; `session_token` is there when it comes from taking on a role."""

    access_key_id: str
    secret_access_key: str
    session_token: str | None = None

    def environment(self) -> dict[str, str]:
        """The variables from which the AWS SDKs and CLIs read it."""
        variables = {"AWS_ACCESS_KEY_ID": self.access_key_id, "AWS_SECRET_ACCESS_KEY": self.secret_access_key}
        return variables | ({"AWS_SESSION_TOKEN": self.session_token} if self.session_token else {})


def account_directory(state: Path, account: str, region: str) -> Path:
    """The folder of one rehearsed account."""
    return state / "accounts" / f"{account}-{region}"


class Accounts:
    """All rehearsed accounts, behind one endpoint on loopback."""

    def __init__(self, state: Path) -> None:
        self._file = state / "accounts.json"
        self._state = state
        self._sessions: dict[str, Key] = {}

    def start(self, processes: ProcessRegistry) -> None:
        """Start the server, make the services' key, and remember both.

        Raises:
            RuntimeError: the server does not answer; the message names its log.
        """
        port = free_port()
        log = self._state / "logs" / "accounts.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {
            "PATH": os.environ["PATH"],
            "MOTO_IAM_LOAD_MANAGED_POLICIES": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "TMPDIR": str(self._state.resolve()),
            "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
        }
        with log.open("ab") as output:
            process = subprocess.Popen(
                [
                    sys.executable, "-m", "rehearsal.aws_server",
                    "--port", str(port), "--state", str(self._state.resolve()),
                ],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )  # fmt: skip
        processes.record("accounts", process.pid, "rehearsal.aws_server")
        endpoint = f"http://127.0.0.1:{port}"
        if not came_up(lambda: _answers(endpoint), process, _START_SECONDS):
            raise RuntimeError(f"the rehearsed accounts' server did not start: read {log}")
        iam = self._connect("iam", "us-east-1", endpoint, Key("not", "checked-yet"))
        iam.create_user(UserName="services")
        iam.put_user_policy(UserName="services", PolicyName="all", PolicyDocument=json.dumps(_ALLOW_ALL))
        made = iam.create_access_key(UserName="services")["AccessKey"]
        self._save(
            endpoint, Key(made["AccessKeyId"], made["SecretAccessKey"]), pid=process.pid, bootstrapped=[]
        )

    def running(self) -> bool:
        """Whether the server that holds the accounts is there and answers."""
        return self._file.exists() and _answers(self.endpoint)

    @property
    def endpoint(self) -> str:
        """URL of all rehearsed AWS services."""
        return str(self._load()["endpoint"])

    @property
    def services_key(self) -> Key:
        """The key as which AWS's own services act."""
        return Key(**self._load()["key"])

    @property
    def bootstrapped(self) -> list[str]:
        """The accounts that have the CDK's bootstrap, as `account/region`."""
        return list(self._load()["bootstrapped"])

    def bootstrapped_now(self, places: Iterable[str]) -> None:
        """Remember that `places` have the CDK's bootstrap."""
        state = self._load()
        state["bootstrapped"] = sorted({*state["bootstrapped"], *places})
        self._write(state)

    def enforce(self, enforced: bool) -> None:
        """Check every call against its caller's policies, or stop doing so."""
        request = urllib.request.Request(  # noqa: S310 (the endpoint is this machine's)
            f"{self.endpoint}/moto-api/reset-auth",
            data=_ENFORCE_AT_ONCE if enforced else _NEVER_ENFORCE,
            headers={"Content-Type": "text/plain"},
            method="POST",
        )
        urllib.request.urlopen(request, timeout=10).close()  # noqa: S310

    def assume(self, role_arn: str, session_name: str) -> Key:
        """Take on a role as the service that was given it."""
        sts = self._client("sts", "us-east-1", self.services_key)
        made = sts.assume_role(RoleArn=role_arn, RoleSessionName=session_name)["Credentials"]
        return Key(made["AccessKeyId"], made["SecretAccessKey"], made["SessionToken"])

    def client(self, service: str, account: str, region: str) -> Any:
        """A client that acts in an account as CloudFormation's execution role, which the bootstrap makes."""
        return self._client(service, region, self.administrator(account, region))

    def administrator(self, account: str, region: str) -> Key:
        """A key to all that an account holds: that of CloudFormation's execution role."""
        role = f"arn:aws:iam::{account}:role/cdk-{QUALIFIER}-cfn-exec-role-{account}-{region}"
        if role not in self._sessions:
            self._sessions[role] = self.assume(role, "cloudformation")
        return self._sessions[role]

    def for_tasks(self, account: str, region: str) -> dict[str, Any]:
        """What an account's host needs to run tasks there: where AWS answers, as whom, and where their logs go."""
        directory = account_directory(self._state, account, region)
        return {
            "credentials": {
                "endpoint": self.endpoint,
                "region": region,
                "admin": asdict(self.services_key),
            },
            "log_dir": str((directory / "logs").resolve()),
            "database_authority": str(authority(directory).resolve()),
        }

    def environment(self, region: str) -> dict[str, str]:
        """What points AWS SDKs and CLIs to the rehearsed accounts, and away from the user's real ones."""
        return {
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": region,
            "AWS_DEFAULT_REGION": region,
        }

    def _client(self, service: str, region: str, key: Key) -> Any:
        return self._connect(service, region, self.endpoint, key)

    def _connect(self, service: str, region: str, endpoint: str, key: Key) -> Any:
        return boto3.client(
            service,
            endpoint_url=endpoint,
            region_name=region,
            aws_access_key_id=key.access_key_id,
            aws_secret_access_key=key.secret_access_key,
            aws_session_token=key.session_token,
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 3}),
        )

    def _save(self, endpoint: str, key: Key, *, pid: int, bootstrapped: list[str]) -> None:
        self._write({"endpoint": endpoint, "pid": pid, "key": asdict(key), "bootstrapped": bootstrapped})

    def _load(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self._file.read_text(encoding="utf-8"))
        return state

    def _write(self, state: dict[str, Any]) -> None:
        draft = self._file.with_suffix(".draft")
        draft.touch(mode=0o600)
        draft.write_text(json.dumps(state, indent=1), encoding="utf-8")
        draft.replace(self._file)


def _answers(endpoint: str) -> bool:
    try:
        urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=2).close()  # noqa: S310
    except (urllib.error.URLError, OSError):
        return False
    return True
