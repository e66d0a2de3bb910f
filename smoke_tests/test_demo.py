"""`mlflow demo` fills the server, and what it claims to have made is there.

The command itself is a weak witness: it exits 0 when it did nothing because an earlier demo is there. So it
is told to make everything anew, and what is found then must be new, complete, and as the demo's data says.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from statistics import mean

import pytest
from mlflow import MlflowClient, search_traces
from mlflow.demo.base import DEMO_EXPERIMENT_NAME, DEMO_PROMPT_PREFIX
from mlflow.demo.data import ALL_DEMO_TRACES, DEMO_PROMPTS, get_multimodal_traces
from mlflow.entities import Run, Trace, TraceState
from mlflow.entities.model_registry import PromptVersion
from mlflow.genai import search_prompts

DEMO_SECONDS = 240
EVALUATIONS = {"trace-level-evaluation", "baseline-session-evaluation", "improved-session-evaluation"}
SCORERS = {"relevance", "correctness", "groundedness", "safety"}
# The demo makes each trace twice: as an agent answered before and after its improvement.
TRACES = 2 * (len(ALL_DEMO_TRACES) + len(get_multimodal_traces()))


@dataclass
class Demo:
    """What of a demo is on the server."""

    experiment_id: str | None = None
    runs: dict[str, Run] = field(default_factory=dict)
    traces: dict[str, Trace] = field(default_factory=dict)
    prompts: dict[tuple[str, int, int], PromptVersion] = field(default_factory=dict)


@pytest.fixture(scope="module")
def demo(url: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Demo:
    """Run `mlflow demo`, and return what it made: nothing that was there before."""
    if os.environ["SMOKE_DEMO"] == "false":
        pytest.skip("SMOKE_DEMO is false: the demo would leave its experiment in this environment")
    if request.session.testsfailed:
        pytest.skip("other tests failed: the demo would only take longer to say so again")
    before = _find()
    command = [sys.executable, "-m", "mlflow", "demo", "--tracking-uri", url, "--refresh", "--no-browser"]
    # Traces are sent at once: the demo would wait some 16 s for traces that its own batches hold back.
    environment = {**os.environ, "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "false"}
    result = subprocess.run(
        command,
        env=environment,
        cwd=tmp_path_factory.mktemp("demo"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEMO_SECONDS,
        check=False,
    )
    end = "\n".join(result.stdout.splitlines()[-20:])
    assert result.returncode == 0, f"`mlflow demo` ended with {result.returncode}:\n{end}"
    after = _find()
    return Demo(
        after.experiment_id,
        {key: run for key, run in after.runs.items() if key not in before.runs},
        {key: trace for key, trace in after.traces.items() if key not in before.traces},
        {key: prompt for key, prompt in after.prompts.items() if key not in before.prompts},
    )


def _find() -> Demo:
    client = MlflowClient()
    experiment = client.get_experiment_by_name(DEMO_EXPERIMENT_NAME)
    if experiment is None or experiment.lifecycle_stage != "active":
        return Demo()
    traces: list[Trace] = search_traces(
        locations=[experiment.experiment_id], max_results=1000, return_type="list"
    )
    prompts = [
        version
        for prompt in search_prompts(filter_string=f"name LIKE '{DEMO_PROMPT_PREFIX}.%'")
        for version in client.search_prompt_versions(prompt.name)
    ]
    return Demo(
        experiment.experiment_id,
        {run.info.run_id: run for run in client.search_runs([experiment.experiment_id], max_results=1000)},
        {trace.info.trace_id: trace for trace in traces},
        # Versions are numbered from 1 again after a refresh; the server's time of creation tells them apart.
        {(prompt.name, int(prompt.version), prompt.creation_timestamp or 0): prompt for prompt in prompts},
    )


def test_demo_makes_its_experiment(demo: Demo) -> None:
    assert demo.experiment_id, f"there is no active experiment {DEMO_EXPERIMENT_NAME}"


def test_demo_makes_traces_with_spans(demo: Demo) -> None:
    assert len(demo.traces) == TRACES, f"{len(demo.traces)} new traces, the demo's data has {TRACES}"
    for trace_id, trace in demo.traces.items():
        roots = [span for span in trace.data.spans if span.parent_id is None]
        assert len(roots) == 1, f"trace {trace_id} has {len(roots)} root spans"
        assert roots[0].inputs, f"trace {trace_id} has no inputs"
        assert roots[0].outputs, f"trace {trace_id} has no outputs"
        assert trace.info.state == TraceState.OK, f"trace {trace_id} ended as {trace.info.state}"
    assert any(len(trace.data.spans) > 1 for trace in demo.traces.values()), (
        "no trace has a span below its root"
    )


def test_demo_makes_evaluation_runs_that_agree_with_their_assessments(demo: Demo) -> None:
    evaluations = {run.info.run_name: run for run in demo.runs.values() if run.info.run_name in EVALUATIONS}
    assert set(evaluations) == EVALUATIONS, f"new evaluation runs: {sorted(evaluations)}"
    for name, run in evaluations.items():
        assert run.info.status == "FINISHED", f"{name} is {run.info.status}"
        for scorer in SCORERS:
            values = [
                assessment.feedback.value == "yes"
                for trace in demo.traces.values()
                for assessment in trace.info.assessments
                if assessment.feedback and assessment.run_id == run.info.run_id and assessment.name == scorer
            ]
            assert values, f"{name} has no assessment {scorer} on any new trace"
            assert run.data.metrics.get(f"{scorer}/mean") == pytest.approx(mean(values)), f"{name}: {scorer}"
    unassessed = [
        trace_id
        for trace_id, trace in demo.traces.items()
        if not {assessment.name for assessment in trace.info.assessments} >= SCORERS
    ]
    assert not unassessed, f"traces that no scorer saw: {unassessed}"


def test_demo_makes_prompts_with_versions(demo: Demo) -> None:
    made = {(name, version): prompt.template for (name, version, _), prompt in demo.prompts.items()}
    promised = {
        (prompt.name, number): version.template
        for prompt in DEMO_PROMPTS
        for number, version in enumerate(prompt.versions, start=1)
    }
    assert made == promised, "the new prompt versions are not the demo's"


def test_demo_prompts_load_by_alias(demo: Demo) -> None:
    client = MlflowClient()
    for prompt in DEMO_PROMPTS:
        for number, version in enumerate(prompt.versions, start=1):
            for alias in version.aliases[:1]:
                assert client.get_prompt_version_by_alias(prompt.name, alias).version == number
