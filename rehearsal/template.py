"""CloudFormation templates: parameters, conditions and intrinsic functions resolved to plain values."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

NO_VALUE = object()
"""What `AWS::NoValue` resolves to: the property is as if it were not there."""


class TemplateError(Exception):
    """A template asks for something that does not exist or that the rehearsal does not understand."""


@dataclass
class Scope:
    """What the values of one stack are resolved against.

    Args:
        account, region: where the stack is.
        stack_name: its name.
        parameters: the template's parameters by name, resolved.
        conditions: the template's conditions by name, decided.
        reference: physical id of a resource by logical id.
        attribute: an attribute of a resource by logical id and name.
        stack_output: an output of another stack by region, stack and output name.
    """

    account: str
    region: str
    stack_name: str
    reference: Callable[[str], str]
    attribute: Callable[[str, str], Any]
    stack_output: Callable[[str, str, str], str]
    parameters: dict[str, Any] = field(default_factory=dict)
    conditions: dict[str, bool] = field(default_factory=dict)
    mappings: Mapping[str, Any] = field(default_factory=dict)

    def ref(self, name: str) -> Any:
        """The value of `Ref`: a pseudo parameter, a parameter, or a resource's physical id."""
        pseudo = {
            "AWS::AccountId": self.account,
            "AWS::Region": self.region,
            "AWS::Partition": "aws",
            "AWS::URLSuffix": "amazonaws.com",
            "AWS::StackName": self.stack_name,
            "AWS::StackId": f"arn:aws:cloudformation:{self.region}:{self.account}:stack/{self.stack_name}/rehearsed",
            "AWS::NotificationARNs": [],
            "AWS::NoValue": NO_VALUE,
        }
        if name in pseudo:
            return pseudo[name]
        if name in self.parameters:
            return self.parameters[name]
        return self.reference(name)


def resolve(value: Any, scope: Scope) -> Any:
    """`value` with every intrinsic function replaced by what it stands for.

    Raises:
        TemplateError: a function is not known, or names something that is not there.
    """
    if isinstance(value, list):
        items = (resolve(item, scope) for item in value)
        return [item for item in items if item is not NO_VALUE]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        name, argument = next(iter(value.items()))
        if name == "Ref":
            return scope.ref(argument)
        if name.startswith("Fn::"):
            function = _FUNCTIONS.get(name)
            if function is None:
                raise TemplateError(f"{name} is not rehearsed: teach rehearsal/template.py what it means")
            return function(argument, scope)
    resolved = {key: resolve(item, scope) for key, item in value.items()}
    return {key: item for key, item in resolved.items() if item is not NO_VALUE}


def decide(condition: Any, conditions: Mapping[str, Any], scope: Scope) -> bool:
    """Whether a condition of the template holds.

    Raises:
        TemplateError: it uses a function that is not known.
    """
    if not isinstance(condition, dict) or len(condition) != 1:
        raise TemplateError(f"not a condition: {condition}")
    name, argument = next(iter(condition.items()))
    if name == "Condition":
        if argument not in conditions:
            raise TemplateError(f"the template has no condition {argument}")
        return decide(conditions[argument], conditions, scope)
    if name == "Fn::Equals":
        left, right = resolve(argument, scope)
        return bool(left == right)
    if name == "Fn::Not":
        return not decide(argument[0], conditions, scope)
    if name == "Fn::And":
        return all(decide(part, conditions, scope) for part in argument)
    if name == "Fn::Or":
        return any(decide(part, conditions, scope) for part in argument)
    if name == "Fn::Contains":
        choices, wanted = resolve(argument, scope)
        return wanted in choices
    raise TemplateError(f"{name} is not rehearsed as a condition: teach rehearsal/template.py what it means")


def references(value: Any) -> Iterator[str]:
    """Logical ids (and parameters) that `value` names through Ref, GetAtt and Sub."""
    if isinstance(value, list):
        for item in value:
            yield from references(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key == "Ref" and isinstance(item, str):
                yield item
            elif key == "Fn::GetAtt":
                yield item[0] if isinstance(item, list) else item.split(".")[0]
            elif key == "Fn::Sub":
                text, own = (item, {}) if isinstance(item, str) else (item[0], item[1])
                yield from (name.split(".")[0] for name in _placeholders(text) if name not in own)
                yield from references(own)
            else:
                yield from references(item)


_PLACEHOLDER = re.compile(r"\$\{(!?)([^}]+)\}")


def _placeholders(text: str) -> Iterator[str]:
    return (match[2].strip() for match in _PLACEHOLDER.finditer(text) if not match[1])


def _get_att(argument: Any, scope: Scope) -> Any:
    logical_id, attribute = argument if isinstance(argument, list) else argument.split(".", 1)
    return scope.attribute(logical_id, attribute)


def _sub(argument: Any, scope: Scope) -> str:
    text, own = (argument, {}) if isinstance(argument, str) else (argument[0], resolve(argument[1], scope))

    def value(match: re.Match[str]) -> str:
        name = match[2].strip()
        if match[1]:
            return "${" + match[2] + "}"
        if name in own:
            return str(own[name])
        return str(_get_att(name, scope) if "." in name else scope.ref(name))

    return _PLACEHOLDER.sub(value, text)


def _if(argument: Any, scope: Scope) -> Any:
    name, then, otherwise = argument
    if name not in scope.conditions:
        raise TemplateError(f"Fn::If: the template has no condition {name}")
    return resolve(then if scope.conditions[name] else otherwise, scope)


def _join(argument: Any, scope: Scope) -> str:
    return str(argument[0]).join(str(part) for part in resolve(argument[1], scope))


def _select(argument: Any, scope: Scope) -> Any:
    index, items = resolve(argument, scope)
    try:
        return items[int(index)]
    except IndexError:
        raise TemplateError(f"Fn::Select: there is no item {index} in {items}") from None


def _split(argument: Any, scope: Scope) -> list[str]:
    separator, text = resolve(argument, scope)
    return str(text).split(separator)


def _zones(argument: Any, scope: Scope) -> list[str]:
    region = resolve(argument, scope) or scope.region
    return [f"{region}{letter}" for letter in "abc"]


def _stack_output(argument: Any, scope: Scope) -> str:
    wanted = resolve(argument, scope)
    return scope.stack_output(wanted.get("Region", scope.region), wanted["StackName"], wanted["OutputName"])


def _find_in_map(argument: Any, scope: Scope) -> Any:
    table, first, second = resolve(argument, scope)
    try:
        return scope.mappings[table][first][second]
    except KeyError:
        raise TemplateError(
            f"Fn::FindInMap: the template's mappings have no {table}.{first}.{second}"
        ) from None


_FUNCTIONS: dict[str, Callable[[Any, Scope], Any]] = {
    "Fn::FindInMap": _find_in_map,
    "Fn::GetAZs": _zones,
    "Fn::GetAtt": _get_att,
    "Fn::GetStackOutput": _stack_output,
    "Fn::If": _if,
    "Fn::Join": _join,
    "Fn::Select": _select,
    "Fn::Split": _split,
    "Fn::Sub": _sub,
}
