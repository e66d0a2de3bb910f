"""How much is measured: all of it, or the least that shows that every figure can be had."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """Sizes of databases, and how long each part is measured on each of them."""

    sizes: tuple[int, ...]
    """Runs in the database."""
    rounds: int
    """How often each side is started and measured with each size, in turn."""
    seconds: float
    """For each operation and number of clients; a request that is under way then is waited for."""
    large_requests: int
    """Requests of 100 MB from each client."""
    mix_users: int
    """Enough that a server is never idle: one user makes some three requests a second at most."""
    mix_seconds: int
    settle_seconds: float
    """How long a server that was started is given at most to come to rest before its memory is read."""


FULL = Plan((1_000, 10_000, 100_000), 2, 1.0, 1, 100, 15, 30)
QUICK = Plan((1_000,), 1, 0.3, 1, 40, 6, 20)

CLIENTS = (1, 16)
"""Clients at the same time, each with a connection of its own that is kept alive."""
