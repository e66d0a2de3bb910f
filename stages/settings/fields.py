"""What several settings are made of: kinds of values that are checked, each refusal ending in its mend."""

from __future__ import annotations

import re
from ipaddress import IPv4Network
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


class Table(BaseModel):
    """A table of `platform.toml`: no unknown keys, no conversions, no changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def matching(pattern: str, mend: str) -> AfterValidator:
    """A text of which the whole matches."""
    compiled = re.compile(pattern)

    def check(value: str) -> str:
        if not compiled.fullmatch(value):
            raise ValueError(mend)
        return value

    return AfterValidator(check)


def between(low: float, high: float, what: str) -> AfterValidator:
    """A number within bounds, both included."""

    def check(value: float) -> float:
        if not low <= value <= high:
            raise ValueError(f"give {what} from {low:g} to {high:g}")
        return value

    return AfterValidator(check)


def ipv4_network(smallest: int, largest: int) -> AfterValidator:
    """An IPv4 network with a prefix from `largest` to `smallest` bits long."""

    def check(value: str) -> str:
        mend = f'write an IPv4 network such as "10.10.0.0/16", from /{largest} to /{smallest}, with no host bits set'
        try:
            network = IPv4Network(value)
        except ValueError:
            raise ValueError(mend) from None
        if not largest <= network.prefixlen <= smallest:
            raise ValueError(mend)
        return value

    return AfterValidator(check)


Account = Annotated[str, matching(r"\d{12}", "an AWS account id is a string of exactly 12 digits")]
Region = Annotated[str, matching(r"[a-z]{2}(-[a-z]+)+-\d", 'write a region such as "eu-west-1"')]
Name = Annotated[
    str,
    matching(
        r"[a-z][a-z0-9-]{1,18}[a-z0-9]", "use 3 to 20 lower case letters, digits and hyphens, a letter first"
    ),
]
