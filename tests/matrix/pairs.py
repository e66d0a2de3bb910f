"""Few combinations that hold every pair of values: most faults need two settings to meet, hardly any need three."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

from tests.matrix.axes import AXES, Combination

Pair = tuple[tuple[str, str], tuple[str, str]]
"""Two axes, each with a value."""


def pairs(combination: Combination) -> frozenset[Pair]:
    """All pairs of values that meet in a combination."""
    return frozenset(combinations(zip(AXES, combination, strict=True), 2))


def every_pair() -> set[Pair]:
    """All that could meet."""
    values = [[(axis, value) for value in values] for axis, values in AXES.items()]
    return {(one, other) for first, second in combinations(values, 2) for one in first for other in second}


def few(allowed: Iterable[Combination]) -> Sequence[Combination]:
    """Some of the allowed combinations, in which every pair meets that meets in any of them.

    Greedy: always the one with the most pairs that are still missing, the first of those in the order of the axes.
    """
    held = {combination: pairs(combination) for combination in allowed}
    missing = set().union(*held.values())
    chosen = []
    while missing:
        best = max(held, key=lambda combination: len(held[combination] & missing))
        chosen.append(best)
        missing -= held[best]
    return chosen
