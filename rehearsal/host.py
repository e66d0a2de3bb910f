"""The host of one rehearsed account: a daemon that plays load balancing, user pools, CloudWatch's alarms and ECS for it.

It goes on when the command that started it has ended: it is what replaces a crashed task at night. Run it
with `python -m rehearsal.host --state DIR`; talk to it with `HostClient`. DIR keeps what it was told, so that
a host that starts again takes up the same services at the same addresses.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import http.client
import json
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from aiohttp import web
from botocore.exceptions import BotoCoreError, ClientError

from operations.containers import Engine
from rehearsal.alarms import Alarms
from rehearsal.ecs import Cluster
from rehearsal.engine import client_environment, remove_labelled
from rehearsal.load_balancer import ElasticLoadBalancing
from rehearsal.ports import LOOPBACK, PortBlock, PortError
from rehearsal.processes import ProcessRegistry, came_up
from rehearsal.properties import RefusedError
from rehearsal.user_pool import UserPools

log = logging.getLogger(__name__)

START_SECONDS = 60.0
# The longest a call waits: deleting a service takes its deregistration delay and its stop timeout.
CALL_SECONDS = 900.0
# What a predecessor's processes are given to end by themselves.
LEFTOVER_GRACE = 5.0
POOL_KINDS = ("user-pool", "user-pool-client")
KINDS = (
    *("target-group", "load-balancer", *POOL_KINDS, "listener", "listener-rule"),
    *("alarm", "task-definition", "service"),
)

Put = Callable[[str, Mapping[str, Any]], Awaitable[dict[str, Any]]]


class HostError(Exception):
    """The host refused, or could not be reached. The message is a sentence for a person."""


class HostClient:
    """Talks to the host of one account. Every call raises HostError when it fails."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir

    def put(self, kind: str, arn: str, properties: Mapping[str, Any]) -> dict[str, Any]:
        """Create the resource or update it; returns its attributes. Does not wait for a deployment."""
        return self._call("put", {"kind": kind, "arn": arn, "properties": properties})

    def get(self, kind: str, arn: str) -> dict[str, Any]:
        """The state of a resource."""
        return self._call("get", {"kind": kind, "arn": arn})

    def run_task(self, properties: Mapping[str, Any]) -> dict[str, Any]:
        """Start a task that belongs to no service and describe it; `get("task", id)` tells how it goes on."""
        return self._call("run", {"properties": properties})

    def delete(self, kind: str, arn: str) -> None:
        """Remove a resource if it is there. A service is drained and stopped before this returns."""
        self._call("delete", {"kind": kind, "arn": arn})

    def stop(self) -> None:
        """Stop all tasks and the host; returns when it has ended. What it was told stays for the next one."""
        self._call("stop", {})
        deadline = time.monotonic() + CALL_SECONDS
        while self.answers() and time.monotonic() < deadline:
            time.sleep(0.05)
        ProcessRegistry(self.state_dir / "processes").stop_all(LEFTOVER_GRACE)

    def answers(self) -> bool:
        """Whether a host answers there."""
        try:
            self._call("ping", {}, seconds=5)
        except HostError:
            return False
        return True

    def _file(self) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads((self.state_dir / "host.json").read_text())
        except (FileNotFoundError, ValueError):
            raise HostError(f"no host runs for {self.state_dir}; start it, or rehearse again") from None
        return content

    def _call(self, verb: str, body: Mapping[str, Any], seconds: float = CALL_SECONDS) -> dict[str, Any]:
        host = self._file()
        connection = http.client.HTTPConnection(LOOPBACK, host["port"], timeout=seconds)
        try:
            connection.request(
                "POST", f"/{verb}", json.dumps(body), {"Authorization": f"Bearer {host['token']}"}
            )
            response = connection.getresponse()
            answer: dict[str, Any] = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise HostError(
                f"the host of {self.state_dir} does not answer ({error!r}); start it again"
            ) from error
        finally:
            connection.close()
        if response.status != 200:
            raise HostError(answer["error"])
        return answer


def start_host(state_dir: Path, log_file: Path) -> HostClient:
    """Start the host of an account, detached, unless one runs; returns when it is ready. Raises HostError."""
    client = HostClient(state_dir)
    if client.answers():
        return client
    state_dir.mkdir(parents=True, exist_ok=True)
    log_file.parent.mkdir(parents=True, exist_ok=True)
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-m", "rehearsal.host", "--state", str(state_dir.resolve())]
    # Not the caller's environment: nothing of a person's AWS set-up may reach what the host starts.
    environment = {
        name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ
    }
    environment |= client_environment() | {
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    with log_file.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    ProcessRegistry(state_dir / "processes").record("host", process.pid, sys.executable)
    if came_up(client.answers, process, START_SECONDS):
        return client
    last = "\n".join(log_file.read_text(errors="replace").splitlines()[-15:])
    raise HostError(f"the host of {state_dir} did not start; the end of {log_file}:\n{last}")


class Host:
    """The daemon: the control API, the rehearsed services behind it, and what is kept on disk."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.registry = ProcessRegistry(state_dir / "processes")
        self._stop = asyncio.Event()
        self._token = secrets.token_urlsafe(32)
        self._memory_file = state_dir / "state.json"
        self._resources: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
        self._ready = False

    async def run(self) -> None:
        """Serve until told to stop."""
        remembered = self._remembered()
        await asyncio.to_thread(self.registry.stop_all, LEFTOVER_GRACE, spare=os.getpid())
        for program in _engines(remembered):
            await asyncio.to_thread(remove_labelled, Engine(program), self.state_dir)
        shutil.rmtree(self.state_dir / "tasks", ignore_errors=True)
        block = PortBlock(str(self.state_dir), remembered.get("block"))
        self._ports: dict[str, int] = remembered.get("ports", {})
        self._block = block
        self.balancing = ElasticLoadBalancing(block, self._ports, self.state_dir)
        self.alarms = Alarms(self.balancing)
        self.cluster = Cluster(
            self.state_dir / "tasks",
            self.registry,
            block,
            f"http://{LOOPBACK}:{block.base}",
            self.balancing.target_groups,
            self.alarms,
            self._remember,
        )
        self._put: dict[str, Put] = {
            "target-group": self.balancing.put_target_group,
            "load-balancer": self.balancing.put_load_balancer,
            "user-pool": self.balancing.user_pools.put_pool,
            "user-pool-client": self.balancing.user_pools.put_client,
            "listener": self.balancing.put_listener,
            "listener-rule": self.balancing.put_listener_rule,
            "alarm": self.alarms.put_alarm,
            "task-definition": self.cluster.put_task_definition,
            "service": self.cluster.put_service,
        }
        await self._take_up(remembered)
        runner = web.AppRunner(self._application(), access_log=None)
        await runner.setup()
        await web.SockSite(runner, block.guard).start()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stop.set)
        self._ready = True
        self._remember()
        self._write("host.json", {"pid": os.getpid(), "port": block.base, "token": self._token})
        log.info("ready on port %d", block.base)
        await self._stop.wait()
        log.info("stopping")
        await self.cluster.close()
        await self.alarms.close()
        await self.balancing.close()
        (self.state_dir / "host.json").unlink(missing_ok=True)
        await runner.cleanup()

    def _application(self) -> web.Application:
        # A template's properties fit in a megabyte, CloudFormation's own limit for a template.
        application = web.Application(client_max_size=4 * 2**20)
        application.router.add_get("/credentials/{task}", self._credentials)
        for verb in ("put", "get", "run", "delete", "stop", "ping"):
            application.router.add_post(f"/{verb}", self._guarded(getattr(self, f"_on_{verb}")))
        return application

    def _guarded(
        self, handler: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        """Ask for the token, and turn what goes wrong into a sentence."""

        async def handle(request: web.Request) -> web.Response:
            given = request.headers.get("Authorization", "")
            if not secrets.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
                return web.json_response({"error": "wrong or no token; read it from host.json"}, status=401)
            try:
                return web.json_response(await handler(await request.json()))
            except (RefusedError, PortError) as refusal:
                return web.json_response({"error": str(refusal)}, status=400)
            except Exception as error:
                log.exception("%s failed", request.path)
                problem = f"the host failed at {request.path}: {error!r}; its log says more"
                return web.json_response({"error": problem}, status=500)

        return handle

    async def _on_ping(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"pid": os.getpid()}

    async def _on_put(self, body: dict[str, Any]) -> dict[str, Any]:
        kind, arn, properties = _kind(body["kind"]), body["arn"], body["properties"]
        attributes = await self._put[kind](arn, properties)
        self._resources[kind][arn] = properties
        self._remember()
        return attributes

    async def _on_get(self, body: dict[str, Any]) -> dict[str, Any]:
        kind, arn = body["kind"], body["arn"]
        if kind != "task":
            _kind(kind)
        described = self._keeper(kind).describe(kind, arn)
        if described is None:
            raise RefusedError(f"there is no {kind} {arn}")
        return described

    async def _on_run(self, body: dict[str, Any]) -> dict[str, Any]:
        return self.cluster.run_task(body["properties"])

    async def _on_delete(self, body: dict[str, Any]) -> dict[str, Any]:
        kind, arn = _kind(body["kind"]), body["arn"]
        await self._keeper(kind).delete(kind, arn)
        if kind != "task-definition":  # an outgoing revision may still be needed to roll back to
            self._resources[kind].pop(arn, None)
        self._remember()
        return {}

    async def _on_stop(self, body: dict[str, Any]) -> dict[str, Any]:
        self._stop.set()
        return {}

    async def _credentials(self, request: web.Request) -> web.Response:
        """The container credentials endpoint that the AWS SDKs in a task ask."""
        task = self.cluster.task(request.match_info["task"])
        given = request.headers.get("Authorization", "")
        if task is None or not secrets.compare_digest(given.encode(), task.token.encode()):
            return web.json_response(
                {"code": "AccessDenied", "message": "no such task or wrong token"}, status=403
            )
        try:
            return web.json_response(await task.credentials())
        except (RefusedError, ClientError, BotoCoreError) as error:
            log.warning("task %s gets no credentials: %s", task.id, error)
            return web.json_response({"code": "CannotAssumeRole", "message": str(error)}, status=400)

    def _keeper(self, kind: str) -> ElasticLoadBalancing | UserPools | Alarms | Cluster:
        if kind in POOL_KINDS:
            return self.balancing.user_pools
        if kind == "alarm":
            return self.alarms
        return self.cluster if kind in ("task", "task-definition", "service") else self.balancing

    async def _take_up(self, remembered: dict[str, Any]) -> None:
        """Put again what an earlier host was told, in the order of what needs what."""
        for kind in KINDS:
            for arn, properties in remembered.get("resources", {}).get(kind, {}).items():
                if kind == "service":
                    self.cluster.recall_service(arn, properties, remembered["deployments"].get(arn, []))
                else:
                    await self._put[kind](arn, properties)
                self._resources[kind][arn] = properties

    def _remember(self) -> None:
        if not self._ready:
            return
        used = self.cluster.used_definitions()
        definitions = self._resources["task-definition"]
        for arn in [
            arn for arn in definitions if arn not in used and not self.cluster.definitions[arn].active
        ]:
            del definitions[arn], self.cluster.definitions[arn]
        services = self.cluster.services.items()
        self._write(
            "state.json",
            {
                "block": self._block.base,
                "ports": self._ports,
                "resources": self._resources,
                "deployments": {arn: service.remembered() for arn, service in services},
            },
        )

    def _remembered(self) -> dict[str, Any]:
        with contextlib.suppress(FileNotFoundError):
            content: dict[str, Any] = json.loads((self.state_dir / "state.json").read_text())
            return content
        return {}

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a file in one step, readable by its owner alone: tokens and keys are in it."""
        draft = self.state_dir / f".{name}.draft"
        draft.unlink(missing_ok=True)
        draft.touch(0o600, exist_ok=False)
        draft.write_text(json.dumps(content))
        draft.replace(self.state_dir / name)


def _engines(remembered: Mapping[str, Any]) -> set[str]:
    """The container engines that the task definitions of an earlier host name."""
    definitions = remembered.get("resources", {}).get("task-definition", {}).values()
    images = [image for d in definitions for image in d["Rehearsal"]["containers"].values()]
    return {image["engine"] for image in images if image.get("engine")}


def _kind(name: str) -> str:
    if name not in KINDS:
        raise RefusedError(f"kind {name!r} is not rehearsed; use one of {', '.join(KINDS)}")
    return name


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop makes a request through the load balancer cheaper; the host works without it."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def main() -> int:
    """Run the host of the account whose state is in `--state`."""
    parser = argparse.ArgumentParser(
        description="Plays Elastic Load Balancing, CloudWatch's alarms and ECS for one rehearsed account."
    )
    parser.add_argument(
        "--state", type=Path, required=True, help="the folder that keeps what the host was told"
    )
    state_dir: Path = parser.parse_args().state
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO, stream=sys.stderr)
    logging.getLogger("botocore").setLevel(logging.WARNING)
    state_dir.mkdir(parents=True, exist_ok=True)
    with (state_dir / "host.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print(f"another host already serves {state_dir}; stop it first", file=sys.stderr)
            return 3
        ProcessRegistry(state_dir / "processes").record("host", os.getpid(), sys.executable)
        (state_dir / "host.json").unlink(missing_ok=True)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(Host(state_dir).run())
    return 0


if __name__ == "__main__":
    sys.exit(main())
