"""Requests drawn at random from MLflow's own descriptions of its API.

The protobuf services say which fields a request has and of what kind, the two web frameworks which routes there are
besides. Most values fit their field, so that requests get past the first check; the rest are wrong in every way that is
cheap to think of. The same seed draws the same requests, but for the ids that the server gave meanwhile.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from google.protobuf.descriptor import Descriptor, FieldDescriptor  # type: ignore[import-untyped]

# As it comes through the load balancer. MLflow lets a client on its own machine do more.
THROUGH_BALANCER = {"X-Forwarded-For": "203.0.113.7"}

LONGEST_SECONDS = 60
"""For an answer; more than a busy machine needs for any of them."""

NOT_DRAWN = {
    "demo/generate": "makes a demonstration for 40 s; the smoke test calls it",
    "demo/delete": "deletes what the demonstration made",
    "/mpu/": "the tests' S3 server itself answers 500 to names and parts that S3 refuses with 400",
}

NASTY_TEXTS = (
    "",
    " ",
    "\0",
    "a\0b",
    "../../../../etc/passwd",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "file:///etc/passwd",
    "http://169.254.169.254/latest/meta-data/",
    "s3://somebody-else/x",
    "' OR 1=1 --",
    "a" * 70_000,
    "\ud800",
    "\u202e\U0001f4a9\u0301",
    "nan",
    "-1",
    "99999999999999999999",
    "{}",
    "[",
    "\\",
    "%",
    "a=b AND",
    "metrics.`x` > 'y'",
    "params.a LIKE '%%'",
    "attributes.nothing = 1",
    "tags.a ILIKE '\\'",
)
NASTY_NUMBERS = (
    0,
    -1,
    1,
    2**31,
    -(2**31) - 1,
    2**63 - 1,
    2**63,
    2**70,
    1.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
)
FILTERS = (
    "",
    "name = 'a'",
    "name LIKE '%a%'",
    "attribute.status = 'FINISHED'",
    "metrics.loss < 1",
    "tag.a != 'b'",
)
ORDERS = ("name", "name DESC", "metrics.loss ASC", "start_time DESC", "timestamp_ms", "creation_time ASC")
BODIES = (
    b"",
    b"{",
    b"null",
    b"[]",
    b'""',
    b"1",
    b"\xff\xfe",
    b'{"a": NaN}',
    b'"{\\"a\\": 1}"',
    b"[" * 20_000,
)
WORDS = ("a", "loss", "model", "note.txt", "mlflow.note", "1", "0")


@dataclass(frozen=True)
class Route:
    method: str
    path: str
    """With parameters in braces."""
    message: Descriptor | None
    """What it reads, where a protobuf service says so."""


@dataclass(frozen=True)
class Drawn:
    """One request."""

    method: str
    target: str
    body: bytes | None
    headers: dict[str, str]

    def __str__(self) -> str:
        return f"{self.method} {self.target[:300]} {(self.body or b'')[:600]!r} {self.headers}"


def routes() -> list[Route]:
    """All that the server answers: what the protobuf services declare, and what the web frameworks have besides."""
    from mlflow.protos import databricks_pb2
    from mlflow.protos.mlflow_artifacts_pb2 import MlflowArtifactsService
    from mlflow.protos.model_registry_pb2 import ModelRegistryService
    from mlflow.protos.service_pb2 import MlflowService
    from mlflow.protos.webhooks_pb2 import WebhookService
    from mlflow.server import app as flask
    from mlflow.server.fastapi_app import app as fastapi

    declared = {}
    for service in (MlflowService, ModelRegistryService, MlflowArtifactsService, WebhookService):
        for method in service.DESCRIPTOR.methods:
            for endpoint in method.GetOptions().Extensions[databricks_pb2.rpc].endpoints:
                path = f"/api/{endpoint.since.major}.0{endpoint.path}".replace("{assessment.", "{")
                path = re.sub(r"<path:(\w+)>", r"{\1}", path)
                declared[endpoint.method, path] = method.input_type
    found = {(method, path): message for (method, path), message in declared.items()}
    for rule in flask.url_map.iter_rules():
        path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
            found.setdefault((method, path), declared.get((method, path.replace("/ajax-api/", "/api/"))))
    for path, methods in fastapi.openapi()["paths"].items():
        for method in methods:
            found.setdefault((method.upper(), path), None)
    return [
        Route(method, path, message)
        for (method, path), message in sorted(found.items(), key=lambda item: item[0])
        if not any(part in path for part in NOT_DRAWN)
    ]


class Drawing:
    """Draws requests. `known` are ids and names that the server has, by the field that holds them."""

    def __init__(self, seed: str, routes: list[Route], known: dict[str, list[str]]) -> None:
        self.draws = random.Random(seed)
        self.routes = routes
        self.known = known

    def draw(self) -> Drawn:
        route = self.draws.choice(self.routes)
        path = re.sub(r"\{(\w+)\}", lambda match: self._segment(match[1]), route.path)
        fields = self._fields(route.message, 0) if route.message else self._guesses()
        headers = dict(THROUGH_BALANCER)
        if route.method in ("GET", "DELETE") and self.draws.random() < 0.9:
            pairs = [
                (name, str(item) if not isinstance(item, (dict, list)) else json.dumps(item))
                for name, value in fields.items()
                for item in (value if isinstance(value, list) else [value])
            ]
            query = urlencode(pairs, errors="replace")
            return Drawn(route.method, f"{path}?{query}"[:60_000], None, headers)
        body = json.dumps(fields).encode()
        headers["Content-Type"] = "application/json"
        chance = self.draws.random()
        if chance < 0.06:
            body = self.draws.choice(BODIES)
        elif chance < 0.09:
            body = body[: self.draws.randrange(len(body))]
        elif chance < 0.11:
            headers["Content-Type"] = self.draws.choice(
                ("text/plain", "", "application/x-protobuf", "application/json;x")
            )
        return Drawn(route.method, path, body, headers)

    def _segment(self, name: str) -> str:
        value = self._text(name)
        return quote(value, safe="", errors="replace")[:3000] or "-"

    def _guesses(self) -> dict[str, Any]:
        """Fields for a route that no service describes."""
        names = self.draws.sample(sorted(self.known), self.draws.randrange(4))
        return {name: self._wrong() if self.draws.random() < 0.2 else self._text(name) for name in names}

    def _fields(self, message: Descriptor, depth: int) -> dict[str, Any]:
        wanted = 0.8 if depth == 0 else 0.5
        return {
            field.name: self._field(field, depth)
            for field in message.fields
            if self.draws.random() < wanted and depth < 5
        }

    def _field(self, field: FieldDescriptor, depth: int) -> Any:
        if self.draws.random() < 0.06:
            return self._wrong()
        if field.is_repeated:
            if field.message_type and field.message_type.GetOptions().map_entry:
                value = field.message_type.fields_by_name["value"]
                return {self._text("key"): self._one(value, depth) for _ in range(self.draws.randrange(3))}
            return [self._one(field, depth) for _ in range(self.draws.randrange(3))]
        return self._one(field, depth)

    def _one(self, field: FieldDescriptor, depth: int) -> Any:
        kind: Callable[[], Any]
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_MESSAGE:
                if field.message_type.full_name.startswith("google.protobuf."):
                    return self.draws.choice(
                        (1, "a", "1.5s", "2026-01-01T00:00:00Z", {"a": [1, None]}, [], True)
                    )
                return self._fields(field.message_type, depth + 1)
            case FieldDescriptor.CPPTYPE_ENUM:
                return self.draws.choice([value.name for value in field.enum_type.values])
            case FieldDescriptor.CPPTYPE_BOOL:
                return self.draws.random() < 0.5
            case FieldDescriptor.CPPTYPE_STRING:
                return self._text(field.name)
            case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
                kind = self.draws.random
            case _:
                kind = lambda: self.draws.randrange(1, 20)  # noqa: E731
        return self.draws.choice(NASTY_NUMBERS) if self.draws.random() < 0.15 else kind()

    def _text(self, name: str) -> str:
        chance = self.draws.random()
        if chance < 0.12:
            return self.draws.choice(NASTY_TEXTS)
        if "filter" in name:
            return self.draws.choice(FILTERS)
        if "order_by" in name:
            return self.draws.choice(ORDERS)
        if name.endswith("url"):
            return self.draws.choice(("http://127.0.0.1:1/", "https://10.0.0.1/x", "http://[::1]/"))
        known = self.known.get(name) or self.known.get(name.removesuffix("s")) or []
        if known and chance < 0.85:
            return self.draws.choice(known[-30:])
        return self.draws.choice(WORDS)

    def _wrong(self) -> Any:
        """A value of any kind."""
        deep: Any = None
        for _ in range(self.draws.choice((1, 3, 200))):
            deep = [deep]
        return self.draws.choice(
            (
                None,
                True,
                "x",
                1,
                -1.5,
                [],
                {},
                [None],
                [[]],
                {"a": {"b": [1]}},
                deep,
                *NASTY_NUMBERS,
                *NASTY_TEXTS[:8],
            )
        )
