"""Rehearsed target groups: registered targets, their health checks, taking turns, draining."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

from aiohttp import (
    ClientConnectorError,
    ClientError,
    ClientHandlerType,
    ClientOSError,
    ClientRequest,
    ClientResponse,
    ClientSession,
    ClientTimeout,
    DummyCookieJar,
    ServerDisconnectedError,
    TCPConnector,
)
from pydantic import Field
from yarl import URL

from rehearsal.ports import LOOPBACK
from rehearsal.properties import KeyValue, Properties, RefusedError

log = logging.getLogger(__name__)

# What an Application Load Balancer waits for a target to accept a connection (user guide, "HTTP 504").
CONNECT_SECONDS = 10
# Its limits for a request line and for one header (quotas page). A client that sends more gets 400.
LINE_BYTES = HEADER_BYTES = 16 * 1024
ADDED_BY_CLIENT_LIBRARY = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
ATTRIBUTES = frozenset(("deregistration_delay.timeout_seconds", "load_balancing.algorithm.type"))


class Matcher(Properties):
    """Status codes that count as healthy, such as `200`, `200,204` or `200-299`."""

    http_code: str = Field(default="200", pattern=r"^\d{3}(-\d{3})?(,\d{3}(-\d{3})?)*$")

    def accepts(self, status: int) -> bool:
        """Whether `status` is one of the codes."""
        for part in self.http_code.split(","):
            low, _, high = part.strip().partition("-")
            if int(low) <= status <= int(high or low):
                return True
        return False


class TargetGroupProperties(Properties):
    """AWS::ElasticLoadBalancingV2::TargetGroup, with the defaults for `ip` targets; times in seconds."""

    protocol: Literal["HTTP"] = "HTTP"
    protocol_version: Literal["HTTP1"] = "HTTP1"
    health_check_path: str = "/"
    health_check_port: str = Field(default="traffic-port", pattern=r"^(traffic-port|\d+)$")
    health_check_protocol: Literal["HTTP"] = "HTTP"
    health_check_interval_seconds: float = 30
    health_check_timeout_seconds: float = 5
    healthy_threshold_count: int = 5
    unhealthy_threshold_count: int = 2
    matcher: Matcher = Matcher()
    target_group_attributes: tuple[KeyValue, ...] = ()


class Target:
    """A registered target: one port of one task, its health, and the connections kept open to it."""

    def __init__(self, target_id: str, port: int) -> None:
        self.id = target_id
        self.port = port
        self.state: Literal["initial", "healthy", "unhealthy", "draining", "unused"] = "initial"
        self.reason = "Elb.RegistrationInProgress"
        self.description = "Target registration is in progress"
        self.streak = 0  # successive successes (positive) or failures (negative) of its health check
        self.in_flight = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self._sessions: dict[float, ClientSession] = {}

    def session(self, idle_seconds: float) -> ClientSession:
        """Connections to this target that the balancer closes after `idle_seconds` without use."""
        if idle_seconds not in self._sessions:
            self._sessions[idle_seconds] = ClientSession(
                connector=TCPConnector(limit=0, keepalive_timeout=idle_seconds),
                timeout=ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=idle_seconds),
                auto_decompress=False,
                cookie_jar=DummyCookieJar(),
                skip_auto_headers=ADDED_BY_CLIENT_LIBRARY,
                middlewares=(_never_again,),
                max_line_size=LINE_BYTES,
                max_field_size=HEADER_BYTES,
            )
        return self._sessions[idle_seconds]

    async def close(self) -> None:
        """Close every connection to this target. Requests still in flight fail, as they do on AWS."""
        for session in self._sessions.values():
            await session.close()


class TargetGroup:
    """Targets that take turns, their health checks, and what was counted."""

    def __init__(self, arn: str, properties: TargetGroupProperties) -> None:
        self.arn = arn
        self.targets: dict[str, Target] = {}
        self.counters: Counter[str] = Counter()
        self._turn = 0
        self._checks: dict[str, asyncio.Task[None]] = {}
        self._watchers: list[Callable[[], None]] = []
        self.configure(properties)

    def configure(self, properties: TargetGroupProperties) -> None:
        """Take new properties. Registered targets keep their state; their next check follows the new ones."""
        self.properties = properties
        attributes = {entry.key: entry.value for entry in properties.target_group_attributes}
        self.deregistration_delay = float(attributes.get("deregistration_delay.timeout_seconds", 300))
        algorithm = attributes.get("load_balancing.algorithm.type", "round_robin")
        if algorithm not in ("round_robin", "least_outstanding_requests"):
            raise RefusedError(
                f"{self.arn}: load_balancing.algorithm.type {algorithm} is not rehearsed; use round_robin"
            )
        self.least_outstanding = algorithm == "least_outstanding_requests"
        self.not_enforced = sorted(attributes.keys() - ATTRIBUTES)

    def watch(self, changed: Callable[[], None]) -> None:
        """Call `changed` whenever a target's state changes."""
        self._watchers.append(changed)

    def unwatch(self, changed: Callable[[], None]) -> None:
        """Undo `watch`."""
        if changed in self._watchers:
            self._watchers.remove(changed)

    def register(self, target_id: str, port: int) -> Target:
        """Add a target. It must pass one health check to be healthy."""
        target = self.targets[target_id] = Target(target_id, port)
        self._checks[target_id] = asyncio.create_task(self._check_health(target))
        return target

    async def deregister(self, target_id: str, *, within: float | None = None) -> None:
        """Drain a target: no new requests, then wait for those in flight, up to the deregistration delay.

        `within` (seconds) shortens the delay. AWS shows the target as draining for the whole delay even when
        nothing is in flight any more; here it ends at once.
        """
        target = self.targets.get(target_id)
        if target is None or target.state == "draining":
            return
        self._checks.pop(target_id).cancel()
        self._set(
            target, "draining", "Target.DeregistrationInProgress", "Target deregistration is in progress"
        )
        delay = self.deregistration_delay if within is None else min(within, self.deregistration_delay)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await target.idle.wait()
        self._set(target, "unused", "Target.NotRegistered", "Target is not registered to the target group")
        del self.targets[target_id]
        await target.close()

    def choose(self) -> Target | None:
        """The target for the next request: a healthy one in turn; any registered one when none is healthy."""
        candidates = [target for target in self.targets.values() if target.state == "healthy"]
        if not candidates:  # "fails open", user guide, target group health
            candidates = [
                target for target in self.targets.values() if target.state in ("initial", "unhealthy")
            ]
        if not candidates:
            return None
        self._turn += 1
        turn = self._turn % len(candidates)
        in_turn = candidates[turn:] + candidates[:turn]
        return min(in_turn, key=lambda target: target.in_flight) if self.least_outstanding else in_turn[0]

    def describe(self) -> dict[str, Any]:
        """The targets with their health, and the counters since the host started."""
        shown = ("id", "port", "state", "reason", "description", "in_flight")
        return {
            "targets": [{name: getattr(target, name) for name in shown} for target in self.targets.values()],
            "counters": dict(self.counters),
            "not_enforced": self.not_enforced,
        }

    async def close(self) -> None:
        """Stop the health checks and drop the targets."""
        for check in self._checks.values():
            check.cancel()
        for target in self.targets.values():
            await target.close()

    def _set(self, target: Target, state: Any, reason: str, description: str) -> None:
        changed = target.state != state
        target.state, target.reason, target.description = state, reason, description
        if changed:
            log.info(
                "%s: target %s is %s%s",
                self.arn,
                target.id,
                state,
                f" ({description})" if description else "",
            )
            for watcher in list(self._watchers):
                watcher()

    async def _check_health(self, target: Target) -> None:
        # Every check has a connection of its own, which is closed after it.
        async with ClientSession(
            connector=TCPConnector(force_close=True), cookie_jar=DummyCookieJar()
        ) as session:
            while True:
                started = time.monotonic()
                reason, description = await self._probe(session, target)
                self._judge(target, reason, description)
                # The interval runs from check to check however long the answer took.
                pause = self.properties.health_check_interval_seconds - (time.monotonic() - started)
                await asyncio.sleep(max(0.0, pause))

    async def _probe(self, session: ClientSession, target: Target) -> tuple[str, str]:
        wanted = self.properties
        port = target.port if wanted.health_check_port == "traffic-port" else int(wanted.health_check_port)
        try:
            async with session.get(
                URL(f"http://{LOOPBACK}:{port}{wanted.health_check_path}", encoded=True),
                allow_redirects=False,
                headers={"User-Agent": "ELB-HealthChecker/2.0"},
                timeout=ClientTimeout(total=wanted.health_check_timeout_seconds, ceil_threshold=60),
            ) as answer:
                await answer.read()
        except TimeoutError:
            return "Target.Timeout", "Request timed out"
        except (ClientError, OSError):
            return "Target.FailedHealthChecks", "Health checks failed"
        if wanted.matcher.accepts(answer.status):
            return "", ""
        return "Target.ResponseCodeMismatch", f"Health checks failed with these codes: [{answer.status}]"

    def _judge(self, target: Target, reason: str, description: str) -> None:
        passed = not reason
        target.streak = max(target.streak, 0) + 1 if passed else min(target.streak, 0) - 1
        if passed and (target.state == "initial" or target.streak >= self.properties.healthy_threshold_count):
            self._set(target, "healthy", "", "")
        elif not passed and (
            target.state == "unhealthy" or -target.streak >= self.properties.unhealthy_threshold_count
        ):
            self._set(target, "unhealthy", reason, description)
        elif target.state == "initial":
            target.reason, target.description = (
                "Elb.InitialHealthChecking",
                "Initial health checks in progress",
            )


class _HungUpError(ClientError):
    """The target closed or reset the connection before it answered."""


async def _never_again(request: ClientRequest, send: ClientHandlerType) -> ClientResponse:
    # The client library repeats an idempotent request whose kept-alive connection broke. A load balancer does
    # not: that 502 is what a too short keep-alive of the target looks like, and a rehearsal must show it.
    try:
        return await send(request)
    except ClientConnectorError:
        raise
    except (ClientOSError, ServerDisconnectedError) as error:
        raise _HungUpError(str(error)) from error
