"""From rounds to one figure, and from two sides to a ratio; pure computation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import geometric_mean
from typing import Any

Round = Mapping[str, Any]


@dataclass(frozen=True)
class Compared:
    """One figure of both sides, each the geometric mean of its rounds."""

    stock: float
    image: float
    ratios: tuple[float, ...]
    """Stock through image, round by round: what disturbed the machine disturbed neighbours alike."""

    @property
    def ratio(self) -> float:
        """How many times stock is the image's: above 1, stock is the larger."""
        return geometric_mean(self.ratios)

    @property
    def spread(self) -> float:
        """The largest ratio of a round through the smallest: how much of the ratio is noise."""
        return max(self.ratios) / min(self.ratios)


def compare(
    measured: Sequence[Round], size: int, figure: Callable[[Round], float | None], image: str = "image"
) -> Compared | None:
    """Compare a figure of databases of that size; None when a side lacks it.

    Raises:
        ValueError: The sides were not measured equally often.
    """
    stocks, images = (
        [value for one in measured if (one["size"], one["side"]) == (size, side) and (value := figure(one))]
        for side in ("stock", image)
    )
    if not stocks or not images:
        return None
    if len(stocks) != len(images):
        raise ValueError(f"{len(stocks)} rounds of stock and {len(images)} of {image} with {size} runs")
    ratios = tuple(one / other for one, other in zip(stocks, images, strict=True))
    return Compared(geometric_mean(stocks), geometric_mean(images), ratios)


def part(*names: str) -> Callable[[Round], float | None]:
    """Finds a figure by its place in a round; None when it is not there."""

    def find(one: Round) -> float | None:
        found: Any = one
        for name in names:
            found = found.get(name) if isinstance(found, Mapping) else None
        return float(found) if isinstance(found, int | float) and math.isfinite(found) else None

    return find
