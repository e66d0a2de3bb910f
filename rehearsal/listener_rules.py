"""Rules of a rehearsed listener: the conditions that requests are tried by, and their actions."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal
from urllib.parse import parse_qsl

from aiohttp import hdrs, web

from rehearsal.ports import LOOPBACK
from rehearsal.properties import Properties, RefusedError
from rehearsal.sign_in import (
    Action,
    AuthenticateCognitoConfig,
    AuthenticateOidcConfig,
    JwtValidationConfig,
)

Condition = Callable[[web.BaseRequest], bool]


class PathPatternConfig(Properties):
    """Patterns for the path, case-sensitive."""

    values: list[str]


class HostHeaderConfig(Properties):
    """Patterns for the host name, any case."""

    values: list[str]


class HttpHeaderConfig(Properties):
    """Patterns for the value of one header, any case."""

    http_header_name: str
    values: list[str]


class HttpRequestMethodConfig(Properties):
    """Methods, exactly."""

    values: list[str]


class QueryParameter(Properties):
    """A query parameter; without a key any key matches."""

    key: str | None = None
    value: str


class QueryStringConfig(Properties):
    """Query parameters of which one must be there, any case."""

    values: list[QueryParameter]


class SourceIpConfig(Properties):
    """Networks in CIDR form; the peer of the connection counts, not X-Forwarded-For."""

    values: list[str]


class RuleCondition(Properties):
    """One condition of a rule: a field and what it is compared with."""

    field: Literal[
        "path-pattern", "host-header", "http-header", "http-request-method", "query-string", "source-ip"
    ]
    values: list[str] | None = None
    path_pattern_config: PathPatternConfig | None = None
    host_header_config: HostHeaderConfig | None = None
    http_header_config: HttpHeaderConfig | None = None
    http_request_method_config: HttpRequestMethodConfig | None = None
    query_string_config: QueryStringConfig | None = None
    source_ip_config: SourceIpConfig | None = None


class WeightedGroup(Properties):
    """A target group and its share of the requests."""

    target_group_arn: str
    weight: int = 1


class ForwardConfig(Properties):
    """Target groups that share the requests by weight."""

    target_groups: list[WeightedGroup]


class FixedResponseConfig(Properties):
    """An answer the balancer gives by itself."""

    status_code: int
    content_type: str = "text/plain"
    message_body: str = ""


class RedirectConfig(Properties):
    """Where a redirect leads; `#{host}` and the like stand for the request's own parts."""

    status_code: Literal["HTTP_301", "HTTP_302"]
    protocol: str = "#{protocol}"
    host: str = "#{host}"
    port: str = "#{port}"
    path: str = "/#{path}"
    query: str = "#{query}"


class ActionProperties(Properties):
    """One action of a rule or of a listener's default."""

    type: str
    order: int = 1
    target_group_arn: str | None = None
    forward_config: ForwardConfig | None = None
    fixed_response_config: FixedResponseConfig | None = None
    redirect_config: RedirectConfig | None = None
    jwt_validation_config: JwtValidationConfig | None = None
    authenticate_oidc_config: AuthenticateOidcConfig | None = None
    authenticate_cognito_config: AuthenticateCognitoConfig | None = None


def condition_of(what: str, condition: RuleCondition) -> Condition:
    """The test that a rule's condition stands for."""
    old_form = condition.values
    match condition.field:
        case "path-pattern" if values := _values(condition.path_pattern_config, old_form):
            path_matches = _wildcards(values)
            return lambda request: path_matches(request.raw_path.partition("?")[0])
        case "host-header" if values := _values(condition.host_header_config, old_form):
            host_matches = _wildcards(values, re.IGNORECASE)
            return lambda request: host_matches(_host_of(request))
        case "http-header" if config := condition.http_header_config:
            header, header_matches = config.http_header_name, _wildcards(config.values, re.IGNORECASE)
            return lambda request: any(map(header_matches, request.headers.getall(header, ())))
        case "http-request-method" if values := _values(condition.http_request_method_config, old_form):
            methods = frozenset(values)
            return lambda request: request.method in methods
        case "source-ip" if values := _values(condition.source_ip_config, old_form):
            networks = [ipaddress.ip_network(value) for value in values]
            return lambda request: any(
                ipaddress.ip_address(request.remote or LOOPBACK) in net for net in networks
            )
        case "query-string" if condition.query_string_config:
            wanted = [
                (_wildcards([item.key if item.key is not None else "*"], re.IGNORECASE),
                 _wildcards([item.value], re.IGNORECASE))
                for item in condition.query_string_config.values
            ]  # fmt: skip
            return lambda request: any(
                key(name) and value(text)
                for name, text in parse_qsl(request.raw_path.partition("?")[2], keep_blank_values=True)
                for key, value in wanted
            )
    raise RefusedError(f"{what}: condition {condition.field} has no values; give it some")


def fixed_response(config: FixedResponseConfig) -> Action:
    """An action that answers as configured."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(
            status=config.status_code,
            body=config.message_body.encode(),
            headers={hdrs.SERVER: "awselb/2.0", hdrs.CONTENT_TYPE: f"{config.content_type}; charset=utf-8"},
        )

    return answer


def redirect(config: RedirectConfig, protocol: str, port: int) -> Action:
    """An action that sends the client elsewhere; `protocol` and `port` are this listener's."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        path, _, query = request.raw_path.partition("?")
        own = {
            "protocol": protocol.lower(),
            "host": _host_of(request),
            "port": str(port),
            "path": path[1:],
            "query": query,
        }

        def fill(text: str) -> str:
            return re.sub(r"#\{(\w+)\}", lambda found: own.get(found[1], found[0]), text)

        location = (
            f"{fill(config.protocol).lower()}://{fill(config.host)}:{fill(config.port)}{fill(config.path)}"
        )
        if asked := fill(config.query):
            location += f"?{asked}"
        headers = {hdrs.LOCATION: location, hdrs.SERVER: "awselb/2.0"}
        return web.Response(status=int(config.status_code.removeprefix("HTTP_")), headers=headers)

    return answer


def shares_of(action: ActionProperties) -> list[WeightedGroup]:
    """The target groups an action forwards to; none when it does something else."""
    if action.forward_config:
        return action.forward_config.target_groups
    return [WeightedGroup(target_group_arn=action.target_group_arn)] if action.target_group_arn else []


def _values(config: Any, old_form: list[str] | None) -> list[str] | None:
    return config.values if config else old_form


def _wildcards(patterns: Sequence[str], flags: re.RegexFlag = re.RegexFlag.NOFLAG) -> Callable[[str], bool]:
    """A test for the balancer's patterns: `*` is any run of characters, `?` any single one."""
    translated = (re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".") for pattern in patterns)
    compiled = re.compile("|".join(translated), flags | re.DOTALL)
    return lambda text: compiled.fullmatch(text) is not None


def _host_of(request: web.BaseRequest) -> str:
    return re.sub(r":\d+$", "", request.headers.get(hdrs.HOST, ""))
