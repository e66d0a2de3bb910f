"""Experiments that are read at once, and runs that are started and ended so, are what MLflow's own code makes of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from mlflow.entities import ExperimentTag, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy import text

from . import test_image_entrypoint as image
from . import test_image_speed_writes as writes
from .test_image_entrypoint import IMAGE

sys.path.insert(0, str(IMAGE))

import speed_starts

postgres, s3, start, template = image.postgres, image.s3, image.start, image.template  # fixtures
store, statements = writes.store, writes.statements  # and these

NAME = "mlflow.runName"
# What a run is started with: experiment, user, start, tags, name.
STARTS: dict[str, tuple[Any, ...]] = {
    "plain": ("0", "u", 5, [], "a run"),
    "tags": ("0", "ü", 5, [RunTag("a", "1"), RunTag("b", ""), RunTag("c", "ü" * 400)], "a run"),
    "a name in a tag": ("0", "", 0, [RunTag("a", "1"), RunTag(NAME, "told")], ""),
    "the same name twice": ("0", "u", 5, [RunTag(NAME, "told")], "told"),
    "two names": ("0", "u", 5, [RunTag(NAME, "told")], "other"),
    "a tag twice": ("0", "u", 5, [RunTag("a", "1"), RunTag("a", "2")], "a run"),
    "a name that is too long": ("0", "u", 5, [], "n" * 300),
    "a tag without a value": ("0", "u", 5, [RunTag("a", None)], "a run"),
    "a null character": ("0", "u", 5, [RunTag("a", "x\0y")], "a run"),
    "half a character": ("0", "u", 5, [], "\ud800"),
    "no user": ("0", None, 5, [], "a run"),
    "no start": ("0", "u", None, [], "a run"),
    "no tags": ("0", "u", 5, None, "a run"),
    "no experiment": ("", "u", 5, [], "a run"),
    "one that is not there": ("999", "u", 5, [], "a run"),
    "one that is none": ("x", "u", 5, [], "a run"),
    "another way to write it": ("00", "u", 5, [], "a run"),
    "in other digits": ("\u0660", "u", 5, [], "a run"),
    "one that is too large": (str(2**40), "u", 5, [], "a run"),
    "a deleted one": ("deleted", "u", 5, [], "a run"),
}
# How a run is ended: status, end, name.
ENDS: dict[str, tuple[Any, ...]] = {
    "finished": (RunStatus.FINISHED, 7, None),
    "only a status": (RunStatus.FAILED, None, None),
    "only an end": (None, 7, None),
    "an end at zero": (RunStatus.FINISHED, 0, ""),
    "nothing": (None, None, None),
    "a name": (RunStatus.FINISHED, 7, "other"),
    "no status": (99, 7, None),
    "an end too far": (RunStatus.FINISHED, 2**70, None),
}


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return writes.until_the_end(monkeypatch, speed_starts, "get_experiment", "create_run", "update_run_info")


@pytest.fixture
def deleted(store: SqlAlchemyStore) -> str:
    """An experiment that is deleted."""
    found = store.get_experiment_by_name("deleted")
    if found is None:
        found = store.get_experiment(store.create_experiment("deleted", tags=[ExperimentTag("a", "1")]))
        store.delete_experiment(found.experiment_id)
    return str(found.experiment_id)


def outcome(ask: Callable[[], Any]) -> list[str]:
    """What a client is told."""
    try:
        told = ask()
    except MlflowException as error:
        return [
            error.error_code,
            str(error).partition("[SQL")[0].partition("DETAIL")[0].partition("CONTEXT")[0],
        ]
    except Exception as error:
        return [type(error).__name__, str(error)]
    return (
        [str(told.to_proto()), str(vars(told))] if not hasattr(told, "info") else [str(told.to_proto()), ""]
    )


@pytest.mark.parametrize("case", STARTS)
def test_a_run_is_started_as_mlflow_starts_it(
    store: SqlAlchemyStore, fast: Callable[[], None], deleted: str, case: str
) -> None:
    experiment, *others = STARTS[case]
    results = []
    for _ in range(2):
        with store.engine.begin() as connection:
            connection.execute(text("UPDATE runs SET user_id = 'before'"))
        told = outcome(lambda: store.create_run(deleted if experiment == "deleted" else experiment, *others))
        with store.engine.begin() as connection:
            new = "SELECT run_uuid FROM runs WHERE user_id IS DISTINCT FROM 'before'"
            [run] = connection.execute(text(new)).scalars().all() or ["none"]
        results.append(str([told, writes.rows(store, run)]).replace(run, "RUN"))
        fast()
    assert results[1] == results[0]


def test_a_run_without_a_name_is_given_one(store: SqlAlchemyStore, fast: Callable[[], None]) -> None:
    fast()
    run = store.create_run("0", "u", 1, [], "")
    assert run.info.run_name
    assert run.data.tags == {NAME: run.info.run_name}
    assert store.get_run(run.info.run_id).info.run_name == run.info.run_name


@pytest.mark.parametrize("case", ENDS)
def test_a_run_is_ended_as_mlflow_ends_it(
    store: SqlAlchemyStore, fast: Callable[[], None], case: str
) -> None:
    nameless, gone = writes.create(store), writes.create(store)
    store.delete_run(gone)
    with store.engine.begin() as connection:
        connection.execute(text("UPDATE runs SET name = '' WHERE run_uuid = :run"), {"run": nameless})
    results = []
    for run in (writes.create(store), writes.create(store)):
        told = [outcome(partial(store.update_run_info, run, *ENDS[case])) for _ in range(2)]
        told += [
            outcome(partial(store.update_run_info, run, *ENDS[case])) for run in (nameless, gone, "none", "")
        ]
        results.append(str([told, writes.rows(store, run)]).replace(run, "RUN"))
        fast()
    assert results[1] == results[0]


def test_an_experiment_is_what_mlflow_finds(
    store: SqlAlchemyStore, fast: Callable[[], None], deleted: str
) -> None:
    tags = [ExperimentTag("a", "1"), ExperimentTag("ü", ""), ExperimentTag("mlflow.note.content", "n")]
    some = store.create_experiment("some", tags=tags)
    asked = ("0", some, deleted, "999", "x", "", None, "00", "\u0660", "-1", str(2**40), 0)
    expected = [outcome(partial(store.get_experiment, one)) for one in asked]
    fast()
    assert [outcome(partial(store.get_experiment, one)) for one in asked] == expected
    assert "mlflow.note.content" in str(expected)


def test_few_statements_do_it(
    store: SqlAlchemyStore, fast: Callable[[], None], statements: list[str]
) -> None:
    old = writes.create(store)
    counts = []
    for _ in range(2):
        for ask in (
            partial(store.get_experiment, "0"),
            partial(store.create_run, "0", "u", 1, [], "n"),
            partial(store.update_run_info, old, RunStatus.FINISHED, 1, None),
        ):
            statements.clear()
            ask()
            counts.append(len(statements))
        fast()
    assert counts[3:] == [1, 2, 1]
    assert all(before > after for before, after in zip(counts[:3], counts[3:], strict=True)), (
        "MLflow has changed"
    )
