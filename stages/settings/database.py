"""Settings of the database."""

from __future__ import annotations

from typing import Annotated

from stages.settings.fields import Table, between, matching


class Database(Table):
    """Size and safety of the RDS instance."""

    instance_class: Annotated[
        str,
        matching(
            r"[a-z0-9]+\.[a-z0-9]+",
            'write an RDS instance class without its "db." prefix, such as "t4g.small"',
        ),
    ]
    storage_gib: Annotated[int, between(20, 65536, "a size in GiB")]
    multi_az: bool
    backup_days: Annotated[int, between(1, 35, "a number of days")]
    deletion_protection: bool
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
