"""The rehearsed Application Load Balancer: listeners, and the streaming proxy behind them.

It does what the real one does, its errors included: it never retries, answers 502 for a target that hangs up,
503 without a target, 504 for a silent one. Targets and rules change under it while its listening sockets and
its clients' connections stay. Behaviour is from the Elastic Load Balancing user guide for Application Load
Balancers. Not rehearsed: the listener's TLS policy, HTTP/2,
WebSockets, stickiness, slow start.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from aiohttp import ClientError, hdrs, web
from multidict import CIMultiDict
from yarl import URL

from rehearsal.certificates import Certificates
from rehearsal.listener_rules import (
    ActionProperties,
    Condition,
    RuleCondition,
    condition_of,
    fixed_response,
    redirect,
    shares_of,
)
from rehearsal.ports import LOOPBACK, PortBlock, listen
from rehearsal.properties import KeyValue, Properties, RefusedError, parse
from rehearsal.sign_in import Action, Provider, authenticate, validate_token
from rehearsal.target_group import HEADER_BYTES, LINE_BYTES, Target, TargetGroup, TargetGroupProperties
from rehearsal.user_pool import UserPools

log = logging.getLogger(__name__)

# Bodies up to this size travel in one piece with their header; longer or open-ended ones are streamed.
ONE_PIECE_BYTES = 64 * 1024
# Header names that survive `routing.http.drop_invalid_header_fields.enabled`.
VALID_HEADER = re.compile(r"[-A-Za-z0-9]+")
# Headers that belong to one connection and are never forwarded (RFC 9110, 7.6.1). Expect is answered here.
HOP_BY_HOP = (
    *("Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection"),
    *("TE", "Trailer", "Transfer-Encoding", "Upgrade", "Expect"),
)
REASONS = {
    400: "Bad Request",
    408: "Request Time-out",
    502: "Bad Gateway",
    503: "Service Temporarily Unavailable",
    504: "Gateway Time-out",
}
ATTRIBUTES = frozenset(("idle_timeout.timeout_seconds", "routing.http.drop_invalid_header_fields.enabled"))

Observer = Callable[[str, float, Mapping[str, str]], None]
"""Told of a metric as it is measured: its name in CloudWatch, the value (times in seconds), the dimensions."""


class ListenerProperties(Properties):
    """AWS::ElasticLoadBalancingV2::Listener."""

    load_balancer_arn: str
    port: int = 80
    protocol: Literal["HTTP", "HTTPS"] = "HTTP"
    default_actions: list[ActionProperties]


class RuleProperties(Properties):
    """AWS::ElasticLoadBalancingV2::ListenerRule. Rules are tried by priority, lowest first."""

    listener_arn: str
    priority: int
    conditions: list[RuleCondition]
    actions: list[ActionProperties]


class LoadBalancerProperties(Properties):
    """AWS::ElasticLoadBalancingV2::LoadBalancer."""

    type: Literal["application"] = "application"
    load_balancer_attributes: tuple[KeyValue, ...] = ()


class LoadBalancer:
    """What the listeners of one load balancer share."""

    def __init__(
        self, arn: str, port: int, properties: LoadBalancerProperties, observers: list[Observer]
    ) -> None:
        self.arn = arn
        self.port = port
        self._observers = observers
        self.configure(properties)

    def configure(self, properties: LoadBalancerProperties) -> None:
        """Take new attributes."""
        attributes = {entry.key: entry.value for entry in properties.load_balancer_attributes}
        self.idle_seconds = float(attributes.get("idle_timeout.timeout_seconds", 60))
        self.drop_invalid_headers = (
            attributes.get("routing.http.drop_invalid_header_fields.enabled") == "true"
        )
        self.not_enforced = sorted(attributes.keys() - ATTRIBUTES)

    def measure(self, metric: str, value: float, group: TargetGroup | None = None) -> None:
        """Tell the observers of a value."""
        dimensions = {"LoadBalancer": full_name(self.arn)}
        if group:
            dimensions["TargetGroup"] = full_name(group.arn)
        for observer in self._observers:
            observer(metric, value, dimensions)


class Listener:
    """One listening port: its rules, and the proxy behind it."""

    def __init__(self, arn: str, port: int, balancer: LoadBalancer, tls: ssl.SSLContext | None) -> None:
        self.arn = arn
        self.port = port
        self.balancer = balancer
        self.protocol = "https" if tls else "http"
        self._tls = tls
        self.rules: list[tuple[list[Condition], list[Action]]] = []
        self._front: web.Server | None = None
        self._front_idle = 0.0
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Begin to listen."""
        self._server = await asyncio.get_running_loop().create_server(
            self._connected, sock=listen(self.port), ssl=self._tls
        )

    async def close(self) -> None:
        """Stop listening and hang up on the clients."""
        if self._server:
            self._server.close()
        if self._front:
            await self._front.shutdown(1)

    def _connected(self) -> asyncio.BaseProtocol:
        # A changed idle timeout is for new connections; those that are open keep the one they began with.
        if self._front is None or self._front_idle != self.balancer.idle_seconds:
            self._front_idle = self.balancer.idle_seconds
            self._front = web.Server(
                self._serve,
                access_log=None,
                handler_cancellation=True,
                keepalive_timeout=self._front_idle,
                auto_decompress=False,
                max_line_size=LINE_BYTES,
                max_field_size=HEADER_BYTES,
            )
        return self._front()

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        for conditions, actions in self.rules:
            if all(condition(request) for condition in conditions):
                for action in actions:
                    if (answer := await action(request)) is not None:
                        return answer
        return self.own_answer(503)

    def own_answer(self, status: int) -> web.Response:
        """What the balancer answers itself, when no target does."""
        if status >= 500:
            self.balancer.measure("HTTPCode_ELB_5XX_Count", 1)
        return _own_answer(status)

    async def forward(self, request: web.BaseRequest, group: TargetGroup) -> web.StreamResponse:
        """Pass a request to a target of `group` and its answer back to the client."""
        group.counters["requests"] += 1
        target = group.choose()
        if target is None:
            group.counters["balancer_503"] += 1
            return self.own_answer(503)
        target.in_flight += 1
        target.idle.clear()
        try:
            answer = await self._exchange(request, group, target)
        except _ForwardError as failure:
            group.counters[f"balancer_{failure.status}"] += 1
            log.warning("%s: %s %s: %d, %s", target.id, request.method, request.path, failure.status, failure)
            return self.own_answer(failure.status)
        except asyncio.CancelledError:
            group.counters["client_gone"] += 1
            raise
        finally:
            target.in_flight -= 1
            if not target.in_flight:
                target.idle.set()
        group.counters[f"target_{answer.status // 100}xx"] += 1
        if answer.status >= 500:
            self.balancer.measure("HTTPCode_Target_5XX_Count", 1, group)
        return answer

    async def _exchange(
        self, request: web.BaseRequest, group: TargetGroup, target: Target
    ) -> web.StreamResponse:
        idle = self.balancer.idle_seconds
        upload = _Upload(request, idle) if request.can_read_body else None
        answer: web.StreamResponse | None = None
        try:
            if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue":
                await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                request.writer.output_size = 0
            path = request.raw_path if request.raw_path.startswith("/") else request.rel_url.raw_path_qs
            body = await upload.body() if upload else None
            began = time.monotonic()
            async with target.session(idle).request(
                request.method,
                URL(f"http://{LOOPBACK}:{target.port}{path}", encoded=True),
                headers=self._request_headers(request),
                data=body,
                allow_redirects=False,
            ) as reply:
                # With the time that the upload of a streamed body takes.
                self.balancer.measure("TargetResponseTime", time.monotonic() - began, group)
                headers = _end_to_end(reply.headers)
                if request.method == hdrs.METH_HEAD or reply.status in (204, 304):
                    return web.Response(status=reply.status, reason=reply.reason, headers=headers)
                length = reply.headers.get(hdrs.CONTENT_LENGTH)
                if length is not None and int(length) <= ONE_PIECE_BYTES:
                    content = await reply.read()
                    return web.Response(
                        status=reply.status, reason=reply.reason, headers=headers, body=content
                    )
                answer = web.StreamResponse(status=reply.status, reason=reply.reason, headers=headers)
                await answer.prepare(request)
                async for chunk in reply.content.iter_any():
                    await answer.write(chunk)
                await answer.write_eof()
                return answer
        except (ClientError, OSError) as error:  # TimeoutError is an OSError
            if answer is not None:
                # The status line is out: all that is left is to let the client see that the body is
                # incomplete.
                group.counters["cut_short"] += 1
                log.warning("%s: %s %s: answer cut short, %r", target.id, request.method, request.path, error)
                if request.transport:
                    request.transport.abort()
                return answer
            if upload and upload.stalled:
                raise _ForwardError(408, "the client stopped sending") from error
            status = 504 if isinstance(error, TimeoutError) else 502
            raise _ForwardError(status, str(error) or type(error).__name__) from error

    def _request_headers(self, request: web.BaseRequest) -> CIMultiDict[str]:
        headers = _end_to_end(request.headers)
        if self.balancer.drop_invalid_headers:
            for name in [name for name in headers if not VALID_HEADER.fullmatch(name)]:
                headers.popall(name, None)
        came_through = headers.getall("X-Forwarded-For", [])
        headers["X-Forwarded-For"] = ", ".join([*came_through, request.remote or LOOPBACK])
        headers["X-Forwarded-Proto"] = self.protocol
        headers["X-Forwarded-Port"] = str(self.port)
        trace = f"1-{int(time.time()):08x}-{random.getrandbits(96):024x}"
        earlier = headers.get("X-Amzn-Trace-Id", "")
        headers["X-Amzn-Trace-Id"] = f"Self={trace};{earlier}" if "Root=" in earlier else f"Root={trace}"
        headers.update(request.get("signed_in", {}))
        return headers


class _ForwardError(Exception):
    """No answer could be had from the target; `status` is what the balancer answers instead."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class _Upload:
    """The body of a client's request, in one piece when it is known to be small, else as it comes."""

    def __init__(self, request: web.BaseRequest, idle_seconds: float) -> None:
        self._request = request
        self._idle_seconds = idle_seconds
        self.stalled = False

    async def body(self) -> bytes | AsyncIterator[bytes]:
        length = self._request.content_length
        if length is not None and length <= ONE_PIECE_BYTES:
            return b"".join([chunk async for chunk in self._chunks()])
        return self._chunks()

    async def _chunks(self) -> AsyncIterator[bytes]:
        try:
            while True:
                async with asyncio.timeout(self._idle_seconds):
                    chunk = await self._request.content.readany()
                if not chunk:
                    return
                yield chunk
        except TimeoutError:
            self.stalled = True
            raise


def _end_to_end(headers: Mapping[str, str]) -> CIMultiDict[str]:
    kept = CIMultiDict(headers)
    named = [name.strip() for value in kept.getall(hdrs.CONNECTION, ()) for name in value.split(",")]
    for name in (*HOP_BY_HOP, *named):
        kept.popall(name, None)
    return kept


def _own_answer(status: int) -> web.Response:
    title = f"{status} {REASONS[status]}"
    return web.Response(
        status=status,
        reason=REASONS[status],
        text=f"<html>\r\n<head><title>{title}</title></head>\r\n"
        f"<body>\r\n<center><h1>{title}</h1></center>\r\n</body>\r\n</html>\r\n",
        content_type="text/html",
        headers={hdrs.SERVER: "awselb/2.0"},
    )


class ElasticLoadBalancing:
    """The load balancers, listeners, rules and target groups of one rehearsed account.

    `ports` maps the names of load balancers, listeners and user pools to their loopback ports; it outlives the host, so
    that an environment keeps its address. `directory` keeps the keys of certificates and of user pools.
    """

    def __init__(self, block: PortBlock, ports: dict[str, int], directory: Path) -> None:
        self.certificates = Certificates(directory / "certificates")
        self.user_pools = UserPools(block, ports, directory / "user-pools", self.certificates)
        self._provider = Provider(self.certificates.for_client())
        self.target_groups: dict[str, TargetGroup] = {}
        self.balancers: dict[str, LoadBalancer] = {}
        self._block = block
        self._ports = ports
        self._observers: list[Observer] = []
        self._listeners: dict[str, Listener] = {}
        self._defaults: dict[str, ListenerProperties] = {}
        self._rules: dict[str, RuleProperties] = {}
        for port in set(ports.values()):
            block.retake(port)

    def watch(self, observer: Observer) -> None:
        """Tell `observer` of every value that is measured from now on."""
        self._observers.append(observer)

    def count_unhealthy(self) -> None:
        """Measure how many targets of each group in use are unhealthy."""
        for listener in self._listeners.values():
            rules = [rule.actions for rule in self._rules.values() if rule.listener_arn == listener.arn]
            used = {
                arn
                for actions in (self._defaults[listener.arn].default_actions, *rules)
                for arn in _groups_of(actions)
            }
            for group in (self.target_groups[arn] for arn in used):
                if group.targets:
                    unhealthy = sum(target.state == "unhealthy" for target in group.targets.values())
                    listener.balancer.measure("UnHealthyHostCount", unhealthy, group)

    async def put_target_group(self, arn: str, properties: Mapping[str, Any]) -> dict[str, Any]:
        """Create or update a target group."""
        parsed = parse(TargetGroupProperties, arn, properties)
        if group := self.target_groups.get(arn):
            group.configure(parsed)
        else:
            group = self.target_groups[arn] = TargetGroup(arn, parsed)
        return {"not_enforced": group.not_enforced}

    async def put_load_balancer(self, arn: str, properties: Mapping[str, Any]) -> dict[str, Any]:
        """Create or update a load balancer. Returns its address, which stays the same for its life."""
        parsed = parse(LoadBalancerProperties, arn, properties)
        if balancer := self.balancers.get(arn):
            balancer.configure(parsed)
        else:
            balancer = self.balancers[arn] = LoadBalancer(arn, self._port(arn), parsed, self._observers)
        return {"dns_name": f"{LOOPBACK}:{balancer.port}", "not_enforced": balancer.not_enforced}

    async def put_listener(self, arn: str, properties: Mapping[str, Any]) -> dict[str, Any]:
        """Create or update a listener. The first of a balancer has the balancer's port."""
        parsed = parse(ListenerProperties, arn, properties)
        balancer = self.balancers.get(parsed.load_balancer_arn)
        if balancer is None:
            raise RefusedError(f"{arn}: there is no load balancer {parsed.load_balancer_arn}; put it first")
        listener = self._listeners.get(arn)
        if listener and listener.protocol != parsed.protocol.lower():
            raise RefusedError(f"{arn}: its protocol cannot change in a rehearsal; give it another name")
        if listener is None:
            taken = {other.port for other in self._listeners.values()}
            if balancer.port not in taken and self._ports.get(arn, balancer.port) == balancer.port:
                self._ports[arn] = balancer.port
            tls = self.certificates.for_server() if parsed.protocol == "HTTPS" else None
            listener = Listener(arn, self._port(arn), balancer, tls)
            self._arrange(listener, parsed, self._rules)  # refuse before anything listens
            await listener.open()
            self._listeners[arn] = listener
        self._arrange(listener, parsed, self._rules)
        self._defaults[arn] = parsed
        return {"url": f"{listener.protocol}://{LOOPBACK}:{listener.port}", "note": self._note(parsed)}

    def _note(self, listener: ListenerProperties) -> str:
        if listener.protocol == "HTTP":
            return ""
        return f"HTTPS with a certificate of this rehearsal's own; trust {self.certificates.authority}"

    async def put_listener_rule(self, arn: str, properties: Mapping[str, Any]) -> dict[str, Any]:
        """Create or update a rule of a listener."""
        parsed = parse(RuleProperties, arn, properties)
        listener = self._listeners.get(parsed.listener_arn)
        if listener is None:
            raise RefusedError(f"{arn}: there is no listener {parsed.listener_arn}; put it first")
        if properties.get("Transforms"):
            raise RefusedError(f"{arn}: Transforms are not rehearsed; remove them")
        self._arrange(listener, self._defaults[parsed.listener_arn], self._rules | {arn: parsed})
        self._rules[arn] = parsed
        return {}

    async def delete(self, kind: str, arn: str) -> None:
        """Remove a resource; nothing happens when there is none."""
        match kind:
            case "target-group":
                users = [name for name, actions in self._all_actions() if arn in _groups_of(actions)]
                if users:
                    raise RefusedError(f"{arn} is still used by {', '.join(users)}; delete that first")
                if group := self.target_groups.pop(arn, None):
                    await group.close()
            case "listener-rule":
                rule = self._rules.pop(arn, None)
                if rule and (listener := self._listeners.get(rule.listener_arn)):
                    self._arrange(listener, self._defaults[rule.listener_arn], self._rules)
            case "listener":
                if listener := self._listeners.pop(arn, None):
                    await listener.close()
                    del self._defaults[arn]
                    self._rules = {
                        name: rule for name, rule in self._rules.items() if rule.listener_arn != arn
                    }
                    if self._ports.pop(arn) != listener.balancer.port:
                        self._block.free(listener.port)
            case "load-balancer":
                if balancer := self.balancers.pop(arn, None):
                    for name in [
                        n for n, listener in self._listeners.items() if listener.balancer is balancer
                    ]:
                        await self.delete("listener", name)
                    self._block.free(self._ports.pop(arn))

    def describe(self, kind: str, arn: str) -> dict[str, Any] | None:
        """What there is to know of a resource; None when there is no such one."""
        match kind:
            case "target-group" if group := self.target_groups.get(arn):
                return group.describe()
            case "load-balancer" if balancer := self.balancers.get(arn):
                return {"dns_name": f"{LOOPBACK}:{balancer.port}", "not_enforced": balancer.not_enforced}
            case "listener" if listener := self._listeners.get(arn):
                return {"url": f"{listener.protocol}://{LOOPBACK}:{listener.port}"}
            case "listener-rule" if rule := self._rules.get(arn):
                return {"listener": rule.listener_arn, "priority": rule.priority}
        return None

    async def close(self) -> None:
        """Close every listener and every target group."""
        for listener in self._listeners.values():
            await listener.close()
        for group in self.target_groups.values():
            await group.close()
        await self.user_pools.close()
        await self._provider.close()

    def _port(self, arn: str) -> int:
        if arn not in self._ports:
            self._ports[arn] = self._block.take()
        return self._ports[arn]

    def _all_actions(self) -> list[tuple[str, list[ActionProperties]]]:
        defaults = [(arn, listener.default_actions) for arn, listener in self._defaults.items()]
        return defaults + [(arn, rule.actions) for arn, rule in self._rules.items()]

    def _arrange(
        self, listener: Listener, own: ListenerProperties, rules: Mapping[str, RuleProperties]
    ) -> None:
        """Give a listener its rules in the order of their priority, the default last, all in one step."""
        mine = [(arn, rule) for arn, rule in rules.items() if rule.listener_arn == listener.arn]
        arranged = [
            (
                [condition_of(arn, condition) for condition in rule.conditions],
                self._actions(arn, listener, rule.actions),
            )
            for arn, rule in sorted(mine, key=lambda entry: entry[1].priority)
        ]
        listener.rules = [*arranged, ([], self._actions(listener.arn, listener, own.default_actions))]

    def _actions(self, what: str, listener: Listener, actions: list[ActionProperties]) -> list[Action]:
        return [
            self._action(what, listener, action)
            for action in sorted(actions, key=lambda action: action.order)
        ]

    def _action(self, what: str, listener: Listener, action: ActionProperties) -> Action:
        match action.type:
            case "forward" if shares := shares_of(action):
                groups = [self._group(what, share.target_group_arn) for share in shares]
                weights = [share.weight for share in shares]

                async def forward(request: web.BaseRequest) -> web.StreamResponse:
                    if not any(weights):
                        return listener.own_answer(503)
                    chosen = groups[0] if len(groups) == 1 else random.choices(groups, weights)[0]  # noqa: S311
                    return await listener.forward(request, chosen)

                return forward
            case "fixed-response" if action.fixed_response_config:
                return fixed_response(action.fixed_response_config)
            case "redirect" if action.redirect_config:
                return redirect(action.redirect_config, listener.protocol, listener.port)
            case "jwt-validation" | "authenticate-oidc" | "authenticate-cognito" if (
                listener.protocol == "http"
            ):
                raise RefusedError(f"{what}: action {action.type} is for HTTPS listeners only")
            case "jwt-validation" if action.jwt_validation_config:
                return validate_token(action.jwt_validation_config, self._provider)
            case "authenticate-oidc" if action.authenticate_oidc_config:
                return authenticate(action.authenticate_oidc_config, self._provider, listener.port)
            case "authenticate-cognito" if action.authenticate_cognito_config:
                pool = self.user_pools.as_provider(what, action.authenticate_cognito_config)
                return authenticate(pool, self._provider, listener.port)
            case (
                "forward"
                | "fixed-response"
                | "redirect"
                | "jwt-validation"
                | "authenticate-oidc"
                | "authenticate-cognito"
            ):
                raise RefusedError(
                    f"{what}: action {action.type} says nothing of what to do; give it its configuration"
                )
        raise RefusedError(
            f"{what}: action {action.type} is not rehearsed; use forward, fixed-response, redirect, jwt-validation,"
            " authenticate-oidc or authenticate-cognito"
        )

    def _group(self, what: str, arn: str) -> TargetGroup:
        if arn not in self.target_groups:
            raise RefusedError(f"{what}: there is no target group {arn}; put it first")
        return self.target_groups[arn]


def full_name(arn: str) -> str:
    """What CloudWatch calls a load balancer or a target group: the end of its ARN."""
    return arn.rpartition(":")[2].removeprefix("loadbalancer/")


def _groups_of(actions: list[ActionProperties]) -> set[str]:
    return {share.target_group_arn for action in actions for share in shares_of(action)}
