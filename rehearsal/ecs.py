"""The rehearsed Amazon ECS: services, and the scheduler that rolls one revision over into the next.

The rules are those of the ECS developer guide for the rolling deployment controller with a circuit breaker and
deployment alarms.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rehearsal.alarms import Alarms
from rehearsal.ports import PortBlock
from rehearsal.process_container import ProcessContainer, limit_memory
from rehearsal.processes import ProcessRegistry, session_memory
from rehearsal.properties import Properties, RefusedError, parse
from rehearsal.target_group import TargetGroup
from rehearsal.task import RehearsedService, Task, now
from rehearsal.task_definition import TaskDefinition

log = logging.getLogger(__name__)

# Pause in seconds before the next start after the first, second, third, ... failure in a row. ECS throttles
# likewise, up to 27 minutes.
RESTART_SECONDS = (0, 0, 1, 2, 4, 8, 16, 32, 60)
MEMORY_CHECK_SECONDS = 1.0
STOPPED_TASKS_KEPT, ENDED_DEPLOYMENTS_KEPT, EVENTS_KEPT = 20, 5, 100
CIRCUIT_BREAKER, ALARM = "ECS deployment circuit breaker", "ECS deployment alarm"
BAKE_SECONDS = 5.0
"""How long a deployment whose tasks all serve is watched on, for an alarm to take it back.

ECS computes the time from the alarms' periods, some minutes. Here it is cut short, since no deployment of a rehearsal
would end sooner.
"""


class ThresholdConfiguration(Properties):
    """When the circuit breaker opens."""

    type: Literal["BOUNDED_PERCENT", "UNBOUNDED_PERCENT", "COUNT"] = "BOUNDED_PERCENT"
    value: float = 50


class CircuitBreaker(Properties):
    """Whether failing tasks end a deployment, and whether it is then rolled back."""

    enable: bool = False
    rollback: bool = False
    reset_on_healthy_task: bool = True
    threshold_configuration: ThresholdConfiguration = ThresholdConfiguration()

    def threshold(self, desired: int) -> int:
        """Failed tasks that open the breaker: by default half of the desired count, from 3 to 200."""
        limit = self.threshold_configuration
        if limit.type == "COUNT":
            return int(limit.value)
        share = math.ceil(desired * limit.value / 100)
        return share if limit.type == "UNBOUNDED_PERCENT" else min(200, max(3, share))


class DeploymentAlarms(Properties):
    """Alarms that end a deployment during which they go off, and whether it is then rolled back."""

    alarm_names: tuple[str, ...] = ()
    enable: bool = False
    rollback: bool = False


class DeploymentConfiguration(Properties):
    """Limits of a rolling update, in percent of the desired count."""

    minimum_healthy_percent: float = 100
    maximum_percent: float = 200
    deployment_circuit_breaker: CircuitBreaker = CircuitBreaker()
    alarms: DeploymentAlarms = DeploymentAlarms()
    strategy: Literal["ROLLING"] = "ROLLING"


class DeploymentController(Properties):
    """Who moves a service from one revision to the next."""

    type: Literal["ECS"] = "ECS"


class ServiceLoadBalancer(Properties):
    """A container port that is registered with a target group."""

    target_group_arn: str
    container_name: str
    container_port: int


class ServiceProperties(Properties):
    """AWS::ECS::Service."""

    service_name: str | None = None
    task_definition: str
    desired_count: int | None = None
    deployment_configuration: DeploymentConfiguration = DeploymentConfiguration()
    deployment_controller: DeploymentController = DeploymentController()
    health_check_grace_period_seconds: float = 0
    load_balancers: tuple[ServiceLoadBalancer, ...] = ()
    rehearsal: RehearsedService


@dataclass
class Deployment:
    """One revision on its way into service, in service, or on its way out."""

    definition: TaskDefinition
    id: str = field(default_factory=lambda: f"ecs-svc/{secrets.randbelow(10**19):019d}")
    status: Literal["PRIMARY", "ACTIVE", "INACTIVE"] = "PRIMARY"
    rollout_state: Literal["IN_PROGRESS", "COMPLETED", "FAILED"] = "IN_PROGRESS"
    rollout_reason: str = ""
    good: bool = False  # it reached a steady state and is what a failing successor is rolled back to
    watched: bool = False  # an alarm that goes off before it is completed ends it
    baked: float = 0.0  # when its time under watch is over (monotonic clock), once that has begun
    desired: int = 0
    failed: int = 0
    failed_in_row: int = 0


class Service:
    """A service: its deployments, its tasks, and the scheduler's loop over them."""

    def __init__(self, cluster: Cluster, arn: str, properties: ServiceProperties) -> None:
        self.cluster = cluster
        self.arn = arn
        self.properties = properties
        self.name = properties.service_name or arn.rpartition("/")[2]
        self.desired = 1
        self.deployments: list[Deployment] = []
        self.tasks: list[Task] = []
        self.stopped: deque[Task] = deque(maxlen=STOPPED_TASKS_KEPT)
        self.events: deque[dict[str, str]] = deque(maxlen=EVENTS_KEPT)
        self._declared: tuple[Any, ...] = ()
        self._failures = 0
        self._not_before = 0.0
        self._steady = False
        self._ending = False
        self._runs: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._watched: list[TargetGroup] = []
        self._loop = asyncio.create_task(self._schedule())

    @property
    def primary(self) -> Deployment:
        """The deployment the service is moving to, or is at."""
        return self.deployments[0]

    def recall(
        self, parsed: ServiceProperties, raw: Mapping[str, Any], remembered: list[dict[str, Any]]
    ) -> None:
        """Take up what an earlier host left; its tasks are gone, so the scheduler starts them anew."""
        self._adopt(parsed, raw)
        for entry in remembered:
            definition = self.cluster.definition_for(self.arn, entry["task_definition"])
            rest = {name: value for name, value in entry.items() if name != "task_definition"}
            self.deployments.append(Deployment(definition, **rest))
        self.desired = self.primary.desired or self.desired

    def configure(self, parsed: ServiceProperties, raw: Mapping[str, Any]) -> Deployment:
        """Take new properties; begin a deployment when they call for one."""
        declared_before = self._declared
        self._adopt(parsed, raw)
        current = self.primary if self.deployments else None
        if (
            current is None
            or current.rollout_state == "FAILED"
            or current.definition.arn != parsed.task_definition
            or self._declared != declared_before
        ):
            self._begin(Deployment(self.cluster.definition_for(self.arn, parsed.task_definition)))
        elif current.desired != self.desired:
            self._steady = False
        self.primary.desired = self.desired
        for older in self.deployments[1:]:
            older.desired = min(older.desired, self.desired)
        self.wake()
        return self.primary

    def _adopt(self, parsed: ServiceProperties, raw: Mapping[str, Any]) -> None:
        force = raw.get("ForceNewDeployment")
        if isinstance(force, dict):
            once = force.get("ForceNewDeploymentNonce", "")
        else:
            once = uuid.uuid4().hex if str(force).lower() == "true" else ""
        # What begins a deployment when it changes, besides the task definition (API reference,
        # UpdateService).
        self._declared = (parsed.load_balancers, raw.get("NetworkConfiguration"), once)
        self.properties = parsed
        if parsed.desired_count is not None:
            self.desired = parsed.desired_count
        for group in self._watched:
            group.unwatch(self.wake)
        self._watched = [
            self.cluster.target_groups[entry.target_group_arn] for entry in parsed.load_balancers
        ]
        for group in self._watched:
            group.watch(self.wake)

    def wake(self) -> None:
        """Let the scheduler look again."""
        self._wake.set()

    async def end(self, *, hurry: bool = False) -> None:
        """Stop every task and the scheduler."""
        self._ending = True
        for task in self.tasks:
            task.stop(
                "ServiceSchedulerInitiated",
                f"Scaling activity initiated by (service {self.name})",
                hurry=hurry,
            )
        while self._runs:
            await asyncio.wait(self._runs)
        self._loop.cancel()
        for group in self._watched:
            group.unwatch(self.wake)

    def ended(self, task: Task) -> None:
        """A task has stopped: count it when it was not the scheduler's wish."""
        self.tasks.remove(task)
        self.stopped.appendleft(task)
        deployment = task.deployment
        self.event(f"has stopped 1 running tasks: (task {task.id}).")
        if task.stop_code != "ServiceSchedulerInitiated":
            self.event(f"(task {task.id}) stopped: {task.stopped_reason}")
            self._count_failure(deployment)
        self.wake()

    def event(self, what: str) -> None:
        """Note something for the service's events, newest first."""
        message = f"(service {self.name}) {what}"
        log.info("%s", message)
        self.events.appendleft({"created_at": now(), "message": message})

    def describe(self) -> dict[str, Any]:
        """The service as `get` shows it."""
        deployments = []
        for deployment in self.deployments:
            mine = [task for task in self.tasks if task.deployment is deployment]
            running = sum(task.status == "RUNNING" for task in mine)
            deployments.append(
                {
                    "id": deployment.id,
                    "status": deployment.status,
                    "rollout_state": deployment.rollout_state,
                    "rollout_reason": deployment.rollout_reason,
                    "task_definition": deployment.definition.arn,
                    "desired": deployment.desired,
                    "running": running,
                    "healthy": sum(task.healthy for task in mine),
                    "pending": sum(task.status in ("PROVISIONING", "PENDING") for task in mine),
                    "failed": deployment.failed,
                }
            )
        return {
            "deployments": deployments,
            "tasks": [task.describe() for task in (*self.tasks, *self.stopped)],
            "events": list(self.events),
            "stable": self._steady,
            "not_enforced": self.primary.definition.not_enforced,
        }

    def remembered(self) -> list[dict[str, Any]]:
        """The deployments that are not over, in the form `recall` takes."""
        names = ("id", "status", "rollout_state", "rollout_reason", "good", "watched", "desired")
        return [
            {name: getattr(deployment, name) for name in names}
            | {"task_definition": deployment.definition.arn}
            for deployment in self.deployments
            if deployment.status != "INACTIVE"
        ]

    def _begin(self, deployment: Deployment) -> None:
        for older in self.deployments:
            if older.status == "PRIMARY":
                older.status = "ACTIVE"
        self.deployments.insert(0, deployment)
        deployment.rollout_reason = f"ECS deployment {deployment.id} in progress."
        self._failures, self._not_before, self._steady = 0, 0.0, False
        self.event(f"has begun deployment {deployment.id} of {deployment.definition.name}.")
        if self.properties.deployment_configuration.alarms.enable:
            # "How CloudWatch alarms detect Amazon ECS deployment failures", developer guide: an alarm that is on when a
            # deployment begins keeps ECS from watching any, so that a mend can be deployed.
            already = self._alarms_on()
            deployment.watched = not already
            if already:
                self.event(
                    f"watches no alarms during this deployment; in ALARM already: {', '.join(already)}."
                )

    def _alarms_on(self) -> dict[str, str]:
        """The deployment alarms that are in ALARM, and why."""
        return self.cluster.alarms.on(self.properties.deployment_configuration.alarms.alarm_names)

    def _count_failure(self, deployment: Deployment) -> None:
        deployment.failed += 1
        deployment.failed_in_row += 1
        self._failures += 1
        pause = RESTART_SECONDS[min(self._failures, len(RESTART_SECONDS) - 1)]
        self._not_before = time.monotonic() + pause
        if self._failures == len(RESTART_SECONDS) - 1:
            self.event("is unable to consistently start tasks successfully.")
        breaker = self.properties.deployment_configuration.deployment_circuit_breaker
        if (
            breaker.enable
            and deployment is self.primary
            and deployment.rollout_state == "IN_PROGRESS"
            and deployment.failed_in_row >= breaker.threshold(self.desired)
        ):
            self._fail(deployment, CIRCUIT_BREAKER, "tasks failed to start", rollback=breaker.rollback)

    def _fail(self, deployment: Deployment, found_by: str, why: str, *, rollback: bool) -> None:
        deployment.rollout_state = "FAILED"
        deployment.rollout_reason = f"{found_by}: {why}."
        self.event(f"deployment {deployment.id} deployment failed: {why}.")
        good = next((older for older in self.deployments if older.good), None)
        if good is None:
            deployment.desired = 0
            self.event(f"has no completed deployment to go back to; stopping the tasks of {deployment.id}.")
        elif rollback:
            deployment.status, deployment.desired = "ACTIVE", 0
            self.deployments.remove(good)
            self.deployments.insert(0, good)
            good.status, good.rollout_state, good.desired = "PRIMARY", "IN_PROGRESS", self.desired
            good.rollout_reason = f"{found_by}: rolling back to deploymentId {good.id}."
            good.failed_in_row = self._failures = 0
            good.watched = False  # there is nothing to go back to from here
            self._not_before = 0.0
            self.event(f"rolling back to deployment {good.id}.")
        self.cluster.changed()

    async def _schedule(self) -> None:
        while True:
            # Grace periods, settling and restart pauses end without anybody saying so: look twice a second at
            # least.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await self._wake.wait()
            self._wake.clear()
            if not self._ending and self.deployments:
                try:
                    self._look()
                except Exception:  # a scheduler that is gone would look like a deployment that never ends
                    log.exception("the scheduler of %s failed; it looks again", self.arn)

    def _look(self) -> None:
        """One step of the scheduler: judge the tasks, start what is missing, stop what is too many."""
        for task in self.tasks:
            if task.healthy and not task.was_healthy:
                task.was_healthy = True
                self._failures = 0
                if self.properties.deployment_configuration.deployment_circuit_breaker.reset_on_healthy_task:
                    task.deployment.failed_in_row = 0
        if self.primary.rollout_state == "IN_PROGRESS":
            for task in self.tasks:
                if task.live and task.deployment is self.primary and task.failing:
                    self._replace(task)
            if self.primary.watched and (on := self._alarms_on()):
                why = "; ".join(f"{name} is in ALARM, {reason}" for name, reason in on.items())
                alarms = self.properties.deployment_configuration.alarms
                self._fail(self.primary, ALARM, why, rollback=alarms.rollback)
        self._start_missing()
        self._stop_surplus()
        self._settle()

    def _replace(self, task: Task) -> None:
        self.event(f"(task {task.id}) is unhealthy: {task.failing}.")
        task.stop("TaskUnhealthy", task.failing)

    def _start_missing(self) -> None:
        if time.monotonic() < self._not_before:
            return
        room = math.floor(self.desired * self.properties.deployment_configuration.maximum_percent / 100)
        # Tasks of an outgoing revision that die before they are replaced are started again: it is what
        # serves.
        for deployment in self.deployments:
            if deployment.rollout_state == "FAILED" or not (deployment is self.primary or deployment.good):
                continue
            good = [t for t in self.tasks if t.live and t.deployment is deployment and not t.failing]
            live = sum(task.live for task in self.tasks)
            missing = min(deployment.desired - len(good), room - live)
            if missing > 0:
                self._launch(deployment, missing)

    def _launch(self, deployment: Deployment, count: int) -> None:
        for _ in range(count):
            task = Task(self, deployment)
            self.tasks.append(task)
            run = asyncio.create_task(task.run())
            self._runs.add(run)
            run.add_done_callback(self._runs.discard)
        names = " ".join(f"(task {task.id})" for task in self.tasks[-count:])
        self.event(f"has started {count} tasks: {names}.")

    def _stop_surplus(self) -> None:
        config = self.properties.deployment_configuration
        room = math.floor(self.desired * config.maximum_percent / 100)
        floor = math.ceil(self.desired * config.minimum_healthy_percent / 100)
        primary = self.primary
        mine = [task for task in self.tasks if task.live and task.deployment is primary]
        # Out first: what fails, then what is not up yet, then the newest. What recovered or serves long is
        # kept.
        mine.sort(key=lambda task: (task.healthy, not task.failing, -task.created))
        serving = sum(task.healthy for task in mine)
        surplus = len(mine) - primary.desired
        for task in mine:
            if task.failing:
                # It goes on until its replacement serves, unless the maximum leaves no room for that one.
                no_room = serving < primary.desired and sum(other.live for other in self.tasks) >= room
                if no_room or (surplus > 0 and serving >= primary.desired):
                    self._replace(task)
                    surplus -= 1
            elif surplus > 0 and not any(other.failing for other in mine if other.live):
                self._retire(task)
                surplus -= 1
        old = [task for task in self.tasks if task.live and task.deployment is not primary]
        old.sort(key=lambda task: (task.healthy, task.deployment.good, task.created))
        for task in old:
            healthy = sum(other.healthy for other in self.tasks)
            live = sum(other.live for other in self.tasks)
            spare = healthy - task.healthy >= floor
            done = serving >= primary.desired
            superfluous = task.healthy and healthy > max(self.desired, floor)
            in_the_way = spare and live >= room and len(mine) < primary.desired
            # What an alarm took back still serves; it goes on until its replacement does.
            abandoned = task.deployment.rollout_state == "FAILED" and not task.healthy
            if primary.rollout_state != "FAILED" and (done or superfluous or in_the_way or abandoned):
                task.deployment.desired = max(0, task.deployment.desired - 1)
                self._retire(task)

    def _retire(self, task: Task) -> None:
        if task.live:
            self.event(f"has begun draining connections on 1 tasks: (task {task.id}).")
            task.stop("ServiceSchedulerInitiated", f"Scaling activity initiated by (service {self.name})")

    def _settle(self) -> None:
        primary = self.primary
        mine = [task for task in self.tasks if task.deployment is primary]
        serving = sum(task.healthy for task in mine)
        steady = (
            len(mine) == len(self.tasks) == serving == primary.desired and primary.rollout_state != "FAILED"
        )
        if steady and primary.rollout_state == "IN_PROGRESS" and primary.watched:
            # After the old tasks are stopped, as the guide has it: what comes back later is started anew.
            if not primary.baked:
                primary.baked = time.monotonic() + BAKE_SECONDS
                self.event(f"deployment {primary.id} is watched for another {BAKE_SECONDS:g} s.")
            steady = time.monotonic() >= primary.baked
        if steady and not self._steady:
            if primary.rollout_state != "COMPLETED":
                primary.rollout_state, primary.good = "COMPLETED", True
                primary.rollout_reason = f"ECS deployment {primary.id} completed."
                self.event(f"deployment {primary.id} deployment completed.")
                for older in self.deployments[1:]:
                    older.status, older.desired, older.good = "INACTIVE", 0, False
                del self.deployments[1 + ENDED_DEPLOYMENTS_KEPT :]
                self.cluster.changed()
            self.event("has reached a steady state.")
        self._steady = steady


class SingleRun:
    """A task that belongs to no service: run once, never replaced."""

    def __init__(self, cluster: Cluster, definition: TaskDefinition, properties: ServiceProperties) -> None:
        self.cluster = cluster
        self.properties = properties
        self.name = definition.properties.family
        self.task = Task(self, Deployment(definition))
        self._run = asyncio.create_task(self.task.run())

    def wake(self) -> None:
        """Nobody schedules it."""

    def ended(self, task: Task) -> None:
        """It is kept to be described."""
        log.info("(task %s) of %s stopped: %s", task.id, self.name, task.stopped_reason)

    async def end(self) -> None:
        """Stop it, quickly."""
        self.task.stop("UserInitiated", "the host stops", hurry=True)
        await self._run


class Cluster:
    """The ECS of one rehearsed account.

    `url` is where the host answers (tasks ask it for their credentials), `directory` is for the tasks'
    private folders, `changed` is called when something happened that a restarted host must know.
    """

    def __init__(
        self,
        directory: Path,
        registry: ProcessRegistry,
        block: PortBlock,
        url: str,
        target_groups: Mapping[str, TargetGroup],
        alarms: Alarms,
        changed: Callable[[], None],
    ) -> None:
        self.directory = directory
        self.registry = registry
        self.block = block
        self.url = url
        self.target_groups = target_groups
        self.alarms = alarms
        self.changed = changed
        self.definitions: dict[str, TaskDefinition] = {}
        self.services: dict[str, Service] = {}
        self.runs: dict[str, SingleRun] = {}
        self.boto = asyncio.Lock()  # boto3 makes clients in one thread at a time only
        self._memory = asyncio.create_task(self._watch_memory())

    async def put_task_definition(self, arn: str, properties: Mapping[str, Any]) -> dict[str, Any]:
        """Register a task definition. Tasks that run keep the properties they were started with."""
        definition = self.definitions[arn] = TaskDefinition(arn, properties)
        for service in self.services.values():
            for deployment in service.deployments:
                if deployment.definition.arn == arn:
                    deployment.definition = definition
        return {"not_enforced": definition.not_enforced}

    async def put_service(self, arn: str, properties: Mapping[str, Any]) -> dict[str, Any]:
        """Create or update a service. Returns the deployment it is moving to and does not wait for it."""
        parsed = parse(ServiceProperties, arn, properties)
        self._check(arn, parsed)
        service = self.services.get(arn)
        if service is None:
            service = self.services[arn] = Service(self, arn, parsed)
        deployment = service.configure(parsed, properties)
        return {"deployment": deployment.id}

    def run_task(self, properties: Mapping[str, Any]) -> dict[str, Any]:
        """Start one task of a task definition, with what RunTask overrides, and describe it.

        Raises RefusedError.
        """
        parsed = parse(ServiceProperties, "RunTask", properties)
        registered = self.definition_for("RunTask", parsed.task_definition)
        run = SingleRun(self, registered.overridden(properties.get("Overrides") or {}), parsed)
        self.runs[run.task.id] = run
        for task_id in [one for one, old in self.runs.items() if old.task.status == "STOPPED"][
            :-STOPPED_TASKS_KEPT
        ]:
            del self.runs[task_id]
        return run.task.describe()

    def recall_service(
        self, arn: str, properties: Mapping[str, Any], remembered: list[dict[str, Any]]
    ) -> None:
        """Take up a service of an earlier host with its deployments as they were."""
        parsed = parse(ServiceProperties, arn, properties)
        service = self.services[arn] = Service(self, arn, parsed)
        service.recall(parsed, properties, remembered)

    def used_definitions(self) -> set[str]:
        """The task definitions that a service runs or may go back to."""
        services = self.services.values()
        return {d.definition.arn for s in services for d in s.deployments if d.status != "INACTIVE"}

    def definition_for(self, what: str, arn: str) -> TaskDefinition:
        """The task definition a service names. Raises RefusedError."""
        definition = self.definitions.get(arn)
        if definition is None:
            raise RefusedError(f"{what}: there is no task definition {arn}; put it first")
        return definition

    async def delete(self, kind: str, arn: str) -> None:
        """Remove a resource if it is there. A service is drained and stopped before this returns."""
        if kind == "service":
            if service := self.services.get(arn):
                await service.end()
                del self.services[arn]
        elif definition := self.definitions.get(arn):
            # What runs from it, or would be rolled back to it, goes on: ECS calls such a revision INACTIVE.
            definition.active = False

    def describe(self, kind: str, arn: str) -> dict[str, Any] | None:
        """What there is to know of a resource; None when there is no such one."""
        if kind == "service" and (service := self.services.get(arn)):
            return service.describe()
        if kind == "task" and (run := self.runs.get(arn)):
            return run.task.describe()
        if kind == "task-definition" and (definition := self.definitions.get(arn)):
            return {
                "status": "ACTIVE" if definition.active else "INACTIVE",
                "not_enforced": definition.not_enforced,
            }
        return None

    def task(self, task_id: str) -> Task | None:
        """A task that has not stopped yet."""
        return next((task for task in self._tasks() if task.id == task_id), None)

    async def close(self) -> None:
        """Stop all services, quickly."""
        await asyncio.gather(
            *(service.end(hurry=True) for service in self.services.values()),
            *(run.end() for run in self.runs.values()),
        )
        self._memory.cancel()

    def _tasks(self) -> list[Task]:
        of_services = [task for service in self.services.values() for task in service.tasks]
        return of_services + [run.task for run in self.runs.values() if run.task.status != "STOPPED"]

    def _check(self, arn: str, parsed: ServiceProperties) -> None:
        definition = self.definition_for(arn, parsed.task_definition)
        for name in parsed.deployment_configuration.alarms.alarm_names:
            if name not in self.alarms:
                raise RefusedError(f"{arn}: there is no alarm {name}; put it first")
        for entry in parsed.load_balancers:
            if entry.target_group_arn not in self.target_groups:
                raise RefusedError(f"{arn}: there is no target group {entry.target_group_arn}; put it first")
            mapped = {
                (container.name, mapping.container_port)
                for container in definition.properties.container_definitions
                for mapping in container.port_mappings
            }
            if (entry.container_name, entry.container_port) not in mapped:
                raise RefusedError(
                    f"{arn}: container {entry.container_name} of {parsed.task_definition} does not map port "
                    f"{entry.container_port}; add it to its PortMappings"
                )

    async def _watch_memory(self) -> None:
        while True:
            await asyncio.sleep(MEMORY_CHECK_SECONDS)
            tasks = self._tasks()
            # An engine holds its containers to their memory itself.
            limited = {
                task: [c for c in task.containers if isinstance(c, ProcessContainer)] for task in tasks
            }
            leaders = {c.pid for containers in limited.values() for c in containers if c.pid is not None}
            if leaders:
                used = await asyncio.to_thread(session_memory, leaders)
                for task, containers in limited.items():
                    limit = task.definition.properties.memory
                    await asyncio.to_thread(limit_memory, containers, limit, used)
