"""Versions of models that are found and made in a few statements are what MLflow's own code finds and makes."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from mlflow.entities.model_registry import ModelVersionTag
from mlflow.exceptions import MlflowException
from mlflow.store.model_registry import sqlalchemy_store as stock
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy import event

from . import test_image_entrypoint as image
from .test_image_entrypoint import IMAGE, PASSWORD, Postgres

sys.path.insert(0, str(IMAGE))

import speed_registry

postgres, s3, start, template = image.postgres, image.s3, image.start, image.template  # fixtures

SOURCE = "mlflow-artifacts:/0/run/artifacts/model"
# How a version is made: source, run, tags, link, description, local path, model.
VERSIONS: dict[str, tuple[Any, ...]] = {
    "plain": (SOURCE, "r" * 32),
    "a bit of all": (SOURCE, "r" * 32, [], "http://run", "described ü"),
    "nothing but a source": (SOURCE,),
    "as the server asks": (SOURCE, "", [], "", "", None, ""),
    "tags": (SOURCE, "r", [ModelVersionTag("a", "1"), ModelVersionTag("b", "")]),
    "of another version": ("models:/m/1", "r"),
    "of one that is not there": ("models:/m/99", "r"),
    "a source that is too long": ("s3://" + "s" * 600, "r"),
    "a null character": (SOURCE, "r", [], "", "a\0b"),
}


@pytest.fixture
def store(postgres: Postgres, template: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[SqlAlchemyStore]:
    name = postgres.create("registry", template)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    store = SqlAlchemyStore(f"postgresql+psycopg://postgres@127.0.0.1:{postgres.port}/{name}")
    for method in ("get_model_version_by_alias", "create_model_version"):  # so that they are put back
        monkeypatch.setattr(SqlAlchemyStore, method, getattr(SqlAlchemyStore, method))
    monkeypatch.setattr(stock, "get_current_time_millis", lambda: 1_700_000_000_000)
    yield store
    store.engine.dispose()
    with postgres.connect() as connection:
        connection.execute("DROP DATABASE registry WITH (FORCE)")


def outcome(ask: Callable[[], Any]) -> str:
    """What a client is told."""
    try:
        return str(vars(ask()))
    except MlflowException as error:
        told = str(error).partition("[SQL")[0].partition("DETAIL")[0].partition("CONTEXT")[0]
        return f"{error.error_code} {told}"


def rows(store: SqlAlchemyStore) -> str:
    """All models and versions, in one text."""
    with store.engine.connect() as connection:
        return "\n".join(
            str(sorted(connection.execute(sa.text(f"SELECT to_jsonb(t)::text FROM {table} t")).scalars()))
            for table in ("registered_models", "model_versions", "model_version_tags")
        )


def fill(store: SqlAlchemyStore, name: str) -> None:
    """A model with three versions, the second of them deleted, and the third with two aliases."""
    store.create_registered_model(name)
    for number in range(3):
        store.create_model_version(
            name, SOURCE, "r", [ModelVersionTag(f"t{tag}", str(number)) for tag in range(number)]
        )
    store.set_registered_model_alias(name, "first", 1)
    for alias in ("champion", "gone", "ü"):
        store.set_registered_model_alias(name, alias, 2 if alias == "gone" else 3)
    store.delete_model_version(name, 2)


def test_an_alias_leads_where_mlflow_is_led(store: SqlAlchemyStore) -> None:
    fill(store, "m")
    names = ("m", "M", "none", "", "a/b")
    aliases = ("champion", "first", "gone", "ü", "none", "latest", "Champion", "")
    asked = list(itertools.product(names, aliases))
    expected = [outcome(partial(store.get_model_version_by_alias, *one)) for one in asked]
    speed_registry.apply()
    assert [outcome(partial(store.get_model_version_by_alias, *one)) for one in asked] == expected
    assert "['champion', 'ü']" in expected[0]
    assert "'t1': '2'" in expected[0]


def test_a_version_is_made_as_mlflow_makes_it(store: SqlAlchemyStore) -> None:
    results = []
    for name in ("stock", "quick"):
        store.create_registered_model(name)
        told = [
            outcome(partial(store.create_model_version, model, *values))
            for values in VERSIONS.values()
            for model in (name, "m", "none", "")
        ]
        results.append(str((told, rows(store))))
        with store.engine.begin() as connection:
            for table in ("model_version_tags", "model_versions", "registered_models"):
                connection.execute(sa.text(f"DELETE FROM {table}"))
        speed_registry.apply()
    assert results[1].replace("quick", "stock") == results[0]


def test_many_versions_at_once_are_numbered_one_by_one(store: SqlAlchemyStore) -> None:
    speed_registry.apply()
    store.create_registered_model("m")
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: store.create_model_version("m", SOURCE, "r").version, range(40)))
    assert sorted(made) == list(range(1, 41))


def test_few_statements_do_it(store: SqlAlchemyStore) -> None:
    fill(store, "m")
    sent: list[str] = []
    event.listen(store.engine, "before_cursor_execute", lambda *arguments: sent.append(arguments[2]))
    counts = []
    for _ in range(2):
        for ask in (
            partial(store.get_model_version_by_alias, "m", "first"),
            partial(store.create_model_version, "m", SOURCE, "r"),
        ):
            sent.clear()
            ask()
            counts.append(len(sent))
        speed_registry.apply()
    assert counts[2:] == [2, 3]
    assert counts[0] > 4 < counts[1], "MLflow has changed: its own way may do by now"


def test_a_store_with_workspaces_is_left_to_mlflow() -> None:
    class Workspaces:
        def _get_active_workspace(self) -> None: ...

    assert not speed_registry.fits(Workspaces())
