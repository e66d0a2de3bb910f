"""Stacks: created, updated, left alone, rolled back, gone on with. The resources here live in a dictionary."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rehearsal.accounts import Accounts
from rehearsal.cloudformation import (
    CloudFormation,
    Deployed,
    Physical,
    Place,
    Properties,
    Resource,
    ResourceFailed,
    Stack,
    StackFailed,
    UnreadableStack,
)
from rehearsal.resources import providers
from rehearsal.resources.declared import Declared

from .assembly import Platform

ACCOUNT, REGION, STACK = "222222222222", "eu-west-1", "mlflow-dev-data"


@dataclass
class Things:
    """A provider of `Test::Thing`. A changed Name replaces a thing; `Fail` makes it fail in the way it says."""

    alive: dict[str, Properties] = field(default_factory=dict)
    did: list[str] = field(default_factory=list)
    watch: Callable[[], None] = lambda: None

    def create(self, place: Place, logical_id: str, properties: Properties) -> Physical:
        name = properties.get("Name") or place.name(logical_id)
        self._obey(properties)
        self.watch()
        self.did.append(f"create {logical_id}")
        self.alive[name] = properties
        return Physical(name, {"Arn": place.arn("test", name)})

    def update(self, place: Place, resource: Resource, properties: Properties) -> Physical:
        if properties.get("Name", resource.physical.id) != resource.physical.id:
            return self.create(place, resource.logical_id, properties)
        self.alive[resource.physical.id] = {"half": "done"}
        self._obey(properties)
        self.did.append(f"update {resource.logical_id}")
        self.alive[resource.physical.id] = properties
        return resource.physical

    def delete(self, place: Place, resource: Resource) -> None:
        if resource.properties.get("Undeletable"):
            raise ValueError("BucketNotEmpty")
        self.did.append(f"delete {resource.logical_id}")
        del self.alive[resource.physical.id]

    def _obey(self, properties: Properties) -> None:
        match properties.get("Fail"):
            case "plainly":
                raise ResourceFailed("there are no things left")
            case "in a library":
                raise KeyError("thing")
            case "interrupted":
                raise KeyboardInterrupt


class Deployments:
    """One stack of things, and what was said about it."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.things = Things()
        self.said: list[str] = []
        self.cloudformation = self.anew()

    def anew(self) -> CloudFormation:
        """As after a restart: only the files are left."""
        return CloudFormation(self.state, Accounts(self.state), {"Test::Thing": self.things}, Declared())

    def deploy(self, resources: dict[str, Any], name: str = STACK, **sections: Any) -> Deployed:
        template = {"Resources": resources, **sections}
        return self.cloudformation.deploy(ACCOUNT, REGION, name, template, self.said.append)

    def fail(self, resources: dict[str, Any], **sections: Any) -> str:
        with pytest.raises(StackFailed) as failed:
            self.deploy(resources, **sections)
        return str(failed.value)

    @property
    def stack(self) -> Stack:
        found = self.anew().stack(ACCOUNT, REGION, STACK)
        assert found is not None
        return found


@pytest.fixture
def deployments(tmp_path: Path) -> Deployments:
    return Deployments(tmp_path)


def thing(
    name: str, *, keep: str | None = None, after: str | None = None, **properties: Any
) -> dict[str, Any]:
    declared: dict[str, Any] = {"Type": "Test::Thing", "Properties": {"Name": name, **properties}}
    if keep:
        declared["DeletionPolicy"] = keep
    if after:
        declared["DependsOn"] = after
    return declared


def named(resource: str) -> dict[str, str]:
    return {"Ref": resource}


# Creation


def test_resources_are_created_after_what_they_refer_to(deployments: Deployments) -> None:
    deployed = deployments.deploy(
        {
            "Last": thing("last", Of=[{"Fn::Sub": "${Middle.Arn}/*"}]),
            "Middle": thing("middle", Of={"Fn::Join": ["", [named("First")]]}),
            "First": thing("first", after="Zeroth"),
            "Zeroth": thing("zeroth"),
        }
    )
    order = ["Zeroth", "First", "Middle", "Last"]
    assert deployments.things.did == [f"create {name}" for name in order]
    assert deployed.created == order
    assert str(deployed) == "4 created"
    assert deployments.things.alive["last"]["Of"] == [f"arn:aws:test:{REGION}:{ACCOUNT}:middle/*"]
    assert deployments.stack.status == "CREATE_COMPLETE"


def test_a_circle_is_refused_before_anything_is_made(deployments: Deployments) -> None:
    said = deployments.fail({"A": thing("a", Of=named("B")), "B": thing("b", Of=named("A")), "C": thing("c")})
    assert "mlflow-dev-data: resources wait for each other" in said
    assert deployments.things.did == []


def test_a_reference_to_nothing_is_refused(deployments: Deployments) -> None:
    said = deployments.fail({"A": thing("a", Of=named("B"))})
    assert said.splitlines()[0] == "mlflow-dev-data: nothing is called B"


def test_an_attribute_that_a_rehearsed_resource_lacks_is_refused(deployments: Deployments) -> None:
    said = deployments.fail({"A": thing("a"), "B": thing("b", Of={"Fn::GetAtt": ["A", "Colour"]})})
    assert said.splitlines()[0] == "mlflow-dev-data: Test::Thing A has no attribute Colour"
    assert deployments.things.alive == {}


def test_a_type_without_a_provider_is_declared(deployments: Deployments) -> None:
    subnets = {"Type": "AWS::RDS::DBSubnetGroup", "Properties": {"DBSubnetGroupName": "isolated"}}
    of = {
        "Id": named("Subnets"),
        "Arn": {"Fn::GetAtt": ["Subnets", "Arn"]},
        "Odd": {"Fn::GetAtt": ["Subnets", "Odd"]},
    }
    deployments.deploy({"Subnets": subnets, "A": thing("a", Of=of)})
    assert deployments.things.alive["a"]["Of"] == {
        "Id": "isolated",
        "Arn": f"arn:aws:rehearsed:{REGION}:{ACCOUNT}:isolated",
        "Odd": "isolated.Odd",
    }
    assert [(r.logical_id, r.rehearsed) for r in deployments.stack.resources.values()] == [
        ("Subnets", False),
        ("A", True),
    ]


def test_a_made_up_name_is_short_enough_and_the_account_s_own() -> None:
    def name(account: str, limit: int) -> str:
        return Place(account, REGION, STACK, None, Path(), print, None).name("A" * 80, limit=limit)  # type: ignore[arg-type]

    assert len(name(ACCOUNT, 32)) == 32
    assert name(ACCOUNT, 63) == name(ACCOUNT, 63) != name("333333333333", 63)


# No change, update, replacement, removal


def test_the_same_template_again_changes_nothing(deployments: Deployments) -> None:
    template = {"A": thing("a"), "B": thing("b", Of=named("A"))}
    deployments.deploy(template)
    deployments.things.did.clear()
    deployments.cloudformation = deployments.anew()
    deployed = deployments.deploy(template)
    assert (deployed.changed, str(deployed), deployments.things.did) == (False, "no change", [])


def test_only_what_changed_is_updated(deployments: Deployments) -> None:
    deployments.deploy({"A": thing("a", Size=1), "B": thing("b", Of=named("A"))})
    deployments.things.did.clear()
    deployed = deployments.deploy({"A": thing("a", Size=2), "B": thing("b", Of=named("A"))})
    assert deployments.things.did == ["update A"]
    assert (str(deployed), deployments.things.alive["a"]["Size"]) == ("1 updated", 2)
    assert deployments.stack.status == "UPDATE_COMPLETE"


def test_a_replacement_is_handed_on_and_the_old_one_deleted_last(deployments: Deployments) -> None:
    deployments.deploy({"A": thing("a"), "B": thing("b", Of=named("A"))})
    deployments.things.did.clear()
    deployments.deploy({"A": thing("a2"), "B": thing("b", Of=named("A"))})
    assert deployments.things.did == ["create A", "update B", "delete A"]
    assert deployments.things.alive.keys() == {"a2", "b"}
    assert deployments.things.alive["b"]["Of"] == "a2"


def test_another_type_replaces(deployments: Deployments) -> None:
    deployments.deploy({"A": {"Type": "Test::Unknown", "Properties": {}}})
    deployed = deployments.deploy({"A": thing("a")})
    assert (deployed.created, deployments.stack.resources["A"].type) == (["A"], "Test::Thing")


def test_what_the_template_no_longer_holds_is_deleted_in_reverse(deployments: Deployments) -> None:
    deployments.deploy({"A": thing("a"), "B": thing("b", Of=named("A")), "C": thing("c")})
    deployments.things.did.clear()
    deployed = deployments.deploy({"C": thing("c")})
    assert deployments.things.did == ["delete B", "delete A"]
    assert sorted(deployed.deleted) == ["A", "B"]
    assert deployments.stack.resources.keys() == {"C"}


@pytest.mark.parametrize("keep", ["Retain", "RetainExceptOnCreate", "Snapshot"])
def test_a_retained_resource_stays(deployments: Deployments, keep: str) -> None:
    deployments.deploy({"A": thing("a", keep=keep), "C": thing("c")})
    deployments.deploy({"C": thing("c")})
    assert deployments.things.alive.keys() == {"a", "c"}
    assert deployments.stack.resources.keys() == {"C"}


def test_a_resource_whose_policy_became_retain_stays(deployments: Deployments) -> None:
    """The policy alone changes nothing in the resource; it counts all the same."""
    deployments.deploy({"A": thing("a"), "C": thing("c")})
    assert not deployments.deploy({"A": thing("a", keep="Retain"), "C": thing("c")}).changed
    deployments.deploy({"C": thing("c")})
    assert "a" in deployments.things.alive


def test_a_resource_that_cannot_be_deleted_is_left_behind_and_said_so(deployments: Deployments) -> None:
    deployments.deploy({"A": thing("a", Undeletable=True), "B": thing("b"), "C": thing("c")})
    deployments.deploy({"C": thing("c")}, Outputs={"Of": {"Value": named("C")}})
    assert deployments.said[-1] == "A (Test::Thing) is left behind, it could not be deleted: BucketNotEmpty"
    assert deployments.things.alive.keys() == {"a", "c"}
    assert (deployments.stack.status, deployments.stack.outputs) == ("UPDATE_COMPLETE", {"Of": "c"})


def test_conditions_choose_resources_and_outputs(deployments: Deployments) -> None:
    sections: dict[str, Any] = {
        "Parameters": {"Size": {"Type": "String", "Default": "large"}},
        "Conditions": {
            "Large": {"Fn::Equals": [named("Size"), "large"]},
            "Small": {"Fn::Not": [{"Condition": "Large"}]},
        },
        "Outputs": {
            "Yes": {"Condition": "Large", "Value": named("A")},
            "No": {"Condition": "Small", "Value": named("B")},
        },
    }
    resources = {"A": {**thing("a"), "Condition": "Large"}, "B": {**thing("b"), "Condition": "Small"}}
    deployments.deploy(resources, **sections)
    assert (list(deployments.things.alive), deployments.stack.outputs) == (["a"], {"Yes": "a"})


# Failure


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("plainly", "B (Test::Thing): there are no things left"),
        ("in a library", "B (Test::Thing): KeyError: 'thing'"),
    ],
)
def test_a_failed_creation_leaves_nothing(deployments: Deployments, how: str, sentence: str) -> None:
    said = deployments.fail(
        {
            "Z": thing("z"),
            "A": thing("a", after="Z"),
            "B": thing("b", Of=named("A"), Fail=how),
            "C": thing("c", Of=named("B")),
        }
    )
    assert said == f"{sentence}\nmlflow-dev-data is rolled back (ROLLBACK_COMPLETE)"
    assert deployments.things.did == ["create Z", "create A", "delete A", "delete Z"]
    assert (deployments.things.alive, deployments.stack.resources) == ({}, {})


def test_a_stack_whose_creation_failed_can_be_created(deployments: Deployments) -> None:
    deployments.fail({"A": thing("a", Fail="plainly")})
    deployments.deploy({"A": thing("a")})
    assert deployments.stack.status == "CREATE_COMPLETE"


def test_a_failed_update_takes_everything_back(deployments: Deployments) -> None:
    good = {
        "A": thing("a", Size=1),
        "B": thing("b", Of=named("A")),
        "D": thing("d", keep="Retain"),
        "Z": thing("z", Of=[named("B"), named("D")]),
    }
    deployments.deploy(good, Outputs={"Of": {"Value": named("B")}})
    before, alive = deployments.stack, dict(deployments.things.alive)
    said = deployments.fail(
        {
            "A": thing("a", Size=2),
            "B": thing("b2", Of=named("A")),
            "New": thing("new"),
            "Z": thing("z", Of=[named("B"), named("New")], Fail="plainly"),
        },
        Outputs={"Of": {"Value": named("New")}},
    )
    assert said.endswith("mlflow-dev-data is rolled back (UPDATE_ROLLBACK_COMPLETE)")
    assert deployments.things.alive == alive
    assert deployments.stack.resources == before.resources
    assert deployments.stack.outputs == {"Of": "b"}
    assert not deployments.deploy(good, Outputs={"Of": {"Value": named("B")}}).changed
    deployments.deploy(good, Outputs={"Of": {"Value": named("B")}})
    assert deployments.stack.status == "UPDATE_ROLLBACK_COMPLETE", "what changes nothing is no update"


def test_a_rollback_that_meets_an_error_undoes_the_rest(deployments: Deployments) -> None:
    deployments.fail(
        {
            "A": thing("a"),
            "B": thing("b", after="A", Undeletable=True),
            "C": thing("c", after="B", Fail="plainly"),
        }
    )
    assert "rolling back went on after: BucketNotEmpty" in deployments.said
    assert deployments.things.alive.keys() == {"b"}


def test_an_output_that_cannot_be_made_fails_the_stack(deployments: Deployments) -> None:
    said = deployments.fail({"A": thing("a")}, Outputs={"Of": {"Value": named("Nobody")}})
    assert "nothing is called Nobody" in said
    assert deployments.things.alive == {}


# Interruption


def test_what_was_made_is_on_record_at_once(deployments: Deployments) -> None:
    """A process that is killed has no time to write anything down."""
    recorded: list[list[str]] = []
    deployments.deploy({"A": thing("a")})
    deployments.things.watch = lambda: recorded.append(sorted(deployments.stack.resources))
    deployments.deploy(
        {"A": thing("a"), "B": thing("b"), "C": thing("c", after="B"), "D": thing("d", after="C")}
    )
    assert recorded == [["A"], ["A", "B"], ["A", "B", "C"]]


def test_an_interrupted_deployment_goes_on_where_it_stopped(deployments: Deployments) -> None:
    with pytest.raises(KeyboardInterrupt):
        deployments.deploy({"A": thing("a"), "B": thing("b", Of=named("A"), Fail="interrupted")})
    assert deployments.things.alive.keys() == {"a"}
    deployments.cloudformation = deployments.anew()
    deployed = deployments.deploy({"A": thing("a"), "B": thing("b", Of=named("A"))})
    assert (deployed.created, deployments.things.did) == (["B"], ["create A", "create B"])


def test_an_interrupted_update_is_made_again(deployments: Deployments) -> None:
    deployments.deploy({"A": thing("a", Size=1)})
    with pytest.raises(KeyboardInterrupt):
        deployments.deploy({"A": thing("a", Size=2, Fail="interrupted")})
    deployments.cloudformation = deployments.anew()
    deployments.deploy({"A": thing("a", Size=2)})
    assert deployments.things.alive["a"]["Size"] == 2


# Outputs and other stacks


def test_outputs_are_read_by_other_stacks(deployments: Deployments) -> None:
    deployments.deploy({"A": thing("a")}, name="network", Outputs={"Vpc": {"Value": named("A")}})
    of = {"Fn::GetStackOutput": {"StackName": "network", "OutputName": "Vpc", "Region": REGION}}
    deployments.deploy({"B": thing("b", Of=of)})
    assert deployments.things.alive["b"]["Of"] == "a"


@pytest.mark.parametrize("missing", [{"StackName": "network"}, {"OutputName": "Subnet"}])
def test_an_output_that_is_not_there_is_refused(deployments: Deployments, missing: dict[str, str]) -> None:
    deployments.deploy({"A": thing("a")}, name="net", Outputs={"Vpc": {"Value": named("A")}})
    wanted = {"StackName": "net", "OutputName": "Vpc", **missing}
    said = deployments.fail({"B": thing("b", Of={"Fn::GetStackOutput": wanted})})
    assert said.splitlines()[0] == (
        f"stack {wanted['StackName']} in {ACCOUNT}/{REGION} has no output {wanted['OutputName']}; deploy it first"
    )


def test_stacks_of_the_same_name_in_two_accounts_are_two(deployments: Deployments) -> None:
    for account in (ACCOUNT, "333333333333"):
        template = {"Resources": {"A": {"Type": "Test::Unknown"}}}
        deployments.cloudformation.deploy(account, REGION, STACK, template, print)
    assert [stack.account for stack in deployments.cloudformation.stacks()] == [ACCOUNT, "333333333333"]


def test_a_stack_s_file_is_whole_json(deployments: Deployments) -> None:
    deployments.deploy({"A": thing("a")})
    (file,) = deployments.state.glob("accounts/*/stacks/*")
    assert json.loads(file.read_text(encoding="utf-8"))["status"] == "CREATE_COMPLETE"


def test_a_stack_that_another_version_left_is_refused_with_the_mend(deployments: Deployments) -> None:
    deployments.deploy({"One": thing("one")})
    (file,) = deployments.state.glob("accounts/*/stacks/*.json")
    content = json.loads(file.read_text(encoding="utf-8"))
    content["resources"]["One"]["rehearsed"] = True  # as it once was
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(
        UnreadableStack, match=r"left by another version of the rehearsal.* `make down` removes it"
    ):
        list(deployments.anew().stacks())


def test_cloudfront_is_refused_with_what_to_do(tmp_path: Path) -> None:
    cloudformation = CloudFormation(tmp_path, Accounts(tmp_path), providers(), Declared())
    template = {"Resources": {"Edge": {"Type": "AWS::CloudFront::Distribution", "Properties": {}}}}
    with pytest.raises(StackFailed, match='rehearse with exposure = "internal"'):
        cloudformation.deploy(ACCOUNT, REGION, STACK, template, print)


def test_sign_in_by_a_provider_of_ones_own_is_refused_in_a_sentence(oidc_platform: Platform) -> None:
    listener = oidc_platform.only("AWS::ElasticLoadBalancingV2::Listener")
    place = Place(ACCOUNT, REGION, STACK, None, Path(), print, None)  # type: ignore[arg-type]
    with pytest.raises(
        ResourceFailed, match=r'auth = "oidc" is not rehearsed.*rehearse with auth = "cognito"'
    ):
        providers()[listener.type].create(place, "Listener", listener.properties)
