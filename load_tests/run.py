"""One load from its first user to its last: started, measured over its steady period, and stopped."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import gevent
from gevent.event import Event
from locust.env import Environment
from locust.html import get_html_report
from locust.stats import stats_history

from load_tests.ledger import Ledger
from load_tests.mix import REQUEST_TIMEOUT, TrackingUser
from load_tests.place import Place
from load_tests.settings import LoadSettings
from load_tests.verdict import Sample

_PROGRESS_SECONDS = 10


@dataclass
class Load:
    """What came of a load: the requests of its steady period, how long that was, and locust's own report."""

    samples: list[Sample] = field(default_factory=list)
    seconds: float = 0.0
    incomplete: list[str] = field(default_factory=list)
    html: str = ""


def run_load(settings: LoadSettings, place: Place, ledger: Ledger, stop: Event) -> Load:
    """Run the mix with all users until `settings.seconds` are over, or `stop` is set.

    Only requests that begin after the last user was started are measured. Those that are under way at the end
    are waited for, so that a server that hangs shows as failed requests and not as none.
    """
    TrackingUser.place, TrackingUser.ledger = place, ledger
    signed_in = settings.authorization
    TrackingUser.default_headers = {"Authorization": signed_in} if signed_in else None
    environment = Environment(
        user_classes=[TrackingUser], host=settings.url, reset_stats=True, stop_timeout=4 * REQUEST_TIMEOUT
    )
    load = Load()
    all_started = Event()
    began = ended = float("inf")

    def on_request(name: str, response_time: float, exception: object, start_time: float, **_: Any) -> None:
        if began <= start_time < ended:
            error = None if exception is None else str(exception)
            load.samples.append(Sample(name, response_time, error))

    def on_user_error(exception: Exception, **_: Any) -> None:
        load.incomplete.append(f"a task raised {type(exception).__name__}: {exception}")

    environment.events.request.add_listener(on_request)
    environment.events.user_error.add_listener(on_user_error)
    environment.events.spawning_complete.add_listener(lambda **_: all_started.set())
    runner = environment.create_local_runner()
    history = gevent.spawn(stats_history, runner)
    deadline = time.time() + settings.seconds
    runner.start(settings.users, settings.spawn_rate)
    try:
        while not all_started.wait(0.1) and not stop.is_set() and time.time() < deadline:
            pass
        if not all_started.is_set() and not stop.is_set():
            load.incomplete.append(f"only {runner.user_count} of {settings.users} users started")
        began = time.time()
        while (left := deadline - time.time()) > 0 and not stop.wait(min(_PROGRESS_SECONDS, left)):
            if (to_go := deadline - time.time()) > 0:
                print(f"  {to_go:.0f} s to go, {len(load.samples)} requests measured", flush=True)
        ended = time.time()
    finally:
        runner.stop()
        history.kill()
    if stop.is_set():
        load.incomplete.append(f"interrupted after {ended - began:.0f} s of the steady period")
    load.seconds = ended - began
    load.html = get_html_report(environment, show_download_link=False)
    runner.quit()
    return load
