"""The edits that drills make, against the files as they are: a drill that edits nothing drills nothing."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SETTINGS = "platform.toml"
"""Left out: whoever runs the platform changes it, and `make check` must not forbid that."""


def edits() -> Iterator[tuple[str, str, str]]:
    """Where a drill says `Edit(...)`, which file that edits, and the text it replaces; only what is written out."""
    for drill in sorted((REPOSITORY / "tests/drills").glob("*.py")):
        for call in ast.walk(ast.parse(drill.read_text(encoding="utf-8"))):
            match call:
                case ast.Call(
                    func=ast.Name("Edit"), args=[ast.Constant(str(file)), ast.Constant(str(old)), _]
                ):
                    if file != SETTINGS and (REPOSITORY / file).exists():
                        yield f"{drill.name}:{call.lineno}", file, old


@pytest.mark.parametrize(("where", "file", "old"), [pytest.param(*edit, id=edit[0]) for edit in edits()])
def test_a_drill_edits_what_is_there(where: str, file: str, old: str) -> None:
    """Known within two minutes, not after forty: the text that a drill replaces is in its file exactly once."""
    found = (REPOSITORY / file).read_text(encoding="utf-8").count(old)
    assert found == 1, (
        f"{where} edits a text that {file} has {found} times, not once; adapt the drill:\n{old}"
    )


def test_the_edits_are_found() -> None:
    """So that the test above cannot pass for want of cases."""
    assert len(list(edits())) > 20
