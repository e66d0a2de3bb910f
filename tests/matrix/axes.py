"""What can be combined: every value that the settings allow on eight axes, as a table of one environment.

Values that are names come from the settings themselves: a new engine or sign-in joins the matrix by being allowed.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import product
from typing import Any, get_args

from pydantic import ValidationError

from stages import packs
from stages.settings import SETTINGS_FILE, Environment, Settings
from stages.settings.database import Database
from stages.settings.image import Image
from stages.settings.sentences import sentence
from tests.unit.conftest import OIDC

Json = dict[str, Any]
Combination = tuple[str, ...]
"""A value of each axis, in the order of AXES."""

ALONE = ("account", "region", "cidr", "smoke_demo", "load")
"""What dev says for itself; all else is an axis's, or the profile's."""

NETWORKS: Mapping[str, Json] = {
    "one NAT gateway": {"nat_gateways": 1},
    "one in each zone": {"nat_gateways": 2},
    "endpoints": {"nat_gateways": 0, "s3_prefix_list": "pl-6da54004"},
    "existing VPC": {
        "cidr": None,
        "vpc": {
            "id": "vpc-0a1b2c3d",
            "zones": ["eu-west-1a", "eu-west-1b"],
            "public_subnets": ["subnet-00000001", "subnet-00000002"],
            "private_subnets": ["subnet-00000003", "subnet-00000004"],
            "isolated_subnets": ["subnet-00000005", "subnet-00000006"],
        },
    },
}
PACKS: Mapping[str, list[str]] = {"AwsSolutions": [], "every pack": sorted(packs.PACKS)}


def _names(table: type, key: str) -> tuple[str, ...]:
    """The values of a setting that is one of several names."""
    values: tuple[str, ...] = get_args(table.model_fields[key].annotation)  # type: ignore[attr-defined]
    assert len(values) > 1, f"{key} is not one of several names"
    return values


AXES: Mapping[str, tuple[str, ...]] = {
    "engine": _names(Database, "engine"),
    "database sign-in": _names(Database, "sign_in"),
    "exposure": _names(Environment, "exposure"),
    "auth": _names(Environment, "auth"),
    "network": tuple(NETWORKS),
    "profile": _names(Environment, "profile"),
    "architecture": _names(Image, "architecture"),
    "packs": tuple(PACKS),
}

# What a value needs beside it, so that it is judged for itself and not for what was forgotten.
CERTIFICATE = {
    "certificate_arn": "arn:aws:acm:eu-west-1:222222222222:certificate/c0ffee",
    "host_name": "mlflow.example.com",
}
WITH: Mapping[tuple[str, str], Json] = {
    ("exposure", "internal"): {"ingress_cidrs": ["10.0.0.0/8"]},
    ("exposure", "internet-facing"): {"ingress_cidrs": ["198.51.100.0/24"]},
    ("exposure", "cloudfront"): {
        "ingress_cidrs": ["198.51.100.0/24"],
        "cloudfront_prefix_list": "pl-4fa04526",
    },
    ("auth", "oidc"): {"oidc": OIDC},
    ("auth", "mlflow-basic"): {"smoke_demo": False},
}


def _certificate(chosen: Mapping[str, str]) -> Json:
    """A certificate, but for what the platform is as shipped, plain HTTP inside a network, and where it is of no use."""
    plain = chosen["exposure"] == "internal" and chosen["auth"] == "none" and chosen["profile"] != "strict"
    return {} if plain or chosen["exposure"] == "cloudfront" else CERTIFICATE


@cache
def _shipped() -> Json:
    return tomllib.loads(SETTINGS_FILE.read_text(encoding="utf-8"))


def content(combination: Combination) -> Json:
    """The shipped settings with dev as the combination says."""
    chosen = dict(zip(AXES, combination, strict=True))
    shipped = _shipped()
    dev = {key: shipped["environments"]["dev"][key] for key in ALONE}
    dev |= {
        "profile": chosen["profile"],
        "exposure": chosen["exposure"],
        "auth": chosen["auth"],
        "database": {"engine": chosen["engine"], "sign_in": chosen["database sign-in"]},
        **NETWORKS[chosen["network"]],
        **_certificate(chosen),
    }
    for axis_and_value in chosen.items():
        dev |= WITH.get(axis_and_value, {})
    others = {
        # A pack is for the whole delivery: what the others are must not hide what is wrong about dev.
        name: {**other, "profile": "strict", "logs": {"days": 365, "own_key": True}, "auth": "cognito", **CERTIFICATE,
               "database": {**other["database"], "deletion_protection": True}}
        for name, other in shipped["environments"].items()
    }  # fmt: skip
    return {
        **shipped,
        "image": {"architecture": chosen["architecture"]},
        "compliance": PACKS[chosen["packs"]],
        "environments": {**others, "dev": dev},
    }


def refusals(combination: Combination) -> list[str]:
    """The sentences with which the settings refuse it; none if it can be deployed."""
    try:
        Settings.model_validate(content(combination))
    except ValidationError as error:
        return [sentence(Settings, dict(problem)) for problem in error.errors()]
    return []


def all_combinations() -> Iterator[Combination]:
    """Every one, allowed or not."""
    return product(*AXES.values())
