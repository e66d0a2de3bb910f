"""An engine is believed only after a trial; here the engines are programs that fail in one way each."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from operations.containers import Engine, NoEngine
from rehearsal.engine import choose, chosen, usable_engine
from rehearsal.run import CannotRehearse, Rehearsal

PODMAN = """#!{python}
import re, socket, sys
words = sys.argv[1:]
def reach():
    port = re.search(r'"127.0.0.1", (\\d+)', " ".join(words))[1]
    socket.create_connection(("127.0.0.1", int(port)), 20).close()
match words[0]:
    case "image":
        sys.exit({known})
    case "pull":
        sys.exit("Error: pinging container registry: no route to host")
    case "run":
        {run}
"""


@pytest.fixture
def dockerfile(tmp_path: Path) -> Path:
    file = tmp_path / "mlflow_image" / "Dockerfile"
    file.parent.mkdir()
    file.write_text(
        "ARG PYTHON_IMAGE=registry.example.org/python:3\nFROM ${PYTHON_IMAGE}\n", encoding="utf-8"
    )
    return file


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, run: str, *, known: int = 0) -> None:
    """A podman that runs containers in its own way, and no other engine."""
    tools = folder / "tools"
    tools.mkdir()
    program = tools / "podman"
    program.write_text(PODMAN.format(python=sys.executable, run=run, known=known), encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))


def test_an_engine_that_runs_a_container_as_tasks_are_run(
    tmp_path: Path, dockerfile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, "reach(); sys.exit(137)")
    assert usable_engine(dockerfile) == Engine("podman")


@pytest.mark.parametrize(
    ("run", "sentence"),
    [
        ("reach()", r"does not hold them to their memory \(exit status 0\)"),
        ("sys.exit(137)", r"cannot run one as tasks are run: exit status 137"),
        ('sys.exit("socket.create_connection: refused")', r"keeps them away from .* 127\.0\.0\.1"),
        ('sys.exit("Error: OCI permission denied")', r"as tasks are run: Error: OCI permission denied"),
    ],
)
def test_an_engine_that_is_not_fit_is_not_used(
    tmp_path: Path, dockerfile: Path, monkeypatch: pytest.MonkeyPatch, run: str, sentence: str
) -> None:
    install(tmp_path, monkeypatch, run)
    with pytest.raises(NoEngine, match=sentence):
        usable_engine(dockerfile)


def test_the_base_must_be_had(tmp_path: Path, dockerfile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "reach(); sys.exit(137)", known=1)
    with pytest.raises(
        NoEngine, match=r"registry\.example\.org/python:3, .* cannot be pulled .*no route to host"
    ):
        usable_engine(dockerfile)


def test_it_is_remembered_what_tasks_are(tmp_path: Path) -> None:
    assert chosen(tmp_path) is None
    choose(tmp_path, Engine("podman"))
    assert chosen(tmp_path) == Engine("podman")
    choose(tmp_path, None)
    assert chosen(tmp_path) is None


def test_without_an_engine_tasks_are_processes_unless_containers_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    engine, sentence = Rehearsal(tmp_path, None, containers=None)._choose_tasks()
    assert engine is None
    assert sentence.startswith("Tasks are processes, not containers: No container engine answers here.")
    with pytest.raises(CannotRehearse, match=r"CONTAINERS=yes cannot be: No container engine answers here\."):
        Rehearsal(tmp_path, None, containers=True)._choose_tasks()


def test_an_engine_is_left_alone_when_processes_are_asked_for(
    tmp_path: Path, dockerfile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, "reach(); sys.exit(137)")
    assert Rehearsal(tmp_path, None, containers=None)._choose_tasks()[0] == Engine("podman")
    assert Rehearsal(tmp_path, None, containers=False)._choose_tasks()[0] is None


def test_running_environments_keep_what_their_tasks_are(tmp_path: Path) -> None:
    (tmp_path / ".rehearsal").mkdir()
    choose(tmp_path / ".rehearsal", Engine("podman"))
    assert "containers, run by podman" in Rehearsal(tmp_path, None, containers=None)._keep_tasks()
    assert "containers, run by podman" in Rehearsal(tmp_path, None, containers=True)._keep_tasks()
    with pytest.raises(
        CannotRehearse, match=r"CONTAINERS=no comes too late: tasks are containers.*make down"
    ):
        Rehearsal(tmp_path, None, containers=False)._keep_tasks()
