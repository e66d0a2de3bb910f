"""Container images: what stands in for `docker` in a rehearsed build.

`cdk-assets` calls a program named docker: login, inspect, build, tag, push. Where the rehearsal has a container engine,
`build` is that engine's, of the real Dockerfile, for this machine's own kind of processor. Without one, it reads the
Dockerfile's last stage and makes a folder with what a container would find: the virtual environment from the image's
locked requirements, with hashes checked, and the files that COPY names. A task is then a process with the image's own
entrypoint, environment and working directory. `push` remembers the image under its repository's name.

What is not done without an engine: RUN instructions of the last stage, its base image, its user.
"""

from __future__ import annotations

import compileall
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from operations.containers import BuildFailed, Engine
from rehearsal.engine import chosen

VIRTUAL_ENVIRONMENT = "/opt/venv"
REQUIREMENTS = "requirements.lock"
CARRIED_OUT = ("FROM", "COPY", "ENV", "WORKDIR", "ENTRYPOINT", "CMD")
WITHOUT_EFFECT = ("ARG", "EXPOSE", "HEALTHCHECK", "LABEL", "RUN", "STOPSIGNAL", "USER", "VOLUME")


@dataclass(frozen=True)
class Image:
    """An image as it can be run here: one that an engine keeps under its digest, or a folder, to which its paths belong."""

    digest: str
    root: str = ""
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    directory: str = "/"
    engine: str = ""


class ImageStore:
    """The images of a rehearsal, and the registry names under which they were pushed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def build(self, context: Path, tag: str) -> Image:
        """Build the Dockerfile of `context`, unless the same content was built before.

        Raises:
            ValueError: the Dockerfile holds something that cannot be done without a container engine.
            subprocess.CalledProcessError: the locked requirements could not be installed.
        """
        digest = _digest(context)
        root = self._directory / digest.removeprefix("sha256:")[:16]
        stage = _last_stage((context / "Dockerfile").read_text(encoding="utf-8"))
        if not (root / "image.json").exists():
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir(parents=True)
            target = root / VIRTUAL_ENVIRONMENT.lstrip("/")
            target.parent.mkdir(parents=True)
            target.symlink_to(self.packages(context / REQUIREMENTS))
            directory = "/"
            for instruction, argument in stage:
                if instruction == "WORKDIR":
                    directory = argument
                elif instruction == "COPY" and "--from=" not in argument:
                    _copy(context, root, directory, argument)
            # As the Dockerfile does: its tasks may not write byte code, and would compile it all at each start.
            compileall.compile_dir(root, quiet=1)
            image = self._describe(digest, root, stage)
            (root / "image.json").write_text(json.dumps(asdict(image), indent=1), encoding="utf-8")
        self.tag(digest, tag)
        return self.find(tag)

    def build_with(self, engine: Engine, context: Path, tag: str, arguments: Mapping[str, str]) -> Image:
        """Have an engine build the Dockerfile of `context`. The same content gives the same digest.

        Raises:
            BuildFailed: the engine said no.
        """
        engine.build(context, tag=tag, arguments=arguments)
        asked = [engine.program, "image", "inspect", "--format", "{{.Id}}", tag]
        said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        digest = f"sha256:{said.removeprefix('sha256:')}"
        root = self._directory / digest.removeprefix("sha256:")[:16]
        root.mkdir(parents=True, exist_ok=True)
        image = Image(digest, engine=engine.program)
        (root / "image.json").write_text(json.dumps(asdict(image), indent=1), encoding="utf-8")
        self.tag(digest, tag)
        return image

    def tag(self, digest: str, name: str) -> None:
        """Give the image of that digest a name, or another one."""
        tags = self._tags()
        tags[name] = digest
        self._directory.mkdir(parents=True, exist_ok=True)
        draft = self._directory / "tags.draft"
        draft.write_text(json.dumps(tags, indent=1), encoding="utf-8")
        draft.replace(self._directory / "tags.json")

    def find(self, tag: str) -> Image:
        """The image of that name.

        Raises:
            KeyError: there is none.
        """
        tags = self._tags()
        if tag not in tags:
            raise KeyError(f"no image {tag} was built or pushed in this rehearsal")
        root = self._directory / tags[tag].removeprefix("sha256:")[:16]
        return Image(**json.loads((root / "image.json").read_text(encoding="utf-8")))

    def _tags(self) -> dict[str, str]:
        file = self._directory / "tags.json"
        tags: dict[str, str] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        return tags

    def packages(self, lock: Path) -> Path:
        """A virtual environment of what a lock file lists, made once for each content and Python: a layer, as it were."""
        made_of = hashlib.sha256(lock.read_bytes() + sys.version.encode())
        layer = self._directory / "layers" / made_of.hexdigest()[:16]
        layer.parent.mkdir(parents=True, exist_ok=True)
        with layer.with_suffix(".lock").open("w") as alone:
            # Two builds of the same packages must not write into one folder.
            fcntl.flock(alone, fcntl.LOCK_EX)
            if not (layer / ".complete").exists():
                shutil.rmtree(layer, ignore_errors=True)
                uv, python = str(Path(sys.executable).with_name("uv")), layer / "bin" / "python"
                for command in (
                    [uv, "venv", "--quiet", "--python", sys.executable, str(layer)],
                    [uv, "pip", "install", "--quiet", "--require-hashes", "--no-deps", "--compile-bytecode",
                     "--python", str(python), "-r", str(lock)],
                ):  # fmt: skip
                    subprocess.run(command, check=True)
                (layer / ".complete").touch()
        return layer.resolve()

    def _describe(self, digest: str, root: Path, stage: list[tuple[str, str]]) -> Image:
        environment: dict[str, str] = {}
        entrypoint: list[str] = []
        command: list[str] = []
        directory = "/"
        for instruction, argument in stage:
            if instruction == "ENV":
                for word in shlex.split(argument):
                    name, _, value = word.partition("=")
                    environment[name] = _inside(root, value)
            elif instruction == "WORKDIR":
                directory = argument
            elif instruction == "ENTRYPOINT":
                entrypoint = _exec_form(instruction, argument)
            elif instruction == "CMD":
                command = _exec_form(instruction, argument)
        inside = root / directory.lstrip("/")
        inside.mkdir(parents=True, exist_ok=True)
        return Image(
            digest,
            str(root.resolve()),
            [_inside(root, word) for word in entrypoint],
            [_inside(root, word) for word in command],
            environment,
            str(inside.resolve()),
        )


def _digest(context: Path) -> str:
    """A digest of everything the image is made from; the same commit gives the same digest."""
    digest = hashlib.sha256()
    for file in sorted(path for path in context.rglob("*") if path.is_file()):
        if "__pycache__" not in file.parts:
            digest.update(file.relative_to(context).as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return f"sha256:{digest.hexdigest()}"


def _last_stage(dockerfile: str) -> list[tuple[str, str]]:
    lines = [line for line in dockerfile.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    instructions: list[tuple[str, str]] = []
    for line in joined.splitlines():
        name, _, argument = line.strip().partition(" ")
        if name.upper() == "FROM":
            instructions = []
        instructions.append((name.upper(), argument.strip()))
    for instruction, _ in instructions:
        if instruction not in (*CARRIED_OUT, *WITHOUT_EFFECT):
            raise ValueError(
                f"Dockerfile: {instruction} is not rehearsed; its last stage may hold {', '.join(CARRIED_OUT)}"
                f" (and {', '.join(WITHOUT_EFFECT)}, which have no effect here)"
            )
    return instructions


def _exec_form(instruction: str, argument: str) -> list[str]:
    try:
        words: list[str] = json.loads(argument)
    except json.JSONDecodeError:
        raise ValueError(
            f'Dockerfile: {instruction} {argument} runs in a shell, which swallows SIGTERM; write ["program", "argument"]'
        ) from None
    return words


def _copy(context: Path, root: Path, directory: str, argument: str) -> None:
    words = [word for word in shlex.split(argument) if not word.startswith("--")]
    *sources, target = words
    place = root / (target if target.startswith("/") else f"{directory}/{target}").lstrip("/")
    for source in sources:
        found = sorted(context.glob(source)) if any(c in source for c in "*?[") else [context / source]
        if not all(path.exists() for path in found) or not found:
            raise ValueError(f"Dockerfile: COPY names {source}, which is not in {context}")
        for path in found:
            if path.is_dir():
                shutil.copytree(path, place, dirs_exist_ok=True)
            elif target.endswith(("/", ".")) or len(sources) > 1 or len(found) > 1:
                place.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, place / path.name)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, place)


def _inside(root: Path, value: str) -> str:
    """Paths of the image that exist below `root` as paths of this machine; anything else as it is."""

    def part(text: str) -> str:
        inside = root / text.lstrip("/")
        return str(inside.absolute()) if text.startswith("/") and len(text) > 1 and inside.exists() else text

    return ":".join(part(text) for text in value.split(":"))


def _push(store: ImageStore, reference: str, endpoint: str, key: dict[str, str]) -> None:
    """Put the image's manifest into the rehearsed ECR, where a later release finds that it is there already."""
    import boto3

    image = store.find(reference)
    host, _, name = reference.partition("/")
    account, _, _, region, *_ = host.split(".")
    repository, _, tag = name.rpartition(":")
    services = boto3.client("sts", endpoint_url=endpoint, region_name=region, **_keyword(key))
    role = f"arn:aws:iam::{account}:role/cdk-hnb659fds-cfn-exec-role-{account}-{region}"
    made = services.assume_role(RoleArn=role, RoleSessionName="registry")["Credentials"]
    ecr = boto3.client(
        "ecr",
        endpoint_url=endpoint,
        region_name=region,
        aws_access_key_id=made["AccessKeyId"],
        aws_secret_access_key=made["SecretAccessKey"],
        aws_session_token=made["SessionToken"],
    )
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": {
            "mediaType": "application/vnd.docker.container.image.v1+json",
            "size": 0,
            "digest": image.digest,
        },
        "layers": [],
    }
    ecr.put_image(repositoryName=repository, imageTag=tag, imageManifest=json.dumps(manifest))


def _keyword(key: dict[str, str]) -> dict[str, str]:
    return {"aws_access_key_id": key["access_key_id"], "aws_secret_access_key": key["secret_access_key"]}


def main(arguments: list[str]) -> int:
    """The subset of docker's command line that `cdk-assets` uses."""
    state = Path(os.environ["REHEARSAL_STATE"])
    store = ImageStore(state / "images")
    match arguments:
        case ["login", *_]:
            sys.stdin.read()
            return 0
        case ["inspect", tag]:
            try:
                print(json.dumps(asdict(store.find(tag))))
            except KeyError as missing:
                return _fail(str(missing))
        case ["build", *options, directory]:
            try:
                tag, engine = _option(options, "--tag"), chosen(state)
                if engine:
                    image = store.build_with(engine, Path(directory), tag, _build_arguments(options))
                else:
                    image = store.build(Path(directory), tag)
            except (ValueError, BuildFailed) as refused:
                return _fail(str(refused))
            print(f"built {image.digest}")
        case ["tag", source, target]:
            store.tag(store.find(source).digest, target)
        case ["push", reference]:
            accounts = json.loads((state / "accounts.json").read_text(encoding="utf-8"))
            _push(store, reference, accounts["endpoint"], accounts["key"])
            print(f"pushed {store.find(reference).digest}")
        case _:
            return _fail(
                f"docker {' '.join(arguments)} is not rehearsed: teach rehearsal/images.py what it does"
            )
    return 0


def _build_arguments(options: list[str]) -> dict[str, str]:
    given = [options[at + 1] for at, word in enumerate(options) if word == "--build-arg"]
    return dict(word.split("=", 1) for word in given)


def _option(options: list[str], name: str) -> str:
    return options[options.index(name) + 1]


def _fail(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
