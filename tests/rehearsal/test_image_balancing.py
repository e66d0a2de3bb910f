"""The image's server behind the rehearsed load balancer: who closes an idle connection, and a stop under load."""

import asyncio
import http.client
import signal
import socket
import sys
import threading
import time

import psutil
import pytest

from . import test_image_entrypoint as image
from . import test_load_balancer as balancer
from .test_image_entrypoint import IMAGE, RUNS, Postgres, Start, patched, wait_until
from .test_load_balancer import Balancing

sys.path.insert(0, str(IMAGE))

import server

# Fixtures.
postgres, s3, start, template = image.postgres, image.s3, image.start, image.template
balancing = balancer.balancing


def between(port: int, status: str) -> list[tuple[int, int]]:
    """Connections on loopback to or from that port in a state, as (own port, the other's port)."""
    found = psutil.net_connections("tcp4")
    ends = [
        (one.laddr.port, one.raddr.port) for one in found if one.status == status and one.laddr and one.raddr
    ]
    return [both for both in ends if port in both]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only root may see the connections of others")
@pytest.mark.parametrize(
    ("kept", "idle", "balancer_closes"),
    [(server.KEEP_ALIVE_SECONDS, 2, True), (1, 20, False)],
    ids=["as it is", "the wrong way round"],
)
def test_the_balancer_closes_an_idle_connection_first(
    kept: int,
    idle: int,
    balancer_closes: bool,
    balancing: Balancing,
    template: str,
    postgres: Postgres,
    start: Start,
) -> None:
    """Else it could send a request into a connection that is being closed, and answer 502.

    Who closed first has the connection in TIME_WAIT. The second case shows that the test would see it.
    """
    schema = postgres.create(f"idle_{kept}", template)
    task = start(schema, command=patched(f"server.KEEP_ALIVE_SECONDS = {kept}")).wait_healthy()
    # One check, so that the only connection that stays is the one below.
    balancing.group("quiet", HealthCheckIntervalSeconds=300)
    balancing.configure(idle_timeout__timeout_seconds=str(idle))
    balancing.register(task.port, "quiet")
    balancing.listen({"Type": "forward", "TargetGroupArn": "quiet"})
    assert balancing.ask("/version")[0].status == 200
    [here] = [own for own, other in between(task.port, psutil.CONN_ESTABLISHED) if other == task.port]
    wait_until(
        lambda: not any(here in ends for ends in between(task.port, psutil.CONN_ESTABLISHED)), 60, "closing"
    )
    closers = [own for own, other in between(task.port, psutil.CONN_TIME_WAIT) if here in (own, other)]
    assert closers == [here if balancer_closes else task.port]


class Client(threading.Thread):
    """Makes runs through the balancer over one connection that is kept alive, until told to stop."""

    def __init__(self, url: str, number: int) -> None:
        super().__init__()
        self.connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
        self.pause = 0.02 * number
        self.statuses: list[int] = []
        self.failures: list[Exception] = []
        self.told = threading.Event()

    def run(self) -> None:
        while not self.told.wait(self.pause):
            try:
                self.connection.request(
                    "POST", f"{RUNS}/create", b'{"experiment_id": "0"}', {"Content-Type": "application/json"}
                )
                answer = self.connection.getresponse()
                answer.read()
                self.statuses.append(answer.status)
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(error)
                self.connection.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_task_that_is_stopped_under_load_fails_nobody(
    workers: int, balancing: Balancing, template: str, postgres: Postgres, start: Start
) -> None:
    """As ECS stops one: out of the target group, then SIGTERM. Connections that only wait do not hold it up."""
    schema = postgres.create(f"stopped_{workers}", template)
    stays, leaves = (start(schema, WORKERS=str(workers)) for _ in range(2))
    for task in (stays, leaves):
        task.wait_healthy()
    name = balancing.register(leaves.port)
    balancing.register(stays.port)
    clients = [Client(balancing.url, number) for number in range(6)]
    for client in clients:
        client.start()

    def each_has_ten_more() -> None:
        before = [len(client.statuses) for client in clients]
        wait_until(
            lambda: all(
                len(client.statuses) > count + 10 for client, count in zip(clients, before, strict=True)
            ),
            120,
            "ten requests of each client",
        )

    try:
        each_has_ten_more()
        waiting = [socket.create_connection(("127.0.0.1", leaves.port)) for _ in range(5)]
        group = balancing.elb.target_groups["blue"]
        asyncio.run_coroutine_threadsafe(group.deregister(name), balancing.loop).result(60)
        begin = time.monotonic()
        leaves.process.send_signal(signal.SIGTERM)
        assert leaves.ends(120) == 0, leaves.output
        assert time.monotonic() - begin < server.GRACEFUL_SECONDS
        each_has_ten_more()
    finally:
        for client in clients:
            client.told.set()
        for client in clients:
            client.join(120)
    for idle in waiting:
        idle.close()
    assert [client.failures for client in clients] == [[]] * len(clients)
    assert {status for client in clients for status in client.statuses} == {200}
    made = sum(len(client.statuses) for client in clients)
    with postgres.connect(schema) as connection:
        row = connection.execute("SELECT count(*) FROM runs").fetchone()
    assert row == (made,), "a run that was acknowledged is not there"
