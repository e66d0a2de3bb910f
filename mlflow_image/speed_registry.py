"""Finds a model's version by its alias in two statements, and makes a new version in three.

MLflow has SQLAlchemy track an object for the model, the version, each alias and tag, and asks for the model twice. What is
read and written stays the same, on either engine. Where anything is in the way (no such model, alias or version, tags,
a version that comes from another, one that another request has just made) MLflow's own code does it from the start,
with its own answer.
"""

import urllib.parse
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa
from mlflow.entities.model_registry import ModelVersion, ModelVersionTag
from mlflow.store.model_registry import sqlalchemy_store as stock
from mlflow.store.model_registry.dbmodels import models
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy.exc import IntegrityError

_models = models.SqlRegisteredModel.__table__
_versions, _tags = models.SqlModelVersion.__table__, models.SqlModelVersionTag.__table__
_aliases = models.SqlRegisteredModelAlias.__table__


def _of_model(table: sa.Table) -> sa.ColumnElement[bool]:
    # Not by the columns' own names, which are those of an update's new values.
    return sa.and_(table.c.workspace == sa.bindparam("of"), table.c.name == sa.bindparam("model"))


ALIASES = sa.select(_aliases.c.alias, _aliases.c.version, _aliases.c.alias == sa.bindparam("asked")).where(
    _of_model(_aliases)
)
VERSION = (
    sa.select(_versions, _tags.c.key.label("tag"), _tags.c.value)
    .outerjoin(
        _tags,
        sa.and_(
            _tags.c.workspace == _versions.c.workspace,
            _tags.c.name == _versions.c.name,
            _tags.c.version == _versions.c.version,
        ),
    )
    .where(_of_model(_versions), _versions.c.version == sa.bindparam("number"))
    .where(_versions.c.current_stage != stock.STAGE_DELETED_INTERNAL)
)
TOUCH = sa.update(_models).where(_of_model(_models)).values(last_updated_time=sa.bindparam("now"))
LATEST = sa.select(sa.func.max(_versions.c.version)).where(_of_model(_versions))
MAKE = sa.insert(_versions)


def apply() -> None:
    by_alias, create = SqlAlchemyStore.get_model_version_by_alias, SqlAlchemyStore.create_model_version

    def by_alias_at_once(store: Any, name: str, alias: str) -> ModelVersion:
        stock._validate_model_name(name)
        stock._validate_model_alias_name(alias)
        plain = fits(store) and alias.lower() != stock._REGISTERED_MODEL_ALIAS_LATEST
        return (find(store, name, alias) if plain else None) or by_alias(store, name, alias)

    def create_at_once(
        store: Any,
        name: str,
        source: str,
        run_id: str | None = None,
        tags: Any = None,
        run_link: str | None = None,
        description: str | None = None,
        local_model_path: str | None = None,
        model_id: str | None = None,
    ) -> ModelVersion:
        stock._validate_model_name(name)
        plain = not tags and (run_id or not model_id) and urllib.parse.urlparse(source).scheme != "models"
        version = make(store, name, source, run_id, run_link, description) if plain and fits(store) else None
        return version or create(
            store, name, source, run_id, tags, run_link, description, local_model_path, model_id
        )

    SqlAlchemyStore.get_model_version_by_alias = by_alias_at_once
    SqlAlchemyStore.create_model_version = create_at_once


def fits(store: Any) -> bool:
    """Whether the store is one without workspaces."""
    return type(store)._get_active_workspace is SqlAlchemyStore._get_active_workspace


def find(store: Any, name: str, alias: str) -> ModelVersion | None:
    model = {"of": store._get_active_workspace(), "model": name}
    with store.ManagedSessionMaker() as session:
        connection = session.connection()
        aliases = connection.execute(ALIASES, {**model, "asked": alias}).all()
        number = next((number for _, number, asked in aliases if asked), None)
        rows = [] if number is None else connection.execute(VERSION, {**model, "number": number}).all()
    if not rows:
        return None
    tags = [ModelVersionTag(row.tag, row.value) for row in rows if row.tag is not None]
    return _version(rows[0], tags, [of for of, its, _ in aliases if its == number])


def make(
    store: Any, name: str, source: str, run_id: str | None, run_link: str | None, description: str | None
) -> ModelVersion | None:
    now = stock.get_current_time_millis()
    model = {"of": store._get_active_workspace(), "model": name}
    with store.ManagedSessionMaker(read_only=False) as session:
        connection = session.connection()
        # This keeps others who make a version of the model waiting, so that each sees the latest.
        if connection.execute(TOUCH, {**model, "now": now}).rowcount != 1:
            session.rollback()
            return None
        new = SimpleNamespace(
            workspace=model["of"],
            name=name,
            version=(connection.execute(LATEST, model).scalar() or 0) + 1,
            creation_time=now,
            last_updated_time=now,
            description=description,
            user_id=None,
            current_stage=models.STAGE_NONE,
            source=source,
            storage_location=source,
            run_id=run_id,
            run_link=run_link,
            status=models.ModelVersionStatus.to_string(models.ModelVersionStatus.READY),
            status_message=None,
        )
        try:
            connection.execute(MAKE, vars(new))
        except IntegrityError:
            session.rollback()
            return None
    return _version(new, [], [])


def _version(row: Any, tags: list[ModelVersionTag], aliases: list[str]) -> ModelVersion:
    """As SqlModelVersion.to_mlflow_entity makes it."""
    return ModelVersion(
        row.name,
        row.version,
        row.creation_time,
        row.last_updated_time,
        row.description,
        row.user_id,
        row.current_stage,
        row.source,
        row.run_id,
        row.status,
        row.status_message,
        tags,
        row.run_link,
        aliases,
        workspace=row.workspace,
    )
