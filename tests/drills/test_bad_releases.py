"""Every kind of bad release in every environment: where it stops, who serves meanwhile, how long until only the old
version serves.

A release that does not come up never gets a request: its deployment fails and undoes itself. One that comes up and then
is slow, or dies of what it serves, passes the deployment, and the load check stops it. Either way the stage goes back by
itself to the release before. The pipeline has one environment here, with that environment's own settings; prod comes
after the approval.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from rehearsal.accounts import Accounts
from stages.gates import load_parameter
from stages.settings import load_settings

from .client import Client
from .conftest import CLIENT_PAUSE_SECONDS, QUICK, a_workspace, alone
from .figures import drill
from .watch import Watch
from .workspace import Edit, Workspace, wait_until

pytestmark = pytest.mark.drill

SECONDS = 120
"""A bound that only something that hangs can reach."""

TIMES_SLOWER = 10
SLOW_SECONDS = 0.1
"""At least so much slower: the load check lets any median below 50 ms pass."""

LEAK_MIB = 128
"""What such a request leaves behind: fourteen are too many for a task of any environment, six for one of dev."""

CRASHES = Edit(
    "mlflow_image/entrypoint.py",
    "def serve() -> None:\n",
    'def serve() -> None:\n    sys.exit("This server gives up at once.")\n',
)


def _instead(behaviour: str) -> Edit:
    """A server that listens as soon as it can, and does `behaviour` with every request, health checks too."""
    return Edit(
        "mlflow_image/server.py",
        "def application(secrets: dict[str, str]) -> Any:\n",
        f"""def application(secrets: dict[str, str]) -> Any:
    async def drilled(scope, receive, send):
        if scope["type"] == "http":
{behaviour}

    return drilled


def _application(secrets: dict[str, str]) -> Any:
""",
    )


HANGS = _instead(
    """            print("This server never answers.", flush=True)
            while (await receive())["type"] != "http.disconnect":
                pass"""
)
FAILS = _instead(
    """            print("This server answers 500.", flush=True)
            await send({"type": "http.response.start", "status": 500, "headers": []})
            await send({"type": "http.response.body", "body": b"no"})"""
)


def _before(which: str, behaviour: str) -> Edit:
    """A healthy server that does `behaviour` before it handles a request, if `which` holds for the request's path."""
    return Edit(
        "mlflow_image/server.py",
        "    return app\n",
        f"""    import asyncio

    hoard = []

    async def drilled(scope, receive, send):
        if scope["type"] == "http" and {which}:
            {behaviour}
        await app(scope, receive, send)

    return drilled
""",
    )


LEAKS = _before(
    'any(name in scope["path"] for name in ("search", "log-batch", "get-history", "traces"))',
    f"hoard.append(b'x' * ({LEAK_MIB} * 2**20))",
)
"""It leaks with requests that the load check makes and this drill's clients do not: they must not decide when."""

IMPATIENT = Edit(
    "stages/tracking.py", "STARTUP_GRACE = Duration.seconds(120)", "STARTUP_GRACE = Duration.seconds(5)"
)
"""With a release that never comes up: how soon health checks count decides how long the drill takes, not how it ends."""


@dataclass(frozen=True)
class Place:
    """An environment with a good release in it."""

    environment: str
    workspace: Workspace
    url: str

    @property
    def stage(self) -> str:
        """Its stage in the pipeline."""
        return self.environment.title()

    def seconds_of_a_request(self) -> float:
        """What the load check measured of the last release that passed it here: the larger of its medians."""
        settings = load_settings(self.workspace.root / "platform.toml")
        own = dict(settings.environments.items())[self.environment]
        ssm = Accounts(self.workspace.state).client("ssm", own.account, own.region)
        kept = ssm.get_parameter(Name=load_parameter(f"{settings.name}-{self.environment}"))
        figures = json.loads(kept["Parameter"]["Value"])
        return float(max(figures["read_p50_ms"], figures["write_p50_ms"])) / 1000


def _slow(place: Place) -> tuple[Edit, ...]:
    """So much slower than the release before, and compared with it as the repository's own settings have it; the other
    releases here never are, because this machine may be busy with something else."""
    seconds = max(SLOW_SECONDS, TIMES_SLOWER * place.seconds_of_a_request())
    settings = (place.workspace.root / "platform.toml").read_text(encoding="utf-8")
    compared = settings.replace("max_slowdown = 1000.0", "max_slowdown = 5.0")
    return (
        _before('scope["path"] != "/health"', f"await asyncio.sleep({seconds:.3f})"),
        Edit("platform.toml", settings, compared),
    )


@dataclass(frozen=True)
class Fault:
    """A kind of bad release, and the sign in the rehearsal's output, a regular expression, that it was what stopped the
    release."""

    name: str
    sign: str
    edits: Callable[[Place], tuple[Edit, ...]]
    comes_up: bool = False
    killed: bool = False
    """Whether its tasks are."""


FAULTS = (
    Fault("crashes at start", "This server gives up at once.", lambda _: (CRASHES, IMPATIENT)),
    Fault("hangs", "This server never answers.", lambda _: (HANGS, IMPATIENT)),
    Fault("answers 500", "This server answers 500.", lambda _: (FAILS, IMPATIENT)),
    Fault("slow by 10x", r"\(at most 5 times; if it is meant to be slower", _slow, comes_up=True),
    Fault(
        "leaks until killed",
        r"% > 0\.00%|could not be read back: .* HTTP 50[24]",
        lambda _: (LEAKS,),
        comes_up=True,
        killed=True,
    ),
)
"""On a slow machine the load check may make too few requests to fill the memory, and what it reads back then does."""


@pytest.fixture(scope="module", params=["dev", "staging", "prod"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    name: str = request.param
    with a_workspace(request, f"{name} alone", *QUICK, *alone(name)) as workspace:
        release = workspace.rehearse(f"A good release in {name}", approve=True)
        assert release.status == 0, release.output
        yield Place(name, workspace, release.environments[name]["url"])


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name.replace(" ", "-") for fault in FAULTS])
def test_it_is_stopped_and_the_old_version_serves_alone(place: Place, fault: Fault) -> None:
    """The stage is rolled back by itself, nothing acknowledged is lost, and no request fails unless tasks are killed."""
    workspace, environment = place.workspace, place.environment
    before = workspace.tasks(environment)
    # No request can reach a release that never comes up; these say that the old version serves on.
    pause = CLIENT_PAUSE_SECONDS if fault.comes_up else 3 * CLIENT_PAUSE_SECONDS
    with drill(f"bad release: {fault.name} in {environment}") as figures:
        with (
            Client(place.url, pause=pause) as client,
            Watch(workspace, environment, client) as watch,
        ):
            [old] = {watch.image(task) for task in before}
            release = workspace.release(f"{fault.name} in {environment}", *fault.edits(place), approve=True)
            enough = client.succeeded + 20
            wait_until(lambda: client.succeeded >= enough, "20 more good requests", SECONDS)
        figures.count([client])

        action = "Load" if fault.comes_up else f"mlflow-{environment}-tracking.Deploy"
        assert release.status != 0
        assert release.stopped_at == (place.stage, action)
        assert re.search(fault.sign, release.output)
        report = (workspace.state / "report.html").read_text(encoding="utf-8")
        assert re.search(fault.sign, html.unescape(report))
        rollback = release.report["rollback"]
        assert rollback is not None
        assert (rollback["rollback_stage"], rollback["status"]) == (place.stage, "Succeeded")

        last = watch.looks[-1]
        assert last.running == last.healthy
        assert {watch.image(task) for task in last.running} == {old}
        assert len(last.running) == len(before)
        if not fault.comes_up:
            assert last.running == before

        if fault.killed:
            _assert_only_kills_were_felt(client, watch, old)
        else:
            assert not client.failures, f"{len(client.failures)} of {client.requests}: {client.failures[:5]}"
        assert client.succeeded > 50
        assert client.lost() == []
        figures.result = (
            f"stopped at {action}, only the old version serves after {watch.seconds_of_others(old):.0f} s"
        )


def _assert_only_kills_were_felt(client: Client, watch: Watch, old: str) -> None:
    """What failed was in flight when a task was killed, or came while none was left; after the first kill others succeeded
    before the old version was back."""
    killed = watch.killed()
    assert killed
    times = killed + watch.refused()
    others = [f for f in client.failures if not any(f.overlaps(*time) for time in times)]
    assert not others, f"{len(others)} of {client.requests} have no cause: {others[:5]}"
    assert watch.succeeded((killed[0][0], watch.with_others(old)[1])) > 0
