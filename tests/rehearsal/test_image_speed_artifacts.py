"""Small artifacts in one request to S3, which here weighs who asks and whether the signature is right."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest
import requests
from botocore.config import Config
from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from urllib3.exceptions import HTTPError
from werkzeug.serving import make_server

from .test_image_entrypoint import IMAGE

sys.path.insert(0, str(IMAGE))

import speed_artifacts

BUCKET, ROOT = "artifacts", "platform/mlflow"
ODD = [
    "plain.bin",
    "notes and more.txt",
    "über uns/日本.txt",
    "a+b&c=d?e.txt",
    "100%25 %2F.txt",
    "tilde~'(1)*!.bin",
    ".hidden/..two/...",
    "nothing",
    "@:;,$.csv",
]


@dataclass
class S3:
    """moto, and what it was asked for. What `spoil` makes of an answer's body is what the client gets."""

    endpoint: str = ""
    asked: list[dict[str, str]] = field(default_factory=list)
    spoil: Any = None

    def put(self, name: str, content: bytes, **more: str) -> None:
        boto3.client("s3").put_object(Bucket=BUCKET, Key=f"{ROOT}/{name}", Body=content, **more)
        self.asked.clear()

    def __call__(self, application: Any) -> Any:
        def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            self.asked.append({"method": environ["REQUEST_METHOD"], "path": environ["REQUEST_URI"]})
            self.asked[-1] |= {name: value for name, value in environ.items() if name.startswith("HTTP_")}
            found = b"".join(application(environ, start_response))
            yield self.spoil(found) if self.spoil else found

        return answer


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    """An S3 server with one bucket, in which the user of the environment's key may read and write."""
    running = S3()
    server = make_server(
        "127.0.0.1", 0, running(DomainDispatcherApplication(create_backend_app)), threaded=True
    )
    running.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def weigh(calls: str) -> None:
        headers = {"Content-Type": "text/plain"}
        requests.post(
            f"{running.endpoint}/moto-api/reset-auth", calls, headers=headers, timeout=10
        ).raise_for_status()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
        patch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "first")
        iam = boto3.Session().client("iam")
        iam.create_user(UserName="server")
        allowed = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
        iam.put_user_policy(UserName="server", PolicyName="server", PolicyDocument=policy)
        key = iam.create_access_key(UserName="server")["AccessKey"]
        patch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
        patch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
        where = {"LocationConstraint": "eu-central-1"}
        patch.setattr(boto3, "DEFAULT_SESSION", None)  # whose key it would keep
        boto3.client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration=where)
        weigh("0")
        try:
            yield running
        finally:
            weigh("inf")
            server.shutdown()
            server.server_close()


@pytest.fixture
def bucket(s3: S3) -> Iterator[S3]:
    yield s3
    s3.spoil = None


def repository() -> S3ArtifactRepository:
    return S3ArtifactRepository(f"s3://{BUCKET}/{ROOT}")


@pytest.mark.parametrize("name", ODD)
def test_an_object_of_any_name_takes_one_request(bucket: S3, tmp_path: Path, name: str) -> None:
    content = b"" if name == "nothing" else name.encode() * 100
    bucket.put(name, content)
    assert speed_artifacts._read(repository(), name) == content
    [asked] = bucket.asked
    assert asked["method"] == "GET"
    assert asked["HTTP_USER_AGENT"].startswith("Boto3/"), "what an auditor finds in the bucket's log"
    repository()._download_file(name, str(tmp_path / "by-mlflow"))
    assert (tmp_path / "by-mlflow").read_bytes() == content
    assert {one["path"] for one in bucket.asked} == {asked["path"]}, "written as botocore writes it"


@pytest.mark.parametrize(
    ("bucket", "region", "variables", "url"),
    [
        ("mlflow", "eu-central-1", {}, "https://mlflow.s3.eu-central-1.amazonaws.com/"),
        ("mlflow", "cn-north-1", {}, "https://mlflow.s3.cn-north-1.amazonaws.com.cn/"),
        ("with.dots", "us-west-2", {}, "https://s3.us-west-2.amazonaws.com/with.dots/"),
        (
            "mlflow",
            "us-west-2",
            {"AWS_USE_FIPS_ENDPOINT": "true"},
            "https://mlflow.s3-fips.us-west-2.amazonaws.com/",
        ),
    ],
)
def test_objects_are_where_botocore_says(
    monkeypatch: pytest.MonkeyPatch, bucket: str, region: str, variables: dict[str, str], url: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    key = {"aws_access_key_id": "none", "aws_secret_access_key": "none"}
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    client = boto3.Session(region_name=region, **key).client(
        "s3", config=Config(signature_version="s3v4", s3={"addressing_style": "auto"})
    )
    assert speed_artifacts._folder(client, bucket) == (url, region)


def test_the_signature_is_weighed(bucket: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the test above says something about it."""
    bucket.put("plain.bin", b"content")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    monkeypatch.setenv("MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE", "path")  # so that no client is reused
    assert speed_artifacts._read(repository(), "plain.bin") is None
    assert "HTTP_AUTHORIZATION" in bucket.asked[-1]


def test_the_buckets_owner_is_named(bucket: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.put("plain.bin", b"content")
    monkeypatch.setenv("MLFLOW_S3_EXPECTED_BUCKET_OWNER", "123456789012")
    assert speed_artifacts._read(repository(), "plain.bin") == b"content"
    [asked] = bucket.asked
    assert asked["HTTP_X_AMZ_EXPECTED_BUCKET_OWNER"] == "123456789012"
    assert "x-amz-expected-bucket-owner" in asked["HTTP_AUTHORIZATION"], "it is signed"


@pytest.mark.parametrize("algorithm", ["CRC32", "SHA1", "SHA256"])
def test_what_was_changed_on_the_way_is_not_answered(bucket: S3, algorithm: str) -> None:
    bucket.put("plain.bin", b"content", ChecksumAlgorithm=algorithm)
    assert speed_artifacts._read(repository(), "plain.bin") == b"content"
    bucket.spoil = lambda body: body.replace(b"content", b"CONTENT")
    assert speed_artifacts._read(repository(), "plain.bin") is None


def test_what_breaks_off_is_not_answered(bucket: S3) -> None:
    bucket.put("plain.bin", b"content")
    bucket.spoil = lambda body: body[:-1]
    with pytest.raises(HTTPError):  # which leaves it to MLflow
        speed_artifacts._read(repository(), "plain.bin")


def test_what_is_large_or_not_there_is_left_to_mlflow(bucket: S3) -> None:
    bucket.put("as large as may be", bytes(speed_artifacts.SMALL))
    bucket.put("larger", bytes(speed_artifacts.SMALL + 1))
    assert speed_artifacts._read(repository(), "as large as may be") == bytes(speed_artifacts.SMALL)
    assert speed_artifacts._read(repository(), "larger") is None
    assert speed_artifacts._read(repository(), "not there") is None
    assert speed_artifacts._read(repository(), "not") is None


def test_another_signature_is_left_to_mlflow(bucket: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.put("plain.bin", b"content")
    monkeypatch.setenv("MLFLOW_EXPERIMENTAL_S3_SIGNATURE_VERSION", "unsigned")
    assert speed_artifacts._read(repository(), "plain.bin") is None
    assert not bucket.asked


def test_mlflow_still_asks_more_than_once(bucket: S3, tmp_path: Path) -> None:
    """When it no longer does, this change is not needed any more."""
    bucket.put("plain.bin", b"content")
    repository().download_artifacts("plain.bin", str(tmp_path))
    assert len(bucket.asked) > 1
