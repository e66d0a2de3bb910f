"""Wake an environment that its schedule has put to sleep, so that a release meets what it would meet by day.

Outside the hours of the setting `schedule` the service has no tasks, and scaling's bounds are zero. A release that does not
change the service would leave it so, and its gates would find nobody. This is the first command of the pipeline's Migrate
action: it puts the day's bounds back and starts the tasks of before. The schedule's next stop ends them again.

| variable       | meaning                                                           |
|----------------|-------------------------------------------------------------------|
| WAKE_CLUSTER   | the service's cluster; not set where there is no schedule         |
| WAKE_SERVICE   | the service                                                       |
| WAKE_TASKS     | how many tasks it has by day, and the least that scaling keeps    |
| WAKE_MAX_TASKS | the most that scaling starts                                      |
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError, WaiterError

POLL_SECONDS = 10
POLLS = 30
"""Together five minutes for the tasks to start; it takes about one. The release goes on without them: it may be the mend."""


def wake(environment: Mapping[str, str], *, polls: int = POLLS) -> int:
    """Start the service's tasks if it has none. 0: it is awake, or was never made; 1: AWS said no, nothing is released."""
    if not environment.get("WAKE_CLUSTER"):
        return 0
    cluster, service = environment["WAKE_CLUSTER"], environment["WAKE_SERVICE"]
    tasks, most = int(environment["WAKE_TASKS"]), int(environment["WAKE_MAX_TASKS"])
    try:
        ecs = boto3.client("ecs")
        wanted = _wanted(ecs, cluster, service)
        if wanted is None:
            print(f"{service} is not there yet: the release makes it, awake.")
            return 0
        if wanted > 0:
            print(f"{service} is awake: {wanted} task(s) wanted.")
            return 0
        # The bounds first: scaling would take a count above them back.
        boto3.client("application-autoscaling").register_scalable_target(
            ServiceNamespace="ecs",
            ResourceId=f"service/{cluster}/{service}",
            ScalableDimension="ecs:service:DesiredCount",
            MinCapacity=tasks,
            MaxCapacity=most,
        )
        ecs.update_service(cluster=cluster, service=service, desiredCount=tasks)
        print(f"{service} sleeps by its schedule: starting {tasks} task(s).", flush=True)
        try:
            ecs.get_waiter("services_stable").wait(
                cluster=cluster,
                services=[service],
                WaiterConfig={"Delay": POLL_SECONDS, "MaxAttempts": polls},
            )
            print(f"{service} is awake.")
        except WaiterError:
            print(f"{service} has not started in {polls * POLL_SECONDS} s. The release goes on without it.")
    except (ClientError, BotoCoreError) as error:
        print(f"AWS refused or did not answer: {error}. Nothing was released.", file=sys.stderr)
        return 1
    return 0


def _wanted(ecs: Any, cluster: str, service: str) -> int | None:
    """How many tasks the service is to have; None before the first deployment."""
    try:
        found = ecs.describe_services(cluster=cluster, services=[service])["services"]
    except ecs.exceptions.ClusterNotFoundException:
        return None
    active = [one for one in found if one["status"] == "ACTIVE"]
    return int(active[0]["desiredCount"]) if active else None


if __name__ == "__main__":
    sys.exit(wake(os.environ))
