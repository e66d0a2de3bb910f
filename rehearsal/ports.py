"""Loopback ports: each rehearsed account owns a block of a hundred, so two hosts never race for one.

A port that is free when asked for can be gone seconds later, when a slow server binds it at last. So the
first port of a block is held open by its host for as long as it lives, and nobody else hands out the other
ninety-nine.
"""

from __future__ import annotations

import socket
import zlib

LOOPBACK = "127.0.0.1"
# Below the ephemeral ranges of Linux (32768) and macOS (49152): no outgoing connection takes one of these by
# chance.
FIRST, LAST, BLOCK = 20000, 32700, 100


class PortError(Exception):
    """No loopback port could be had; the message says which and why."""


def listen(port: int) -> socket.socket:
    """A listening socket on the loopback address. Raises OSError when the port is taken."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((LOOPBACK, port))
        sock.listen(1024)
    except OSError:
        sock.close()
        raise
    return sock


def free_port() -> int:
    """A loopback port that is free now, for a server that binds it at once and keeps it."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


class PortBlock:
    """A block of loopback ports. `guard` is its first, already listening: the host's control API."""

    def __init__(self, owner: str, base: int | None = None) -> None:
        """The block at `base`, else any free one; different owners begin to look at different places."""
        bases = list(range(FIRST, LAST, BLOCK))
        start = zlib.crc32(owner.encode()) % len(bases)
        for self.base in [base] if base else bases[start:] + bases[:start]:
            try:
                self.guard = listen(self.base)
            except OSError:
                continue
            break
        else:
            if base:
                raise PortError(
                    f"ports {base} to {base + BLOCK - 1} belong to {owner}, but another rehearsal has taken "
                    f"them; stop that one, or delete {owner} to be given others"
                )
            raise PortError(
                f"every block of ports from {FIRST} to {LAST} is taken; stop other rehearsals (make down)"
            )
        self._taken: set[int] = set()
        self._last = self.base

    def take(self) -> int:
        """A port nobody listens on. Freed ones come up again last: late callers must not meet a stranger."""
        for step in range(1, BLOCK):
            port: int = self.base + 1 + (self._last - self.base - 1 + step) % (BLOCK - 1)
            if port in self._taken:
                continue
            try:
                listen(port).close()
            except OSError:
                continue
            self._taken.add(port)
            self._last = port
            return port
        raise PortError(
            f"all ports from {self.base + 1} to {self.base + BLOCK - 1} are in use; stop what listens there"
        )

    def retake(self, port: int) -> int:
        """Take the very port an earlier host had given. Raises PortError when something listens on it."""
        try:
            listen(port).close()
        except OSError as error:
            raise PortError(
                f"port {port}, promised earlier, is in use by another process ({error.strerror}); stop that"
            ) from error
        self._taken.add(port)
        return port

    def free(self, port: int) -> None:
        """Give a port back."""
        self._taken.discard(port)
