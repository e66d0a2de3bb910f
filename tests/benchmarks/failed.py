"""Requests that a server did not answer as it should: which of them are told on the page, and which stop the benchmark."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

STOCK = "stock"
MOST = 0.1
"""The part of stock's requests of one row that may fail. Figures are those of right answers: with a tenth of the answers
missing, their median is somewhere between the 45th and the 55th percentile of all, which is less than the rounds differ."""


@dataclass
class Failed:
    """What failed in one row of the page, in all rounds together."""

    side: str
    size: int
    operation: str
    """Its name, `mix` or `sql`."""
    clients: str
    """How many at the same time; empty for the mix, which has users, and for sql, which has one."""
    right: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def share(self) -> float:
        """Of all requests that were sent."""
        return self.errors.total() / (self.right + self.errors.total())


def failed(figures: Mapping[str, Any]) -> list[Failed]:
    """The rows in which a request failed, of any side."""
    rows: dict[tuple[str, int, str, str], Failed] = {}
    for one in figures["measured"]:
        for operation, clients, answers in _answers(one):
            place = (one["side"], one["size"], operation, clients)
            row = rows.setdefault(place, Failed(*place))
            row.right += answers["requests"]
            row.errors.update(answers["errors"])
    return [row for row in rows.values() if row.errors]


def stopping(figures: Mapping[str, Any]) -> list[str]:
    """A sentence for each reason not to believe the figures: any failure of the image's, too many of stock's."""
    sentences = []
    for row in failed(figures):
        where = f"{row.side}, {row.size} runs, {row.operation}"
        where += f", clients: {row.clients}" if row.clients else ""
        what = "; ".join(f"{error} ({count} times)" for error, count in row.errors.items())
        if row.side != STOCK:
            sentences.append(f"{where}: {what}")
        elif row.share > MOST:
            sentences.append(f"{where}: {row.share:.0%} of the requests failed, more than {MOST:.0%}: {what}")
    return sentences


def _answers(one: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for operation, by in one["operations"].items():
        yield from ((operation, clients, answers) for clients, answers in by.items())
    for name in ("mix", "sql"):
        if name in one:
            yield name, "", one[name]
