"""ECS, Elastic Load Balancing, CloudWatch's alarms: carried out by the account's host, which outlives a deployment."""

from __future__ import annotations

import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rehearsal.cloudformation import Interrupted, Physical, Place, Properties, Resource, ResourceFailed
from rehearsal.host import HostClient, HostError, start_host
from rehearsal.images import ImageStore

DEPLOYMENT_SECONDS = 20 * 60
"""How long a deployment may take before CloudFormation gives up on it. AWS waits three hours; nothing here is so slow."""

LOG_LINES = 25

_OTHER_REGISTRY = re.compile(r"(?!\d{12}\.dkr\.ecr\.)[\w-]+(\.[\w-]+)+/")
"""How an image's name begins that is in a registry on the internet, not the account's own."""


def host(place: Place) -> HostClient:
    """The host of the account, started when it is first needed."""
    return start_host(place.directory / "host", place.directory / "logs" / "host.log")


def _load_balancing_arn(place: Place, kind: str, name: str) -> str:
    return place.arn("elasticloadbalancing", f"{kind}/{name}/0000000000000000")


class LoadBalancer:
    """AWS::ElasticLoadBalancingV2::LoadBalancer; its DNS name carries its port, since loopback has one address."""

    def create(self, place: Place, logical_id: str, properties: Properties) -> Physical:
        """Make it and give it a port."""
        name = properties.get("Name") or place.name(logical_id, limit=32)
        return self._put(place, _load_balancing_arn(place, "loadbalancer/app", name), name, properties)

    def update(self, place: Place, resource: Resource, properties: Properties) -> Physical:
        """Change its attributes; another name is another load balancer."""
        if properties.get("Name") != resource.properties.get("Name"):
            return self.create(place, resource.logical_id, properties)
        name = resource.physical.attributes["LoadBalancerName"]
        return self._put(place, resource.physical.id, name, properties)

    def delete(self, place: Place, resource: Resource) -> None:
        """Close its port."""
        host(place).delete("load-balancer", resource.physical.id)

    def _put(self, place: Place, arn: str, name: str, properties: Properties) -> Physical:
        made = host(place).put("load-balancer", arn, properties)
        return Physical(
            arn,
            {
                "LoadBalancerArn": arn,
                "LoadBalancerName": name,
                "LoadBalancerFullName": arn.split(":loadbalancer/")[1],
                "DNSName": made["dns_name"],
                "CanonicalHostedZoneID": "Z00000000000000000000",
                "SecurityGroups": properties.get("SecurityGroups", []),
            },
        )


class TargetGroup:
    """AWS::ElasticLoadBalancingV2::TargetGroup."""

    def create(self, place: Place, logical_id: str, properties: Properties) -> Physical:
        """Make it."""
        name = properties.get("Name") or place.name(logical_id, limit=32)
        return self._put(place, _load_balancing_arn(place, "targetgroup", name), name, properties)

    def update(self, place: Place, resource: Resource, properties: Properties) -> Physical:
        """Change its health check and attributes; another name is another target group."""
        if properties.get("Name") != resource.properties.get("Name"):
            return self.create(place, resource.logical_id, properties)
        name = resource.physical.attributes["TargetGroupName"]
        return self._put(place, resource.physical.id, name, properties)

    def delete(self, place: Place, resource: Resource) -> None:
        """Remove it."""
        host(place).delete("target-group", resource.physical.id)

    def _put(self, place: Place, arn: str, name: str, properties: Properties) -> Physical:
        host(place).put("target-group", arn, properties)
        return Physical(
            arn,
            {
                "TargetGroupArn": arn,
                "TargetGroupName": name,
                "TargetGroupFullName": arn.split(":")[-1],
                "LoadBalancerArns": [],
            },
        )


class _Routing:
    """What hangs on a load balancer and is put to the host as it is.

    Its ARN is its parent's, with another kind and one part more: templates take the load balancer's name out of it.
    """

    kind: str
    parent: str

    def create(self, place: Place, logical_id: str, properties: Properties) -> Physical:
        """Make it."""
        _, _, above = str(properties[self.parent]).rpartition(":")[2].partition("/")
        name = f"{self.kind}/{above}/{place.name(logical_id, limit=64)}"
        return self._put(place, place.arn("elasticloadbalancing", name), properties)

    def update(self, place: Place, resource: Resource, properties: Properties) -> Physical:
        """Change it without touching a connection; below another parent it is another one."""
        if properties[self.parent] != resource.properties[self.parent]:
            return self.create(place, resource.logical_id, properties)
        return self._put(place, resource.physical.id, properties)

    def delete(self, place: Place, resource: Resource) -> None:
        """Remove it."""
        host(place).delete(self.kind, resource.physical.id)

    def _put(self, place: Place, arn: str, properties: Properties) -> Physical:
        made = host(place).put(self.kind, arn, properties)
        if made.get("note"):
            place.progress(str(made["note"]))
        return Physical(arn, {"ListenerArn": arn, "RuleArn": arn})


class Listener(_Routing):
    """AWS::ElasticLoadBalancingV2::Listener."""

    kind, parent = "listener", "LoadBalancerArn"

    def _put(self, place: Place, arn: str, properties: Properties) -> Physical:
        if any(action["Type"] == "authenticate-oidc" for action in properties["DefaultActions"]):
            raise ResourceFailed(
                'auth = "oidc" is not rehearsed: a provider of your own knows no environment on this machine; rehearse with'
                ' auth = "cognito", for whose user pool a provider on this machine stands in'
            )
        return super()._put(place, arn, properties)


class ListenerRule(_Routing):
    """AWS::ElasticLoadBalancingV2::ListenerRule."""

    kind, parent = "listener-rule", "ListenerArn"


class Distribution:
    """AWS::CloudFront::Distribution: refused. Its name would lead nowhere on one machine, and every gate asks for it."""

    def create(self, place: Place, logical_id: str, properties: Properties) -> Physical:
        """Say so."""
        raise ResourceFailed(
            'CloudFront is not rehearsed: its name leads nowhere here; rehearse with exposure = "internal"'
        )

    def update(self, place: Place, resource: Resource, properties: Properties) -> Physical:
        """There is none to change."""
        return self.create(place, resource.logical_id, properties)

    def delete(self, place: Place, resource: Resource) -> None:
        """There is none to remove."""


class Alarm:
    """AWS::CloudWatch::Alarm: evaluated by the host where it measures the metric, else declared."""

    def create(self, place: Place, logical_id: str, properties: Properties) -> Physical:
        """Make it."""
        return self._put(place, properties.get("AlarmName") or place.name(logical_id), properties)

    def update(self, place: Place, resource: Resource, properties: Properties) -> Physical:
        """Change what it watches for; another name is another alarm."""
        if properties.get("AlarmName") != resource.properties.get("AlarmName"):
            return self.create(place, resource.logical_id, properties)
        return self._put(place, resource.physical.id, properties)

    def delete(self, place: Place, resource: Resource) -> None:
        """Remove it."""
        host(place).delete("alarm", resource.physical.id)

    def _put(self, place: Place, name: str, properties: Properties) -> Physical:
        why_not = host(place).put("alarm", name, properties)["not_rehearsed"]
        if why_not:
            place.progress(f"alarm {name} is declared, not rehearsed: {why_not}")
        return Physical(name, {"Arn": place.arn("cloudwatch", f"alarm:{name}")}, rehearsed=not why_not)


class Cluster:
    """AWS::ECS::Cluster: a name; the host holds its services."""

    def create(self, place: Place, logical_id: str, properties: Properties) -> Physical:
        """Its name is its id."""
        name = properties.get("ClusterName") or place.name(logical_id)
        return Physical(name, {"Arn": place.arn("ecs", f"cluster/{name}")})

    def update(self, place: Place, resource: Resource, properties: Properties) -> Physical:
        """Another name is another cluster."""
        return self.create(place, resource.logical_id, {"ClusterName": resource.physical.id, **properties})

    def delete(self, place: Place, resource: Resource) -> None:
        """Nothing is behind it."""


class TaskDefinition:
    """AWS::ECS::TaskDefinition: each change registers a new revision."""

    def create(self, place: Place, logical_id: str, properties: Properties) -> Physical:
        """Register a revision."""
        return self._register(place, properties)

    def update(self, place: Place, resource: Resource, properties: Properties) -> Physical:
        """Register the next revision; the one before is deregistered when the deployment is done."""
        return self._register(place, properties)

    def delete(self, place: Place, resource: Resource) -> None:
        """Deregister it."""
        host(place).delete("task-definition", resource.physical.id)

    def _register(self, place: Place, properties: Properties) -> Physical:
        properties = _own_containers(place, properties)
        images = self._images(place, properties)
        arn = place.arn(
            "ecs", f"task-definition/{properties['Family']}:{self._next(place, properties['Family'])}"
        )
        host(place).put("task-definition", arn, {**properties, "Rehearsal": {"containers": images}})
        return Physical(arn, {"TaskDefinitionArn": arn})

    def _next(self, place: Place, family: str) -> int:
        """The next revision's number; one that was deregistered is never used again."""
        file = place.directory / f"{family}.revision"
        number = int(file.read_text(encoding="utf-8")) + 1 if file.exists() else 1
        file.write_text(str(number), encoding="utf-8")
        return number

    def _images(self, place: Place, properties: Properties) -> dict[str, Any]:
        store = ImageStore(place.state / "images")
        containers = {}
        for container in properties["ContainerDefinitions"]:
            try:
                image = store.find(container["Image"])
            except KeyError as missing:
                raise ResourceFailed(f"CannotPullContainerError: {missing.args[0]}") from None
            containers[container["Name"]] = asdict(image)
        return containers


def _own_containers(place: Place, properties: Properties) -> Properties:
    """The task definition without what only the real world has: images of other registries, secrets of the user's own."""
    own = []
    for container in properties["ContainerDefinitions"]:
        if _OTHER_REGISTRY.match(container["Image"]):
            place.progress(
                f"container {container['Name']} is declared, not rehearsed: its image {container['Image']}"
                " is not the platform's"
            )
        else:
            secrets = [entry for entry in container.get("Secrets", []) if _is_there(place, entry)]
            own.append({**container, "Secrets": secrets} if "Secrets" in container else container)
    return {**properties, "ContainerDefinitions": own}


def _is_there(place: Place, entry: Properties) -> bool:
    """Whether the secret of a variable exists in the rehearsed account. No template makes those of the user's own."""
    if ":secretsmanager:" not in entry["ValueFrom"]:
        return True
    client = place.client("secretsmanager")
    try:
        client.describe_secret(SecretId=":".join(entry["ValueFrom"].split(":")[:7]))
    except client.exceptions.ResourceNotFoundException:
        place.progress(
            f"variable {entry['Name']} is declared, not rehearsed: no template makes its secret {entry['ValueFrom']}"
        )
        return False
    return True


class Service:
    """AWS::ECS::Service: created and updated means deployed and steady, as it does for CloudFormation."""

    def create(self, place: Place, logical_id: str, properties: Properties) -> Physical:
        """Start its tasks and wait until they are steady; a service that never is, is removed again."""
        name = properties.get("ServiceName") or place.name(logical_id)
        cluster = str(properties["Cluster"]).split("/")[-1]
        arn = place.arn("ecs", f"service/{cluster}/{name}")
        try:
            self._put(place, arn, name, properties)
        except ResourceFailed:
            host(place).delete("service", arn)
            raise
        return Physical(arn, {"ServiceArn": arn, "Name": name})

    def update(self, place: Place, resource: Resource, properties: Properties) -> Physical:
        """Roll over to the new state and wait until it is steady."""
        self._put(place, resource.physical.id, resource.physical.attributes["Name"], properties)
        return resource.physical

    def delete(self, place: Place, resource: Resource) -> None:
        """Drain and stop its tasks."""
        host(place).delete("service", resource.physical.id)

    def _put(self, place: Place, arn: str, name: str, properties: Properties) -> None:
        client = host(place)
        before = _events(client, arn)
        client.put(
            "service",
            arn,
            {
                **properties,
                "ServiceName": name,
                "Rehearsal": place.accounts.for_tasks(place.account, place.region),
            },
        )
        seen = before
        deadline = time.monotonic() + DEPLOYMENT_SECONDS
        while True:
            state = client.get("service", arn)
            for event in reversed(state["events"]):  # the newest comes first
                if event not in seen:
                    place.progress(event["message"])
            seen = state["events"]
            primary = next((d for d in state["deployments"] if d["status"] == "PRIMARY"), None)
            failed = [d for d in state["deployments"] if d["rollout_state"] == "FAILED"]
            wanted = properties["TaskDefinition"]
            ours = [d for d in state["deployments"] if d["task_definition"] == wanted]
            if state["stable"] and primary and primary["task_definition"] == wanted:
                return
            if any(d in failed for d in ours) or (primary and primary["rollout_state"] == "FAILED"):
                reason = next(d["rollout_reason"] for d in [*ours, *failed] if d["rollout_state"] == "FAILED")
                raise ResourceFailed(f"{reason}\n{_last_words(state, wanted)}")
            if time.monotonic() > deadline:
                raise ResourceFailed(
                    f"not steady after {DEPLOYMENT_SECONDS // 60} minutes\n{_last_words(state, wanted)}"
                )
            if place.stopping.wait(0.5):
                raise Interrupted


def _events(client: HostClient, arn: str) -> list[Any]:
    try:
        return list(client.get("service", arn)["events"])
    except HostError:  # a service that is not there yet has no events
        return []


def _last_words(state: dict[str, Any], task_definition: str) -> str:
    """Why the last task of a revision that failed did so, and the end of its log."""
    tasks = [task for task in state["tasks"] if task["task_definition"] == task_definition]
    if not tasks:
        return "no task of it was started"
    # Those that the scheduler retires once it gives the revision up have nothing to say about why.
    failed = [t for t in tasks if t["stopped_at"] and t["stop_code"] != "ServiceSchedulerInitiated"]
    task = max(failed or tasks, key=lambda task: str(task["stopped_at"]))  # ISO 8601, UTC: sorts as text
    lines = [f"the last task stopped: {task['stopped_reason']}" if failed else "no task of it has stopped"]
    for path in task["logs"].values():
        log = Path(path)
        text = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
        lines += [f"the end of {path}:", *(f"  {line}" for line in text[-LOG_LINES:])]
    return "\n".join(lines)
