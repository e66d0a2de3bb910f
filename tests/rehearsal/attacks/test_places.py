"""Paths and places that lead out of the platform's artifact store (CVE-2026-2614 and its family)."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest

from ..test_image_entrypoint import ARTIFACTS, BUCKET
from .conftest import Attacked

MLFLOW = "/api/2.0/mlflow"
SECRET = b"root:x:0:0"  # how /etc/passwd begins
OTHERS = f"s3://{BUCKET}/not/ours"  # the same bucket, beside the platform's prefix

WAYS_OUT = [
    "../secret",
    "a/../../secret",
    "..%2Fsecret",
    "%2e%2e%2fsecret",
    "%252e%252e%252fsecret",
    "%25252e%25252e%25252fsecret",
    "a/%2e%2e/%2e%2e/secret",
    "/etc/passwd",
    "%2Fetc%2Fpasswd",
    "file:///etc/passwd",
    "file:%2F%2F%2Fetc%2Fpasswd",
    "file:../../etc/passwd",
    "..\\secret",
    "C:\\Windows\\win.ini",
    "a#/../secret",
    "..%00/secret",
]


@pytest.fixture(scope="module")
def run(attacked: Attacked) -> str:
    run = attacked.start_run()
    assert attacked.request("PUT", f"{ARTIFACTS}/0/{run}/artifacts/note.txt", b"note")[0] == 200
    attacked.objects.put_object(Bucket=BUCKET, Key="kept/secret", Body=SECRET)
    attacked.objects.put_object(Bucket=BUCKET, Key="not/ours/secret", Body=SECRET)
    return run


@pytest.fixture(scope="module")
def model_id(attacked: Attacked, run: str) -> str:
    model = attacked.create(f"{MLFLOW}/logged-models", {"experiment_id": "0", "source_run_id": run})
    return str(model["model"]["info"]["model_id"])


@pytest.mark.parametrize("way", WAYS_OUT)
def test_no_path_leads_out_of_the_artifact_store(
    attacked: Attacked, run: str, model_id: str, way: str
) -> None:
    """Every route that takes a path of an artifact, the way as the server gets it and encoded once more."""
    before = _keys(attacked)
    for path in {quote(way, safe="/%"), quote(way, safe="")}:
        reads = [
            f"{ARTIFACTS}/{path}",
            f"{ARTIFACTS}/0/{run}/artifacts/{path}",
            f"{ARTIFACTS}?path={path}",
            f"/get-artifact?run_id={run}&path={path}",
            f"{MLFLOW}/artifacts/list?run_id={run}&path={path}",
            f"/ajax-api/2.0/mlflow/logged-models/{model_id}/artifacts/files?artifact_file_path={path}",
            f"{MLFLOW}/logged-models/{model_id}/artifacts/directories?artifact_directory_path={path}",
            f"/model-versions/get-artifact?name=none&version=1&path={path}",
            f"/api/2.0/mlflow-artifacts/presigned/{path}",
            f"/static-files/{path}",
            f"/ajax-api/2.0/mlflow/get-trace-artifact?request_id={path}",
        ]
        for target in reads:
            status, answer = attacked.request("GET", target)
            assert SECRET not in answer, target
            assert status < 500 or status == 501, (target, answer)
        writes = [
            ("PUT", f"{ARTIFACTS}/{path}"),
            ("DELETE", f"{ARTIFACTS}/{path}"),
            ("POST", f"/ajax-api/2.0/mlflow/upload-artifact?run_uuid={run}&path={path}"),
            ("POST", f"/api/2.0/mlflow-artifacts/mpu/create/{path}"),
        ]
        for method, target in writes:
            status, answer = attacked.request(method, target, b'{"path": "x", "num_parts": 1}')
            assert status < 500, (target, answer)
    outside = {key for key in _keys(attacked) if not key.startswith("kept/here/")}
    assert outside == {key for key in before if not key.startswith("kept/here/")}
    assert not any(".." in key.split("/") for key in _keys(attacked))


NOTHING = [
    "%20",
    "%2520",
    "%00",
    "%23",
    "%3F",
    ".",
    "%2e",
    "./",
    "%20/",
    "%20%20",
    "%09",
    "%0A",
    "%3B",
    "%2F",
    "%5C",
    "",
]
"""Paths of which MLflow may leave nothing; of nothing it would delete everything."""


@pytest.mark.parametrize("path", NOTHING)
def test_nothing_that_was_not_named_is_deleted(attacked: Attacked, run: str, path: str) -> None:
    before = _keys(attacked)
    for target in (f"{ARTIFACTS}/{path}", f"{ARTIFACTS}?path={path}"):
        status, answer = attacked.request("DELETE", target)
        assert status < 500, answer
    assert _keys(attacked) == before


PLACES = [
    "/etc",
    "etc",
    "../../etc",
    "file:///etc",
    "FILE:///etc",
    "file:/etc",
    "file://localhost/etc",
    "s3://somebody-else/artifacts",
    OTHERS,
    f"s3://{BUCKET}",
    f"s3://{BUCKET}/kept/here/../../not/ours",
    f"s3://{BUCKET}/kept/here/%2e%2e/%252e%252e/not/ours",
    f"s3://{BUCKET}/kept/hereafter",
    "gs://somebody-else/x",
    "wasbs://a@b.blob.core.windows.net/x",
    "dbfs:/x",
    "hdfs://10.0.2.15/x",
    "ftp://10.0.2.15/x",
    "sftp://10.0.2.15/x",
    "http://169.254.169.254/latest/meta-data",
    "https://10.0.2.15/api/2.0/mlflow-artifacts/artifacts/x",
    "mlflow-artifacts://10.0.2.15:5000/x",
    "mlflow-artifacts:/../../x",
    "mlflow-artifacts:/%2e%2e/x",
]


@pytest.mark.parametrize("place", PLACES)
def test_no_experiment_and_no_model_is_kept_elsewhere(attacked: Attacked, run: str, place: str) -> None:
    experiment = {"name": f"elsewhere {place}", "artifact_location": place}
    status, answer = attacked.post(f"{MLFLOW}/experiments/create", experiment)
    assert status == 400, answer
    attacked.post(f"{MLFLOW}/registered-models/create", {"name": "elsewhere"})
    for lineage in ({}, {"run_id": run}):
        version = {"name": "elsewhere", "source": place, **lineage}
        status, answer = attacked.post(f"{MLFLOW}/model-versions/create", version)
        assert status == 400, answer


def test_own_places_are_taken(attacked: Attacked, run: str) -> None:
    """Or the refusals above would prove nothing."""
    own = {"name": "own place", "artifact_location": f"s3://{BUCKET}/kept/here/own"}
    experiment = attacked.create(f"{MLFLOW}/experiments/create", own)["experiment_id"]
    other = attacked.start_run(experiment)
    upload = f"/ajax-api/2.0/mlflow/upload-artifact?run_uuid={other}&path=note.txt"
    assert attacked.request("POST", upload, b"own")[0] == 200
    assert attacked.request("GET", f"/get-artifact?run_id={other}&path=note.txt") == (200, b"own")
    assert attacked.request("GET", f"/get-artifact?run_id={run}&path=note.txt") == (200, b"note")
    attacked.create(f"{MLFLOW}/registered-models/create", {"name": "own"})
    for source in (f"runs:/{run}/", f"mlflow-artifacts:/0/{run}/artifacts"):
        version = {"name": "own", "source": source, "run_id": run}
        number = attacked.create(f"{MLFLOW}/model-versions/create", version)["model_version"]["version"]
        target = f"/model-versions/get-artifact?name=own&version={number}&path=note.txt"
        assert attacked.request("GET", target) == (200, b"note")


@pytest.mark.parametrize("place", ["/etc", "file:///etc", OTHERS, "s3://somebody-else/artifacts"])
def test_a_place_that_is_in_the_database_already_is_not_opened(attacked: Attacked, place: str) -> None:
    """An older server, or another way in, may have let it through."""
    run = attacked.start_run()
    attacked.rows("UPDATE runs SET artifact_uri = %s WHERE run_uuid = %s RETURNING 1", place, run)
    attacked.post(f"{MLFLOW}/registered-models/create", {"name": "smuggled"})
    version = {"name": "smuggled", "source": f"runs:/{run}/x", "run_id": run}
    number = attacked.create(f"{MLFLOW}/model-versions/create", version)["model_version"]["version"]
    attacked.rows(
        "UPDATE model_versions SET source = %s, storage_location = %s WHERE name = 'smuggled' RETURNING 1",
        place,
        place,
    )
    for name in ("passwd", "secret"):
        for target in (
            f"/get-artifact?run_id={run}&path={name}",
            f"{MLFLOW}/artifacts/list?run_id={run}",
            f"/model-versions/get-artifact?name=smuggled&version={number}&path={name}",
            f"{MLFLOW}/artifacts/presigned-download-url?run_id={run}&path={name}",
        ):
            status, answer = attacked.request("GET", target)
            assert status in (400, 404, 405), (target, answer)
            assert SECRET not in answer
    upload = f"/ajax-api/2.0/mlflow/upload-artifact?run_uuid={run}&path=planted"
    assert attacked.request("POST", upload, b"x")[0] == 400


def test_a_trace_names_no_place_for_its_spans(attacked: Attacked) -> None:
    trace = f"tr-{'a' * 32}"
    info = {
        "trace_id": trace,
        "trace_location": {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "0"}},
        "request_time": "2026-01-01T00:00:00Z",
        "execution_duration": "1s",
        "state": "OK",
    }
    spans = json.dumps({"spans": []}).encode()
    attacked.objects.put_object(Bucket=BUCKET, Key="not/ours/traces.json", Body=spans)
    attacked.create("/api/3.0/mlflow/traces", {"trace": {"trace_info": info}})
    tag = json.dumps({"key": "mlflow.artifactLocation", "value": OTHERS}).encode()
    target = f"/api/3.0/mlflow/traces/{trace}/tags"
    assert attacked.request("PATCH", target, tag, **{"Content-Type": "application/json"})[0] == 200
    status, answer = attacked.request("GET", f"/ajax-api/2.0/mlflow/get-trace-artifact?request_id={trace}")
    assert status == 400, answer
    assert b"not in this platform" in answer


def test_a_missing_artifact_is_not_a_failure_of_the_server(attacked: Attacked, run: str) -> None:
    for target in (f"{ARTIFACTS}/0/{run}/artifacts/none", f"/get-artifact?run_id={run}&path=none"):
        status, answer = attacked.request("GET", target)
        assert status == 404, answer
        assert b"has no such object" in answer


def test_a_folder_is_not_fetched_to_the_disk(attacked: Attacked, run: str) -> None:
    """Whoever asks for the empty path would have the whole bucket fetched."""
    for folder in ("", "0", f"0/{run}", f"0/{run}/artifacts", f"0/{run}/artifacts/"):
        status, answer = attacked.request("GET", f"{ARTIFACTS}/{folder}")
        assert 400 <= status < 500, answer
    assert attacked.request("GET", f"/get-artifact?run_id={run}&path=")[0] == 404


def test_what_blocks_attacks_turns_no_faster_way_off(attacked: Attacked) -> None:
    """`speed.py` leaves alone what it does not recognise."""
    assert "stays off" not in attacked.task.output


def _keys(attacked: Attacked) -> set[str]:
    listed = attacked.objects.list_objects_v2(Bucket=BUCKET)
    return {item["Key"] for item in listed.get("Contents", [])}
