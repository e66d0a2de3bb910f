"""The two sides: stock `mlflow server` as guides start it, and this image's server as production has it."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gevent
import psutil
from geventhttpclient import HTTPParseError

from rehearsal.images import ImageStore
from rehearsal.ports import free_port
from rehearsal.processes import exact_session_memory, session_members
from tests.drills.old_versions import Release, Server, installed, kept_images
from tests.drills.places import Place

from .measure import connection
from .places import BenchmarkFailed, stock_uri, stock_variables

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 300
MIB = 2**20


@dataclass(frozen=True)
class Side:
    """One of the servers that are compared."""

    name: str
    settings: str
    """How it is started, for the page."""
    start: Callable[[Place], Server]
    prepare: Callable[[Place], None]
    """What is done to a stock database before this server is started on it."""
    authorization: str = ""
    """The header with which clients sign in."""
    workers: int = 0
    """0: MLflow's own default."""


@dataclass(frozen=True)
class Start:
    """Seconds from the start of the process to the first good answer."""

    health: float
    database: float


def stock() -> Release:
    """Stock MLflow, installed once for this machine."""
    return Release("stock", installed(Path(__file__).with_name("stock.lock")))


def image() -> Release:
    """This repository's image at this state of the files, as a folder: its packages, its files, its variables."""
    built = ImageStore(kept_images()).build(ROOT / "mlflow_image", "benchmark")
    python, entrypoint = built.entrypoint[:2]
    return Release("image", Path(python), Path(entrypoint).parent, built.environment)


def stock_side(release: Release) -> Side:
    """Stock, with its defaults: four workers, jobs on."""

    def start(place: Place) -> Server:
        port = free_port()
        command = [
            *(str(release.python.with_name("mlflow")), "server", "--host", "127.0.0.1", "--port", str(port)),
            *("--backend-store-uri", stock_uri(place)),
            *("--artifacts-destination", place.variables["ARTIFACTS_DESTINATION"]),
        ]
        return Server(command, stock_variables(place.variables), port)

    settings = "`mlflow server` with its defaults: 4 workers, jobs on"
    return Side("stock", settings, start, lambda place: None)


def image_side(release: Release, workers: int | None = None) -> Side:
    """This image; with as many workers as prod has in platform.toml, unless told otherwise."""
    prod = tomllib.loads((ROOT / "platform.toml").read_text(encoding="utf-8"))["environments"]["prod"]
    count = workers or prod["workers"]

    def prepare(place: Place) -> None:
        ended = release.migrate(place.variables, MIGRATE_WITHOUT_SNAPSHOT="true").wait()
        if ended.status:
            raise BenchmarkFailed(f"the image's migrate failed:\n{ended.output}")

    def start(place: Place) -> Server:
        return release.serve(place.variables, WORKERS=str(count))

    name = "image" if workers is None else "image per core"
    why = "prod's setting in platform.toml" if workers is None else "one per core of this machine"
    return Side(name, f"`entrypoint.py serve`, WORKERS={count} ({why})", start, prepare, workers=count)


def started(side: Side, place: Place) -> tuple[Server, Start]:
    """Start a side, and see when it answers /health, and when a question that only the database can answer.

    Raises:
        BenchmarkFailed: It ended, or did not answer in START_SECONDS.
    """
    begin = time.monotonic()
    server = side.start(place)
    headers = {"Authorization": side.authorization} if side.authorization else {}

    def first_answer(path: str) -> float:
        while True:
            if server.process.poll() is not None:
                raise BenchmarkFailed(f"{side.name} ended when it was started:\n{server.output}")
            if time.monotonic() > begin + START_SECONDS:
                raise BenchmarkFailed(f"{side.name} does not answer {path}:\n{server.output}")
            try:
                with connection(server.url) as client:
                    response = client.get(path, headers)
                    response.read()
                    if response.status_code == 200:
                        return time.monotonic() - begin
            except (OSError, HTTPParseError):
                pass
            gevent.sleep(0.02)

    try:
        health = first_answer("/health")
        return server, Start(health, first_answer("/api/2.0/mlflow/experiments/get?experiment_id=1"))
    except BaseException:
        server.kill()
        raise


def cpu_seconds(server: Server) -> float:
    """CPU time of all processes of the server so far, those included that have ended."""
    total = 0.0
    for member in session_members(server.process.pid):
        try:
            times = member.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def memory_mib(server: Server) -> float:
    """Memory of all processes of the server; what they share counts once (PSS)."""
    return exact_session_memory(server.process.pid) / MIB


def come_to_rest(server: Server, seconds: float) -> None:
    """Wait until the server uses less than a tenth of a core for two seconds on end, at most `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        before = cpu_seconds(server)
        gevent.sleep(2)
        if cpu_seconds(server) - before < 0.2:
            return
