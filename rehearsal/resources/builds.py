"""CodeBuild projects and the pipeline itself: records that `rehearsal.pipeline` and `rehearsal.build` carry out."""

from __future__ import annotations

from rehearsal.build import LEFT_OUT
from rehearsal.cloudformation import Physical, Place, Properties, Resource


class BuildProject:
    """AWS::CodeBuild::Project."""

    def create(self, place: Place, logical_id: str, properties: Properties) -> Physical:
        """Its name is its id."""
        name = properties.get("Name") or place.name(logical_id)
        for variable in properties.get("Environment", {}).get("EnvironmentVariables", []):
            if instead := LEFT_OUT.get(variable["Name"]):
                place.progress(f"variable {variable['Name']} of {name} is declared, not rehearsed: {instead}")
        return Physical(name, {"Arn": place.arn("codebuild", f"project/{name}")})

    def update(self, place: Place, resource: Resource, properties: Properties) -> Physical:
        """What a build does is read from the stack when it runs."""
        return self.create(place, resource.logical_id, {"Name": resource.physical.id, **properties})

    def delete(self, place: Place, resource: Resource) -> None:
        """Nothing runs between builds."""


class Pipeline:
    """AWS::CodePipeline::Pipeline."""

    def create(self, place: Place, logical_id: str, properties: Properties) -> Physical:
        """Its name is its id."""
        return Physical(properties.get("Name") or place.name(logical_id), {"Version": "1"})

    def update(self, place: Place, resource: Resource, properties: Properties) -> Physical:
        """A new structure version: executions started before cannot be gone back to."""
        version = int(resource.physical.attributes["Version"]) + 1
        return Physical(resource.physical.id, {"Version": str(version)})

    def delete(self, place: Place, resource: Resource) -> None:
        """Nothing runs between executions."""
