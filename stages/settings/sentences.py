"""One sentence for each thing that is wrong: the key, the value as it stands in the file, the mend."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import BaseModel


def sentence(root: type[BaseModel], problem: dict[str, Any]) -> str:
    """One sentence for one of pydantic's findings: key, value, mend."""
    key = ".".join(f"[{part}]" if isinstance(part, int) else str(part) for part in problem["loc"]).replace(
        ".[", "["
    )
    value, kind, message = problem["input"], problem["type"], problem["msg"]
    if kind == "missing":
        return f"{key}: is missing; add it"
    if kind == "extra_forbidden":
        return f"{key} = {shown(value)}: there is no such key; {_did_you_mean(root, problem['loc'])}"
    if kind == "value_error":
        reason = str(problem["ctx"]["error"])
        if isinstance(value, dict):  # a rule over several keys: its message begins with the key
            return (
                f"{key}.{reason}"
                if key and not reason[0].isdigit()
                else f"{key}: {reason}".removeprefix(": ")
            )
        return f"{key} = {shown(value)}: {reason}"
    if kind == "literal_error":
        expected = problem["ctx"]["expected"].replace("'", '"')
        return f"{key} = {shown(value)}: give {expected}"
    return (
        f"{key} = {shown(value)}: {_KINDS.get(kind) or f'{message[0].lower()}{message[1:]}; mend the value'}"
    )


_KINDS = {
    "bool_type": "write true or false, without quotes",
    "float_type": "write a number, without quotes",
    "int_from_float": "write a whole number",
    "int_type": "write a whole number, without quotes",
    "list_type": 'write a list, such as ["10.0.0.0/16"]',
    "model_type": "is not a table; write its keys below a heading or in braces",
    "string_too_short": "is empty; give it a value",
    "string_type": "write it in quotes",
}
"""What to do about a value of the wrong type, by pydantic's name for the finding."""


def shown(value: Any) -> str:
    """A value as it stands in the file."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {shown(item)}' for key, item in value.items())} }}"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _did_you_mean(root: type[BaseModel], loc: tuple[str | int, ...]) -> str:
    table: type[BaseModel] | None = root
    for part in loc[:-1]:
        field = table.model_fields.get(str(part)) if table else None
        table = next((t for t in _tables(field.annotation) if t), None) if field else None
    known = list(table.model_fields) if table else []
    close = difflib.get_close_matches(str(loc[-1]), known, n=1)
    return f"did you mean {close[0]}?" if close else f"remove it, or use one of {', '.join(known)}"


def _tables(annotation: Any) -> list[type[BaseModel]]:
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    return [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
