"""The one question before something is changed."""

from __future__ import annotations

import sys

from operations.aws import CannotOperate


def confirmed(question: str, *, yes: bool) -> bool:
    """What a person says at the terminal; `yes` answers beforehand.

    Raises:
        CannotOperate: nobody is there to ask.
    """
    if yes:
        return True
    if not sys.stdin.isatty():
        raise CannotOperate(
            "Nobody is there to ask, so nothing was changed. YES=yes (--yes) answers beforehand."
        )
    return input(f"{question} [yes/no] ").strip().lower() in ("y", "yes")
