"""Resolved CloudFormation properties, checked once, where they enter the rehearsed services."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_pascal


class RefusedError(Exception):
    """A resource cannot be rehearsed as declared. The message says which property and why."""


class Properties(BaseModel):
    """Properties by their CloudFormation names. What a model does not name has no effect on a rehearsal."""

    model_config = ConfigDict(alias_generator=to_pascal, extra="ignore", frozen=True, populate_by_name=True)


class KeyValue(Properties):
    """An entry of an attribute list."""

    key: str
    value: str


Model = TypeVar("Model", bound=Properties)


def parse(model: type[Model], what: str, properties: Mapping[str, Any]) -> Model:
    """Read the properties of the resource `what`. Raises RefusedError that names every wrong one."""
    try:
        return model.model_validate(properties)
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise RefusedError(f"{what}: {'; '.join(faults)}") from None
