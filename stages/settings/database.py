"""Settings of the database."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import model_validator

from stages.settings.fields import Table, between, matching
from stages.settings.sentences import shown

ROTATION_DAYS = 30
AUTHORITIES = Path(__file__).resolve().parents[2] / "mlflow_image" / "rds_ca.pem"


def regions_of_authorities() -> set[str]:
    """The regions of which the image can tell RDS's databases from others'."""
    text = AUTHORITIES.read_text(encoding="utf-8")
    return set(re.findall(r"^# Amazon RDS (\S+) Root CA", text, re.MULTILINE))


class Database(Table):
    """Engine, size and safety of the database."""

    engine: Literal["postgres", "mysql", "aurora-postgres", "aurora-mysql"] = "postgres"
    instance_class: (
        Annotated[
            str,
            matching(
                r"[a-z0-9]+\.[a-z0-9]+",
                'write an RDS instance class without its "db." prefix, such as "t4g.small"',
            ),
        ]
        | None
    ) = None
    storage_gib: Annotated[int, between(20, 65536, "a size in GiB")] | None = None
    min_capacity: Annotated[float, between(0, 256, "Aurora capacity units")] | None = None
    max_capacity: Annotated[float, between(1, 256, "Aurora capacity units")] | None = None
    multi_az: bool
    backup_days: Annotated[int, between(1, 35, "a number of days")]
    deletion_protection: bool
    sign_in: Literal["password", "iam"] = "password"
    rotation_days: Annotated[int, between(1, 1000, "a number of days")] = ROTATION_DAYS
    restore_from: (
        Annotated[
            str,
            matching(
                r"[A-Za-z](-?[A-Za-z0-9])*(:[a-z0-9-]+)?",
                "name the snapshot as RDS and a refused rollback show it, such as"
                ' "mlflow-dev-database-0584bdc529eb-20261121-120000"',
            ),
        ]
        | None
    ) = None

    @model_validator(mode="after")
    def _fits_its_engine(self) -> Database:
        sizes = {"instance": ("instance_class", "storage_gib"), "cluster": ("min_capacity", "max_capacity")}
        own, other = ("cluster", "instance") if self.engine.startswith("aurora-") else ("instance", "cluster")
        for name in sizes[other]:
            if (value := getattr(self, name)) is not None:
                raise ValueError(
                    f'{name} = {shown(value)}: engine = "{self.engine}" is not sized by it; remove it, and give'
                    f" {' and '.join(sizes[own])}"
                )
        if self.engine == "mysql" and re.fullmatch(r"t[34]g?\.(micro|small)", self.instance_class or ""):
            raise ValueError(
                f'instance_class = "{self.instance_class}": is too small for Performance Insights on MySQL; take'
                ' "t4g.medium" or a larger one'
            )
        if self.sign_in == "iam" and self.rotation_days != ROTATION_DAYS:
            raise ValueError(
                f'rotation_days = {self.rotation_days}: with sign_in = "iam" there is no password to rotate; remove it'
            )
        if self.min_capacity is not None and self.max_capacity is not None:
            for name, capacity in (("min_capacity", self.min_capacity), ("max_capacity", self.max_capacity)):
                if capacity % 0.5:
                    raise ValueError(
                        f"{name} = {capacity:g}: Aurora scales in steps of 0.5; give a multiple of that"
                    )
            if self.min_capacity > self.max_capacity:
                raise ValueError(
                    f"max_capacity = {self.max_capacity:g}: must not be less than min_capacity = {self.min_capacity:g};"
                    " raise it"
                )
            if self.min_capacity == 0 and self.multi_az:
                raise ValueError(
                    "min_capacity = 0: a database that may pause is not one that must survive the loss of a zone;"
                    " give at least 0.5, or multi_az = false"
                )
        return self
