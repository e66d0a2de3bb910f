"""Images without a container engine: how a Dockerfile is read, and what its digest depends on."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from rehearsal.images import ImageStore, main

from .assembly import ROOT

DOCKERFILE = """\
# A comment
ARG BASE=python:3.12
FROM ${BASE} AS build
ENV BUILDING=1
RUN make everything
ENTRYPOINT ["/not/this"]

FROM ${BASE}
LABEL title="server" \\
      licenses="Apache-2.0"
ENV FIRST=1 SECOND="two words" PYTHONPATH=/app:/opt/venv/lib:/nowhere
COPY --from=build /opt/venv /opt/venv
COPY entrypoint.py settings.py /app/
COPY --chmod=644 *.txt notes /data/
COPY settings.py /etc/renamed.py
# between
WORKDIR /tmp
USER 10001
HEALTHCHECK --interval=5s \\
    CMD ["/opt/venv/bin/python", "-c", "pass"]
ENTRYPOINT ["/opt/venv/bin/python", "/app/entrypoint.py"]
CMD ["serve"]
"""
LOCK = "nothing==1\n"


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    (folder / "notes").mkdir(parents=True)
    for name, text in {
        "Dockerfile": DOCKERFILE,
        "requirements.lock": LOCK,
        "entrypoint.py": "print('here')",
        "settings.py": "x = 1",
        "one.txt": "1",
        "two.txt": "2",
        "notes/deep.md": "deep",
    }.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return store_with_layer(tmp_path / "images", LOCK)


def store_with_layer(directory: Path, lock: str) -> ImageStore:
    """A store that has the packages of `lock` already, so that nothing is fetched."""
    layer = directory / "layers" / hashlib.sha256(f"{lock}{sys.version}".encode()).hexdigest()[:16]
    (layer / "bin").mkdir(parents=True)
    (layer / "lib").mkdir()
    (layer / "bin" / "python").touch()
    (layer / ".complete").touch()
    return ImageStore(directory)


def test_the_last_stage_says_what_is_run(store: ImageStore, context: Path) -> None:
    image = store.build(context, "server")
    root = Path(image.root)
    assert image.entrypoint == [f"{root}/opt/venv/bin/python", f"{root}/app/entrypoint.py"]
    assert image.command == ["serve"]
    assert image.directory == f"{root}/tmp"
    assert image.environment == {
        "FIRST": "1",
        "SECOND": "two words",
        "PYTHONPATH": f"{root}/app:{root}/opt/venv/lib:/nowhere",
    }


def test_files_are_where_the_container_would_find_them(store: ImageStore, context: Path) -> None:
    root = Path(store.build(context, "server").root)
    made = ("opt", "__pycache__")
    files = {
        p.relative_to(root).as_posix()
        for p in root.rglob("*")
        if p.is_file() and not any(part in made for part in p.parts)
    }
    assert files == {
        "image.json",
        "app/entrypoint.py",
        "app/settings.py",
        "data/one.txt",
        "data/two.txt",
        "data/deep.md",
        "etc/renamed.py",
    }
    assert (root / "opt" / "venv" / "bin" / "python").exists()


def test_its_modules_are_compiled_once_not_at_each_start(store: ImageStore, context: Path) -> None:
    folder = Path(store.build(context, "server").root) / "app"
    for module in ("entrypoint", "settings"):
        source = folder / f"{module}.py"
        compiled = Path(importlib.util.cache_from_source(str(source))).read_bytes()
        assert int.from_bytes(compiled[8:12], "little") == int(source.stat().st_mtime)


def test_the_digest_is_of_the_content_alone(store: ImageStore, context: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(context, elsewhere)
    (elsewhere / "__pycache__").mkdir()
    (elsewhere / "__pycache__" / "settings.pyc").touch()
    digest = store.build(context, "one").digest
    assert re.fullmatch("sha256:[0-9a-f]{64}", digest)
    assert store.build(elsewhere, "two").digest == digest


@pytest.mark.parametrize("change", ["entrypoint.py", "Dockerfile", "notes/deep.md"])
def test_the_digest_changes_with_the_content(store: ImageStore, context: Path, change: str) -> None:
    before = store.build(context, "server")
    with (context / change).open("a", encoding="utf-8") as file:
        file.write("\n# changed")
    after = store.build(context, "server")
    assert after.digest != before.digest
    assert after.root != before.root
    assert Path(before.root, "app", "entrypoint.py").exists(), (
        "tasks of the image before still run from there"
    )


def test_the_digest_changes_with_a_file_s_name(store: ImageStore, context: Path) -> None:
    before = store.build(context, "server").digest
    (context / "one.txt").rename(context / "onf.txt")  # stays at its place in the order
    assert store.build(context, "server").digest != before


def test_the_same_content_is_built_once(store: ImageStore, context: Path) -> None:
    first = Path(store.build(context, "one").root, "app", "settings.py")
    written = first.stat().st_mtime_ns
    store.build(context, "two")
    assert first.stat().st_mtime_ns == written


def test_a_half_built_image_is_built_anew(store: ImageStore, context: Path) -> None:
    image = store.build(context, "server")
    Path(image.root, "image.json").unlink()
    Path(image.root, "app", "entrypoint.py").unlink()
    assert Path(store.build(context, "server").root, "app", "entrypoint.py").exists()


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            "COPY entrypoint.py",
            "ADD entrypoint.py",
            "Dockerfile: ADD is not rehearsed; its last stage may hold FROM, COPY, ENV, WORKDIR, ENTRYPOINT, CMD",
        ),
        (
            'CMD ["serve"]',
            "CMD serve",
            "Dockerfile: CMD serve runs in a shell, which swallows SIGTERM; write",
        ),
        (
            "entrypoint.py settings.py /app/",
            "gone.py /app/",
            "Dockerfile: COPY names gone.py, which is not in",
        ),
        ("*.txt notes", "*.gone notes", "Dockerfile: COPY names *.gone, which is not in"),
    ],
)
def test_dockerfiles_that_are_refused(
    store: ImageStore, context: Path, old: str, new: str, sentence: str
) -> None:
    assert old in DOCKERFILE
    (context / "Dockerfile").write_text(DOCKERFILE.replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(sentence)):
        store.build(context, "server")
    with pytest.raises(KeyError):
        store.find("server")


def test_the_repository_s_own_image(tmp_path: Path) -> None:
    context = ROOT / "mlflow_image"
    lock = (context / "requirements.lock").read_text(encoding="utf-8")
    image = store_with_layer(tmp_path / "images", lock).build(context, "server")
    python, entrypoint = image.entrypoint
    assert (Path(python).name, image.command) == ("python", ["serve"])
    present = {path.name for path in Path(entrypoint).parent.iterdir()}
    modules = {path.name for path in context.glob("*.py")}
    assert present == modules | {"rds_ca.pem", "__pycache__"}, "the Dockerfile copies every module"


# As a program


def docker(state: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setenv("REHEARSAL_STATE", str(state))
    monkeypatch.setattr("sys.stdin", io.StringIO("a password"))
    return main(list(arguments))


def test_what_cdk_assets_asks_of_docker(
    tmp_path: Path, context: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store_with_layer(tmp_path / "images", LOCK)
    assert docker(tmp_path, monkeypatch, "login", "--username", "AWS", "--password-stdin", "host") == 0
    assert docker(tmp_path, monkeypatch, "inspect", "asset") == 1
    assert "no image asset was built or pushed in this rehearsal" in capsys.readouterr().err
    assert (
        docker(tmp_path, monkeypatch, "build", "--platform", "linux/amd64", "--tag", "asset", str(context))
        == 0
    )
    built = capsys.readouterr().out.split()[1]
    assert docker(tmp_path, monkeypatch, "tag", "asset", "host/repository:asset") == 0
    assert docker(tmp_path, monkeypatch, "inspect", "host/repository:asset") == 0
    assert json.loads(capsys.readouterr().out)["digest"] == built


def test_what_docker_does_not_do_here_is_said(
    tmp_path: Path, context: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert docker(tmp_path, monkeypatch, "run", "asset") == 1
    assert (
        "docker run asset is not rehearsed: teach rehearsal/images.py what it does" in capsys.readouterr().err
    )
    (context / "Dockerfile").write_text("FROM x\nADD a b\n", encoding="utf-8")
    assert docker(tmp_path, monkeypatch, "build", "--tag", "asset", str(context)) == 1
    assert "Dockerfile: ADD is not rehearsed" in capsys.readouterr().err
