"""Run an environment's migration task, wait for its end, and note the release.

This is the command of the pipeline's Migrate action. The task does the work (`mlflow_image/migration.py`); here it is
started, its log shown, and its result written to the release parameter, whose history is the list of releases.

| variable                          | meaning                                                           |
|-----------------------------------|-------------------------------------------------------------------|
| MIGRATION_CLUSTER                 | the cluster to run the task in                                    |
| MIGRATION_TASK_DEFINITION         | the task definition's revision, by ARN                            |
| MIGRATION_SUBNETS                 | subnets for the task, parted by commas                            |
| MIGRATION_SECURITY_GROUP          | its security group                                                |
| MIGRATION_LOG_GROUP               | where it logs                                                     |
| RELEASE_PARAMETER                 | the SSM parameter that releases are written to                    |
| RESTORED_FROM                     | the snapshot that the database was made from, if it was           |
| ALLOW_BREAKING_MIGRATION          | the revision that breaking migrations may lead to, if one may     |
| CODEBUILD_RESOLVED_SOURCE_VERSION | the commit; CodeBuild sets it                                     |
| PIPELINE_EXECUTION                | the id of the pipeline execution that carries the release         |
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

VARIABLES = (
    "MIGRATION_CLUSTER",
    "MIGRATION_TASK_DEFINITION",
    "MIGRATION_SUBNETS",
    "MIGRATION_SECURITY_GROUP",
    "MIGRATION_LOG_GROUP",
    "RELEASE_PARAMETER",
    "CODEBUILD_RESOLVED_SOURCE_VERSION",
)
POLL_SECONDS = 3.0
UNKNOWN_SECONDS = 60.0
"""How long ECS may not know a task that it has just started: DescribeTasks is only eventually consistent."""

LATE_SECONDS = 60
"""How long CloudWatch may take to deliver the last lines of a task that has ended."""

CONTAINER = "mlflow"
STREAM_PREFIX = "migrate"
REPORTS = Path("reports")
REFUSED = 3
"""The task's exit status when it changed nothing because the release needs a person's decision."""


class MigrationError(Exception):
    """The migration did not succeed; the message is a sentence that says why and what to do."""


def migrate(environment: Mapping[str, str]) -> int:
    """Run the task once. 0: the service may be deployed; 1: it must not, and the message on stderr says why."""
    missing = [name for name in VARIABLES if not environment.get(name)]
    if missing:
        print(
            f"{', '.join(missing)} not set: this command runs inside the pipeline's Migrate build, which sets them;"
            " start a release to migrate.",
            file=sys.stderr,
        )
        return 2
    try:
        task = _run(environment)
        result = _follow(environment, task)
        _note(environment, result)
        _tell(result, environment.get("ALLOW_BREAKING_MIGRATION"))
    except MigrationError as error:
        print(error, file=sys.stderr)
        return 1
    except (ClientError, BotoCoreError) as error:
        print(f"AWS refused or did not answer: {error}. The service was not touched.", file=sys.stderr)
        return 1
    return 0


def _run(environment: Mapping[str, str]) -> str:
    """Start the task and return its ARN."""
    started = boto3.client("ecs").run_task(
        cluster=environment["MIGRATION_CLUSTER"],
        taskDefinition=environment["MIGRATION_TASK_DEFINITION"],
        launchType="FARGATE",
        count=1,
        startedBy="pipeline",
        networkConfiguration={
            "awsvpcConfiguration": {
                "subnets": environment["MIGRATION_SUBNETS"].split(","),
                "securityGroups": [environment["MIGRATION_SECURITY_GROUP"]],
                "assignPublicIp": "DISABLED",
            }
        },
        overrides={
            "containerOverrides": [
                {
                    "name": CONTAINER,
                    "environment": [
                        {"name": "RELEASE_COMMIT", "value": environment["CODEBUILD_RESOLVED_SOURCE_VERSION"]}
                    ],
                }
            ]
        },
    )
    if not started["tasks"]:
        reasons = "; ".join(failure.get("reason", "unknown") for failure in started["failures"])
        raise MigrationError(f"ECS did not start the migration task ({reasons}): run the release again.")
    arn: str = started["tasks"][0]["taskArn"]
    print(f"Started the migration task {arn.rpartition('/')[2]}.", flush=True)
    return arn


def _follow(environment: Mapping[str, str], arn: str) -> dict[str, Any]:
    """Show the task's log until it has stopped, and return its result.

    Raises:
        MigrationError: it ended with an error, or never started.
    """
    ecs, log = boto3.client("ecs"), _Log(environment["MIGRATION_LOG_GROUP"], arn)
    began = time.monotonic()
    while True:
        described = ecs.describe_tasks(cluster=environment["MIGRATION_CLUSTER"], tasks=[arn])["tasks"]
        if described:
            task: dict[str, Any] = described[0]
        elif time.monotonic() - began < UNKNOWN_SECONDS:
            task = {"lastStatus": "PENDING"}
        else:
            task = {"lastStatus": "STOPPED", "stoppedReason": "ECS does not know it"}
        log.show()
        if task["lastStatus"] == "STOPPED":
            break
        time.sleep(POLL_SECONDS)
    container: dict[str, Any] = next(
        (one for one in task.get("containers", []) if one["name"] == CONTAINER), {}
    )
    status = container.get("exitCode")
    log.finish(LATE_SECONDS if status == 0 else LATE_SECONDS // 6)
    if status == 0 and "before" in log.result:
        return {
            **log.result,
            "image": container.get("image", ""),
            "image_digest": container.get("imageDigest", ""),
        }
    if status == REFUSED:
        raise MigrationError(f"Stopped before the service was touched: {log.result.get('error', '')}")
    reason = log.result.get("error") or f"{container.get('reason') or task.get('stoppedReason', '')}."
    raise MigrationError(
        f"The migration task failed (exit status {status}): {reason} The service was not touched; the whole log is in"
        f" {environment['MIGRATION_LOG_GROUP']}, stream {log.stream}."
    )


class _Log:
    """The task's log, shown as it grows; its last line is the result, in JSON."""

    def __init__(self, group: str, arn: str) -> None:
        self._logs = boto3.client("logs")
        self._group = group
        self._token: str | None = None
        self.stream = f"{STREAM_PREFIX}/{CONTAINER}/{arn.rpartition('/')[2]}"
        self.result: dict[str, Any] = {}

    def show(self) -> bool:
        """Print what is new; False if nothing was."""
        follow = {"nextToken": self._token} if self._token else {}
        try:
            answer = self._logs.get_log_events(
                logGroupName=self._group, logStreamName=self.stream, startFromHead=True, **follow
            )
        except self._logs.exceptions.ResourceNotFoundException:  # it has not said anything yet
            return False
        for event in answer["events"]:
            self._take(event["message"])
        self._token = answer["nextForwardToken"]
        return bool(answer["events"])

    def finish(self, seconds: int) -> None:
        """Show what came late, until the result has come: a task that was killed has none."""
        for _ in range(seconds):
            if not self.show() and self.result:
                return
            time.sleep(1)

    def _take(self, message: str) -> None:
        if message.startswith("{"):
            try:
                self.result = json.loads(message)
                return
            except json.JSONDecodeError:
                pass
        print(f"  {message}", flush=True)


def _note(environment: Mapping[str, str], result: Mapping[str, Any]) -> None:
    """Write the release where the next one, and a person, finds it."""
    release = {
        "commit": environment["CODEBUILD_RESOLVED_SOURCE_VERSION"],
        "execution": environment.get("PIPELINE_EXECUTION", ""),
        "image": result["image"],
        "image_digest": result["image_digest"],
        "before": result["before"],
        "revision": result["after"],
        "kind": result["kind"],
        "snapshot": result["snapshot"],
        "restored_from": environment.get("RESTORED_FROM") or None,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    boto3.client("ssm").put_parameter(
        Name=environment["RELEASE_PARAMETER"], Type="String", Value=json.dumps(release), Overwrite=True
    )


def _tell(result: Mapping[str, Any], allowed: str | None) -> None:
    """Say what was done to the schema, in the log and where the buildspec takes the approval's text from."""
    REPORTS.mkdir(exist_ok=True)
    sentence = schema_sentence(result, allowed)
    (REPORTS / "schema.txt").write_text(f"{sentence}\n", encoding="utf-8")
    print(f"Schema: {sentence}", flush=True)


def schema_sentence(result: Mapping[str, Any], allowed: str | None) -> str:
    """What a migration did, and what `allowed` (the setting allow_breaking_migration) means for the next environment."""
    breaking = sum(migration["kind"] == "breaking" for migration in result["applied"])
    if result["kind"] == "created":
        done = f"made new, at {result['after']}"
    elif not result["applied"]:
        done = f"at {result['after']} as before"
    else:
        done = (
            f"from {result['before'] or 'none'} to {result['after']}, {len(result['applied'])} migration(s), "
            + (f"{breaking} of them BREAKING" if breaking else "all additive")
            + (f", snapshot {result['snapshot']} taken first" if result["snapshot"] else "")
        )
    if allowed is None:
        return f"{done}; breaking migrations are not allowed."
    return (
        f"{done}; BREAKING migrations up to {allowed} are allowed: where one is pending, the release before cannot be"
        " rolled back to, only restored from the snapshot."
    )


if __name__ == "__main__":
    sys.exit(migrate(os.environ))
