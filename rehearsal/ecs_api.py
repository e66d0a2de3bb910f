"""The calls of ECS and CloudWatch Logs that a build makes to run a task, answered by the account's host.

moto's own ECS only remembers what it is told. Its request parsing and its IAM stay in front: a call that the caller's
policies do not allow never gets here.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

from moto.core.responses import ActionResult
from moto.ecs.exceptions import EcsClientException
from moto.ecs.responses import EC2ContainerServiceResponse
from moto.logs.exceptions import ResourceNotFoundException
from moto.logs.responses import LogsResponse

from rehearsal.accounts import Accounts, account_directory
from rehearsal.host import HostClient, HostError
from rehearsal.images import ImageStore


def answer_ecs(state: Path) -> None:
    """Teach moto's ECS and Logs about the tasks of the accounts in `state`."""

    def directory(call: Any) -> Path:
        return account_directory(state, call.current_account, call.region)

    def run_task(self: Any) -> ActionResult:
        cluster = str(self._get_param("cluster", "default")).split("/")[-1]
        try:
            task = HostClient(directory(self) / "host").run_task(
                {
                    "TaskDefinition": self._get_param("taskDefinition"),
                    "Overrides": self._get_param("overrides"),
                    "Rehearsal": Accounts(state).for_tasks(self.current_account, self.region),
                }
            )
        except HostError as error:
            raise EcsClientException(str(error)) from None
        return ActionResult({"tasks": [_task(self, cluster, task)], "failures": []})

    def describe_tasks(self: Any) -> ActionResult:
        cluster = str(self._get_param("cluster", "default")).split("/")[-1]
        host = HostClient(directory(self) / "host")
        tasks, failures = [], []
        for arn in self._get_param("tasks", []):
            try:
                tasks.append(_task(self, cluster, host.get("task", arn.split("/")[-1])))
            except HostError:
                failures.append({"arn": arn, "reason": "MISSING"})
        return ActionResult({"tasks": tasks, "failures": failures})

    def _task(self: Any, cluster: str, task: dict[str, Any]) -> dict[str, Any]:
        prefix = f"arn:aws:ecs:{self.region}:{self.current_account}"
        store = ImageStore(state / "images")
        return {
            "taskArn": f"{prefix}:task/{cluster}/{task['id']}",
            "clusterArn": f"{prefix}:cluster/{cluster}",
            "taskDefinitionArn": task["task_definition"],
            "lastStatus": task["status"],
            "desiredStatus": "STOPPED" if task["status"] == "STOPPED" else "RUNNING",
            "stoppedReason": task["stopped_reason"],
            "stopCode": task["stop_code"] or None,
            "containers": [
                {
                    "name": name,
                    "image": image,
                    "imageDigest": store.find(image).digest,
                    "exitCode": task["exit_codes"][name],
                    "lastStatus": task["status"],
                }
                for name, image in task["images"].items()
            ],
        }

    def get_log_events(self: Any) -> str:
        # Of a stream that ECS names: prefix/container/task. The host writes one file for each.
        _, container, task = str(self._get_param("logStreamName")).split("/")
        files = [*(directory(self) / "logs").glob(f"*/{re.sub('[^0-9a-f]', '', task)}.{container}.log")]
        if not files:
            raise ResourceNotFoundException("The specified log stream does not exist.")
        text = files[0].read_text(encoding="utf-8", errors="replace")
        lines = text[: text.rfind("\n") + 1].splitlines()
        seen = int((self._get_param("nextToken") or "f/0").removeprefix("f/"))
        now = int(time.time() * 1000)
        events = [{"timestamp": now, "message": line, "ingestionTime": now} for line in lines[seen:]]
        return json.dumps(
            {"events": events, "nextForwardToken": f"f/{len(lines)}", "nextBackwardToken": f"b/{seen}"}
        )

    EC2ContainerServiceResponse.run_task = run_task
    EC2ContainerServiceResponse.describe_tasks = describe_tasks
    EC2ContainerServiceResponse._determine_resource = _ecs_resource
    LogsResponse.get_log_events = get_log_events
    LogsResponse._determine_resource = _logs_resource


def _ecs_resource(self: Any) -> str:
    wanted = self._get_param("taskDefinition") or next(iter(self._get_param("tasks") or []), None)
    return str(wanted or "*")


def _logs_resource(self: Any) -> str:
    group, stream = self._get_param("logGroupName"), self._get_param("logStreamName")
    if not group:
        return "*"
    arn = f"arn:aws:logs:{self.region}:{self.current_account}:log-group:{group}"
    return f"{arn}:log-stream:{stream}" if stream else arn
