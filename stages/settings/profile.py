"""What an environment is for. A profile fills in what the environment's own table leaves out, and decides nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from stages.settings import Environment

Profile = Literal["standard", "cost", "strict"]

PROFILES: Mapping[str, Mapping[str, Any]] = {
    # Two tasks, so that one may fail: what has been rehearsed.
    "standard": {
        "availability_zones": 2,
        "nat_gateways": 1,
        "tasks": 2,
        "max_tasks": 4,
        "cpu": 512,
        "memory": 1024,
        "workers": 1,
        "database": {"multi_az": False, "backup_days": 7, "deletion_protection": True},
    },
    # One task of the smallest kind, which ECS replaces when it ends: a minute without service, and little to pay.
    "cost": {
        "availability_zones": 2,
        "nat_gateways": 1,
        "tasks": 1,
        "max_tasks": 2,
        "cpu": 256,
        "memory": 1024,
        "workers": 1,
        "capacity": "spot",
        "database": {"multi_az": False, "backup_days": 1, "deletion_protection": False},
    },
    # What NIST 800-53 r5 and PCI DSS 3.2.1 ask for: nothing that one zone takes away, a year of logs under an own key.
    "strict": {
        "availability_zones": 2,
        "nat_gateways": 2,
        "tasks": 2,
        "max_tasks": 6,
        "cpu": 1024,
        "memory": 2048,
        "workers": 1,
        "database": {"multi_az": True, "backup_days": 35, "deletion_protection": True},
        "logs": {"days": 365, "own_key": True},
        "firewall": {},
    },
}

_INSTANCE = {
    "standard": {"instance_class": "t4g.medium", "storage_gib": 20},
    "cost": {"instance_class": "t4g.small", "storage_gib": 20},
    "strict": {"instance_class": "m7g.large", "storage_gib": 50},
}
_CLUSTER = {
    "standard": {"min_capacity": 0.5, "max_capacity": 4.0},
    # It pauses when nobody is connected.
    "cost": {"min_capacity": 0.0, "max_capacity": 2.0},
    "strict": {"min_capacity": 0.5, "max_capacity": 16.0},
}
SIZES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "postgres": _INSTANCE,
    # The smallest with Performance Insights on MySQL.
    "mysql": {**_INSTANCE, "cost": {"instance_class": "t4g.medium", "storage_gib": 20}},
    "aurora-postgres": _CLUSTER,
    "aurora-mysql": _CLUSTER,
}
"""How large the database is, by its engine."""

STRICT: Sequence[tuple[str, Callable[[Environment], bool], str]] = (
    ("database.multi_az", lambda own: own.database.multi_az, "the loss of a zone must not end it: set it to true"),
    ("database.deletion_protection", lambda own: own.database.deletion_protection, "set it to true"),
    ("database.backup_days", lambda own: own.database.backup_days >= 7, "backups go back a week: raise it to 7"),
    ("tasks", lambda own: own.tasks >= 2, "one task may fail: raise it to 2"),
    ("capacity", lambda own: own.capacity == "on-demand", 'AWS may take Spot tasks away: set it to "on-demand"'),
    ("logs.own_key", lambda own: own.logs.own_key, "logs are encrypted with a key of the account's own: set it to true"),
    ("logs.days", lambda own: own.logs.days >= 365, "PCI DSS keeps a year of logs: raise it to 365"),
    ("host_name", lambda own: own.https, "nothing travels in plain text: add it with a certificate_arn or a hosted_zone"),
    ("auth", lambda own: own.auth != "none", "whoever uses it is known: have people and machines sign in"),
)  # fmt: skip
"""What a strict environment may not be without: the key, whether it is so, the mend. Its sizes are free."""


def filled_in(table: Mapping[str, Any]) -> dict[str, Any]:
    """The environment's table, and what its profile says about keys that are not there.

    A profile or an engine that does not exist is refused for itself alone: it is filled in like the default one.
    """
    database = table.get("database", {})
    name = _known(PROFILES, table.get("profile"), "standard")
    engine = _known(SIZES, database.get("engine") if isinstance(database, Mapping) else None, "postgres")
    defaults = dict(PROFILES[name])
    defaults["database"] = {**defaults["database"], **SIZES[engine][name]}
    if "vpc" in table:  # it has its zones and gateways
        del defaults["availability_zones"], defaults["nat_gateways"]
    inner = {
        key: {**value, **table[key]}
        for key, value in defaults.items()
        if isinstance(value, Mapping) and isinstance(table.get(key), Mapping)
    }
    return {**defaults, **table, **inner}


def _known(names: Mapping[str, Any], wanted: Any, default: str) -> str:
    return wanted if isinstance(wanted, str) and wanted in names else default


def refusal(environment: Environment) -> str | None:
    """Why an environment that is to be strict is not, in a sentence; None if it is, or need not be."""
    if environment.profile != "strict":
        return None
    for key, holds, mend in STRICT:
        if not holds(environment):
            return f'{key}: is not what profile = "strict" promises; {mend}, or choose another profile'
    return None
