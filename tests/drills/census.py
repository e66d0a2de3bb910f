"""What is in a platform's database and bucket, counted and read back, to be compared before and after.

The reading goes through the REST API alone, so that one reader serves servers of every release. It takes only fields
that all of them answer, in an order of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import psycopg
import requests
from psycopg import sql

SECONDS = 120.0
RUN = ("run_id", "run_name", "experiment_id", "user_id", "status", "start_time", "end_time")
RUN_PLACE = ("lifecycle_stage", "artifact_uri")
METRIC = ("key", "value", "timestamp", "step")
DATASET = ("name", "digest", "source_type", "source", "schema", "profile")
MODEL = ("name", "description", "creation_timestamp")
VERSION = (
    "name",
    "version",
    "current_stage",
    "description",
    "source",
    "run_id",
    "status",
    "creation_timestamp",
)
PROMPTS = "tags.`mlflow.prompt.is_prompt` = 'true'"
BOOKKEEPING = ("alembic_", "platform_")
"""How the names of tables begin that are not data."""

MOVED = ("trace_tags", "trace_request_metadata", "trace_metrics", "span_metrics")
"""Tables of which 3.17 moves rows into columns: names, sessions, tokens and costs of traces. Their rows are counted
and not compared; what they say is read back."""


@dataclass(frozen=True)
class Census:
    """What was found: how many rows each table has, and each thing, as text, under its kind and name."""

    rows: dict[str, int]
    things: dict[str, str]

    @property
    def total(self) -> int:
        """All rows of all tables."""
        return sum(self.rows.values())

    def count(self, kind: str) -> int:
        """How many things of a kind there are: experiment, run, metric, dataset, artifact, model, version, trace."""
        return sum(thing.startswith(f"{kind} ") for thing in self.things)

    def missing_in(self, later: Census) -> list[str]:
        """Everything here that a later census does not have, or has otherwise, in sentences."""
        sentences = [
            f"{thing} was {content}, is {later.things.get(thing, 'not there')}"
            for thing, content in sorted(self.things.items())
            if later.things.get(thing) != content
        ]
        sentences += [
            f"table {table} had {count} rows, has {later.rows.get(table, 0)}"
            for table, count in sorted(self.rows.items())
            if table not in MOVED and later.rows.get(table, 0) < count
        ]
        return sentences

    def differences(self, later: Census) -> list[str]:
        """The same, and everything that only the later one has."""
        added = [f"{thing} was not there" for thing in sorted(later.things.keys() - self.things.keys())]
        rows = [
            f"table {table} had {count} rows, has {later.rows.get(table)}"
            for table, count in sorted(self.rows.items())
            if table not in MOVED and later.rows.get(table, 0) > count
        ]
        return self.missing_in(later) + added + rows


def take(connection: psycopg.Connection[Any], url: str) -> Census:
    """Count through `connection` and read everything through the server at `url`. Nobody may write meanwhile."""
    things = read(url)
    return Census(count_rows(connection), things)


def count_rows(connection: psycopg.Connection[Any]) -> dict[str, int]:
    """The number of rows of each table of data."""
    tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    counts = {}
    for (table,) in tables:
        if not table.startswith(BOOKKEEPING):
            found = connection.execute(
                sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))
            ).fetchone()
            assert found is not None
            counts[table] = int(found[0])
    return counts


def read(url: str) -> dict[str, str]:
    """Every experiment, run, metric point, dataset, model, version, prompt, trace and artifact, as text."""
    reader = _Reader(url)
    return {
        thing: json.dumps(content, sort_keys=True, ensure_ascii=False)
        for things in (reader.experiments(), reader.models(), reader.artifacts())
        for thing, content in things
    }


class _Reader:
    def __init__(self, url: str) -> None:
        self._url = url
        self._session = requests.Session()

    def experiments(self) -> Iterator[tuple[str, Any]]:
        """Experiments, deleted ones included, with their runs and traces."""
        for experiment in self._pages("2.0/mlflow/experiments/search", "experiments", view_type="ALL"):
            number = experiment["experiment_id"]
            kept = _picked(experiment, ("name", "artifact_location", "lifecycle_stage"))
            yield f"experiment {number}", {**kept, "tags": _pairs(experiment.get("tags"))}
            search = {"experiment_ids": [number], "run_view_type": "ALL"}
            for run in self._pages("2.0/mlflow/runs/search", "runs", **search):
                yield from self._run(run)
            yield from self._traces(number)

    def _run(self, run: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        info, data = run["info"], run["data"]
        name = f"run {info['run_id']}"
        kept = _picked(info, RUN + RUN_PLACE)
        yield name, {**kept, "params": _pairs(data.get("params")), "tags": _pairs(data.get("tags"))}
        for metric in data.get("metrics", []):
            found = self._get(
                "2.0/mlflow/metrics/get-history",
                run_id=info["run_id"],
                metric_key=metric["key"],
                max_results="1000",  # without it 3.10.0 answers none
            )
            points = sorted((_picked(point, METRIC) for point in found.get("metrics", [])), key=str)
            yield (
                f"metric {info['run_id']} {metric['key']}",
                {"last": _picked(metric, METRIC), "history": points},
            )
        for used in run.get("inputs", {}).get("dataset_inputs", []):
            dataset = _picked(used["dataset"], DATASET)
            tags = _pairs(used.get("tags"))
            yield f"dataset {info['run_id']} {dataset['name']}", {**dataset, "tags": tags}

    def _traces(self, experiment: str) -> Iterator[tuple[str, Any]]:
        """Traces, as 3.x answers them or, where it does not, as 2.x did; 2.6 has none."""
        place = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment}}
        try:
            found = list(self._pages("3.0/mlflow/traces/search", "traces", locations=[place]))
        except _UnknownError:
            found = self._old_traces(experiment)
        for trace in found:
            number = trace.get("trace_id") or trace["request_id"]
            tags = trace.get("tags", {})
            state = trace.get("state") or trace.get("status")
            own = {key: tags[key] for key in ("kind", "late", "mlflow.traceName") if key in tags}
            assessments = sorted(
                f"{made['assessment_name']}: {made.get('feedback', {}).get('value')}"
                for made in trace.get("assessments", [])
            )
            spans = self._spans(number, old="request_id" in trace)
            yield f"trace {number}", {"state": state, "tags": own, "assessments": assessments, "spans": spans}

    def _old_traces(self, experiment: str) -> list[dict[str, Any]]:
        try:
            found = self._get("2.0/mlflow/traces", experiment_ids=experiment, max_results="500")
        except _UnknownError:
            return []
        return [{**trace, "tags": _pairs(trace.get("tags"))} for trace in found.get("traces", [])]

    def _spans(self, trace: str, *, old: bool) -> list[Any]:
        """Each span's name, inputs and outputs."""
        path = "2.0/mlflow/get-trace-artifact" if old else "3.0/mlflow/get-trace-artifact"
        answer = self._checked(
            self._session.get(f"{self._url}/ajax-api/{path}", params={"request_id": trace}, timeout=SECONDS)
        )
        spans = answer.json()["spans"]
        kept = ("mlflow.spanInputs", "mlflow.spanOutputs")
        return sorted(
            [span["name"], *(_unquoted(span["attributes"].get(key)) for key in kept)] for span in spans
        )

    def models(self) -> Iterator[tuple[str, Any]]:
        """Registered models and prompts, with their versions."""
        for prompts in (False, True):
            only = {"filter": PROMPTS} if prompts else {}
            for model in self._listed("2.0/mlflow/registered-models/search", "registered_models", **only):
                aliases = {alias["alias"]: str(alias["version"]) for alias in model.get("aliases", [])}
                kept = _picked(model, MODEL)
                yield (
                    f"model {model['name']}",
                    {**kept, "tags": _pairs(model.get("tags")), "aliases": aliases},
                )
                name = f"name = '{model['name']}'"
                search = {"filter": f"{name} AND {PROMPTS}" if prompts else name}
                for version in self._listed("2.0/mlflow/model-versions/search", "model_versions", **search):
                    kept = _picked(version, VERSION)
                    thing = f"version {version['name']} {version['version']}"
                    yield thing, {**kept, "tags": _pairs(version.get("tags"))}

    def artifacts(self) -> Iterator[tuple[str, Any]]:
        """Every file in the bucket: its length and hash."""
        paths = list(self._walk(""))
        with ThreadPoolExecutor(4) as pool:
            yield from pool.map(self._artifact, paths)

    def _walk(self, folder: str) -> Iterator[str]:
        found = self._get("2.0/mlflow-artifacts/artifacts", path=folder)
        for file in found.get("files", []):
            path = f"{folder}/{file['path']}" if folder else file["path"]
            if file.get("is_dir"):
                yield from self._walk(path)
            else:
                yield path

    def _artifact(self, path: str) -> tuple[str, Any]:
        url = f"{self._url}/api/2.0/mlflow-artifacts/artifacts/{quote(path)}"
        content = self._checked(requests.get(url, timeout=SECONDS)).content
        return f"artifact {path}", [len(content), hashlib.sha256(content).hexdigest()]

    def _pages(self, path: str, key: str, **body: Any) -> Iterator[dict[str, Any]]:
        """All pages of a search that is asked with POST."""
        while True:
            answer = self._session.post(
                f"{self._url}/api/{path}", json={"max_results": 500, **body}, timeout=SECONDS
            )
            found = self._checked(answer).json()
            yield from found.get(key, [])
            if not (token := found.get("next_page_token")):
                return
            body["page_token"] = token

    def _listed(self, path: str, key: str, **query: str) -> Iterator[dict[str, Any]]:
        """All pages of a search that is asked with GET."""
        while True:
            found = self._get(path, max_results="100", **query)
            yield from found.get(key, [])
            if not (token := found.get("next_page_token")):
                return
            query["page_token"] = token

    def _get(self, path: str, /, **query: str) -> dict[str, Any]:
        answer = self._session.get(f"{self._url}/api/{path}", params=query, timeout=SECONDS)
        found: dict[str, Any] = self._checked(answer).json()
        return found

    @staticmethod
    def _checked(answer: requests.Response) -> requests.Response:
        if answer.status_code in (404, 405):
            raise _UnknownError(f"{answer.url}: {answer.status_code} {answer.text[:200]}")
        assert answer.status_code == 200, f"{answer.url}: {answer.status_code} {answer.text[:500]}"
        return answer


class _UnknownError(Exception):
    """The server has no such path."""


def _picked(thing: Mapping[str, Any], fields: tuple[str, ...]) -> dict[str, Any]:
    """Those of the fields that say something. A number may come as text, a value that is empty not at all."""
    return {field: str(thing[field]) for field in fields if thing.get(field) not in (None, "")}


def _pairs(entries: list[dict[str, Any]] | None) -> dict[str, Any]:
    """A list of keys and values as a mapping."""
    return {entry["key"]: entry.get("value", "") for entry in entries or []}


def _unquoted(value: Any) -> Any:
    """A span's attribute, which some releases answer as JSON within JSON."""
    return json.dumps(json.loads(value) if isinstance(value, str) else value, sort_keys=True)
