"""CloudFormation for the rehearsed accounts: stacks are created, updated, left alone or rolled back.

What a stack is made of is remembered in one file per stack, written after every step, so that an interrupted deployment
goes on where it stopped. A resource whose type the rehearsal does not materialize is *declared*: it gets an id and
attributes that others can refer to, and the report lists it.
"""

from __future__ import annotations

import graphlib
import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rehearsal.accounts import Accounts, account_directory
from rehearsal.template import NO_VALUE, Scope, TemplateError, decide, references, resolve

Progress = Callable[[str], None]
Properties = dict[str, Any]


class ResourceFailed(Exception):
    """A resource could not be created, updated or deleted; the message says why, and where to look."""


class Interrupted(BaseException):
    """The rehearsal was told to stop; not an Exception, so that nothing takes it for a resource's failure."""


class StackFailed(Exception):
    """A stack did not reach its new state and was rolled back to the last good one."""


class UnreadableStack(Exception):
    """What is remembered of a stack has another form; the message says what to do."""


@dataclass
class Physical:
    """What a provider made: the resource's physical id, its attributes, and whether there is anything behind them."""

    id: str
    attributes: dict[str, Any] = field(default_factory=dict)
    rehearsed: bool = True


@dataclass
class Resource:
    """What a stack remembers of one resource; `properties` are resolved."""

    logical_id: str
    type: str
    properties: Properties
    physical: Physical
    retained: bool = False

    @property
    def rehearsed(self) -> bool:
        """Whether it is more than declared."""
        return self.physical.rehearsed


@dataclass(frozen=True)
class Place:
    """Where a resource is made: the stack, its account and region, and how to act there."""

    account: str
    region: str
    stack: str
    accounts: Accounts
    state: Path
    progress: Progress
    stopping: threading.Event

    @property
    def directory(self) -> Path:
        """The folder of the rehearsed account."""
        return account_directory(self.state, self.account, self.region)

    def client(self, service: str) -> Any:
        """An AWS client that acts as CloudFormation's execution role in this account."""
        return self.accounts.client(service, self.account, self.region)

    def arn(self, service: str, resource: str) -> str:
        """An ARN in this account and region."""
        return f"arn:aws:{service}:{self.region}:{self.account}:{resource}"

    def name(self, logical_id: str, *, limit: int = 63) -> str:
        """A physical name as CloudFormation would make it: stack, logical id, and what makes it unique."""
        ending = f"-{_digest(self.account, self.region, self.stack, logical_id)}"
        return f"{self.stack}-{logical_id}"[: limit - len(ending)] + ending


class Provider(Protocol):
    """How one type of resource is made real."""

    def create(self, place: Place, logical_id: str, properties: Properties) -> Physical:
        """Make it."""

    def update(self, place: Place, resource: Resource, properties: Properties) -> Physical:
        """Change it. A physical id other than before means that it was replaced; the old one is deleted later."""

    def delete(self, place: Place, resource: Resource) -> None:
        """Remove it."""


@dataclass
class Stack:
    """A deployed stack."""

    name: str
    account: str
    region: str
    status: str
    resources: dict[str, Resource] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Deployed:
    """What a deployment did: logical ids by what happened to them. All empty means no change."""

    created: list[str]
    updated: list[str]
    deleted: list[str]

    @property
    def changed(self) -> bool:
        """Whether anything happened."""
        return bool(self.created or self.updated or self.deleted)

    def __str__(self) -> str:
        if not self.changed:
            return "no change"
        counts = (("created", self.created), ("updated", self.updated), ("deleted", self.deleted))
        return ", ".join(f"{len(names)} {what}" for what, names in counts if names)


class CloudFormation:
    """The stacks of all rehearsed accounts."""

    def __init__(
        self, state: Path, accounts: Accounts, providers: Mapping[str, Provider], declared: Provider
    ) -> None:
        self._state = state
        self._accounts = accounts
        self._providers = providers
        self._declared = declared
        self.stopping = threading.Event()

    def stack(self, account: str, region: str, name: str) -> Stack | None:
        """The stack of this name, or None."""
        return load_stack(self._state, account, region, name)

    def stacks(self) -> Iterator[Stack]:
        """All stacks of all accounts."""
        for file in sorted(self._state.glob("accounts/*/stacks/*.json")):
            yield _load(file)

    def stop(self) -> None:
        """Interrupt what is being deployed; its thread raises Interrupted."""
        self.stopping.set()

    def deploy(
        self, account: str, region: str, name: str, template: Mapping[str, Any], progress: Progress
    ) -> Deployed:
        """Create the stack, or update it to `template`.

        Raises:
            StackFailed: a resource failed; everything that this deployment had changed is as it was before.
            Interrupted: `stop` was called. What is there stays recorded; the next deployment goes on from it.
        """
        place = Place(account, region, name, self._accounts, self._state, progress, self.stopping)
        stack = self.stack(account, region, name) or Stack(name, account, region, "REVIEW_IN_PROGRESS")
        return _Deployment(self, place, stack, template).run()

    def provider(self, type_: str) -> Provider:
        """What makes resources of this type."""
        return self._providers.get(type_, self._declared)

    def is_rehearsed(self, type_: str) -> bool:
        """Whether resources of this type are materialized."""
        return type_ in self._providers

    def output(self, account: str, region: str, stack: str, output: str) -> str:
        """An output of a deployed stack.

        Raises:
            TemplateError: there is no such stack or output.
        """
        found = self.stack(account, region, stack)
        if found is None or output not in found.outputs:
            raise TemplateError(
                f"stack {stack} in {account}/{region} has no output {output}; deploy it first"
            )
        return found.outputs[output]

    def save(self, stack: Stack) -> None:
        """Write the stack's file, whole or not at all."""
        file = self._file(stack.account, stack.region, stack.name)
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(".draft")
        draft.write_text(json.dumps(asdict(stack), indent=1), encoding="utf-8")
        draft.replace(file)

    def _file(self, account: str, region: str, name: str) -> Path:
        return _stack_file(self._state, account, region, name)


class _Deployment:
    """One deployment of one stack, with what it takes to undo it."""

    def __init__(
        self, cloudformation: CloudFormation, place: Place, stack: Stack, template: Mapping[str, Any]
    ) -> None:
        self._cloudformation = cloudformation
        self._place = place
        self._stack = stack
        self._template = template
        self._undo: list[Callable[[], None]] = []
        self._replaced: list[Resource] = []
        self._scope = Scope(
            account=place.account,
            region=place.region,
            stack_name=place.stack,
            reference=self._reference,
            attribute=self._attribute,
            stack_output=lambda region, name, output: cloudformation.output(
                place.account, region, name, output
            ),
            mappings=template.get("Mappings", {}),
        )

    def run(self) -> Deployed:
        created: list[str] = []
        updated: list[str] = []
        first = not self._stack.resources
        before = self._stack.status
        self._stack.status = "CREATE_IN_PROGRESS" if first else "UPDATE_IN_PROGRESS"
        try:
            self._prepare()
            wanted = self._wanted()
            for logical_id in self._order(wanted):
                if self._place.stopping.is_set():
                    raise Interrupted
                declaration = wanted[logical_id]
                properties = self._properties(declaration)
                known = self._stack.resources.get(logical_id)
                if known is not None and known.type == declaration["Type"]:
                    known.retained = _retained(declaration)
                    if known.properties != properties:
                        self._update(known, properties)
                        updated.append(logical_id)
                else:
                    self._create(logical_id, declaration, properties)
                    created.append(logical_id)
            outputs = self._outputs()
        except (ResourceFailed, TemplateError) as failure:
            self._roll_back()
            self._stack.status = "ROLLBACK_COMPLETE" if first else "UPDATE_ROLLBACK_COMPLETE"
            self._cloudformation.save(self._stack)
            raise StackFailed(
                f"{failure}\n{self._stack.name} is rolled back ({self._stack.status})"
            ) from failure
        except (
            BaseException
        ):  # interrupted: what is there stays recorded, and the next deployment goes on from it
            self._cloudformation.save(self._stack)
            raise
        deleted = [logical_id for logical_id in self._stack.resources if logical_id not in wanted]
        self._clean_up(deleted)
        self._stack.outputs = outputs
        deployed = Deployed(created, updated, deleted)
        if deployed.changed or not before.endswith(
            "_COMPLETE"
        ):  # "no updates are to be performed" is no update
            self._stack.status = "CREATE_COMPLETE" if first else "UPDATE_COMPLETE"
        else:
            self._stack.status = before
        self._cloudformation.save(self._stack)
        return deployed

    def _prepare(self) -> None:
        for name, parameter in self._template.get("Parameters", {}).items():
            value = parameter.get("Default")
            if str(parameter["Type"]).startswith("AWS::SSM::Parameter::Value"):
                value = self._ssm(name, str(value))
            elif parameter["Type"] == "CommaDelimitedList" and isinstance(value, str):
                value = [part for part in value.split(",") if part]
            self._scope.parameters[name] = value
        conditions = self._template.get("Conditions", {})
        for name, condition in conditions.items():
            self._scope.conditions[name] = decide(condition, conditions, self._scope)

    def _ssm(self, parameter: str, name: str) -> str:
        client = self._place.client("ssm")
        try:
            return str(client.get_parameter(Name=name)["Parameter"]["Value"])
        except client.exceptions.ParameterNotFound:
            raise TemplateError(
                f"parameter {parameter} of {self._place.stack}: Parameter Store has no {name} in"
                f" {self._place.account}/{self._place.region}"
            ) from None

    def _wanted(self) -> dict[str, Any]:
        return {
            logical_id: declaration
            for logical_id, declaration in self._template["Resources"].items()
            if declaration["Type"] != "AWS::CDK::Metadata"
            and self._scope.conditions.get(declaration.get("Condition", ""), True)
        }

    def _order(self, wanted: Mapping[str, Any]) -> list[str]:
        graph: dict[str, set[str]] = {}
        for logical_id, declaration in wanted.items():
            depends_on = declaration.get("DependsOn", [])
            named = {depends_on} if isinstance(depends_on, str) else set(depends_on)
            graph[logical_id] = (named | set(references(declaration.get("Properties", {})))) & wanted.keys()
        try:
            return list(graphlib.TopologicalSorter(graph).static_order())
        except graphlib.CycleError as cycle:
            raise TemplateError(
                f"{self._stack.name}: resources wait for each other: {' -> '.join(cycle.args[1])}"
            ) from None

    def _properties(self, declaration: Mapping[str, Any]) -> Properties:
        resolved = resolve(declaration.get("Properties", {}), self._scope)
        assert resolved is not NO_VALUE
        return json.loads(json.dumps(resolved))  # type: ignore[no-any-return]

    def _create(self, logical_id: str, declaration: Mapping[str, Any], properties: Properties) -> None:
        type_ = declaration["Type"]
        if self._cloudformation.is_rehearsed(type_):
            self._place.progress(f"creating {logical_id} ({type_})")
        physical = self._attempt(
            logical_id,
            type_,
            lambda: self._cloudformation.provider(type_).create(self._place, logical_id, properties),
        )
        before = self._stack.resources.get(logical_id)
        resource = Resource(
            logical_id,
            type_,
            properties,
            physical,
            retained=_retained(declaration),
        )
        self._record(resource)

        def undo() -> None:
            self._cloudformation.provider(type_).delete(self._place, resource)
            if before is None:
                del self._stack.resources[logical_id]
            else:
                self._stack.resources[logical_id] = before

        self._undo.append(undo)
        if before is not None:
            self._replaced.append(before)

    def _update(self, known: Resource, properties: Properties) -> None:
        provider = self._cloudformation.provider(known.type)
        if known.rehearsed:
            self._place.progress(f"updating {known.logical_id} ({known.type})")

        def undo() -> None:
            current = self._stack.resources[known.logical_id]
            if current.physical.id == known.physical.id:
                known.physical = provider.update(self._place, current, known.properties)
            elif current is not known:
                provider.delete(self._place, current)
            self._record(known)

        self._undo.append(undo)
        physical = self._attempt(
            known.logical_id, known.type, lambda: provider.update(self._place, known, properties)
        )
        changed = Resource(known.logical_id, known.type, properties, physical, known.retained)
        if physical.id != known.physical.id:
            self._replaced.append(known)
        self._record(changed)

    def _attempt(self, logical_id: str, type_: str, action: Callable[[], Physical]) -> Physical:
        try:
            return action()
        except ResourceFailed as failure:
            raise ResourceFailed(f"{logical_id} ({type_}): {failure}") from failure
        except Exception as failure:  # whatever a provider's libraries raise is this resource's failure
            raise ResourceFailed(f"{logical_id} ({type_}): {type(failure).__name__}: {failure}") from failure

    def _record(self, resource: Resource) -> None:
        self._stack.resources[resource.logical_id] = resource
        self._cloudformation.save(self._stack)

    def _roll_back(self) -> None:
        self._place.progress(f"rolling back {self._stack.name}")
        for undo in reversed(self._undo):
            try:
                undo()
            except Exception as failure:  # the rest is undone all the same
                self._place.progress(f"rolling back went on after: {failure}")

    def _clean_up(self, deleted: list[str]) -> None:
        leaving = [self._stack.resources[logical_id] for logical_id in reversed(deleted)]
        for resource in [*self._replaced, *leaving]:
            if not resource.retained:
                try:
                    self._cloudformation.provider(resource.type).delete(self._place, resource)
                except Exception as failure:  # as in AWS: the stack is complete, the resource stays
                    self._place.progress(
                        f"{resource.logical_id} ({resource.type}) is left behind, it could not be deleted: {failure}"
                    )
        for logical_id in deleted:
            del self._stack.resources[logical_id]

    def _outputs(self) -> dict[str, str]:
        return {
            name: str(resolve(output["Value"], self._scope))
            for name, output in self._template.get("Outputs", {}).items()
            if self._scope.conditions.get(output.get("Condition", ""), True)
        }

    def _reference(self, logical_id: str) -> str:
        if logical_id not in self._stack.resources:
            raise TemplateError(f"{self._stack.name}: nothing is called {logical_id}")
        return self._stack.resources[logical_id].physical.id

    def _attribute(self, logical_id: str, attribute: str) -> Any:
        resource = self._stack.resources.get(logical_id)
        if resource is None:
            raise TemplateError(f"{self._stack.name}: nothing is called {logical_id}")
        if attribute in resource.physical.attributes:
            return resource.physical.attributes[attribute]
        if resource.rehearsed:
            raise TemplateError(
                f"{self._stack.name}: {resource.type} {logical_id} has no attribute {attribute}"
            )
        return f"{resource.physical.id}.{attribute}"


def _retained(declaration: Mapping[str, Any]) -> bool:
    return declaration.get("DeletionPolicy") in ("Retain", "RetainExceptOnCreate", "Snapshot")


def _digest(*parts: str) -> str:
    return hashlib.sha256("/".join(parts).encode()).hexdigest()[:10]


def load_stack(state: Path, account: str, region: str, name: str) -> Stack | None:
    """What is remembered of a stack in a rehearsal's state folder, or None."""
    file = _stack_file(state, account, region, name)
    return _load(file) if file.exists() else None


def _stack_file(state: Path, account: str, region: str, name: str) -> Path:
    return account_directory(state, account, region) / "stacks" / f"{name}.json"


def _load(file: Path) -> Stack:
    content = json.loads(file.read_text(encoding="utf-8"))
    try:
        for logical_id, resource in content["resources"].items():
            resource["physical"] = Physical(**resource["physical"])
            content["resources"][logical_id] = Resource(**resource)
        return Stack(**content)
    except (KeyError, TypeError) as error:
        raise UnreadableStack(
            f"{file} was left by another version of the rehearsal ({error}). `make down` removes it, with the rehearsed"
            " accounts and their data; `make rehearse` then begins anew."
        ) from None
