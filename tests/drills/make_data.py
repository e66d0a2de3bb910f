"""Writes a bit of everything that an MLflow server keeps, with the client of the MLflow that runs this file.

A script, not a module of the tests: each release's own interpreter runs it, from 2.6.0 to the pinned one, so what a
release does not have is asked for by name. The last line of output is what was acknowledged, counted, in JSON.

Usage: make_data.py URL NAME [no-version-lookups]

With no-version-lookups model versions are made and not looked up again by their number, and prompts, which are such
versions, are left out. 3.10.0 compares that number
with a string, which psycopg 3, this repository's driver, refuses: its aliases and stages work with psycopg2 only.
"""

import importlib
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

MAJOR = int(mlflow.__version__.split(".")[0])
RUNS = 24
"""Finished runs. Five metrics of eight steps each."""

MODELS = 3
TRACES = 6


def main(url: str, name: str, omit: str = "") -> dict[str, int]:
    """Write it all under `name`, which no other call may have used on this server."""
    mlflow.set_tracking_uri(url)
    client = MlflowClient(url)
    experiment = client.create_experiment(f"{name} süd", tags={"team": "drill", "note": "a\nb"})
    finished = [_finished_run(client, experiment, name, number) for number in range(RUNS)]
    _other_runs(client, experiment, finished[0])
    _deleted_experiment(client, name)
    made = {"runs": RUNS + 3 + 1, "experiments": 2, "models": _models(client, name, finished, omit)}
    made["logged_models"] = _logged_models(client, experiment, finished[0])
    made["traces"] = _traces(client, experiment)
    made["prompts"] = 0 if omit else _prompts(client, name)
    return made


def _finished_run(client: MlflowClient, experiment: str, name: str, number: int) -> str:
    drawn = random.Random(f"{name} {number}")
    now = int(time.time() * 1000)
    run = client.create_run(experiment, start_time=now - 1000, tags={"number": str(number)})
    run_id = str(run.info.run_id)
    metrics = [
        Metric(f"metric/{key}", drawn.uniform(-1e6, 1e6), now + step, step)
        for key in range(5)
        for step in range(8)
    ]
    odd = [float("nan"), float("inf"), float("-inf"), 1e-300]
    metrics += [Metric("odd", value, now, step) for step, value in enumerate(odd)]
    params = [Param(f"param.{key}", str(drawn.random())) for key in range(4)] + [Param("long", "ü" * 240)]
    client.log_batch(run_id, metrics=metrics, params=params, tags=[RunTag("mlflow.note.content", "# so")])
    dataset = Dataset(f"set-{number % 3}", f"digest{number % 3}", "local", '{"uri": "x"}', '{"a": 1}', "{}")
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "weights.bin").write_bytes(drawn.randbytes(10_000 + number))
        (Path(folder) / "über uns").mkdir()
        (Path(folder) / "über uns" / "notes and more.txt").write_text(f"{name} {number}", encoding="utf-8")
        client.log_artifacts(run_id, folder, "model")
    client.set_terminated(run_id, "FAILED" if number % 5 == 0 else "FINISHED", now + 2000)
    return run_id


def _other_runs(client: MlflowClient, experiment: str, parent: str) -> None:
    """One that still runs, one below another, and a deleted one."""
    running = client.create_run(experiment, tags={"state": "running"}).info.run_id
    client.log_metric(running, "loss", 0.5, step=3)
    client.create_run(experiment, tags={"mlflow.parentRunId": parent})
    deleted = client.create_run(experiment).info.run_id
    client.log_param(deleted, "kept", "although deleted")
    client.delete_run(deleted)


def _deleted_experiment(client: MlflowClient, name: str) -> None:
    experiment = client.create_experiment(f"{name} deleted")
    client.log_metric(client.create_run(experiment).info.run_id, "left", 1.0)
    client.delete_experiment(experiment)


def _models(client: MlflowClient, name: str, runs: list[str], omit: str) -> int:
    """Registered models: two versions each, with aliases, tags and, as long as MLflow has them, stages."""
    for number in range(MODELS):
        model = f"{name}-model-{number}"
        client.create_registered_model(model, tags={"owner": "drill"}, description=f"Model {number}")
        for version in (1, 2):
            run = runs[2 * number + version - 1]
            source = f"{client.get_run(run).info.artifact_uri}/model"
            client.create_model_version(
                model, source, run, tags={"v": str(version)}, description=f"From {run}"
            )
        if omit == "no-version-lookups":
            continue
        client.set_registered_model_alias(model, "champion", "1")
        client.set_registered_model_alias(model, "challenger", "2")
        client.transition_model_version_stage(model, "1", "Production")
    return MODELS


def _logged_models(client: MlflowClient, experiment: str, run: str) -> int:
    """Models as 3.x keeps them beside runs."""
    if not hasattr(client, "create_logged_model"):
        return 0
    for number in range(MODELS):
        model = client.create_logged_model(
            experiment, name=f"logged-{number}", source_run_id=run, params={"depth": str(number)}
        )
        client.log_metric(run, "accuracy", 0.5 + number, model_id=model.model_id)
        client.set_logged_model_tags(model.model_id, {"kept": "yes"})
        client.finalize_logged_model(model.model_id, "READY")
    return MODELS


def _traces(client: MlflowClient, experiment: str) -> int:
    """Traces of two spans, with an assessment where there are such."""
    if not hasattr(client, "start_trace"):
        return 0
    for number in range(TRACES):
        root = client.start_trace(
            "question", inputs={"q": f"what {number}"}, tags={"kind": "drill"}, experiment_id=experiment
        )
        # Since 3.0 the request's id is called the trace's.
        trace = getattr(root, "trace_id", None) or root.request_id
        child = client.start_span("search", trace, root.span_id, inputs={"k": number})
        client.end_span(trace, child.span_id, outputs={"hits": number})
        client.end_trace(trace, outputs={"a": f"that {number}"})
        if hasattr(mlflow, "flush_trace_async_logging"):
            mlflow.flush_trace_async_logging()
        client.set_trace_tag(trace, "late", str(number))
        if MAJOR >= 3:
            mlflow.log_feedback(trace_id=trace, name="good", value=True, rationale="it was")
    return TRACES


def _prompts(client: MlflowClient, name: str) -> int:
    """Prompts: two versions, one alias."""
    where: Any = mlflow
    if MAJOR >= 3:
        where = importlib.import_module("mlflow.genai")
    if not hasattr(where, "register_prompt"):
        return 0
    for version in (1, 2):
        where.register_prompt(name=f"{name}-prompt", template=f"Say {{{{word}}}}, {version} times")
    where.set_prompt_alias(f"{name}-prompt", "production", 1)
    return 1


if __name__ == "__main__":
    os.environ["MLFLOW_ENABLE_ASYNC_TRACE_LOGGING"] = "false"
    print(json.dumps(main(*sys.argv[1:])))
