"""Settings in combination: what never goes together is refused in a sentence, and few combinations hold all that does."""

from __future__ import annotations

import re

import pytest

from tests.matrix.axes import AXES, Combination, all_combinations, refusals
from tests.matrix.pairs import Pair, every_pair, few, pairs

Said = dict[Combination, list[str]]

WRONG: list[tuple[Pair, str]] = [
    ((("exposure", "internet-facing"), ("auth", "none")), "whoever finds it may read and delete everything"),
    (
        (("exposure", "internet-facing"), ("network", "endpoints")),
        "the gates go out to the environment's public addresses",
    ),
    (
        (("exposure", "cloudfront"), ("network", "endpoints")),
        "the gates go out to the environment's public addresses",
    ),
    ((("exposure", "cloudfront"), ("auth", "none")), "whoever finds it may read and delete everything"),
    ((("exposure", "cloudfront"), ("auth", "cognito")), "signs people in over HTTPS alone"),
    ((("exposure", "cloudfront"), ("auth", "oidc")), "signs people in over HTTPS alone"),
    (
        (("auth", "cognito"), ("network", "endpoints")),
        "ask the provider for keys and tokens, on the internet",
    ),
    ((("auth", "oidc"), ("network", "endpoints")), "ask the provider for keys and tokens, on the internet"),
    ((("engine", "mysql"), ("auth", "mlflow-basic")), "two foreign keys of its tables have one name"),
    ((("engine", "aurora-mysql"), ("auth", "mlflow-basic")), "two foreign keys of its tables have one name"),
    ((("auth", "none"), ("profile", "strict")), "whoever uses it is known"),
    ((("profile", "standard"), ("packs", "every pack")), "does not promise what it asks for"),
    ((("profile", "cost"), ("packs", "every pack")), "does not promise what it asks for"),
]
"""Pairs that nothing else can make right, and why."""


@pytest.fixture(scope="module")
def said() -> Said:
    """Every combination, and the sentences with which it is refused."""
    return {combination: refusals(combination) for combination in all_combinations()}


@pytest.mark.parametrize(("pair", "reason"), WRONG, ids=lambda value: str(value)[:60])
def test_a_wrong_pair_is_refused_wherever_it_occurs(said: Said, pair: Pair, reason: str) -> None:
    with_it = {combination: told for combination, told in said.items() if pair in pairs(combination)}
    assert with_it
    assert all(with_it.values())
    assert any(reason in sentence for told in with_it.values() for sentence in told)


def test_every_refusal_names_a_key_and_the_mend(said: Said) -> None:
    refused = {sentence for told in said.values() for sentence in told}
    assert refused
    for sentence in refused:
        assert re.match(r"(environments\.dev\.[a-z0-9_.]+|compliance)( = .+?)?: ", sentence), sentence
        assert re.search(
            r"; (set|give|remove|add|name|take|raise|have|whoever|lower)\b|, or (set|remove|choose)", sentence
        ), sentence


def test_every_value_is_allowed_with_some_others(said: Said) -> None:
    allowed = [combination for combination, told in said.items() if not told]
    for number, (axis, values) in enumerate(AXES.items()):
        assert {combination[number] for combination in allowed} == set(values), axis


def test_few_combinations_hold_every_pair_that_is_allowed(said: Said) -> None:
    allowed = [combination for combination, told in said.items() if not told]
    chosen = few(allowed)
    assert set(chosen) <= set(allowed)
    possible = set().union(*map(pairs, allowed))
    assert set().union(*map(pairs, chosen)) == possible
    assert len(chosen) < len(allowed) / 10
    never = every_pair() - possible
    assert {pair for pair, _ in WRONG} <= never
    print(
        f"{len(said)} combinations: {len(said) - len(allowed)} refused, {len(allowed)} allowed;"
        f" {len(chosen)} of them hold all {len(possible)} pairs; {len(never)} pairs are never allowed"
    )
