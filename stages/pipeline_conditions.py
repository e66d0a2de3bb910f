"""Automatic rollback: a stage that fails goes back by itself to the newest execution that succeeded in it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from aws_cdk import aws_codepipeline as codepipeline


def roll_back_on_failure(pipeline: codepipeline.Pipeline, stages: Iterable[str]) -> None:
    """Give the stages of these names `OnFailure: ROLLBACK`; call when the pipeline is built.

    The CDK has conditions only for stages that one adds oneself, not for those that CDK Pipelines makes. So this
    overrides the template's property, which lists the stages by their place.

    Raises:
        ValueError: the pipeline has no stage of that name.
    """
    places = {stage.stage_name: place for place, stage in enumerate(pipeline.stages)}
    resource = cast(codepipeline.CfnPipeline, pipeline.node.default_child)
    for name in stages:
        if name not in places:
            raise ValueError(f"the pipeline has no stage {name}; it has {', '.join(places)}")
        resource.add_property_override(f"Stages.{places[name]}.OnFailure", {"Result": "ROLLBACK"})
