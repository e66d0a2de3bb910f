"""The secrets, kept out of the environment of every process that lives on.

ECS hands them over as environment variables. What a process was started with stays readable in /proc for as long as it
lives, and goes to crash reporters, debuggers and everything it starts. So the entrypoint starts itself anew without them
and finds them in a pipe; to the workers they go the way uvicorn hands its own settings on, which is a pipe, too.
"""

import json
import os
import sys
from collections.abc import MutableMapping
from typing import Any

from settings import KEYS, USER_PASSWORDS

NAMES = ("DATABASE_PASSWORD", "DATABASE_SETUP_PASSWORD", *KEYS, *USER_PASSWORDS.values())
PIPE = "PLATFORM_SECRETS_PIPE"
"""Names the file descriptor to read them from. Set by `start_anew` alone."""

secrets: dict[str, str] = {}
"""Those of NAMES that were given, by name. A rotated password takes the old one's place here."""


def start_anew() -> None:
    """Replace this process by one that runs the same command without secrets in its environment, if it has any there.

    It keeps its process id and its arguments. To be called before anything large is imported, which would be imported
    twice.
    """
    found = {name: os.environ.pop(name) for name in NAMES if name in os.environ}
    if not found:
        return
    reading, writing = os.pipe()
    # Nobody reads yet: a pipe takes what fits into it, which is 64 KB, or 16 KB on macOS, and then blocks for ever.
    os.set_blocking(writing, False)
    told = json.dumps(found).encode()
    if os.write(writing, told) < len(told):
        sys.exit(f"{' and '.join(found)} are {len(told)} bytes together: give secrets of less than 16 KB.")
    os.close(writing)
    os.set_inheritable(reading, True)
    os.environ[PIPE] = str(reading)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  this very program


def take(environment: MutableMapping[str, str]) -> None:
    """Move the secrets from the pipe, or from `environment` itself, to `secrets`."""
    if PIPE in environment:
        with os.fdopen(int(environment.pop(PIPE)), "rb") as pipe:
            secrets.update(json.load(pipe))
    secrets.update({name: environment.pop(name) for name in NAMES if name in environment})


def password(dialect: Any, user: str) -> str | bytes:
    """The database password of `user` as that SQLAlchemy dialect's driver wants it."""
    sets_up = user == os.environ.get("DATABASE_SETUP_USER")
    found = secrets["DATABASE_SETUP_PASSWORD" if sets_up else "DATABASE_PASSWORD"]
    return found.encode() if dialect.driver == "pymysql" else found  # which would take Latin-1
