"""Templates: every intrinsic function, conditions, what is left out, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from rehearsal.template import NO_VALUE, Scope, TemplateError, decide, references, resolve

ATTRIBUTES = {("Bucket", "Arn"): "arn:aws:s3:::artifacts", ("Database", "Endpoint.Port"): "5432"}


def reference(logical_id: str) -> str:
    if logical_id != "Bucket":
        raise TemplateError(f"nothing is called {logical_id}")
    return "artifacts"


@pytest.fixture
def scope() -> Scope:
    return Scope(
        account="222222222222",
        region="eu-west-1",
        stack_name="mlflow-dev-data",
        parameters={"Users": "7", "Zones": ["a", "b"]},
        conditions={"Yes": True, "No": False},
        mappings={"Sizes": {"dev": {"cpu": "256"}}},
        reference=reference,
        attribute=lambda logical_id, name: ATTRIBUTES[logical_id, name],
        stack_output=lambda region, stack, output: f"{region}/{stack}/{output}",
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("text", "text"),
        (5, 5),
        ({"Key": ["a", {"Ref": "Users"}]}, {"Key": ["a", "7"]}),
        # Ref
        ({"Ref": "Bucket"}, "artifacts"),
        ({"Ref": "Users"}, "7"),
        ({"Ref": "AWS::AccountId"}, "222222222222"),
        ({"Ref": "AWS::Region"}, "eu-west-1"),
        ({"Ref": "AWS::Partition"}, "aws"),
        ({"Ref": "AWS::URLSuffix"}, "amazonaws.com"),
        ({"Ref": "AWS::StackName"}, "mlflow-dev-data"),
        ({"Ref": "AWS::NotificationARNs"}, []),
        # GetAtt
        ({"Fn::GetAtt": ["Bucket", "Arn"]}, "arn:aws:s3:::artifacts"),
        ({"Fn::GetAtt": "Database.Endpoint.Port"}, "5432"),
        # Sub
        ({"Fn::Sub": "${AWS::AccountId}.dkr.${AWS::URLSuffix}/x"}, "222222222222.dkr.amazonaws.com/x"),
        ({"Fn::Sub": "${Bucket}:${Bucket.Arn}:${Users}"}, "artifacts:arn:aws:s3:::artifacts:7"),
        ({"Fn::Sub": ["${own}/${Users}", {"own": {"Ref": "AWS::Region"}}]}, "eu-west-1/7"),
        ({"Fn::Sub": "a literal ${!Users}"}, "a literal ${Users}"),
        # Join, Split, Select
        ({"Fn::Join": ["", ["s3://", {"Ref": "Bucket"}, "/", 1]]}, "s3://artifacts/1"),
        ({"Fn::Join": [",", {"Ref": "Zones"}]}, "a,b"),
        ({"Fn::Join": ["-", ["a", {"Ref": "AWS::NoValue"}, "b"]]}, "a-b"),
        ({"Fn::Split": ["/", "a/b/c"]}, ["a", "b", "c"]),
        ({"Fn::Select": [1, {"Fn::Split": ["/", "a/b/c"]}]}, "b"),
        ({"Fn::Select": ["0", {"Ref": "Zones"}]}, "a"),
        # zones, outputs, mappings
        ({"Fn::GetAZs": ""}, ["eu-west-1a", "eu-west-1b", "eu-west-1c"]),
        ({"Fn::GetAZs": "us-east-1"}, ["us-east-1a", "us-east-1b", "us-east-1c"]),
        (
            {"Fn::GetStackOutput": {"StackName": "network", "OutputName": "Vpc", "Region": "us-east-1"}},
            "us-east-1/network/Vpc",
        ),
        ({"Fn::GetStackOutput": {"StackName": "network", "OutputName": "Vpc"}}, "eu-west-1/network/Vpc"),
        ({"Fn::FindInMap": ["Sizes", "dev", "cpu"]}, "256"),
        # If, and what is not there
        ({"Fn::If": ["Yes", {"Ref": "Users"}, "none"]}, "7"),
        ({"Fn::If": ["No", {"Ref": "Users"}, "none"]}, "none"),
        ({"Kept": 1, "Gone": {"Ref": "AWS::NoValue"}}, {"Kept": 1}),
        ({"Kept": 1, "Gone": {"Fn::If": ["No", 2, {"Ref": "AWS::NoValue"}]}}, {"Kept": 1}),
        (["kept", {"Fn::If": ["Yes", {"Ref": "AWS::NoValue"}, "gone"]}], ["kept"]),
        # not an intrinsic, though it has one key
        ({"Version": "2012-10-17"}, {"Version": "2012-10-17"}),
    ],
)
def test_values(scope: Scope, value: Any, expected: Any) -> None:
    assert resolve(value, scope) == expected


def test_the_branch_not_taken_is_not_resolved(scope: Scope) -> None:
    """It may name a resource that its condition leaves out."""
    assert resolve({"Fn::If": ["Yes", "there", {"Ref": "LeftOut"}]}, scope) == "there"


def test_no_value_alone_is_itself(scope: Scope) -> None:
    assert resolve({"Ref": "AWS::NoValue"}, scope) is NO_VALUE


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (
            {"Fn::Cidr": ["10.0.0.0/16", 2, 8]},
            "Fn::Cidr is not rehearsed: teach rehearsal/template.py what it means",
        ),
        ({"Ref": "Bukket"}, "nothing is called Bukket"),
        ({"Fn::Sub": "${Bukket}"}, "nothing is called Bukket"),
        ({"Fn::Select": [3, ["a", "b"]]}, "Fn::Select: there is no item 3 in ['a', 'b']"),
        ({"Fn::If": ["Perhaps", 1, 2]}, "Fn::If: the template has no condition Perhaps"),
        (
            {"Fn::FindInMap": ["Sizes", "prod", "cpu"]},
            "Fn::FindInMap: the template's mappings have no Sizes.prod.cpu",
        ),
    ],
)
def test_what_is_refused(scope: Scope, value: Any, sentence: str) -> None:
    with pytest.raises(TemplateError) as refused:
        resolve({"Deep": [value]}, scope)
    assert str(refused.value) == sentence


CONDITIONS = {
    "Many": {"Fn::Equals": [{"Ref": "Users"}, "7"]},
    "Few": {"Fn::Not": [{"Condition": "Many"}]},
}


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ({"Fn::Equals": [{"Ref": "Users"}, "7"]}, True),
        ({"Fn::Equals": [{"Ref": "Users"}, "8"]}, False),
        ({"Condition": "Many"}, True),
        ({"Condition": "Few"}, False),
        ({"Fn::Not": [{"Condition": "Few"}]}, True),
        ({"Fn::And": [{"Condition": "Many"}, {"Condition": "Few"}]}, False),
        ({"Fn::Or": [{"Condition": "Many"}, {"Condition": "Few"}]}, True),
        ({"Fn::Or": [{"Condition": "Few"}, {"Condition": "Few"}]}, False),
        ({"Fn::Contains": [["6", "7"], {"Ref": "Users"}]}, True),
        ({"Fn::Contains": [["6", "8"], {"Ref": "Users"}]}, False),
    ],
)
def test_conditions(scope: Scope, condition: Any, holds: bool) -> None:
    assert decide(condition, CONDITIONS, scope) is holds


@pytest.mark.parametrize(
    ("condition", "sentence"),
    [
        ({"Condition": "Nobody"}, "the template has no condition Nobody"),
        (
            {"Fn::Maybe": []},
            "Fn::Maybe is not rehearsed as a condition: teach rehearsal/template.py what it means",
        ),
        ("Many", "not a condition: Many"),
    ],
)
def test_conditions_that_are_refused(scope: Scope, condition: Any, sentence: str) -> None:
    with pytest.raises(TemplateError) as refused:
        decide(condition, CONDITIONS, scope)
    assert str(refused.value) == sentence


def test_references_are_found_wherever_they_are() -> None:
    value = {
        "Plain": {"Ref": "One"},
        "List": [{"Fn::GetAtt": ["Two", "Arn"]}, {"Fn::GetAtt": "Three.Arn"}],
        "Text": {"Fn::Sub": ["${Four}${Five.Arn}${own}${!Six}", {"own": {"Ref": "Seven"}}]},
        "Deep": {"Fn::If": ["Yes", {"Fn::Join": ["", [{"Ref": "Eight"}]]}, 1]},
    }
    assert set(references(value)) == {"One", "Two", "Three", "Four", "Five", "Seven", "Eight"}
