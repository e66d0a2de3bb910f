"""A database server that cannot show that it is the one: what a task of the image says, and what it does not tell it."""

from __future__ import annotations

from .test_image_entrypoint import Task

IMPOSTORS = {
    "signed by another authority": {"DATABASE_SSLROOTCERT": ""},  # RDS's own, that is
    "of another name": {"DATABASE_HOST": "localhost"},
}
"""By what is wrong: the variables that make it so for a server whose certificate is for 127.0.0.1."""


def assert_refused(task: Task, *secrets: str) -> None:
    """It ended at once with a sentence, in which no secret is."""
    assert task.ends(60) == 1, task.output  # CONNECT_SECONDS, if it waits for it to become another
    assert "Traceback" not in task.output
    assert task.output.count("is not believed to be it (") == task.output.count("The database "), task.output
    assert (
        "the server's certificate is not the one it should have: check that DATABASE_HOST is the server's own name, and "
        "that DATABASE_SSLROOTCERT holds the authority that signed it)." in task.output
    )
    for secret in secrets:
        assert secret not in task.output
