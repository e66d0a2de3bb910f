"""Smoke tests and load check against a real MLflow server: green when it works, red when it does not."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import boto3
import pytest
import requests
from moto.server import ThreadedMotoServer

from load_tests.api import Api
from load_tests.ledger import Ledger, Run

ROOT = Path(__file__).parents[2]
GATE_SECONDS = 150

# The tests break the one server they share, so they must not run beside each other.
pytestmark = pytest.mark.xdist_group("gates")


@dataclass(frozen=True)
class Server:
    """A running MLflow server and the folder that holds its artifacts."""

    url: str
    artifacts: Path

    def post(self, path: str, **query: Any) -> dict[str, Any]:
        response = requests.post(f"{self.url}/api/2.0/mlflow/{path}", json=query, timeout=10)
        response.raise_for_status()
        return dict(response.json())

    def visible(self) -> set[str]:
        """Names of all active experiments and registered models, and the folders of artifacts."""
        experiments = self.post("experiments/search", max_results=1000).get("experiments", [])
        query = {"max_results": "1000"}
        models = requests.get(
            f"{self.url}/api/2.0/mlflow/registered-models/search", params=query, timeout=10
        ).json()
        found = {entry["name"] for entry in [*experiments, *models.get("registered_models", [])]}
        files = {
            str(file.relative_to(self.artifacts)) for file in self.artifacts.rglob("*") if file.is_file()
        }
        return found | files


def _environment(**variables: str) -> dict[str, str]:
    """A gate's environment: what it is given, and nothing of MLflow's that happens to be set here."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MLFLOW_", "LOAD_", "SMOKE_"))
    }
    return {**kept, "PYTHONDONTWRITEBYTECODE": "1", "MLFLOW_DISABLE_TELEMETRY": "true", **variables}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    artifacts = folder / "artifacts"
    artifacts.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        *(
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--workers",
            "1",
        ),
        *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(artifacts)),
    ]
    log = folder / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=_environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(url, process, log)
        yield Server(url, artifacts)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if requests.get(f"{url}/health", timeout=2).ok:
                return
        except requests.ConnectionError:
            time.sleep(0.2)
    raise AssertionError(f"the MLflow server did not start:\n{log.read_text()[-2000:]}")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the gates and of the lock file that names the version, to run in and to change."""
    for folder in ("smoke_tests", "load_tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "mlflow_image").mkdir()
    shutil.copy(ROOT / "mlflow_image" / "requirements.lock", tmp_path / "mlflow_image")
    return tmp_path


Smoke = Callable[..., "tuple[int, str, dict[str, str | None]]"]


@pytest.fixture
def smoke(checkout: Path, server: Server) -> Smoke:
    """Run the smoke tests as their buildspec does: status, output, and test -> failure (None: passed)."""

    def run(*arguments: str, **variables: str) -> tuple[int, str, dict[str, str | None]]:
        result = subprocess.run(
            [sys.executable, "-m", "pytest", "smoke_tests", "--junitxml=reports/smoke.xml", *arguments],
            cwd=checkout,
            env=_environment(**{"MLFLOW_TRACKING_URI": server.url, "SMOKE_DEMO": "false", **variables}),
            capture_output=True,
            text=True,
            timeout=GATE_SECONDS,
            check=False,
        )
        report = checkout / "reports" / "smoke.xml"
        cases: dict[str, str | None] = {}
        for case in ElementTree.parse(report).iter("testcase") if report.exists() else ():
            failures = [*case.iter("failure"), *case.iter("error")]
            cases[str(case.get("name"))] = failures[0].get("message") if failures else None
        return result.returncode, result.stdout + result.stderr, cases

    return run


Load = Callable[..., "tuple[int, str]"]


@pytest.fixture
def load(checkout: Path, server: Server) -> Load:
    """Run the load check as its buildspec does, with thresholds that any machine meets: status and output."""

    def run(**variables: str) -> tuple[int, str]:
        lax = {
            "MLFLOW_TRACKING_URI": server.url,
            "LOAD_USERS": "4",
            "LOAD_SPAWN_RATE": "8",
            "LOAD_SECONDS": "8",
            "LOAD_MAX_ERROR_RATE": "0",
            "LOAD_MAX_READ_P95_MS": "20000",
            "LOAD_MAX_WRITE_P95_MS": "20000",
            "LOAD_MIN_RPS": "0.1",
            "LOAD_MAX_SLOWDOWN": "1000",
        }
        result = subprocess.run(
            [sys.executable, "-m", "load_tests"],
            cwd=checkout,
            env=_environment(**{**lax, **variables}),
            capture_output=True,
            text=True,
            timeout=GATE_SECONDS,
            check=False,
        )
        return result.returncode, result.stdout + result.stderr

    return run


@contextmanager
def artifacts_broken(server: Server) -> Iterator[None]:
    """A file where the server's artifact folder was: nothing can be stored or read."""
    aside = server.artifacts.with_name("aside")
    server.artifacts.rename(aside)
    server.artifacts.touch()
    try:
        yield
    finally:
        server.artifacts.unlink()
        aside.rename(server.artifacts)


def test_smoke_passes_with_the_demo_and_goes_red_when_a_later_demo_does_nothing(
    smoke: Smoke, checkout: Path
) -> None:
    status, output, cases = smoke(SMOKE_DEMO="true")
    assert status == 0, output
    assert len(cases) >= 14
    assert not [name for name, failure in cases.items() if failure]

    # The first demo's data is still there: a demo that exits 0 without doing anything must not pass on it.
    hollow = checkout / "hollow"
    hollow.mkdir()
    (hollow / "sitecustomize.py").write_text(
        "import os, sys\nif sys.orig_argv[2:4] == ['mlflow', 'demo']:\n    os._exit(0)\n"
    )
    status, output, cases = smoke("smoke_tests/test_demo.py", SMOKE_DEMO="true", PYTHONPATH=str(hollow))
    assert status == 1, output
    for name in ("test_demo_makes_traces_with_spans", "test_demo_makes_prompts_with_versions"):
        assert cases[name], f"{name} passed on old data"
    assert "0 new traces" in str(cases["test_demo_makes_traces_with_spans"])


def test_smoke_without_the_demo_leaves_nothing_behind(smoke: Smoke, server: Server) -> None:
    before = server.visible()
    status, output, _ = smoke()
    assert status == 0, output
    assert server.visible() == before


def test_smoke_stops_with_one_sentence_when_nothing_answers(smoke: Smoke) -> None:
    began = time.monotonic()
    status, output, cases = smoke(MLFLOW_TRACKING_URI="http://127.0.0.1:9", SMOKE_DEMO="true")
    assert status == 1, output
    assert [str(failure) for failure in cases.values() if "No MLflow server answers at" in str(failure)]
    assert len(cases) == 1
    assert "Traceback" not in output
    assert time.monotonic() - began < 30


def test_smoke_refuses_settings_it_cannot_work_with(smoke: Smoke) -> None:
    status, output, _ = smoke(MLFLOW_TRACKING_URI="", SMOKE_DEMO="maybe")
    assert status == pytest.ExitCode.USAGE_ERROR
    assert "MLFLOW_TRACKING_URI=(not set) is not an http or https URL: set it to" in output
    assert "SMOKE_DEMO=maybe is neither true nor false" in output


def test_smoke_goes_red_when_the_version_is_not_the_images(smoke: Smoke, checkout: Path) -> None:
    (checkout / "mlflow_image" / "requirements.lock").write_text("mlflow==9.9.9 \\\n    --hash=sha256:0\n")
    status, output, cases = smoke("-k", "version_is")
    assert status == 1, output
    assert "this release pins 9.9.9" in str(cases["test_version_is_the_images"])


def test_smoke_goes_red_when_artifacts_cannot_be_stored(smoke: Smoke, server: Server) -> None:
    before = server.visible()
    with artifacts_broken(server):
        status, output, cases = smoke()
    assert status == 1, output
    assert cases["test_artifact_comes_back_as_it_was[3000000]"]
    assert cases["test_run_keeps_params_metrics_and_tags"] is None
    assert server.visible() == before


def test_load_passes_and_leaves_nothing_behind(load: Load, server: Server, checkout: Path) -> None:
    before = server.visible()
    status, output = load()
    assert status == 0, output
    assert output.splitlines()[-1].startswith("PASS: error rate 0.00%")
    figures = json.loads((checkout / "reports" / "load.json").read_text())
    assert figures["verdict"] == "PASS"
    assert figures["failures"] == 0
    assert figures["rps"] == pytest.approx(figures["requests"] / figures["seconds"])
    assert all(operation["requests"] > 0 for operation in figures["operations"].values())
    assert "log metric" in (checkout / "reports" / "load.html").read_text()
    assert server.visible() == before


def test_load_names_the_number_that_cannot_be_met(load: Load, checkout: Path) -> None:
    status, output = load(LOAD_MAX_WRITE_P95_MS="0.001", LOAD_SECONDS="6")
    assert status == 1
    assert "FAIL: write p95 " in output.splitlines()[-1]
    assert output.splitlines()[-1].endswith(" ms > 0.001 ms")
    suite = ElementTree.parse(checkout / "reports" / "load.xml")
    assert [case.get("name") for case in suite.iter("testcase") if case.find("failure") is not None] == [
        "write p95"
    ]


@pytest.fixture
def parameters() -> Iterator[dict[str, str]]:
    """A parameter store: the variables that lead to it."""
    store = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    store.start()
    host, port = store.get_host_and_port()
    yield {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "gate",
        "AWS_SECRET_ACCESS_KEY": "gate",
        "AWS_DEFAULT_REGION": "eu-west-1",
    }
    store.stop()


def test_load_keeps_a_release_s_medians_and_compares_the_next_one(
    load: Load, parameters: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a release that passes leaves its own."""
    for name, value in parameters.items():
        monkeypatch.setenv(name, value)
    ssm = boto3.client("ssm")
    where = {"LOAD_BASELINE_PARAMETER": "/here/load", "LOAD_SECONDS": "6"}

    status, output = load(**where, CODEBUILD_RESOLVED_SOURCE_VERSION="0123456789abcdef")
    assert status == 0, output
    first = json.loads(ssm.get_parameter(Name="/here/load")["Parameter"]["Value"])
    assert (first["release"], first["users"]) == ("0123456789ab", 4)
    assert first["read_p50_ms"] > 0
    assert first["write_p50_ms"] > 0

    status, output = load(**where, LOAD_MAX_WRITE_P95_MS="0.001")
    assert status == 1
    assert "of release 0123456789ab" in output
    assert json.loads(ssm.get_parameter(Name="/here/load")["Parameter"]["Value"]) == first

    ssm.put_parameter(Name="/here/load", Value="mine", Type="String", Overwrite=True)
    status, output = load(**where)
    assert status == 1
    assert "does not hold the figures of a release: delete it" in output


def test_load_that_may_not_compare_does_not_pass(
    load: Load, parameters: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**parameters, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(name, value)
    status, output = load(LOAD_BASELINE_PARAMETER="/here/load", AWS_MAX_ATTEMPTS="1")
    assert status == 1
    assert "FAIL: the figures of the release before cannot be read: " in output
    assert "requests" not in output, "nothing was loaded"


def test_load_fails_and_still_clears_up_when_artifacts_cannot_be_stored(load: Load, server: Server) -> None:
    before = server.visible()
    with artifacts_broken(server):
        status, output = load(LOAD_SECONDS="6")
    assert status == 1, output
    assert "x upload artifact: HTTP 500" in output
    assert "error rate" in output.splitlines()[-1]
    assert server.visible() == before


def test_load_that_is_interrupted_fails_and_clears_up(checkout: Path, server: Server) -> None:
    before = server.visible()
    thresholds = {
        "LOAD_MAX_ERROR_RATE": "1",
        "LOAD_MAX_READ_P95_MS": "20000",
        "LOAD_MAX_WRITE_P95_MS": "20000",
    }
    size = {"LOAD_USERS": "2", "LOAD_SPAWN_RATE": "2", "LOAD_SECONDS": "60", "LOAD_MIN_RPS": "0"}
    size["LOAD_MAX_SLOWDOWN"] = "1000"
    process = subprocess.Popen(
        [sys.executable, "-m", "load_tests"],
        cwd=checkout,
        env=_environment(MLFLOW_TRACKING_URI=server.url, **thresholds, **size),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 30
    while not any(server.artifacts.rglob("file-*.bin")) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert server.visible() != before, "the load never began"
    process.terminate()
    output, _ = process.communicate(timeout=40)
    assert process.returncode == 1, output
    assert "interrupted after" in output.splitlines()[-1]
    assert server.visible() == before


def test_acknowledged_writes_that_are_gone_are_named(server: Server) -> None:
    experiment_id = server.post("experiments/create", name="gone")["experiment_id"]
    run_id = server.post("runs/create", experiment_id=experiment_id)["run"]["info"]["run_id"]
    server.post("runs/log-parameter", run_id=run_id, key="depth", value="7")
    server.post("runs/log-metric", run_id=run_id, key="loss", value=0.5, timestamp=1, step=1)
    api = Api(server.url, None)
    try:
        assert Ledger(runs=[Run(run_id, {"depth": "7"}, metrics={"loss": {1: 0.5}})]).read_back(api) == []
        lossy = Ledger(
            runs=[
                Run(run_id, {"depth": "8"}, {"team": "a"}, {"loss": {2: 0.5}}, ["no/such/file"], ended=True)
            ],
            versions=[("no-such-model", "1", "s")],
            traces=[("tr-0", 3)],
        )
        lost = "\n".join(lossy.read_back(api))
    finally:
        server.post("experiments/delete", experiment_id=experiment_id)
    for part in ("params depth is '7'", "tags team is None", "status is RUNNING", "history of metric loss"):
        assert part in lost
    assert lost.count("could not be read back") == 3


def test_load_says_what_is_wrong_before_it_begins(load: Load) -> None:
    status, output = load(LOAD_USERS="many", LOAD_SPAWN_RATE="")
    assert status == 2
    assert len(output.splitlines()) == 2
    assert "LOAD_USERS=many is not a whole number from 1 to 500" in output

    status, output = load(MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert status == 1
    assert output.splitlines()[-1].startswith(
        "FAIL: the load could not be prepared: POST http://127.0.0.1:9/"
    )
    assert "Traceback" not in output
