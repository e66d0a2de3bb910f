"""The rehearsed load balancer over real sockets: routing, errors, streaming, health, draining."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import http.client
import json
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Coroutine, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from rehearsal.load_balancer import ElasticLoadBalancing
from rehearsal.ports import PortBlock, PortError
from rehearsal.properties import RefusedError
from rehearsal.target_group import Matcher

T = TypeVar("T")


class Balancing:
    """Elastic Load Balancing in an event loop of its own, with one load balancer and one listener."""

    def __init__(self, directory: Path) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.ports: dict[str, int] = {}
        self.block = PortBlock("tests")
        self.elb = ElasticLoadBalancing(self.block, self.ports, directory)
        self.group("blue")
        self.configure()
        self.listen()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def configure(self, **attributes: str) -> None:
        pairs = [{"Key": key.replace("__", "."), "Value": value} for key, value in attributes.items()]
        self.run(self.elb.put_load_balancer("lb", {"LoadBalancerAttributes": pairs}))

    def group(self, name: str, path: str = "/health", **properties: Any) -> None:
        settings = {"HealthCheckPath": path, "HealthCheckIntervalSeconds": 0.1, "HealthyThresholdCount": 2}
        self.run(self.elb.put_target_group(name, settings | {"HealthCheckTimeoutSeconds": 0.5} | properties))

    def listen(self, *actions: dict[str, Any], arn: str = "listener") -> str:
        default = list(actions) or [{"Type": "forward", "TargetGroupArn": "blue"}]
        put = self.elb.put_listener(arn, {"LoadBalancerArn": "lb", "DefaultActions": default})
        self.url = str(self.run(put)["url"])
        return self.url

    def rule(self, priority: int, condition: dict[str, Any], action: dict[str, Any]) -> None:
        properties = {
            "ListenerArn": "listener",
            "Priority": priority,
            "Conditions": [condition],
            "Actions": [action],
        }
        self.run(self.elb.put_listener_rule(f"rule-{priority}", properties))

    def register(self, port: int, group: str = "blue", *, state: str = "healthy") -> str:
        name = f"target-{port}"

        async def register() -> None:
            self.elb.target_groups[group].register(name, port)

        self.run(register())
        self.await_state(name, state, group)
        return name

    def await_state(self, name: str, state: str, group: str = "blue") -> dict[str, Any]:
        deadline = time.monotonic() + 5
        while True:
            target = next(t for t in self.describe(group)["targets"] if t["id"] == name)
            if target["state"] == state:
                return dict(target)
            assert time.monotonic() < deadline, target
            time.sleep(0.02)

    def describe(self, group: str = "blue") -> dict[str, Any]:
        return self.elb.describe("target-group", group) or {}

    def ask(
        self, path: str = "/", method: str = "GET", body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=20)
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer, content


@pytest.fixture
def balancing(tmp_path: Path) -> Iterator[Balancing]:
    balancing = Balancing(tmp_path)
    yield balancing
    balancing.run(balancing.elb.close())
    balancing.loop.call_soon_threadsafe(balancing.loop.stop)
    balancing.block.guard.close()


class Echo(BaseHTTPRequestHandler):
    """Tells what it was asked; `/big` streams, `/slow` waits, `/chunks` has no length."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    name = "echo"
    healthy = True

    def do_GET(self) -> None:
        length = self.headers.get("Content-Length")
        digest, size = hashlib.sha256(), 0
        if length:
            while size < int(length):
                piece = self.rfile.read(min(2**20, int(length) - size))
                digest.update(piece)
                size += len(piece)
        elif self.headers.get("Transfer-Encoding") == "chunked":
            while count := int(self.rfile.readline(), 16):
                digest.update(self.rfile.read(count))
                size += count
                self.rfile.readline()
            self.rfile.readline()
        if self.path.startswith("/slow"):
            time.sleep(float(self.path.partition("=")[2]))
        if self.path == "/chunks":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for piece in (b"one ", b"two"):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                time.sleep(0.3)
            self.wfile.write(b"0\r\n\r\n")
            return
        if self.path == "/big":
            self.send_response(200)
            self.send_header("Content-Length", str(100 * 2**20))
            self.end_headers()
            for number in range(100):
                self.wfile.write(bytes([number]) * 2**20)
            return
        if self.path == "/short":
            self.send_response(200)
            self.send_header("Content-Length", str(2**20))
            self.end_headers()
            self.wfile.write(b"x" * 1000)
            self.close_connection = True
            return
        if self.path in ("/204", "/304"):
            self.send_response(int(self.path[1:]))
            self.end_headers()
            return
        seen = {
            "name": self.name,
            "path": self.path,
            "headers": list(self.headers.items()),
            "sha256": digest.hexdigest(),
            "size": size,
        }
        content = json.dumps(seen).encode()
        if self.path == "/zipped":
            content = gzip.compress(content)
        self.send_response(500 if self.path == "/health" and not self.healthy else 200)
        if self.path == "/zipped":
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "keep-alive, X-Private")
        self.send_header("X-Private", "for the balancer alone")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_POST = do_PUT = do_HEAD = do_DELETE = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def echo() -> Iterator[Callable[[str], ThreadingHTTPServer]]:
    servers = []

    def start(name: str = "echo") -> ThreadingHTTPServer:
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Echo,), {"name": name}))
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def raw() -> Iterator[Callable[[Callable[[socket.socket, bytes], None]], int]]:
    """A target made of one function that gets each request's head, health checks answered for it."""
    sockets = []

    def start(serve: Callable[[socket.socket, bytes], None]) -> int:
        listening = socket.create_server(("127.0.0.1", 0))
        sockets.append(listening)

        def talk(connection: socket.socket) -> None:
            with connection:
                while head := connection.recv(65536):
                    if head.startswith(b"GET /health"):
                        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                    else:
                        serve(connection, head)
                        if connection.fileno() < 0:
                            return

        def accept() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=talk, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        port: int = listening.getsockname()[1]
        return port

    yield start
    for listening in sockets:
        listening.close()


def test_passes_requests_and_answers_on_as_they_are(balancing: Balancing, echo: Any) -> None:
    balancing.register(echo().server_port)
    _, content = balancing.ask(
        "/a/../b%2Fc//d?x=%20+&y",
        headers={
            "Host": "mlflow.example",
            "X-Forwarded-For": "192.0.2.1",
            "User-Agent": "me",
            "under_score": "1",
            "Connection": "X-Mine",
            "X-Mine": "for the balancer alone",
        },
    )
    seen = json.loads(content)
    headers = {name.lower(): value for name, value in seen["headers"]}
    assert seen["path"] == "/a/../b%2Fc//d?x=%20+&y"
    assert headers["host"] == "mlflow.example"
    assert headers["user-agent"] == "me"
    assert headers["x-forwarded-for"] == "192.0.2.1, 127.0.0.1"
    assert headers["x-forwarded-proto"] == "http"
    assert headers["x-forwarded-port"] == balancing.url.rpartition(":")[2]
    assert headers["x-amzn-trace-id"].startswith("Root=1-")
    assert headers["under_score"] == "1"
    assert not headers.keys() & {"x-mine", "accept", "content-type"}
    answer, _ = balancing.ask("/")
    assert answer.headers["X-Private"] is None

    balancing.configure(routing__http__drop_invalid_header_fields__enabled="true")
    trace = "Root=1-65f00000-aaaaaaaaaaaaaaaaaaaaaaaa"
    _, content = balancing.ask("/", headers={"under_score": "1", "X-Amzn-Trace-Id": trace})
    headers = {name.lower(): value for name, value in json.loads(content)["headers"]}
    assert "under_score" not in headers
    assert headers["x-amzn-trace-id"].startswith("Self=1-")
    assert headers["x-amzn-trace-id"].endswith(trace)


def test_kinds_of_bodies(balancing: Balancing, echo: Any) -> None:
    balancing.register(echo().server_port)
    answer, content = balancing.ask("/zipped")
    assert answer.headers["Content-Encoding"] == "gzip"
    assert json.loads(gzip.decompress(content))
    packed = gzip.compress(b"trace" * 1000)
    _, content = balancing.ask("/", "POST", packed, {"Content-Encoding": "gzip"})
    assert json.loads(content)["sha256"] == hashlib.sha256(packed).hexdigest()
    _, content = balancing.ask("/", "POST", iter([b"one", b"two"]))  # chunked
    assert json.loads(content)["size"] == 6
    _, content = balancing.ask("/", "POST", b"")
    assert ["Content-Length", "0"] in json.loads(content)["headers"]
    for status in ("204", "304"):
        answer, content = balancing.ask(f"/{status}")
        assert (str(answer.status), content) == (status, b"")
    answer, content = balancing.ask("/", "HEAD")
    assert int(answer.headers["Content-Length"]) > 100
    assert content == b""
    # What has no length arrives piece by piece, not at the end.
    connection = http.client.HTTPConnection(balancing.url.removeprefix("http://"))
    connection.request("GET", "/chunks")
    streamed = connection.getresponse()
    began = time.monotonic()
    assert streamed.read1(4) == b"one "
    assert time.monotonic() - began < 0.2
    assert streamed.read() == b"two"


def test_a_hundred_megabytes_both_ways_without_holding_them(balancing: Balancing, echo: Any) -> None:
    balancing.register(echo().server_port)
    before = psutil.Process().memory_info().rss
    pieces = (bytes([number]) * 2**20 for number in range(100))
    wanted = hashlib.sha256(b"".join(bytes([number]) * 2**20 for number in range(100))).hexdigest()
    _, content = balancing.ask("/", "PUT", pieces, {"Content-Length": str(100 * 2**20)})
    assert json.loads(content)["sha256"] == wanted
    digest = hashlib.sha256()
    with urllib.request.urlopen(balancing.url + "/big") as answer:
        while piece := answer.read(2**20):
            digest.update(piece)
    assert digest.hexdigest() == wanted
    assert psutil.Process().memory_info().rss - before < 60 * 2**20


def test_expect_100_continue(balancing: Balancing, echo: Any) -> None:
    balancing.register(echo().server_port)
    host, _, port = balancing.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.settimeout(5)
        head = "PUT /x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"hello")
        assert connection.recv(10000).startswith(b"HTTP/1.1 200")


def test_503_without_targets_and_open_when_all_are_unhealthy(balancing: Balancing, echo: Any) -> None:
    answer, content = balancing.ask()
    assert (answer.status, answer.headers["Server"]) == (503, "awselb/2.0")
    assert b"503 Service Temporarily Unavailable" in content
    server = echo()
    server.RequestHandlerClass.healthy = False
    name = balancing.register(server.server_port, state="unhealthy")
    assert balancing.await_state(name, "unhealthy")["description"] == (
        "Health checks failed with these codes: [500]"
    )
    assert balancing.ask()[0].status == 200
    well = balancing.register(echo("well").server_port)
    assert {json.loads(balancing.ask()[1])["name"] for _ in range(4)} == {"well"}
    balancing.run(balancing.elb.target_groups["blue"].deregister(well))
    assert json.loads(balancing.ask()[1])["name"] == "echo"
    counters = balancing.describe()["counters"]
    assert counters["balancer_503"] == 1
    assert counters["target_2xx"] == 6
    assert counters["requests"] == 7


def test_502_is_not_hidden_by_a_retry(balancing: Balancing, raw: Any) -> None:
    asked = []

    def hang_up_on_the_second(connection: socket.socket, head: bytes) -> None:
        asked.append(head)
        if len(asked) == 2:
            connection.close()
        else:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    balancing.register(raw(hang_up_on_the_second))
    assert [balancing.ask()[0].status for _ in range(3)] == [200, 502, 200]
    assert len(asked) == 3
    nobody = socket.create_server(("127.0.0.1", 0))
    port = nobody.getsockname()[1]
    nobody.close()
    balancing.group("gone")
    balancing.register(port, "gone", state="unhealthy")
    balancing.listen({"Type": "forward", "TargetGroupArn": "gone"})
    assert balancing.ask()[0].status == 502
    assert balancing.describe("gone")["counters"] == {"requests": 1, "balancer_502": 1}


def test_502_for_nonsense_and_a_cut_connection_for_a_broken_body(
    balancing: Balancing, raw: Any, echo: Any
) -> None:
    balancing.register(raw(lambda connection, head: connection.sendall(b"what?\r\n\r\n")))
    assert balancing.ask()[0].status == 502
    balancing.group("short")
    balancing.register(echo().server_port, "short")
    balancing.listen({"Type": "forward", "TargetGroupArn": "short"})
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        balancing.ask("/short")
    assert balancing.describe("short")["counters"]["cut_short"] == 1


def test_504_for_silence_and_408_for_a_client_that_stops(balancing: Balancing, raw: Any, echo: Any) -> None:
    balancing.configure(idle_timeout__timeout_seconds="1")
    balancing.register(raw(lambda connection, head: time.sleep(3)))
    began = time.monotonic()
    assert balancing.ask()[0].status == 504
    assert 0.9 < time.monotonic() - began < 2.5
    balancing.group("echo")
    balancing.register(echo().server_port, "echo")
    balancing.listen({"Type": "forward", "TargetGroupArn": "echo"})
    host, _, port = balancing.url.removeprefix("http://").partition(":")
    for length in (10, 10**6):
        with socket.create_connection((host, int(port))) as connection:
            connection.settimeout(5)
            connection.sendall(b"PUT /x HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\nabc" % length)
            assert connection.recv(1000).startswith(b"HTTP/1.1 408")


def test_what_is_measured_for_alarms(balancing: Balancing, raw: Any, echo: Any) -> None:
    """Under CloudWatch's names, by its dimensions, and nothing twice."""
    seen: list[tuple[str, float, dict[str, str]]] = []
    balancing.elb.watch(lambda metric, value, by: seen.append((metric, value, dict(by))))
    group = {"LoadBalancer": "lb", "TargetGroup": "blue"}

    assert balancing.ask()[0].status == 503
    assert seen.pop() == ("HTTPCode_ELB_5XX_Count", 1, {"LoadBalancer": "lb"})
    server = echo()
    name = balancing.register(server.server_port)
    assert balancing.ask("/slow=0.3")[0].status == 200
    metric, seconds, by = seen.pop()
    assert (metric, by) == ("TargetResponseTime", group)
    assert seconds >= 0.3
    balancing.elb.count_unhealthy()
    assert seen.pop() == ("UnHealthyHostCount", 0, group)
    server.RequestHandlerClass.healthy = False
    balancing.await_state(name, "unhealthy")
    balancing.elb.count_unhealthy()
    assert seen.pop() == ("UnHealthyHostCount", 1, group)
    assert balancing.ask("/health")[0].status == 500
    assert seen.pop() == ("HTTPCode_Target_5XX_Count", 1, group)
    assert seen.pop()[0] == "TargetResponseTime"

    balancing.group("mute")
    balancing.register(raw(lambda connection, head: connection.close()), "mute")
    balancing.listen({"Type": "forward", "TargetGroupArn": "mute"})
    assert balancing.ask()[0].status == 502
    assert seen.pop() == ("HTTPCode_ELB_5XX_Count", 1, {"LoadBalancer": "lb"})
    balancing.listen({"Type": "fixed-response", "FixedResponseConfig": {"StatusCode": "503"}})
    assert balancing.ask()[0].status == 503
    assert seen == []  # an answer that the listener was told to give is no error


def test_keeps_connections_to_targets_and_clients_open(balancing: Balancing, raw: Any) -> None:
    used = set()

    def note(connection: socket.socket, head: bytes) -> None:
        used.add(connection.getpeername())
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    balancing.register(raw(note))
    connection = http.client.HTTPConnection(balancing.url.removeprefix("http://"))
    own = set()
    for _ in range(5):
        connection.request("GET", "/")
        assert connection.getresponse().read() == b"ok"
        own.add(connection.sock.getsockname())
        balancing.listen()  # new configuration, same socket
    assert len(used) == len(own) == 1


def test_round_robin_and_least_outstanding(balancing: Balancing, echo: Any) -> None:
    balancing.register(echo("a").server_port)
    balancing.register(echo("b").server_port)
    names = [json.loads(balancing.ask()[1])["name"] for _ in range(6)]
    assert sorted(names[:2]) == ["a", "b"]
    assert names == names[:2] * 3
    balancing.group(
        "blue",
        TargetGroupAttributes=[
            {"Key": "load_balancing.algorithm.type", "Value": "least_outstanding_requests"},
            {"Key": "stickiness.enabled", "Value": "true"},
        ],
    )
    assert balancing.describe()["not_enforced"] == ["stickiness.enabled"]
    slow = threading.Thread(target=balancing.ask, args=("/slow=1",))
    slow.start()
    time.sleep(0.2)
    assert len({json.loads(balancing.ask()[1])["name"] for _ in range(4)}) == 1
    slow.join()


def test_health_thresholds(balancing: Balancing, echo: Any) -> None:
    server = echo()
    balancing.group(
        "blue", HealthyThresholdCount=4, UnhealthyThresholdCount=3, HealthCheckIntervalSeconds=0.2
    )
    began = time.monotonic()
    name = balancing.register(server.server_port)
    assert time.monotonic() - began < 0.3  # one success is enough for a new target
    server.RequestHandlerClass.healthy = False
    began = time.monotonic()
    balancing.await_state(name, "unhealthy")
    assert 0.35 < time.monotonic() - began < 1.2  # three failures in a row
    balancing.group("blue", HealthyThresholdCount=4, HealthCheckIntervalSeconds=0.2)
    server.RequestHandlerClass.healthy = True
    began = time.monotonic()
    balancing.await_state(name, "healthy")
    assert 0.55 < time.monotonic() - began < 1.6  # four successes in a row
    balancing.group("blue", path="/slow=2")
    assert balancing.await_state(name, "unhealthy")["description"] == "Request timed out"


@pytest.mark.parametrize(
    ("codes", "good", "bad"),
    [("200", [200], [201, 500]), ("200,302", [200, 302], [301]), ("200-299,404", [204, 404], [300, 403])],
)
def test_matcher(codes: str, good: list[int], bad: list[int]) -> None:
    matcher = Matcher(http_code=codes)
    assert all(map(matcher.accepts, good))
    assert not any(map(matcher.accepts, bad))


def test_draining_waits_for_requests_but_not_for_ever(balancing: Balancing, echo: Any) -> None:
    name = balancing.register(echo("old").server_port)
    statuses: list[int] = []

    def ask_slowly() -> None:
        statuses.append(balancing.ask("/slow=1.5")[0].status)

    new = ""
    for delay, status, shortest, longest in (("5", 200, 1.0, 2.0), ("0.5", 502, 0.4, 1.0)):
        attributes = [{"Key": "deregistration_delay.timeout_seconds", "Value": delay}]
        balancing.group("blue", TargetGroupAttributes=attributes)
        if status == 502:
            name = balancing.register(echo("old").server_port)
            balancing.run(balancing.elb.target_groups["blue"].deregister(new))
        slow = threading.Thread(target=ask_slowly)
        slow.start()
        time.sleep(0.2)
        new = balancing.register(echo("new").server_port)
        began = time.monotonic()
        draining = asyncio.run_coroutine_threadsafe(
            balancing.elb.target_groups["blue"].deregister(name), balancing.loop
        )
        balancing.await_state(name, "draining")
        assert {json.loads(balancing.ask()[1])["name"] for _ in range(4)} == {"new"}
        draining.result(10)
        assert shortest < time.monotonic() - began < longest
        slow.join()
        assert statuses.pop() == status
        assert [target["id"] for target in balancing.describe()["targets"]] == [new]


FIXED = "fixed-response"


def fixed(text: str) -> dict[str, Any]:
    return {"Type": FIXED, "FixedResponseConfig": {"StatusCode": "200", "MessageBody": text}}


@pytest.mark.parametrize(
    ("condition", "hits", "misses"),
    [
        ({"Field": "path-pattern", "Values": ["/api/*", "/v?"]}, ["/api/x?y", "/v1"], ["/API/x", "/v12"]),
        ({"Field": "path-pattern", "PathPatternConfig": {"Values": ["*.js"]}}, ["/a.js?b"], ["/a.js/b"]),
        ({"Field": "host-header", "Values": ["*.Example.com"]}, ["host:a.example.COM:8"], ["host:b.com"]),
        (
            {"Field": "http-header", "HttpHeaderConfig": {"HttpHeaderName": "X-Kind", "Values": ["B*"]}},
            ["x-kind:blue"],
            ["x-kind:red", "/"],
        ),
        (
            {"Field": "http-request-method", "HttpRequestMethodConfig": {"Values": ["PUT", "DELETE"]}},
            ["PUT", "DELETE"],
            ["GET"],
        ),
        (
            {
                "Field": "query-string",
                "QueryStringConfig": {"Values": [{"Key": "a", "Value": "x*"}, {"Value": "q"}]},
            },
            ["/?a=xyz", "/?any=q", "/?A=X"],
            ["/?b=xyz", "/"],
        ),
        ({"Field": "source-ip", "SourceIpConfig": {"Values": ["127.0.0.0/8"]}}, ["/"], []),
        ({"Field": "source-ip", "SourceIpConfig": {"Values": ["10.0.0.0/8"]}}, [], ["/"]),
    ],
)  # fmt: skip
def test_conditions(
    balancing: Balancing, condition: dict[str, Any], hits: list[str], misses: list[str]
) -> None:
    balancing.listen(fixed("default"))
    balancing.rule(10, condition, fixed("rule"))
    for asked, wanted in [(hit, b"rule") for hit in hits] + [(miss, b"default") for miss in misses]:
        if asked.startswith("/"):
            _, content = balancing.ask(asked)
        elif ":" in asked:
            name, _, value = asked.partition(":")
            _, content = balancing.ask("/", headers={name: value})
        else:
            _, content = balancing.ask("/", asked)
        assert content == wanted, asked


def test_priorities_weights_and_redirects(balancing: Balancing, echo: Any) -> None:
    everything = {"Field": "path-pattern", "Values": ["*"]}
    balancing.rule(20, everything, fixed("later"))
    balancing.rule(10, {"Field": "path-pattern", "Values": ["/a*"]}, fixed("sooner"))
    assert [balancing.ask(path)[1] for path in ("/a", "/b")] == [b"sooner", b"later"]
    balancing.run(balancing.elb.delete("listener-rule", "rule-10"))
    assert balancing.ask("/a")[1] == b"later"
    redirect = {
        "StatusCode": "HTTP_301",
        "Protocol": "HTTPS",
        "Port": "443",
        "Host": "www.#{host}",
        "Path": "/new/#{path}",
    }
    balancing.rule(20, everything, {"Type": "redirect", "RedirectConfig": redirect})
    answer, _ = balancing.ask("/x/y?z=1", headers={"Host": "example.com:80"})
    assert (answer.status, answer.headers["Location"]) == (301, "https://www.example.com:443/new/x/y?z=1")
    balancing.group("green")
    balancing.register(echo("blue").server_port, "blue")
    balancing.register(echo("green").server_port, "green")
    shares = [{"TargetGroupArn": "blue", "Weight": 3}, {"TargetGroupArn": "green", "Weight": 1}]
    balancing.rule(20, everything, {"Type": "forward", "ForwardConfig": {"TargetGroups": shares}})
    names = [json.loads(balancing.ask()[1])["name"] for _ in range(200)]
    assert 20 < names.count("green") < 85


def test_refusals(balancing: Balancing) -> None:
    with pytest.raises(RefusedError, match="action weave is not rehearsed"):
        balancing.listen({"Type": "weave", "Order": 1}, fixed("x"))
    assert balancing.ask()[0].status == 503  # the listener kept its old rules
    with pytest.raises(RefusedError, match="there is no target group red"):
        balancing.listen({"Type": "forward", "TargetGroupArn": "red"})
    with pytest.raises(RefusedError, match=r"Conditions\.0\.Field: Input should be"):
        balancing.rule(1, {"Field": "colour"}, fixed("x"))
    with pytest.raises(RefusedError, match="condition path-pattern has no values"):
        balancing.rule(1, {"Field": "path-pattern"}, fixed("x"))
    with pytest.raises(RefusedError, match=r"Matcher\.HttpCode: String should match"):
        balancing.group("blue", Matcher={"HttpCode": "2xx"})
    with pytest.raises(RefusedError, match="Protocol: Input should be 'HTTP'"):
        balancing.group("blue", Protocol="HTTPS")


def test_addresses_stay(balancing: Balancing) -> None:
    first = balancing.url
    other = balancing.listen(fixed("second"), arn="other")
    assert other != first
    assert balancing.run(balancing.elb.put_load_balancer("lb", {}))["dns_name"] == first.removeprefix(
        "http://"
    )
    balancing.run(balancing.elb.delete("listener", "listener"))
    assert balancing.listen(fixed("again")) == first
    assert balancing.ask()[1] == b"again"
    with pytest.raises(PortError, match="in use by another process"):
        balancing.block.retake(int(first.rpartition(":")[2]))
    with pytest.raises(PortError, match="another rehearsal has taken them"):
        PortBlock("second", balancing.block.base)
