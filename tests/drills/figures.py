"""What a drill measured: one line for a person, and one for programs in the file that DRILL_FIGURES names."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .client import Client


@dataclass
class Figures:
    """What a drill tells at its end."""

    drill: str
    result: str = "failed"
    requests: int = 0
    failures: int = 0
    refusal: float = 0.0
    before: int = 0
    after: int = 0

    def count(self, clients: Iterable[Client]) -> None:
        """Take over what clients have counted; refusal is from the first failure's beginning to the last one's end."""
        failures = [failure for client in clients for failure in client.failures]
        self.requests += sum(client.requests for client in clients)
        self.failures += len(failures)
        if failures:
            self.refusal = max(failure.ended for failure in failures) - min(f.began for f in failures)

    def rows(self, before: Mapping[str, int], after: Mapping[str, int]) -> None:
        """How many rows there were and are, all tables together."""
        self.before, self.after = sum(before.values()), sum(after.values())

    def tell(self) -> None:
        """Print the line, and add it to the file if there is one; drills of several processes may do so at once."""
        print(
            f"DRILL {self.drill} | {self.result} | {self.requests} requests | {self.failures} failures"
            f" | {self.refusal:.1f} s of refusal | {self.before} rows before | {self.after} rows after",
            flush=True,
        )
        if file := os.environ.get("DRILL_FIGURES"):
            with Path(file).open("a", encoding="utf-8") as output:
                output.write(json.dumps(dataclasses.asdict(self)) + "\n")


@contextmanager
def drill(name: str) -> Iterator[Figures]:
    """Tell a drill's figures, however it ends."""
    figures = Figures(name)
    try:
        yield figures
    finally:
        figures.tell()
