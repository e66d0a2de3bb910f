"""Writes an answer's protobuf message as JSON in one pass, to the byte as MLflow does.

MLflow makes a dictionary of the message, walks the message again for its 64-bit integers, merges both, and has them
indented by the JSON encoder that is written in Python, because only that one can indent. Here a writer for each kind of
message is made once; it knows each field's name and type beforehand.
"""

import base64
import json
import threading
from collections.abc import Callable
from json.encoder import encode_basestring_ascii
from math import isfinite, isnan
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor  # type: ignore[import-untyped]
from google.protobuf.json_format import MessageToDict  # type: ignore[import-untyped]
from mlflow.utils import proto_json_utils

# A value, and the text that begins a line at its depth.
Write = Callable[[Any, str], str]
# A value that takes no line of its own. Most are of this kind, and a call less for each is a fifth of the time.
WriteShort = Callable[[Any], str]

INTEGERS = {
    FieldDescriptor.TYPE_INT32,
    FieldDescriptor.TYPE_UINT32,
    FieldDescriptor.TYPE_SINT32,
    FieldDescriptor.TYPE_FIXED32,
    FieldDescriptor.TYPE_SFIXED32,
    FieldDescriptor.TYPE_INT64,
    FieldDescriptor.TYPE_UINT64,
    FieldDescriptor.TYPE_SINT64,
    FieldDescriptor.TYPE_FIXED64,
    FieldDescriptor.TYPE_SFIXED64,
}
# Of protobuf's own messages, those that become a plain JSON string.
STRINGS = {"google.protobuf.Timestamp", "google.protobuf.Duration"}


_writers: dict[str, Write] = {}
_making = threading.RLock()


class LeaveItError(Exception):
    """The message holds something that only MLflow's own code writes."""


def apply() -> None:
    from mlflow.server import handlers

    stock = proto_json_utils.message_to_json

    def message_to_json(message: Any, *, pretty: bool = True, convert_int64_to_number: bool = True) -> str:
        if pretty and convert_int64_to_number:
            try:
                return written(message, "\n")
            except LeaveItError:
                pass
        text: str = stock(message, pretty=pretty, convert_int64_to_number=convert_int64_to_number)
        return text

    proto_json_utils.message_to_json = message_to_json
    handlers.message_to_json = message_to_json


def written(message: Any, line: str) -> str:
    """The message's JSON, each line after the first begun with `line`, or LeaveItError."""
    kind = message.DESCRIPTOR
    write = _writers.get(kind.full_name)
    if write is None:
        with _making:
            write = _message_writer(kind, _writers)
    return write(message, line)


def _message_writer(kind: Descriptor, writers: dict[str, Write]) -> Write:
    """A writer of messages of that kind, and of all that they can hold, kept in `writers`."""
    if kind.full_name in writers:
        return writers[kind.full_name]
    short: dict[int, tuple[str, WriteShort]] = {}
    long: dict[int, tuple[str, Write]] = {}

    def write_fields(message: Any, line: str) -> str:
        inner = line + "  "
        parts = []
        for field, value in message.ListFields():
            number = field.number
            if number in short:
                name, write_short = short[number]
                parts.append(name + write_short(value))
            elif number in long:
                name, write = long[number]
                parts.append(name + write(value, inner))
            else:  # an extension
                raise LeaveItError
        return f"{{{inner}{f',{inner}'.join(parts)}{line}}}" if parts else "{}"

    write: Write = write_fields
    if kind.full_name in STRINGS:
        write = _string_message
    elif kind.file.package == "google.protobuf":
        write = _leave_it
    # Before its fields, because a message can hold its own kind.
    writers[kind.full_name] = write
    for field in kind.fields:
        name = f'"{field.name}": '
        if (write_short := _short_writer(field)) and not field.is_repeated:
            short[field.number] = name, write_short
        else:
            long[field.number] = name, _field_writer(field, writers)
    return write


def _field_writer(field: FieldDescriptor, writers: dict[str, Write]) -> Write:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        key, value = kind.fields_by_name["key"], kind.fields_by_name["value"]
        if key.type != FieldDescriptor.TYPE_STRING:
            return _leave_it
        return _map_writer(_value_writer(value, writers))
    write = _value_writer(field, writers)
    return _list_writer(write) if field.is_repeated else write


def _value_writer(field: FieldDescriptor, writers: dict[str, Write]) -> Write:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return _message_writer(field.message_type, writers)
    if write_short := _short_writer(field):
        return lambda value, _: write_short(value)
    return _leave_it


def _short_writer(field: FieldDescriptor) -> WriteShort | None:
    """What writes one value of the field; none for messages, and for what only MLflow's own code writes."""
    match field.type:
        case FieldDescriptor.TYPE_STRING:
            return encode_basestring_ascii
        case FieldDescriptor.TYPE_BYTES:
            return lambda value: f'"{base64.b64encode(value).decode()}"'
        case FieldDescriptor.TYPE_DOUBLE:
            return write_double
        case FieldDescriptor.TYPE_BOOL:
            return lambda value: "true" if value else "false"
        case FieldDescriptor.TYPE_ENUM if field.enum_type.file.package != "google.protobuf":
            return _enum_writer({value.number: f'"{value.name}"' for value in field.enum_type.values})
        case number if number in INTEGERS:
            return int.__repr__
    return None


def _leave_it(_value: Any, _line: str) -> str:
    raise LeaveItError


def _string_message(value: Any, _line: str) -> str:
    return json.dumps(MessageToDict(value))


def write_double(value: float) -> str:
    if isfinite(value):
        return float.__repr__(value)
    if isnan(value):
        return '"NaN"'
    return '"Infinity"' if value > 0 else '"-Infinity"'


def _enum_writer(names: dict[int, str]) -> WriteShort:
    def write(value: int) -> str:
        try:
            return names[value]
        except KeyError:
            raise LeaveItError from None

    return write


def _list_writer(write: Write) -> Write:
    def write_list(values: Any, line: str) -> str:
        inner = line + "  "
        return f"[{inner}{f',{inner}'.join([write(value, inner) for value in values])}{line}]"

    return write_list


def _map_writer(write: Write) -> Write:
    def write_map(values: Any, line: str) -> str:
        inner = line + "  "
        parts = [f"{encode_basestring_ascii(key)}: {write(values[key], inner)}" for key in values]
        return f"{{{inner}{f',{inner}'.join(parts)}{line}}}"

    return write_map
