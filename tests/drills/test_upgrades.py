"""Upgrades and rollbacks of the image alone, without a pipeline: data of old releases of MLflow, made by their own
servers, and this repository's `migrate` and `serve` on it.

3.10.0 and 3.16.1 stand for releases of this repository that had those pinned. What lies between them is additive; on
the way to the pinned version, 3.17 moves what traces say into columns and drops one that older servers read.

Each drill prints one line of figures. `figures.py` keeps it.
"""

from __future__ import annotations

import dataclasses
import shutil
import signal
import sysconfig
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from rehearsal.processes import kill_session

from .census import Census
from .client import Client, Failure, PoliteClient
from .figures import drill
from .old_versions import PINNED, Program, Release, Server, old
from .places import Place, Places, folder
from .workspace import Edit, wait_until

pytestmark = pytest.mark.drill

SECONDS = 300
"""A bound that only something that hangs can reach."""

PREVIOUS, NEXT = "3.10.0", "3.16.1"
NO_SNAPSHOT = {"MIGRATE_WITHOUT_SNAPSHOT": "true"}
OUTAGE_SECONDS = 60
INSTANCE = "drill-database"

BREAKING = '''"""drop the entry point of runs"""

from alembic import op

revision = "ffffffffff01"
down_revision = "{head}"


def upgrade():
    op.drop_column("runs", "entry_point_name")


def downgrade():
    pass
'''


@pytest.fixture(scope="module")
def places() -> Iterator[Places]:
    with folder() as path:
        places = Places(path)
        try:
            yield places
        finally:
            places.remove()


@dataclass(frozen=True)
class Data:
    """A place with data in it that nobody uses, to be copied, and what is there."""

    place: Place
    census: Census


Made = Callable[[str], Data]


@pytest.fixture(scope="module")
def made(places: Places) -> Made:
    """Data of an old release of MLflow, written through its own server by its own client; made once."""
    kept: dict[str, Data] = {}

    def make(version: str) -> Data:
        if version not in kept:
            release, place = old(version), places.create(f"made-by-{version}")
            with serving(release.own_server(place.variables)) as server:
                acknowledged = release.make_data(server.url, "first")
                census = place.census(server.url)
            assert census.count("run") == acknowledged["runs"]
            assert census.count("trace") == acknowledged["traces"]
            assert census.count("model") == acknowledged["models"] + acknowledged["prompts"]
            assert census.count("version") == 2 * census.count("model")
            assert census.count("artifact") >= 48
            kept[version] = Data(place, census)
        return kept[version]

    return make


@pytest.fixture(scope="module")
def current(places: Places) -> Data:
    """A database that the pinned release has created, with data that it has written."""
    place = places.create("current")
    done = PINNED.migrate(place.variables).wait()
    assert done.status == 0, done.output
    assert done.told["kind"] == "created"
    with serving(PINNED.serve(place.variables)) as server:
        PINNED.make_data(server.url, "first")
        return Data(place, place.census(server.url))


@pytest.fixture(scope="module")
def upgraded(places: Places, made: Made) -> Data:
    """3.10.0's data after the upgrade to 3.16.1 while two servers of 3.10.0 were used."""
    data = made(PREVIOUS)
    place = places.create("upgraded", data.place)
    previous = old(PREVIOUS)
    with (
        drill(f"upgrade {PREVIOUS} to {NEXT} under load") as figures,
        serving(previous.serve(place.variables)) as first,
        serving(previous.serve(place.variables)) as second,
    ):
        with PoliteClient(first.url) as one, PoliteClient(second.url) as other:
            clients = (one, other)
            _succeed(clients, 30)
            done = old(NEXT).migrate(place.variables, **NO_SNAPSHOT).wait()
            _succeed(clients, 30)
        figures.count(clients)
        assert done.status == 0, done.output
        assert done.told["kind"] == "additive"
        assert len(done.told["applied"]) >= 10
        failures = one.failures + other.failures
        assert not failures, f"{len(failures)} failed: {failures[:5]}"
        assert [sentence for client in clients for sentence in client.lost()] == []
        with serving(old(NEXT).serve(place.variables)) as server:
            for client in clients:
                client.url = server.url
            assert [sentence for client in clients for sentence in client.lost()] == []
            census = place.census(server.url)
        assert data.census.missing_in(census) == []
        figures.rows(data.census.rows, census.rows)
        figures.result = "no request failed"
    return Data(place, census)


def test_an_additive_upgrade_under_load_fails_no_request(upgraded: Data) -> None:
    """The work is the fixture's, as the rollback goes on from there."""
    history = upgraded.place.query("SELECT kind FROM platform_migrations")
    assert {kind for (kind,) in history} == {"additive"}


def test_a_rollback_loses_nothing(places: Places, upgraded: Data) -> None:
    """What 3.16.1 wrote is read by 3.10.0 on the newer database, and what that writes then by both."""
    place = places.create("rolled-back", upgraded.place)
    previous, newer = old(PREVIOUS), old(NEXT)
    with drill(f"roll back {NEXT} to {PREVIOUS}") as figures:
        with serving(newer.serve(place.variables)) as server:
            newer.make_data(server.url, "since the upgrade", "no-version-lookups")
            before = place.census(server.url)
        rows = place.rows()
        done = previous.migrate(place.variables).wait()
        assert done.status == 0, done.output
        assert done.told["kind"] == "none"
        assert place.rows() == rows
        with serving(previous.serve(place.variables)) as server, PoliteClient(server.url) as client:
            _succeed([client], 30)
        figures.count([client])
        with serving(previous.serve(place.variables)) as server:
            assert "WARNING" in server.output
            assert before.missing_in(place.census(server.url)) == []
            previous.make_data(server.url, "after the rollback", "no-version-lookups")
            after = place.census(server.url)
        assert not client.failures
        assert before.missing_in(after) == []
        with serving(newer.serve(place.variables)) as server:
            assert after.missing_in(place.census(server.url)) == []
            client.url = server.url
            assert client.lost() == []
        figures.rows(before.rows, after.rows)
        figures.result = "all read by both"


@pytest.mark.parametrize("version", ["2.6.0", "2.22.5", "3.10.0"])
def test_an_upgrade_keeps_everything(places: Places, made: Made, current: Data, version: str) -> None:
    """From each old release to the pinned one. Each has something breaking pending, so it asks first."""
    data = made(version)
    place = places.create(f"from-{version}", data.place)
    with drill(f"upgrade {version} to the pinned version") as figures:
        asked = PINNED.migrate(place.variables, **NO_SNAPSHOT).wait()
        assert asked.status == 3, asked.output
        assert place.rows() == data.census.rows
        head = _revision(current.place)
        assert f'allow_breaking_migration = "{head}"' in asked.told["error"]
        began = time.monotonic()
        done = PINNED.migrate(place.variables, **NO_SNAPSHOT, ALLOW_BREAKING_MIGRATION=head).wait()
        assert done.status == 0, done.output
        with serving(PINNED.serve(place.variables)) as server:
            figures.refusal = time.monotonic() - began
            census = place.census(server.url)
        assert data.census.differences(census) == []
        figures.rows(data.census.rows, census.rows)
        figures.result = "asked, then equal"


def test_a_breaking_migration_asks_and_cannot_be_rolled_back(
    places: Places, current: Data, tmp_path: Path
) -> None:
    """A made-up release drops a column. It asks, takes a snapshot, works; the release before refuses, and says how to
    go back."""
    place = places.create("broken", current.place)
    head = _revision(place)
    breaking = _breaking_release(tmp_path, head)
    places.client("rds").create_db_instance(
        DBInstanceIdentifier=INSTANCE,
        Engine="postgres",
        DBInstanceClass="db.t3.micro",
        AllocatedStorage=20,
        MasterUsername="drill",
        MasterUserPassword="not used here",
    )
    with drill("made-up breaking migration") as figures:
        for variables in ({}, {"ALLOW_BREAKING_MIGRATION": head}):  # the second was for another release
            asked = breaking.migrate(place.variables, DATABASE_INSTANCE=INSTANCE, **variables).wait()
            assert asked.status == 3, asked.output
            assert "runs" in asked.told["error"]
            assert "ffffffffff01" in asked.told["error"]
            assert _state(place) == _state(current.place)
        assert _snapshots(places) == []
        done = breaking.migrate(
            place.variables, DATABASE_INSTANCE=INSTANCE, ALLOW_BREAKING_MIGRATION="ffffffffff01"
        ).wait()
        assert done.status == 0, done.output
        assert done.told["kind"] == "breaking"
        assert [done.told["snapshot"]] == _snapshots(places)
        with serving(breaking.serve(place.variables)) as server:
            census = place.census(server.url)
        assert current.census.differences(census) == []

        state = _state(place)
        refused = PINNED.migrate(place.variables, DATABASE_INSTANCE=INSTANCE).wait()
        assert refused.status == 3, refused.output
        serve = PINNED.serve(place.variables).wait()
        assert serve.status == 3, serve.output
        for sentence in (refused.told["error"], serve.output):
            assert f'restore_from = "{done.told["snapshot"]}"' in sentence
            assert "since" in sentence
        assert _state(place) == state
        assert len(_snapshots(places)) == 1
        figures.rows(current.census.rows, census.rows)
        figures.result = "asked; rollback refused with the mend"


@pytest.mark.parametrize("start", ["empty", "2.22.5"])
def test_two_migrations_at_once(places: Places, made: Made, current: Data, start: str) -> None:
    """One works, one waits; both say that all is well."""
    like = None if start == "empty" else made(start)
    place = places.create(f"two-at-once-{start}", like.place if like else None)
    with drill(f"two migrations at once, {start}") as figures:
        before = place.rows()
        variables = {**NO_SNAPSHOT, "ALLOW_BREAKING_MIGRATION": _revision(current.place)}
        both = [PINNED.migrate(place.variables, **variables) for _ in range(2)]
        ended = [program.wait() for program in both]
        assert [end.status for end in ended] == [0, 0], [end.output for end in ended]
        kinds = sorted(end.told["kind"] for end in ended)
        assert kinds == sorted(["none", "breaking" if like else "created"])
        assert sum("waiting" in end.output.lower() for end in ended) == 1
        [applied] = [end.told["applied"] for end in ended if end.told["applied"]]
        assert _written(place) == {entry["revision"] for entry in applied}
        assert _revision(place) == _revision(current.place)
        if like:
            assert _less(like.census.rows, place.rows()) == []
        figures.rows(before, place.rows())
        figures.result = "one worked, one waited"


@pytest.mark.parametrize("revisions", [0, 1, 12, 30])
def test_a_killed_migration_is_completed(places: Places, made: Made, current: Data, revisions: int) -> None:
    """SIGKILL once so many of the pending migrations are written down; the next start does the rest."""
    data = made("2.22.5")
    place = places.create(f"killed-after-{revisions}", data.place)
    head = _revision(current.place)
    variables = {**NO_SNAPSHOT, "ALLOW_BREAKING_MIGRATION": head}
    with drill(f"migration killed after {revisions} revisions") as figures:
        program = PINNED.migrate(place.variables, **variables)
        _wait_for_revisions(place, program, revisions)
        kill_session(program.process.pid)
        killed = program.wait()
        assert killed.status == -signal.SIGKILL, killed.output
        left = _written(place)
        assert revisions <= len(left)
        assert head not in left
        done = PINNED.migrate(place.variables, **variables).wait()
        assert done.status == 0, done.output
        assert done.told["after"] == head
        rest = {entry["revision"] for entry in done.told["applied"]}
        assert rest == _written(place) - left
        assert _revision(place) == head
        assert _less(data.census.rows, place.rows()) == []
        if revisions == 12:  # the others differ in nothing that the reading would show
            with serving(PINNED.serve(place.variables)) as server:
                assert data.census.differences(place.census(server.url)) == []
        figures.rows(data.census.rows, place.rows())
        figures.result = f"completed after {len(left)} of {len(_written(place))}"


def test_an_unavailable_bucket_fails_no_more_than_what_needs_it(places: Places, current: Data) -> None:
    """While the bucket cannot be reached, artifacts fail and nothing else; when it can, all is well without a hand."""
    place = places.create("bucket-gone", current.place)
    with (
        drill(f"bucket unavailable for {OUTAGE_SECONDS} s") as figures,
        serving(PINNED.serve(place.variables)) as server,
    ):
        with Client(server.url) as client:
            _succeed([client], 40)
            gone = time.monotonic()
            places.close_road()
            try:
                wait_until(lambda: len(client.failures) > 0, "a failure without a bucket", SECONDS)
                time.sleep(OUTAGE_SECONDS)
            finally:
                places.open_road()
            back = time.monotonic()
            _succeed([client], 60)
        figures.count([client])
        _assert_within(client.failures, gone, back)
        assert {failure.what for failure in client.failures} <= {"upload", "download"}
        assert client.lost() == []
        census = place.census(server.url)
        assert current.census.missing_in(census) == []
        figures.rows(current.census.rows, census.rows)
        figures.result = "failed in the outage only"


def test_a_restarted_database_fails_only_meanwhile(places: Places, current: Data) -> None:
    """The database is restarted under load: what fails began before it was back, and nothing acknowledged is lost."""
    place = places.create("database-restarted", current.place)
    with drill("database restarted") as figures, serving(PINNED.serve(place.variables)) as server:
        with Client(server.url) as client:
            _succeed([client], 40)
            gone = time.monotonic()
            places.postgres.stop()
            try:
                wait_until(lambda: len(client.failures) > 3, "failures without a database", SECONDS)
            finally:
                places.postgres.start()
            back = time.monotonic()
            _succeed([client], 60)
        figures.count([client])
        _assert_within(client.failures, gone, back)
        assert client.lost() == []
        census = place.census(server.url)
        assert current.census.missing_in(census) == []
        figures.rows(current.census.rows, census.rows)
        figures.result = "failed in the outage only"


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """The server, healthy at the beginning of the block and stopped at its end."""
    try:
        yield server.healthy()
    finally:
        server.stop()


def _succeed(clients: Iterable[Client], count: int) -> None:
    """Wait until each client has had so many more requests that went well."""
    for client in clients:
        enough = client.succeeded + count
        wait_until(lambda client=client, enough=enough: client.succeeded >= enough, "requests", SECONDS)  # type: ignore[misc]


def _assert_within(failures: list[Failure], gone: float, back: float) -> None:
    """Every failure ended after the outage began, and began before it ended."""
    assert failures
    outside = [failure for failure in failures if failure.ended < gone or failure.began > back]
    assert not outside, f"{len(outside)} of {len(failures)} failed outside the outage: {outside[:5]}"


def _revision(place: Place) -> str:
    return str(place.query("SELECT version_num FROM alembic_version")[0][0])


def _written(place: Place) -> set[str]:
    """The revisions in the platform's history."""
    if not place.query("SELECT 1 FROM pg_tables WHERE tablename = 'platform_migrations'"):
        return set()
    return {str(revision) for (revision,) in place.query("SELECT revision FROM platform_migrations")}


def _state(place: Place) -> tuple[str, dict[str, int], set[str]]:
    """What a refusal must not change."""
    return _revision(place), place.rows(), _written(place)


def _less(before: Mapping[str, int], after: Mapping[str, int]) -> list[str]:
    """The tables that have fewer rows than before, in sentences."""
    return Census(dict(before), {}).missing_in(Census(dict(after), {}))


def _wait_for_revisions(place: Place, program: Program, revisions: int) -> None:
    """Return once the program holds the lock and so many revisions are written down."""
    deadline = time.monotonic() + SECONDS
    while not place.query("SELECT 1 FROM pg_locks WHERE locktype = 'advisory'") or (
        revisions and len(_written(place)) < revisions
    ):
        assert program.process.poll() is None, f"the migration ended before it was killed\n{program.output}"
        assert time.monotonic() < deadline, program.output


def _snapshots(places: Places) -> list[str]:
    found = places.client("rds").describe_db_snapshots(DBInstanceIdentifier=INSTANCE, SnapshotType="manual")
    return [snapshot["DBSnapshotIdentifier"] for snapshot in found["DBSnapshots"]]


def _breaking_release(folder: Path, head: str) -> Release:
    """The pinned release with one more migration, which drops a column that its own server does without."""
    mlflow = Path(sysconfig.get_path("purelib")) / "mlflow"
    edits = (
        Edit("mlflow/store/tracking/dbmodels/models.py", "    entry_point_name = Column(String(50))\n", ""),
        Edit("mlflow/store/tracking/sqlalchemy_store.py", 'entry_point_name="",', ""),
    )
    edited = {mlflow.parent / edit.file for edit in edits}

    def copy(source: str, target: str) -> None:
        if Path(source) in edited:
            shutil.copy(source, target)
        else:
            Path(target).symlink_to(source)

    shutil.copytree(mlflow, folder / "mlflow", copy_function=copy)
    for edit in edits:
        edit.apply(folder)
    versions = folder / "mlflow/store/db_migrations/versions"
    (versions / "ffffffffff01_drop_the_entry_point.py").write_text(BREAKING.replace("{head}", head))
    return dataclasses.replace(PINNED, name="breaking", variables={"PYTHONPATH": str(folder)})
